//! Whether the disk accepts writes, and if not, why.
//!
//! A failed write, sync or creation makes the store degraded: new writes are refused at once
//! (misses then pass through uncached), and reads continue. A probe finds out when the disk works
//! again.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

use chunkcache_proto::ByteRange;
use rustix::io::Errno;

use super::{
    StoreError,
    disk::{Disk, DiskFile, Open},
};

/// As large as a small chunk, so that a nearly full disk does not count as healthy.
const PROBE_BYTES: usize = 64 << 10;
const PROBE_PATH: &str = "probe";

#[derive(Default)]
pub struct Health {
    is_degraded: AtomicBool,
    reason: Mutex<Option<String>>,
}

impl Health {
    pub fn degrade(&self, doing: &str, error: &io::Error) {
        let mut reason = self.reason.lock();
        if reason.is_none() {
            tracing::error!(
                %error,
                "the disk refused: {doing}; nothing is stored until it works again"
            );
            // The first failure is the cause; later ones follow from it.
            *reason = Some(format!("{doing}: {error}"));
        }
        self.is_degraded.store(true, Ordering::Release);
    }

    pub fn recover(&self) {
        if self.reason.lock().take().is_some() {
            tracing::info!("the disk takes writes again");
        }
        self.is_degraded.store(false, Ordering::Release);
    }

    pub fn reason(&self) -> Option<String> {
        self.reason.lock().clone()
    }

    pub fn is_degraded(&self) -> bool {
        self.is_degraded.load(Ordering::Acquire)
    }

    pub fn check(&self) -> Result<(), StoreError> {
        if !self.is_degraded() {
            return Ok(());
        }
        Err(StoreError::Io(io::Error::other(
            self.reason().unwrap_or_default(),
        )))
    }
}

/// Creates, writes, syncs and removes a file: the operations that storing a chunk needs, including
/// inodes.
pub fn probe(disk: &dyn Disk) -> io::Result<()> {
    let path = Path::new(PROBE_PATH);
    let result = disk.open(path, Open::Truncate).and_then(|file| {
        file.write_all_at(&vec![0xa5; PROBE_BYTES], 0)?;
        file.sync_data()
    });
    // Also after a failed step; then there may be no file to remove.
    let removed = disk.remove_file(path);
    result.and(removed)
}

/// Optional abilities of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Part of a file can be freed. Otherwise only whole entries are evicted.
    pub punch: bool,
}

/// Length of a test file with one written page.
const SPARSE_BYTES: u64 = 256 << 10;

/// Finds out what the disk can do. Returns an error if it cannot be used at all.
pub fn try_abilities(disk: &dyn Disk) -> io::Result<Abilities> {
    let path = Path::new(PROBE_PATH);
    let result = disk
        .open(path, Open::Truncate)
        .and_then(|file| try_sparse(&*file));
    let removed = disk.remove_file(path);
    let abilities = result?;
    removed.map(|()| abilities)
}

fn try_sparse(file: &dyn DiskFile) -> io::Result<Abilities> {
    file.set_len(SPARSE_BYTES)?;
    file.write_all_at(&vec![0xa5; PROBE_BYTES], 0)?;
    file.sync_data()?;
    if file.allocated_bytes()? > SPARSE_BYTES / 2 {
        let text = "its file system has no sparse files: a chunk would take its object's length";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let punched = file.punch(ByteRange::new(0, PROBE_BYTES as u64));
    let punch = match punched {
        Ok(()) => true,
        Err(error) if is_unsupported(&error) => {
            tracing::warn!(
                %error,
                "the disk can not give back parts of files: whole entries are evicted"
            );
            false
        }
        Err(error) => return Err(error),
    };
    Ok(Abilities { punch })
}

/// Whether there is no space, or a quota is used up.
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Whether the file system does not support the operation at all.
pub fn is_unsupported(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    error.kind() == io::ErrorKind::Unsupported
        || errno.is_some_and(|it| it == Errno::OPNOTSUPP || it == Errno::NOSYS)
}
