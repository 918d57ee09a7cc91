//! A small ext4 file system on a loop device, to be filled. Needs root; if it cannot be made, the
//! caller reports that.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Debug)]
pub struct SmallDisk {
    mount: PathBuf,
}

impl SmallDisk {
    pub fn mount(directory: &Path, bytes: u64) -> Option<SmallDisk> {
        SmallDisk::mount_with(directory, bytes, &[])
    }

    /// `options` go to `mkfs.ext4`.
    pub fn mount_with(directory: &Path, bytes: u64, options: &[&str]) -> Option<SmallDisk> {
        let (image, mount) = (
            directory.join("small-disk.img"),
            directory.join("small-disk"),
        );
        File::create(&image).ok()?.set_len(bytes).ok()?;
        std::fs::create_dir(&mount).ok()?;
        let quiet = |command: &mut Command| {
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|it| it.success())
        };
        let made = quiet(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0"])
                .args(options)
                .arg(&image),
        ) && quiet(
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(&image)
                .arg(&mount),
        );
        made.then_some(SmallDisk { mount })
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Like another program, writes until nothing fits.
    pub fn fill(&self) {
        let Ok(mut file) = File::create(self.ballast()) else {
            return;
        };
        for size in [1 << 20, 4 << 10] {
            let block = vec![0xA5; size];
            while file.write_all(&block).is_ok() {}
        }
    }

    pub fn give_back(&self) {
        let _ = std::fs::remove_file(self.ballast());
    }

    /// Like another program, creates files until no more can be created.
    pub fn fill_inodes(&self) {
        let directory = self.mount.join("many");
        let _ = std::fs::create_dir(&directory);
        for number in 0.. {
            if File::create(directory.join(format!("{number}"))).is_err() {
                return;
            }
        }
    }

    pub fn give_inodes_back(&self) {
        let _ = std::fs::remove_dir_all(self.mount.join("many"));
    }

    /// Like the kernel after an error of the file system: all writes fail. False: not supported
    /// here.
    pub fn abort(&self) -> bool {
        let mut command = Command::new("mount");
        command.args(["-o", "remount,abort"]).arg(&self.mount);
        let _ = command.stderr(Stdio::null()).status();
        File::create(self.mount.join("written")).is_err()
    }

    fn ballast(&self) -> PathBuf {
        self.mount.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.mount)
            .stderr(Stdio::null())
            .status();
    }
}
