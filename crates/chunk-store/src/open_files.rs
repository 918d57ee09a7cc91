//! Open files and mapped windows: a bounded number of both, whatever the number of entries.
//!
//! The hit path takes an open file with one atomic load. Opening is rare and goes through a lock;
//! it closes another file where the bound is reached (second-chance clock). A file with unsynced
//! writes stays open, because the kernel reports a failed write-back to the descriptors that were
//! open when it failed.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use chunkcache_proto::ByteRange;
use parking_lot::Mutex;

use super::{
    disk::DiskFile,
    entry_file::EntryFile,
    mapping::{Mapped, Window},
};

/// A multiple of every chunk size, so that no chunk lies across two windows.
const WINDOW_BYTES: u64 = 1 << 30;
const PAGE_BYTES: u64 = 4096;
/// Shared windows of one file: those of the first 4 TiB. Beyond, each range is mapped by itself, so
/// that a file of petabytes of nothing costs no memory.
const MAX_WINDOWS: u64 = 4096;

/// A sparse file while it is open.
pub(super) struct OpenFile {
    pub file: Arc<dyn DiskFile>,
    size_bytes: u64,
    /// Unset: it was opened where the file system took no writes.
    pub is_writable: bool,
    windows: Box<[ArcSwapOption<Window>]>,
    /// Since the clock's hand came by.
    used: AtomicBool,
    /// Written and not synced since.
    pub unsynced: AtomicBool,
}

impl OpenFile {
    pub fn new(file: Arc<dyn DiskFile>, size_bytes: u64, is_writable: bool) -> Self {
        let windows = size_bytes.div_ceil(WINDOW_BYTES).min(MAX_WINDOWS);
        Self {
            file,
            size_bytes,
            is_writable,
            windows: (0..windows).map(|_| ArcSwapOption::empty()).collect(),
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

/// All files and windows that are open.
pub(super) struct OpenFiles {
    max_files: usize,
    max_windows: usize,
    files: Mutex<VecDeque<Weak<EntryFile>>>,
    windows: Mutex<VecDeque<(Weak<OpenFile>, usize)>>,
}

impl OpenFiles {
    pub fn new(max_files: usize, max_windows: usize) -> Self {
        Self {
            max_files,
            max_windows,
            files: Mutex::default(),
            windows: Mutex::default(),
        }
    }

    /// `entry` has just opened its file: closes another if there are too many.
    pub fn admit(&self, entry: Weak<EntryFile>) {
        let mut files = self.files.lock();
        files.push_back(entry);
        // Twice around at most: the first time takes the second chances away.
        let mut steps = files.len() * 2;
        while files.len() > self.max_files && steps > 0 {
            steps -= 1;
            let Some(oldest) = files.pop_front() else {
                return;
            };
            if !close_unless_used(&oldest) {
                files.push_back(oldest);
            }
        }
    }

    /// Closes what was not used since the last sweep.
    pub fn sweep_idle(&self) {
        let mut files = std::mem::take(&mut *self.files.lock());
        // Outside the lock: an idle file with unsynced writes (a fetch given up) is synced first.
        files.retain(|entry| {
            if let Some(file) = entry
                .upgrade()
                .and_then(|entry| entry.open_slot().load_full())
                && !file.used.load(Ordering::Relaxed)
                && file.unsynced.swap(false, Ordering::AcqRel)
                && let Err(error) = file.file.sync_data()
            {
                // Nothing of it was reported durable; what is committed later is synced by its own
                // group.
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

    /// Memory that maps the range: a shared window, or one of its own for a range across two.
    pub fn map(&self, file: &Arc<OpenFile>, range: ByteRange) -> io::Result<Mapped> {
        if range.is_empty() || range.end > file.size_bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let at = (range.start / WINDOW_BYTES) as usize;
        let window_start = at as u64 * WINDOW_BYTES;
        let window_range = ByteRange::new(
            window_start,
            (window_start + WINDOW_BYTES).min(file.size_bytes),
        );
        let window = if range.end > window_range.end || at >= file.windows.len() {
            let start = range.start / PAGE_BYTES * PAGE_BYTES;
            Arc::new(Window::map(
                file.file.clone(),
                ByteRange::new(start, range.end),
            )?)
        } else if let Some(window) = file.windows[at].load_full() {
            window
        } else {
            self.map_window(file, at, window_range)?
        };
        Mapped::new(window, range).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn map_window(
        &self,
        file: &Arc<OpenFile>,
        at: usize,
        range: ByteRange,
    ) -> io::Result<Arc<Window>> {
        let mut windows = self.windows.lock();
        // Another reader may have been faster.
        if let Some(window) = file.windows[at].load_full() {
            return Ok(window);
        }
        let window = Arc::new(Window::map(file.file.clone(), range)?);
        debug_assert_eq!(window.range(), range);
        file.windows[at].store(Some(window.clone()));
        windows.push_back((Arc::downgrade(file), at));
        while windows.len() > self.max_windows {
            // First in, first out: a window in use lives on in its readers and is mapped again when
            // asked for.
            if let Some((file, at)) = windows.pop_front()
                && let Some(file) = file.upgrade()
            {
                file.windows[at].store(None);
            }
        }
        Ok(window)
    }
}

/// True if the file is closed now, or was.
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
