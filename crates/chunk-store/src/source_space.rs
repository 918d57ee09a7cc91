//! The space of each source: the bytes that its chunks use, and its quota.
//!
//! All changes of a chunk's space go through here, so that the sums per source and of the disk
//! always change together.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
};

use chunkcache_proto::space::quota_headroom;
use parking_lot::Mutex;

use super::{StoreError, space::Space};

/// After this many ticks (a day) without a reader, a source has no share of a full disk.
const IDLE_TICKS: u16 = 5_400;

/// The space of one source.
pub(super) struct SourceSpace {
    name: Arc<str>,
    disk: Arc<Space>,
    /// Chunks on the disk and reservations; the quota is enforced by compare-and-swap on this one.
    used_bytes: AtomicU64,
    /// The part of it that is withdrawn and waits to be freed.
    leaving_bytes: AtomicU64,
    /// Proposed for eviction.
    proposed_bytes: AtomicU64,
    /// The largest number means no quota.
    quota_bytes: AtomicU64,
    /// The largest reservation that the quota refused since one was granted.
    refused_bytes: AtomicU64,
    last_use: AtomicU16,
}

/// Bytes of one source on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceUse {
    pub source: Arc<str>,
    /// Bytes of chunks, and bytes reserved for arriving ones.
    pub used_bytes: u64,
    pub quota_bytes: Option<u64>,
}

impl SourceSpace {
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Records that one of its chunks was read.
    pub fn touch(&self, tick: u16) {
        if self.last_use.load(Ordering::Relaxed) != tick {
            self.last_use.store(tick, Ordering::Relaxed);
        }
    }

    pub fn is_idle(&self, tick: u16) -> bool {
        tick.wrapping_sub(self.last_use.load(Ordering::Relaxed)) > IDLE_TICKS
    }

    fn quota(&self) -> Option<u64> {
        let quota = self.quota_bytes.load(Ordering::Acquire);
        (quota != u64::MAX).then_some(quota)
    }

    fn used(&self) -> u64 {
        self.used_bytes.load(Ordering::Acquire)
    }

    /// Bytes without those that are about to be freed.
    pub fn staying(&self) -> u64 {
        let leaving = self.leaving_bytes.load(Ordering::Acquire);
        let proposed = self.proposed_bytes.load(Ordering::Acquire);
        self.used().saturating_sub(leaving.saturating_add(proposed))
    }

    /// Bytes over the mark at which eviction for the quota begins. A refused chunk may need more
    /// than the usual headroom of a small quota.
    pub fn over_quota(&self) -> u64 {
        self.quota().map_or(0, |quota| {
            let refused = Some(self.refused_bytes.load(Ordering::Acquire));
            let wanted = refused.filter(|bytes| *bytes <= quota).unwrap_or(0);
            let mark = quota - quota_headroom(quota).max(wanted);
            self.staying().saturating_sub(mark)
        })
    }

    /// Whether the quota leaves space for this many bytes now.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.quota()
            .is_none_or(|quota| self.used().saturating_add(bytes) <= quota)
    }

    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, StoreError> {
        let quota = self.quota_bytes.load(Ordering::Acquire);
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= quota);
        let order = (Ordering::AcqRel, Ordering::Acquire);
        if let Err(used) = self.used_bytes.fetch_update(order.0, order.1, fits) {
            self.refused_bytes.fetch_max(bytes, Ordering::AcqRel);
            return Err(StoreError::OverQuota(format!(
                "{bytes} bytes wanted, {used} of the {quota} bytes of source {:?} are in use",
                self.name
            )));
        }
        self.refused_bytes.store(0, Ordering::Release);
        if let Err(error) = self.disk.reserve(bytes) {
            self.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
            return Err(error);
        }
        Ok(Reservation {
            space: self.clone(),
            bytes,
        })
    }

    /// Counts a chunk without a reservation.
    pub fn add_chunk(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.disk.add_chunk(bytes);
    }

    /// Stops counting a chunk whose blocks were freed.
    pub fn release_chunk(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.disk.release_chunk(bytes);
    }

    /// Counts a withdrawn chunk.
    pub fn begin_leaving(&self, bytes: u64) {
        self.leaving_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.disk.begin_leaving(bytes);
    }

    /// Stops counting it: its bytes are freed or reused.
    pub fn end_leaving(&self, bytes: u64) {
        self.leaving_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.disk.end_leaving(bytes);
    }

    pub fn propose(&self, bytes: u64) {
        self.proposed_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    pub fn unpropose(&self, bytes: u64) {
        self.proposed_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// The spaces of all sources that have chunks, entries or a quota.
pub(super) struct SourceSpaces {
    disk: Arc<Space>,
    spaces: Mutex<HashMap<Arc<str>, Arc<SourceSpace>>>,
}

impl SourceSpaces {
    pub fn new(disk: Arc<Space>) -> Self {
        Self {
            disk,
            spaces: Mutex::default(),
        }
    }

    /// The space of a source, created if there is none. `tick`: now.
    pub fn of(&self, source: &str, tick: u16) -> Arc<SourceSpace> {
        let mut spaces = self.spaces.lock();
        if let Some(known) = spaces.get(source) {
            return known.clone();
        }
        let name: Arc<str> = source.into();
        let space = Arc::new(SourceSpace {
            name: name.clone(),
            disk: self.disk.clone(),
            used_bytes: AtomicU64::new(0),
            leaving_bytes: AtomicU64::new(0),
            proposed_bytes: AtomicU64::new(0),
            quota_bytes: AtomicU64::new(u64::MAX),
            refused_bytes: AtomicU64::new(0),
            last_use: AtomicU16::new(tick),
        });
        spaces.insert(name, space.clone());
        space
    }

    pub fn all(&self) -> Vec<Arc<SourceSpace>> {
        self.spaces.lock().values().cloned().collect()
    }

    /// Replaces all quotas, and forgets sources that are no longer referenced.
    pub fn set_quotas(&self, quotas: &HashMap<String, u64>, tick: u16) {
        for source in quotas.keys() {
            self.of(source, tick);
        }
        let mut spaces = self.spaces.lock();
        spaces.retain(|name, space| {
            let quota = quotas.get(&**name).copied();
            let quota_or_none = quota.unwrap_or(u64::MAX);
            space.quota_bytes.store(quota_or_none, Ordering::Release);
            // The map holds one reference, so more than one means an entry or a queue of chunks.
            quota.is_some() || Arc::strong_count(space) > 1
        });
    }

    pub fn uses(&self) -> Vec<SourceUse> {
        let spaces = self.spaces.lock();
        let uses = spaces.values().map(|space| SourceUse {
            source: space.name.clone(),
            used_bytes: space.used(),
            quota_bytes: space.quota(),
        });
        uses.filter(|it| it.used_bytes > 0 || it.quota_bytes.is_some())
            .collect()
    }
}

/// Reserved space; released when dropped unused.
pub struct Reservation {
    space: Arc<SourceSpace>,
    bytes: u64,
}

impl Reservation {
    /// Reserved bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Turns it into a chunk of `chunk_bytes`; used bytes stay the same if it was reserved at its
    /// size.
    pub(super) fn become_chunk(mut self, chunk_bytes: u64) {
        let more = chunk_bytes.saturating_sub(self.bytes);
        self.space.used_bytes.fetch_add(more, Ordering::AcqRel);
        self.space.disk.turn_into_chunk(self.bytes, chunk_bytes);
        self.bytes = self.bytes.saturating_sub(chunk_bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space
            .used_bytes
            .fetch_sub(self.bytes, Ordering::AcqRel);
        self.space.disk.release_reserved(self.bytes);
    }
}
