//! Space: a hard limit that holds at all times, because space is reserved before it is written.
//!
//! `used` is the size of chunks on the disk plus reservations. It never exceeds `allowed`, the
//! smaller of the configured maximum and what the minimum free space leaves; the latter changes
//! when other programs write, so it is read again at intervals and whenever a reservation would be
//! refused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chunkcache_proto::space::disk_headroom;
use parking_lot::Mutex;

use super::{
    MinFree, StoreError,
    disk::{Disk, DiskSpace},
};

/// `statvfs` costs a microsecond or two, and because of `min_free` it does not matter that other
/// programs write meanwhile.
const REFRESH_INTERVAL: Duration = Duration::from_millis(200);
/// Share of the file system used if no maximum is given.
const DEFAULT_MAX_PERCENT: u64 = 90;
/// Inodes left for other programs, and for entries that are created while some are evicted.
const SPARE_FILES: u64 = 128;

/// Refusals are reported once they last this long: an eviction takes less time.
const SHORTAGE_AFTER: Duration = Duration::from_secs(2);
/// They are reported until this long after the last one.
const SHORTAGE_OVER: Duration = Duration::from_secs(5);

/// Refused reservations, without one granted in between.
#[derive(Clone, Copy)]
struct Refusals {
    first: Instant,
    last: Instant,
}

pub struct Space {
    refusals: Mutex<Option<Refusals>>,
    /// Since when no file could be created, while that lasts.
    no_files: Mutex<Option<Refusals>>,
    disk: Arc<dyn Disk>,
    max_bytes: Option<u64>,
    min_free: MinFree,
    /// Bytes of chunks on the disk, including withdrawn ones that are not punched yet.
    chunk_bytes: AtomicU64,
    /// The part of `chunk_bytes` that is withdrawn and waits to be freed.
    leaving_bytes: AtomicU64,
    /// `chunk_bytes` and reservations; the limit is enforced by compare-and-swap on this one.
    used_bytes: AtomicU64,
    allowed_bytes: AtomicU64,
    /// The largest reservation that was refused since one was granted.
    refused_bytes: AtomicU64,
    /// The largest number means no limit.
    free_files: AtomicU64,
    refreshed: Mutex<Option<Instant>>,
}

impl Space {
    pub fn new(disk: Arc<dyn Disk>, max_bytes: Option<u64>, min_free: MinFree) -> Self {
        Self {
            refusals: Mutex::default(),
            no_files: Mutex::default(),
            disk,
            max_bytes,
            min_free,
            chunk_bytes: AtomicU64::new(0),
            leaving_bytes: AtomicU64::new(0),
            used_bytes: AtomicU64::new(0),
            allowed_bytes: AtomicU64::new(0),
            refused_bytes: AtomicU64::new(0),
            free_files: AtomicU64::new(u64::MAX),
            refreshed: Mutex::new(None),
        }
    }

    pub fn used(&self) -> u64 {
        self.used_bytes.load(Ordering::Acquire)
    }

    /// Bytes of chunks alone.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes.load(Ordering::Acquire)
    }

    pub fn allowed(&self) -> u64 {
        self.refresh(REFRESH_INTERVAL);
        self.allowed_bytes.load(Ordering::Acquire)
    }

    /// Bytes over the mark at which eviction begins, without those that are about to be freed. A
    /// refused chunk may need more than the usual headroom of a small disk.
    pub fn over_headroom(&self) -> u64 {
        let allowed = self.allowed();
        let refused = Some(self.refused_bytes.load(Ordering::Acquire));
        let wanted = refused.filter(|bytes| *bytes <= allowed).unwrap_or(0);
        let headroom = disk_headroom(allowed).max(wanted);
        let leaving = self.leaving_bytes.load(Ordering::Acquire);
        let staying = self.used().saturating_sub(leaving);
        staying.saturating_sub(allowed - headroom)
    }

    /// Counts a withdrawn chunk.
    pub fn begin_leaving(&self, bytes: u64) {
        self.leaving_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Stops counting it: its bytes are freed or reused.
    pub fn end_leaving(&self, bytes: u64) {
        self.leaving_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    pub fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        self.refresh(REFRESH_INTERVAL);
        if !self.try_reserve(bytes) {
            self.refresh(Duration::ZERO);
            if !self.try_reserve(bytes) {
                self.refused(Instant::now());
                self.refused_bytes.fetch_max(bytes, Ordering::AcqRel);
                return Err(StoreError::NoSpace(format!(
                    "{bytes} bytes wanted, {}",
                    self.in_use()
                )));
            }
        }
        *self.refusals.lock() = None;
        self.refused_bytes.store(0, Ordering::Release);
        Ok(())
    }

    /// Counts a chunk of `chunk_bytes` for which `reserved` bytes were reserved.
    pub fn turn_into_chunk(&self, reserved: u64, chunk_bytes: u64) {
        self.chunk_bytes.fetch_add(chunk_bytes, Ordering::AcqRel);
        let more = chunk_bytes.saturating_sub(reserved);
        self.used_bytes.fetch_add(more, Ordering::AcqRel);
    }

    /// Releases bytes that were reserved and not used.
    pub fn release_reserved(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    fn in_use(&self) -> String {
        let (used, allowed) = (self.used(), self.allowed_bytes.load(Ordering::Acquire));
        format!("{used} of {allowed} allowed bytes are in use")
    }

    fn refused(&self, now: Instant) {
        note_refusal(&self.refusals, now);
    }

    /// Records that a file could not be created: the file system has no inodes left.
    pub fn refuse_file(&self) -> StoreError {
        note_refusal(&self.no_files, Instant::now());
        StoreError::NoSpace(NO_FILES.into())
    }

    /// Whether a chunk of this size can be stored, if need be in the place of others.
    pub fn can_hold(&self, bytes: u64, now: Instant) -> bool {
        bytes <= self.allowed() && !goes_on(&self.refusals, now) && !goes_on(&self.no_files, now)
    }

    /// Why nothing can be stored, while that lasts and eviction does not end it.
    pub fn shortage(&self, now: Instant) -> Option<String> {
        if goes_on(&self.refusals, now) {
            return Some(format!("no space: {}", self.in_use()));
        }
        goes_on(&self.no_files, now).then(|| format!("no space: {NO_FILES}"))
    }

    fn try_reserve(&self, bytes: u64) -> bool {
        let allowed = self.allowed_bytes.load(Ordering::Acquire);
        self.used_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= allowed)
            })
            .is_ok()
    }

    /// Counts a chunk without a reservation: one that the journal proves at open.
    pub fn add_chunk(&self, bytes: u64) {
        self.chunk_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.used_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Stops counting a chunk whose blocks were freed.
    pub fn release_chunk(&self, bytes: u64) {
        self.chunk_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    fn refresh(&self, older_than: Duration) {
        let mut refreshed = self.refreshed.lock();
        if refreshed.is_some_and(|at| at.elapsed() < older_than) {
            return;
        }
        // On an error keep the last figure: reads and writes show whether the disk is broken.
        if let Ok(space) = self.disk.space() {
            self.allowed_bytes
                .store(self.limit(space), Ordering::Release);
            let free_files = space.free_inodes.unwrap_or(u64::MAX);
            self.free_files.store(free_files, Ordering::Release);
            *refreshed = Some(Instant::now());
        }
    }

    /// Number of files to remove so that there are enough inodes for new entries.
    pub fn files_over(&self) -> u64 {
        self.refresh(REFRESH_INTERVAL);
        SPARE_FILES.saturating_sub(self.free_files.load(Ordering::Acquire))
    }

    /// Whether a file could not be created for lack of inodes.
    pub fn lacks_files(&self) -> bool {
        self.refresh(Duration::ZERO);
        self.files_over() > 0
    }

    /// The limit for chunks and reservations. Reserved space that is not written yet counts as
    /// available; while it is partly written it briefly counts twice, which errs on the safe side.
    fn limit(&self, space: DiskSpace) -> u64 {
        let max = self
            .max_bytes
            .unwrap_or(space.total_bytes / 100 * DEFAULT_MAX_PERCENT);
        let min_free = match self.min_free {
            MinFree::Bytes(bytes) => bytes,
            MinFree::Percent(percent) => (space.total_bytes as f64 * percent / 100.0) as u64,
        };
        max.min((self.chunk_bytes() + space.free_bytes).saturating_sub(min_free))
    }
}

const NO_FILES: &str = "the file system has no more files";

fn note_refusal(refusals: &Mutex<Option<Refusals>>, now: Instant) {
    let mut refusals = refusals.lock();
    let went_on = refusals.filter(|it| now.duration_since(it.last) < SHORTAGE_OVER);
    let first = went_on.map_or(now, |it| it.first);
    *refusals = Some(Refusals { first, last: now });
}

fn goes_on(refusals: &Mutex<Option<Refusals>>, now: Instant) -> bool {
    refusals.lock().is_some_and(|Refusals { first, last }| {
        now.saturating_duration_since(last) < SHORTAGE_OVER
            && last.duration_since(first) >= SHORTAGE_AFTER
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn a_shortage_is_said_while_it_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::new(directory.path().to_owned()));
        let space = Space::new(disk, Some(100), MinFree::Bytes(0));
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        space.refused(after(0));
        assert_eq!(space.shortage(after(0)), None, "an eviction makes room");
        assert!(space.can_hold(100, after(0)) && !space.can_hold(101, after(0)));
        space.refused(after(1));
        space.refused(after(3));
        assert!(space.shortage(after(4)).is_some());
        assert!(!space.can_hold(1, after(4)) && space.can_hold(1, after(9)));
        assert_eq!(space.shortage(after(9)), None, "nobody asked since");
        space.refused(after(10));
        assert_eq!(space.shortage(after(10)), None, "another one begins");
        space.refused(after(13));
        let granted = space.reserve(50);
        assert!(granted.is_ok() && space.shortage(after(13)).is_none());
    }
}
