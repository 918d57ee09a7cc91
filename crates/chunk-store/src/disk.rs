//! The disk interface, as narrow as the store needs it, so that tests can substitute a disk that
//! loses unsynced writes at each step.
//!
//! Paths are relative to the data directory.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use chunkcache_proto::ByteRange;
use rustix::{
    fs::{FallocateFlags, SeekFrom},
    io::Errno,
};

/// Only the edge's own user may read stored data: objects behind credentials, the credentials, and
/// the peers' key.
pub(super) const DIRECTORY_MODE: u32 = 0o700;
pub(super) const FILE_MODE: u32 = 0o600;

/// The space of a file system.
#[derive(Clone, Copy, Debug)]
pub struct DiskSpace {
    pub total_bytes: u64,
    /// Available to this process.
    pub free_bytes: u64,
    /// None: the number of files is not limited.
    pub free_inodes: Option<u64>,
}

/// Modes of [`Disk::open`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    Existing,
    /// Read-only: works even where the file system refuses writes.
    Reading,
    CreateOrExisting,
    /// Empties an existing file.
    Truncate,
}

pub trait Disk: Send + Sync + 'static {
    /// Creates the directory and its parents; one that exists is not an error. Not synced.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    fn open(&self, path: &Path, open: Open) -> io::Result<Arc<dyn DiskFile>>;
    /// Names in a directory; none if there is no such directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in the directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    fn space(&self) -> io::Result<DiskSpace>;
}

pub trait DiskFile: Send + Sync {
    fn len(&self) -> io::Result<u64>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns the number of bytes read; fewer than requested only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Syncs data, and the metadata needed to read it back.
    fn sync_data(&self) -> io::Result<()>;
    /// Frees the blocks of the range, which then reads as zeros. The length stays.
    fn punch(&self, range: ByteRange) -> io::Result<()>;
    /// Bytes of the blocks it uses.
    fn allocated_bytes(&self) -> io::Result<u64>;
    /// Allocates blocks before they are used; the length stays.
    fn allocate(&self, range: ByteRange) -> io::Result<()>;
    /// The first run of bytes at or after `from` that has blocks.
    fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>>;
    /// For sendfile and advice; a simulated file has none.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

/// The disk of the operating system.
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }
}

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(self.root.join(path))
    }

    fn open(&self, path: &Path, open: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(open != Open::Reading);
        options.mode(FILE_MODE);
        match open {
            Open::Existing | Open::Reading => {}
            Open::CreateOrExisting => {
                options.create(true);
            }
            Open::Truncate => {
                options.create(true).truncate(true);
            }
        }
        Ok(Arc::new(RealFile(options.open(self.root.join(path))?)))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.join(path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        // A name that is not UTF-8 is not the store's; ignore it.
        entries
            .filter_map(|e| e.map(|e| e.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(self.root.join(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(self.root.join(path))?.sync_all()
    }

    fn space(&self) -> io::Result<DiskSpace> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(DiskSpace {
            total_bytes: stat.f_blocks * stat.f_frsize,
            free_bytes: stat.f_bavail * stat.f_frsize,
            free_inodes: (stat.f_files > 0).then_some(stat.f_favail),
        })
    }
}

/// The block size of the file systems this runs on.
const BLOCK_BYTES: u64 = 4096;

struct RealFile(fs::File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.size())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn punch(&self, range: ByteRange) -> io::Result<()> {
        // Nothing past the file's end has blocks, and the file system refuses offsets past the
        // length that it supports. The last block is freed only if all of it is punched.
        let len = self.len()?;
        let end = if range.end < len {
            range.end
        } else {
            len.next_multiple_of(BLOCK_BYTES)
        };
        if end <= range.start {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(
            &self.0,
            flags,
            range.start,
            end - range.start,
        )?)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.blocks() * 512)
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        Ok(rustix::fs::fallocate(
            &self.0,
            FallocateFlags::KEEP_SIZE,
            range.start,
            range.len(),
        )?)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
        let start = match rustix::fs::seek(&self.0, SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(&self.0, SeekFrom::Hole(start))?;
        Ok(Some(ByteRange::new(start, end)))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}
