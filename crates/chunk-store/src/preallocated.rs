//! Preallocated files: empty files that a new entry takes over by a rename.
//!
//! Why: creating a file costs ext4 some 500 µs, ten times as much as a rename, and the first byte
//! of a cold object would wait for it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use uuid::Uuid;

use super::{
    PLENTY_OF_INODES,
    disk::{Disk, DiskFile, Open},
};

const DIR: &str = "spare";
/// As many cold objects as are likely to arrive while the committer is busy; further ones create
/// their own files.
const COUNT: usize = 16;

#[derive(Default)]
pub(super) struct PreallocatedFiles(Mutex<Vec<PreallocatedFile>>);

struct PreallocatedFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

impl PreallocatedFiles {
    /// Creates missing files, unless inodes are scarce. Blocking.
    pub fn refill(&self, disk: &dyn Disk) -> io::Result<()> {
        let missing = COUNT.saturating_sub(self.0.lock().len());
        if missing > 0 {
            if disk
                .space()?
                .free_inodes
                .is_some_and(|free| free < PLENTY_OF_INODES)
            {
                return Ok(());
            }
            disk.create_dir(Path::new(DIR))?;
        }
        for _ in 0..missing {
            // Never reuse a name: if a rename is durable in one directory and not in the other, one
            // file has two names, and nothing may be written under the old one.
            let path = Path::new(DIR).join(Uuid::new_v4().to_string());
            let file = disk.open(&path, Open::CreateOrExisting)?;
            self.0.lock().push(PreallocatedFile { path, file });
        }
        Ok(())
    }

    /// Takes an empty file and renames it to `path`, which must not exist. `None`: there is none,
    /// so the caller creates one.
    pub fn take(&self, disk: &dyn Disk, path: &Path) -> Option<Arc<dyn DiskFile>> {
        let PreallocatedFile { path: spare, file } = self.0.lock().pop()?;
        let renamed = disk.rename(&spare, path).or_else(|error| {
            // The target's directory may not exist yet.
            match (error.kind(), path.parent()) {
                (io::ErrorKind::NotFound, Some(parent)) => {
                    disk.create_dir(parent)?;
                    disk.rename(&spare, path)
                }
                _ => Err(error),
            }
        });
        match renamed {
            Ok(()) => Some(file),
            Err(error) => {
                tracing::debug!(%error, "a spare file can not be used");
                let _ = disk.remove_file(&spare);
                None
            }
        }
    }
}

/// Removes the names of an earlier run's files; a file that became an entry's file has another
/// name. Failures do no harm.
pub(super) fn remove_leftovers(disk: &dyn Disk) {
    for name in disk.list(Path::new(DIR)).unwrap_or_default() {
        if let Err(error) = disk.remove_file(&Path::new(DIR).join(&name)) {
            tracing::warn!(%error, name, "a spare file of an earlier run could not be removed");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::{super::disk::RealDisk, *};

    #[test]
    fn a_spare_becomes_the_file_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, spares) = (
            RealDisk::new(dir.path().into()),
            PreallocatedFiles::default(),
        );
        let left = || fs::read_dir(dir.path().join(DIR)).unwrap().count();
        let path = Path::new("entries/ab/file");
        assert!(spares.take(&disk, path).is_none(), "none was made yet");
        spares.refill(&disk).unwrap();
        let file = spares.take(&disk, path).unwrap();
        file.write_all_at(b"here", 0).unwrap();
        assert_eq!(fs::read(dir.path().join(path)).unwrap(), b"here");
        assert_eq!(left(), COUNT - 1);
        spares.refill(&disk).unwrap();
        assert_eq!(left(), COUNT);
        remove_leftovers(&disk);
        assert_eq!(left(), 0);
        assert!(spares.take(&disk, path).is_none(), "its name is gone");
        assert_eq!(fs::read(dir.path().join(path)).unwrap(), b"here");
    }
}
