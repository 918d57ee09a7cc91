//! The demand of this edge's readers: their positions, whether they wait, how fast they read.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use chunkcache_proto::{ByteRange, EntryId, v1};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::core::lookahead::ReaderView;
use chunk_store::EntryFile;

/// A reader that took nothing for this long keeps its position and wants no fetch.
const PAUSED_AFTER: Duration = Duration::from_secs(30);
/// Distance ahead of another reader at which a fetch counts as wanted: the minimum lookahead, in
/// whole requests.
const NEAR: u64 = 28 << 20;
/// Closings remembered for a session; with more, the next batch lists all readers instead.
const MAX_CLOSED: usize = 10_000;

/// One reader. Written by the reader, read by the planner.
pub struct ReaderState {
    pub id: u64,
    pub file: Arc<EntryFile>,
    pub end: u64,
    position: AtomicU64,
    waiting: AtomicBool,
    /// For how long, since it began to wait, the coordinator is responsible for it.
    held_ms: AtomicU64,
    /// Microseconds on the registry's clock.
    waiting_since_us: AtomicU64,
    last_read_us: AtomicU64,
    rate: AtomicU64,
    hints: Mutex<Vec<ByteRange>>,
}

/// All readers with something missing ahead of them.
pub struct DemandRegistry {
    begun: Instant,
    next_id: AtomicU64,
    inner: Mutex<Inner>,
    /// Number of readers.
    count: AtomicUsize,
    told: Arc<Observers>,
    /// 0: the coordinator decides.
    lookahead_chunks: u32,
}

/// Wakes the parts that must check the readers again.
#[derive(Default)]
struct Observers {
    /// For the session.
    changed: Notify,
    /// For the edge's own planner.
    waiting_changed: Notify,
}

impl Observers {
    fn tell(&self) {
        self.changed.notify_one();
        self.waiting_changed.notify_one();
    }
}

#[derive(Default)]
struct Inner {
    readers: HashMap<u64, Arc<ReaderState>>,
    dirty: HashSet<u64>,
    closed: Vec<u64>,
    closed_overflow: bool,
    /// A waiting reader was not reported to the coordinator yet.
    urgent: bool,
    /// Since when there is something to report.
    changed_at: Option<Instant>,
}

impl Inner {
    fn touch(&mut self) {
        self.changed_at.get_or_insert_with(Instant::now);
    }
}

/// Changes since the last report.
#[derive(Default)]
pub struct Changes {
    pub readers: Vec<Arc<ReaderState>>,
    pub closed: Vec<u64>,
    /// `readers` lists all readers.
    pub complete: bool,
}

impl Default for DemandRegistry {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            next_id: AtomicU64::new(1),
            inner: Mutex::default(),
            count: AtomicUsize::new(0),
            told: Arc::default(),
            lookahead_chunks: 0,
        }
    }
}

impl DemandRegistry {
    /// `lookahead_chunks`: the operator's lookahead for each reader; unset: the coordinator
    /// decides.
    #[must_use]
    pub fn new(lookahead_chunks: Option<u32>) -> Self {
        Self {
            lookahead_chunks: lookahead_chunks.unwrap_or(0),
            ..Self::default()
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Opens a reader over `range`. It does not wait yet.
    #[must_use]
    pub fn open(&self, file: &Arc<EntryFile>, range: ByteRange) -> Arc<ReaderState> {
        let state = Arc::new(ReaderState {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            file: file.clone(),
            end: range.end,
            position: AtomicU64::new(range.start),
            waiting: AtomicBool::new(false),
            held_ms: AtomicU64::new(0),
            waiting_since_us: AtomicU64::new(0),
            last_read_us: AtomicU64::new(self.now_us()),
            rate: AtomicU64::new(0),
            hints: Mutex::default(),
        });
        let mut inner = self.inner.lock();
        inner.readers.insert(state.id, state.clone());
        self.count.store(inner.readers.len(), Ordering::Relaxed);
        inner.dirty.insert(state.id);
        inner.touch();
        drop(inner);
        self.told.tell();
        state
    }

    pub fn close(&self, id: u64) {
        let mut inner = self.inner.lock();
        if inner.readers.remove(&id).is_some() {
            self.count.store(inner.readers.len(), Ordering::Relaxed);
            inner.dirty.remove(&id);
            if inner.closed.len() < MAX_CLOSED {
                inner.closed.push(id);
            } else {
                inner.closed_overflow = true;
            }
            inner.touch();
        }
        drop(inner);
        self.told.tell();
    }

    /// Records that the reader is blocked at `position`.
    pub fn wait_at(&self, reader: &ReaderState, position: u64) {
        reader.position.store(position, Ordering::Relaxed);
        if !reader.waiting.swap(true, Ordering::AcqRel) {
            reader.held_ms.store(0, Ordering::Relaxed);
            reader
                .waiting_since_us
                .store(self.now_us(), Ordering::Relaxed);
            let mut inner = self.inner.lock();
            inner.dirty.insert(reader.id);
            inner.urgent = true;
            inner.touch();
        }
        self.told.tell();
    }

    /// Records that the reader took `len` bytes up to `position`. `moved_on`: into another chunk,
    /// which is worth reporting.
    pub fn advance(&self, reader: &ReaderState, position: u64, len: u64, moved_on: bool) {
        let now = self.now_us();
        let before = reader.last_read_us.swap(now, Ordering::Relaxed);
        reader.position.store(position, Ordering::Relaxed);
        let instant = len.saturating_mul(1_000_000) / (now.saturating_sub(before)).max(1);
        let old = reader.rate.load(Ordering::Relaxed);
        let rate = if old == 0 {
            instant
        } else {
            old - old / 8 + instant / 8
        };
        reader.rate.store(rate, Ordering::Relaxed);
        let waited = reader.waiting.swap(false, Ordering::AcqRel);
        if waited || moved_on {
            self.mark(reader);
            self.told.tell();
        }
    }

    /// Adds the ranges of a container's index.
    pub fn hint(&self, reader: &ReaderState, ranges: Vec<ByteRange>) {
        *reader.hints.lock() = ranges;
        self.mark(reader);
        self.told.tell();
    }

    /// Records that the coordinator is responsible for these readers' waits.
    pub fn hold(&self, readers: &[u64], wait_ms: u32) {
        let inner = self.inner.lock();
        for reader in readers.iter().filter_map(|id| inner.readers.get(id)) {
            reader
                .held_ms
                .fetch_max(u64::from(wait_ms), Ordering::Relaxed);
        }
    }

    /// Whether a fetch that was assigned for this reader is still wanted here. Not if the reader
    /// left and no other is near: its departure is then reported at once, so that the coordinator
    /// does not assign the same again.
    #[must_use]
    pub fn still_wants(&self, reader: u64, entry: EntryId, run: ByteRange) -> bool {
        let mut inner = self.inner.lock();
        let is_near = |other: &ReaderState| {
            let end = other.position().saturating_add(NEAR).min(other.end);
            other.file.id() == entry
                && (other.position() < run.end && run.start < end
                    || other
                        .hints()
                        .iter()
                        .any(|hint| !hint.intersect(run).is_empty()))
        };
        let is_wanted = inner.readers.contains_key(&reader)
            || inner.readers.values().any(|other| is_near(other));
        if !is_wanted {
            inner.urgent |= inner.changed_at.is_some();
            drop(inner);
            self.told.tell();
        }
        is_wanted
    }

    fn mark(&self, reader: &ReaderState) {
        let mut inner = self.inner.lock();
        // A closed reader has nothing more to report.
        if inner.readers.contains_key(&reader.id) {
            inner.dirty.insert(reader.id);
            inner.touch();
        }
    }

    #[must_use]
    pub fn all(&self) -> Vec<Arc<ReaderState>> {
        self.inner.lock().readers.values().cloned().collect()
    }

    /// Whether there are at least `readers` readers. Takes no lock.
    #[must_use]
    pub fn has(&self, readers: usize) -> bool {
        self.count.load(Ordering::Relaxed) >= readers
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().readers.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The changes since the last call; with `everything`, the whole present state.
    #[must_use]
    pub fn take_changes(&self, everything: bool) -> Changes {
        let mut inner = self.inner.lock();
        let dirty = std::mem::take(&mut inner.dirty);
        let closed = std::mem::take(&mut inner.closed);
        let complete = std::mem::take(&mut inner.closed_overflow) || everything;
        inner.urgent = false;
        inner.changed_at = None;
        if everything {
            // Reports of an earlier session.
            for reader in inner.readers.values() {
                reader.held_ms.store(0, Ordering::Relaxed);
            }
        }
        let readers = if complete {
            inner.readers.values().cloned().collect()
        } else {
            dirty
                .iter()
                .filter_map(|id| inner.readers.get(id).cloned())
                .collect()
        };
        Changes {
            readers,
            closed: if complete { Vec::new() } else { closed },
            complete,
        }
    }

    /// Returns when there is something to report: at once if a reader waits, otherwise after
    /// `gathering`, so that others can join. Cancel safe: it checks the state, not what woke it.
    pub async fn due(&self, gathering: Duration) {
        loop {
            let changed = self.told.changed.notified();
            let (urgent, since) = {
                let inner = self.inner.lock();
                (inner.urgent, inner.changed_at)
            };
            match since {
                None => changed.await,
                Some(since) => {
                    let left = gathering.saturating_sub(since.elapsed());
                    if urgent || left.is_zero() {
                        return;
                    }
                    let _ = tokio::time::timeout(left, changed).await;
                }
            }
        }
    }

    /// Returns when the waits change; for the edge's own planner. Cancel safe.
    pub async fn waiting_changed(&self) {
        self.told.waiting_changed.notified().await;
    }

    /// How long the reader has waited.
    #[must_use]
    pub fn waited(&self, reader: &ReaderState) -> Duration {
        if !reader.waiting.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        Duration::from_micros(
            self.now_us()
                .saturating_sub(reader.waiting_since_us.load(Ordering::Relaxed)),
        )
    }

    /// The reader's state for local planning.
    #[must_use]
    pub fn view(&self, reader: &ReaderState) -> ReaderView {
        let idle = Duration::from_micros(
            self.now_us()
                .saturating_sub(reader.last_read_us.load(Ordering::Relaxed)),
        );
        let waiting = reader.waiting.load(Ordering::Acquire);
        ReaderView {
            position: reader.position(),
            end: reader.end,
            waiting,
            paused: !waiting && idle > PAUSED_AFTER,
        }
    }

    /// The reader's state for the wire.
    #[must_use]
    pub fn message(&self, reader: &ReaderState) -> v1::ReaderDemand {
        let view = self.view(reader);
        let geometry = reader.file.geometry();
        let here = geometry.chunk_of(view.position);
        let last = geometry
            .chunks_covering(ByteRange::new(view.position, view.end))
            .end;
        let missing = reader.file.first_missing(here, last).unwrap_or(last);
        let buffered_to = geometry.chunk_range(missing).start.min(view.end);
        v1::ReaderDemand {
            reader_id: reader.id,
            entry_id: reader.file.id().to_string(),
            position: view.position,
            end: view.end,
            waiting: view.waiting,
            rate_bytes_per_second: reader.rate.load(Ordering::Relaxed),
            buffered_bytes: buffered_to.saturating_sub(view.position),
            lookahead_bytes: u64::from(self.lookahead_chunks) * u64::from(geometry.chunk_size()),
            paused: view.paused,
            hints: reader.hints().into_iter().map(Into::into).collect(),
        }
    }
}

impl ReaderState {
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// See [`DemandRegistry::hold`].
    #[must_use]
    pub fn held_for(&self) -> Duration {
        Duration::from_millis(self.held_ms.load(Ordering::Relaxed))
    }

    #[must_use]
    pub fn hints(&self) -> Vec<ByteRange> {
        self.hints.lock().clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use chunkcache_proto::Geometry;

    use super::*;
    use chunk_store::{MinFree, Store, StoreOptions};

    fn a_file() -> (tempfile::TempDir, Arc<EntryFile>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreOptions {
            data_dir: dir.path().to_owned(),
            max_bytes: Some(1 << 30),
            min_free: MinFree::Bytes(0),
            group_sync_window: Duration::from_millis(1),
        })
        .unwrap();
        let entry = v1::Entry {
            id: chunkcache_proto::EntryId::from_u128(7).to_string(),
            size: 100 << 20,
            chunk_size: 2 << 20,
            ..Default::default()
        };
        let geometry = Geometry::new(entry.size, entry.chunk_size).unwrap();
        let file = store.put_entry(&entry, geometry).unwrap();
        (dir, file)
    }

    #[test]
    fn what_was_assigned_for_a_reader_that_left_is_wanted_only_by_readers_near_it() {
        let (_dir, file) = a_file();
        let demand = DemandRegistry::default();
        let open = |from: u64| demand.open(&file, ByteRange::new(from << 20, 100 << 20));
        let (left, _stays) = (open(0), open(40));
        let wants = |from: u64| {
            let run = ByteRange::new(from << 20, (from + 8) << 20);
            demand.still_wants(left.id, file.id(), run)
        };
        assert!(wants(0) && wants(8), "its reader is there");
        demand.close(left.id);
        assert!(!wants(0) && !wants(24), "nobody comes to it any more");
        assert!(wants(40) && wants(60), "another reader does");
        assert!(!wants(72), "too far ahead of the other reader");
        let told = demand.take_changes(false);
        assert_eq!(told.closed, [left.id]);
    }

    #[test]
    fn the_operators_lookahead_is_told_and_without_one_the_coordinator_decides() {
        let (_dir, file) = a_file();
        let told = |demand: DemandRegistry| {
            let reader = demand.open(&file, ByteRange::new(0, 100 << 20));
            demand.message(&reader).lookahead_bytes
        };
        assert_eq!(told(DemandRegistry::new(Some(3))), 3 * (2 << 20));
        assert_eq!(told(DemandRegistry::default()), 0);
    }
}
