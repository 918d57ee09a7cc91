//! Open files: a bounded number, however many entries there are.
//!
//! The hit path gets an open file with one atomic load. Opening is rare and takes a lock; once the
//! bound is reached, it closes another file (second-chance clock). A file with unsynced writes
//! stays open, because the kernel reports a failed write-back only to descriptors that were open
//! when it failed.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use super::{disk::DiskFile, entry_file::EntryFile};

/// Files that are checked for eviction when another is opened. Two suffice if files are used once,
/// because the first check takes away their second chance. If thousands are in use at once, more
/// than `max_files` may be open for a moment, rather than checking all of them.
const MAX_STEPS: usize = 16;

/// An open sparse file.
pub(super) struct OpenFile {
    pub file: Arc<dyn DiskFile>,
    /// False: it was opened while the file system refused writes.
    pub is_writable: bool,
    /// Used since the clock's hand last passed.
    used: AtomicBool,
    /// Written since its last sync.
    pub unsynced: AtomicBool,
}

impl OpenFile {
    pub fn new(file: Arc<dyn DiskFile>, is_writable: bool) -> Self {
        Self {
            file,
            is_writable,
            used: AtomicBool::new(true),
            unsynced: AtomicBool::new(false),
        }
    }

    pub fn touch(&self) {
        // Read first: a store by every reader would bounce the cache line between cores.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }
}

/// A sparse file on a real disk, for sendfile. It stays open while this is held. Cheap to clone.
#[derive(Clone)]
pub struct StoredFile(Arc<dyn DiskFile>);

impl StoredFile {
    /// Fails for a simulated file, which has no descriptor.
    pub(super) fn new(file: Arc<dyn DiskFile>) -> io::Result<Self> {
        match file.fd() {
            Some(_) => Ok(Self(file)),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl AsFd for StoredFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self.0.fd() {
            Some(fd) => fd,
            None => unreachable!("made of a file with a descriptor"),
        }
    }
}

/// All open files.
pub(super) struct OpenFiles {
    max_files: usize,
    files: Mutex<VecDeque<Weak<EntryFile>>>,
}

impl OpenFiles {
    pub fn new(max_files: usize) -> Self {
        Self {
            max_files,
            files: Mutex::default(),
        }
    }

    /// Adds `entry`, which has just opened its file; closes another file if there are too many.
    pub fn admit(&self, entry: Weak<EntryFile>) {
        let mut files = self.files.lock();
        files.push_back(entry);
        for _ in 0..MAX_STEPS {
            if files.len() <= self.max_files {
                return;
            }
            let Some(oldest) = files.pop_front() else {
                return;
            };
            if !close_unless_used(&oldest) {
                files.push_back(oldest);
            }
        }
    }

    /// Closes files that were not used since the last sweep.
    pub fn sweep_idle(&self) {
        let mut files = std::mem::take(&mut *self.files.lock());
        // Outside the lock, because an idle file with unsynced writes (of a cancelled fetch) is
        // synced first.
        files.retain(|entry| {
            if let Some(file) = entry
                .upgrade()
                .and_then(|entry| entry.open_slot().load_full())
                && !file.used.load(Ordering::Relaxed)
                && file.unsynced.swap(false, Ordering::AcqRel)
                && let Err(error) = file.file.sync_data()
            {
                // None of it was reported durable; chunks that are committed later are synced by
                // their own group.
                tracing::warn!(%error, "an idle file could not be synced");
                if let Some(entry) = entry.upgrade() {
                    entry.table().spoil_unfinished();
                }
            }
            !close_unless_used(entry)
        });
        self.files.lock().append(&mut files);
    }

    #[cfg(test)]
    pub fn open_count(&self) -> usize {
        self.files.lock().len()
    }
}

/// True if the file is closed now or was closed before.
fn close_unless_used(entry: &Weak<EntryFile>) -> bool {
    let Some(entry) = entry.upgrade() else {
        return true;
    };
    let slot = entry.open_slot();
    let Some(file) = slot.load_full() else {
        return true;
    };
    if file.used.swap(false, Ordering::Relaxed) || file.unsynced.load(Ordering::Acquire) {
        return false;
    }
    slot.store(None);
    true
}
