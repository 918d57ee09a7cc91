//! The demand of this edge's readers: their positions, whether they wait, how fast they read.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chunkcache_proto::{ByteRange, EntryId, v1};
use parking_lot::{Mutex, MutexGuard};

use crate::core::{
    consumption::{Consumption, PlayerReport},
    lookahead::ReaderView,
    viewers::{Viewer, ViewerPositions},
};
use chunk_store::EntryFile;

mod gathering;
mod positions;

use gathering::Gathered;

/// A reader that took nothing for this long keeps its position but wants no fetch.
const PAUSED_AFTER: Duration = Duration::from_secs(30);
const DEFAULT_LONGEST_LOOKAHEAD: Duration = Duration::from_secs(60);
/// A fetch that begins within this distance ahead of another reader counts as wanted: the minimum
/// lookahead, in whole requests.
const NEAR: u64 = 28 << 20;
/// No position.
const NOT_LEFT: u64 = u64::MAX;
/// How long the hints of a reader that left are kept.
const HINTS_KEPT: Duration = Duration::from_secs(30);
/// Number of readers whose hints are kept; beyond it, hints go with their readers.
const MAX_HINTING: usize = 1_024;
/// Closed readers remembered for a session. Beyond it, the next batch reports the whole present
/// state instead.
const MAX_CLOSED: usize = 10_000;

/// One reader. Written by the reader, read by the planner.
pub struct ReaderState {
    pub id: u64,
    pub file: Arc<EntryFile>,
    pub end: u64,
    /// Its viewer, if its player names a session.
    viewer: Option<Viewer>,
    /// Its viewer has not requested the object yet.
    is_expected: bool,
    position: AtomicU64,
    /// Its position when its viewer sought on another connection.
    left_at: AtomicU64,
    waiting: AtomicBool,
    /// How long, from the start of its wait, the coordinator is responsible for it.
    held_ms: AtomicU64,
    /// Microseconds on the registry's clock.
    waiting_since_us: AtomicU64,
    last_read_us: AtomicU64,
    consumption: Mutex<Consumption>,
    /// It was reported to the coordinator.
    was_told: AtomicBool,
    /// The last report said that it is paused.
    told_paused: AtomicBool,
    hints: Mutex<Vec<ByteRange>>,
}

/// All readers with something missing ahead of them.
pub struct DemandRegistry {
    begun: Instant,
    next_id: AtomicU64,
    inner: Mutex<Inner>,
    /// 0: the coordinator decides.
    lookahead_chunks: u32,
    /// Upper bound of the lookahead, as playback time.
    longest_lookahead: Duration,
}

#[derive(Default)]
struct Inner {
    readers: HashMap<u64, Arc<ReaderState>>,
    /// Readers that left and whose hints are kept: players request a container's index on another
    /// connection, after a first short range.
    hinting: HashMap<u64, (Arc<ReaderState>, Instant)>,
    dirty: HashSet<u64>,
    closed: Vec<u64>,
    closed_overflow: bool,
    viewer_positions: ViewerPositions,
    /// Changes that are not reported to the coordinator yet; urgent: a reader waits.
    to_report: Gathered,
    /// Changes that the edge's own planner has not seen; likewise.
    to_plan: Gathered,
}

impl Inner {
    fn touch(&mut self) {
        self.to_report.add(false);
        self.to_plan.add(false);
    }

    /// The reader no longer wants anything.
    fn forget(&mut self, reader: &ReaderState) {
        self.dirty.remove(&reader.id);
        if !reader.was_told.load(Ordering::Relaxed) {
            return;
        }
        let id = reader.id;
        if self.closed.len() < MAX_CLOSED {
            self.closed.push(id);
        } else {
            self.closed_overflow = true;
        }
        self.touch();
    }

    fn hinting(&self) -> impl Iterator<Item = &Arc<ReaderState>> {
        self.hinting.values().map(|(reader, _)| reader)
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
            lookahead_chunks: 0,
            longest_lookahead: DEFAULT_LONGEST_LOOKAHEAD,
        }
    }
}

impl DemandRegistry {
    /// `lookahead_chunks`: the operator's lookahead of each reader; unset: the coordinator decides,
    /// and the lookahead is at most `longest_lookahead` of playback.
    #[must_use]
    pub fn new(lookahead_chunks: Option<u32>, longest_lookahead: Duration) -> Self {
        Self {
            lookahead_chunks: lookahead_chunks.unwrap_or(0),
            longest_lookahead,
            ..Self::default()
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.now_us())
    }

    /// Opens a reader over `range` that is not waiting yet. It continues where its viewer read the
    /// object before.
    #[must_use]
    pub fn open(
        &self,
        file: &Arc<EntryFile>,
        range: ByteRange,
        player: PlayerReport,
    ) -> Arc<ReaderState> {
        let state = self.reader(file, range, player, false);
        let mut inner = self.inner.lock();
        if let Some(viewer) = player.viewer {
            let mut consumption = state.consumption.lock();
            let now = self.now();
            if let Some((before, is_seek)) = inner.move_viewer(viewer, &state, now) {
                *consumption = before.going_on(is_seek, player, now);
            }
        }
        self.add(inner, &state);
        state
    }

    /// Opens a reader for an expected request of a viewer that reads elsewhere.
    #[must_use]
    pub fn expect(
        &self,
        file: &Arc<EntryFile>,
        range: ByteRange,
        player: PlayerReport,
    ) -> Arc<ReaderState> {
        let state = self.reader(file, range, player, true);
        self.add(self.inner.lock(), &state);
        state
    }

    fn reader(
        &self,
        file: &Arc<EntryFile>,
        range: ByteRange,
        player: PlayerReport,
        is_expected: bool,
    ) -> Arc<ReaderState> {
        Arc::new(ReaderState {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            file: file.clone(),
            end: range.end,
            viewer: player.viewer,
            is_expected,
            position: AtomicU64::new(range.start),
            left_at: AtomicU64::new(NOT_LEFT),
            waiting: AtomicBool::new(false),
            held_ms: AtomicU64::new(0),
            waiting_since_us: AtomicU64::new(0),
            last_read_us: AtomicU64::new(self.now_us()),
            consumption: Mutex::new(Consumption::new(player, self.now())),
            was_told: AtomicBool::new(false),
            told_paused: AtomicBool::new(false),
            hints: Mutex::default(),
        })
    }

    fn add(&self, mut inner: MutexGuard<'_, Inner>, state: &Arc<ReaderState>) {
        inner.readers.insert(state.id, state.clone());
        inner.dirty.insert(state.id);
        inner.touch();
    }

    pub fn close(&self, id: u64) {
        let mut inner = self.inner.lock();
        if let Some(reader) = inner.readers.remove(&id) {
            inner.record_viewer(&reader, self.now());
            if !reader.hints.lock().is_empty() && inner.hinting.len() < MAX_HINTING {
                reader.position.store(reader.end, Ordering::Relaxed);
                reader.waiting.store(false, Ordering::Release);
                inner.hinting.insert(id, (reader, Instant::now()));
                inner.dirty.insert(id);
                inner.touch();
            } else {
                inner.forget(&reader);
            }
        }
        inner.to_plan.add(false);
    }

    /// Records that the reader is blocked at `position`, and reports it at once.
    pub fn wait_at(&self, reader: &ReaderState, position: u64) {
        self.block_at(reader, position, true);
    }

    /// Like [`Self::wait_at`], for a reader whose bytes are on the way as the answer to its own
    /// request. Most such readers have their bytes, and have left, before a report is needed.
    pub fn wait_for_answer_at(&self, reader: &ReaderState, position: u64) {
        self.block_at(reader, position, false);
    }

    fn block_at(&self, reader: &ReaderState, position: u64, is_urgent: bool) {
        reader.position.store(position, Ordering::Relaxed);
        let is_new = !reader.waiting.swap(true, Ordering::AcqRel);
        if is_new {
            reader.held_ms.store(0, Ordering::Relaxed);
            reader
                .waiting_since_us
                .store(self.now_us(), Ordering::Relaxed);
        }
        let mut inner = self.inner.lock();
        if is_new {
            inner.dirty.insert(reader.id);
            inner.to_report.add(is_urgent);
        }
        // Also if it was woken in vain: what brought its bytes may have been given up.
        inner.to_plan.add(is_urgent);
    }

    /// Records that the reader took `len` bytes up to `position`. `moved_on`: into another chunk,
    /// which is worth a report.
    pub fn advance(&self, reader: &ReaderState, position: u64, len: u64, moved_on: bool) {
        let now = self.now_us();
        reader.last_read_us.store(now, Ordering::Relaxed);
        reader.position.store(position, Ordering::Relaxed);
        let at = Duration::from_micros(now);
        reader.consumption.lock().add(len, at);
        let waited = reader.waiting.swap(false, Ordering::AcqRel);
        if waited || moved_on || reader.told_paused.load(Ordering::Relaxed) {
            self.mark(reader);
        }
    }

    /// Adds the ranges of a container's index.
    pub fn hint(&self, reader: &ReaderState, ranges: Vec<ByteRange>) {
        *reader.hints.lock() = ranges;
        self.mark(reader);
    }

    /// Records that the coordinator is responsible for the waits of these readers.
    pub fn hold(&self, readers: &[u64], wait_ms: u32) {
        let inner = self.inner.lock();
        for reader in readers.iter().filter_map(|id| inner.readers.get(id)) {
            reader
                .held_ms
                .fetch_max(u64::from(wait_ms), Ordering::Relaxed);
        }
    }

    /// Whether a fetch that was assigned for this reader is still wanted here. It is not if the
    /// reader left and no other reader is near. Then the departure is reported at once, so that the
    /// coordinator does not assign the same fetch again.
    #[must_use]
    pub fn still_wants(&self, reader: u64, entry: EntryId, run: ByteRange) -> bool {
        let mut inner = self.inner.lock();
        let is_near = |other: &ReaderState| {
            let end = other.reach(NEAR);
            other.file.id() == entry
                && (other.position() < end.min(run.end) && run.start < end
                    || other
                        .hints()
                        .iter()
                        .any(|hint| !hint.intersect(run).is_empty()))
        };
        let is_there = |reader: &Arc<ReaderState>| !reader.is_left() || is_near(reader);
        let is_wanted = inner.readers.get(&reader).is_some_and(is_there)
            || inner.readers.values().any(|other| is_near(other))
            || inner.hinting().any(|other| is_near(other));
        if !is_wanted {
            if !inner.to_report.is_empty() {
                inner.to_report.add(true);
            }
            inner.to_plan.add(false);
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

    /// Readers that left and whose hints are kept.
    #[must_use]
    pub fn hinting(&self) -> Vec<Arc<ReaderState>> {
        self.inner.lock().hinting().cloned().collect()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().readers.len()
    }

    /// Number of viewers. Readers of one session count once.
    #[must_use]
    pub fn viewers(&self) -> usize {
        let inner = self.inner.lock();
        let viewers = inner.readers.values().map(|reader| match reader.viewer {
            Some(viewer) => (viewer.session, true),
            None => (reader.id, false),
        });
        viewers.collect::<HashSet<_>>().len()
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
        inner.to_report.take();
        if everything {
            // The coordinator took responsibility for these waits in an earlier session, which is
            // over.
            for reader in inner.readers.values() {
                reader.held_ms.store(0, Ordering::Relaxed);
            }
        }
        let readers: Vec<Arc<ReaderState>> = if complete {
            let readers = inner.readers.values().chain(inner.hinting());
            readers.cloned().collect()
        } else {
            let kept = |id: &u64| inner.hinting.get(id).map(|(reader, _)| reader);
            let find = |id: &u64| inner.readers.get(id).or_else(|| kept(id)).cloned();
            dirty.iter().filter_map(find).collect()
        };
        for reader in &readers {
            reader.was_told.store(true, Ordering::Relaxed);
        }
        Changes {
            readers,
            closed: if complete { Vec::new() } else { closed },
            complete,
        }
    }

    /// Returns when there is something to report: at once if a reader waits, otherwise after
    /// `gathering`, so that other changes can join. Cancel safe, because it checks the state and
    /// ignores the cause of the wake-up.
    pub async fn due(&self, gathering: Duration) {
        self.gathered(|inner| &inner.to_report, gathering).await;
    }

    /// The same for the edge's own planner, until [`begin_plan`](Self::begin_plan).
    pub async fn plan_due(&self, gathering: Duration) {
        self.gathered(|inner| &inner.to_plan, gathering).await;
    }

    /// The planner looks at all readers after this.
    pub fn begin_plan(&self) {
        self.inner.lock().to_plan.take();
    }

    async fn gathered(&self, of: fn(&Inner) -> &Gathered, gathering: Duration) {
        loop {
            // A change from here on leaves its wake-up for the next wait.
            let (left, wake) = of(&self.inner.lock()).wait(gathering);
            match left {
                None => wake.notified().await,
                Some(Duration::ZERO) => return,
                Some(left) => drop(tokio::time::timeout(left, wake.notified()).await),
            }
        }
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

    /// The reader's state, for local planning.
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
            paused: reader.is_left() || (!waiting && idle > PAUSED_AFTER),
        }
    }

    /// The number of bytes that may be fetched ahead of it; 0: the operator set the lookahead.
    #[must_use]
    pub fn earned_bytes(&self, reader: &ReaderState) -> u64 {
        if self.lookahead_chunks > 0 {
            return 0;
        }
        let chunk_size = u64::from(reader.file.geometry().chunk_size());
        let consumption = reader.consumption.lock();
        consumption.earned_bytes(chunk_size, self.longest_lookahead)
    }

    /// The playing time its player has buffered; `None`: it did not report any.
    fn player_buffer_ms(&self, reader: &ReaderState) -> Option<u32> {
        let buffer = reader.consumption.lock().player_buffer(self.now())?;
        Some(u32::try_from(buffer.as_millis()).unwrap_or(u32::MAX))
    }

    /// Periodic: reports readers that took nothing for a while as paused, and drops expired hints
    /// of readers that left.
    pub fn sweep(&self) {
        self.expire_hints(Instant::now());
        for reader in self.all() {
            if self.view(&reader).paused && !reader.told_paused.load(Ordering::Relaxed) {
                self.mark(&reader);
            }
        }
    }

    fn expire_hints(&self, now: Instant) {
        let mut inner = self.inner.lock();
        let old = |left: &Instant| now.saturating_duration_since(*left) >= HINTS_KEPT;
        let expired: Vec<u64> = inner
            .hinting
            .iter()
            .filter(|(_, (_, left))| old(left))
            .map(|(id, _)| *id)
            .collect();
        for id in &expired {
            if let Some((reader, _)) = inner.hinting.remove(id) {
                inner.forget(&reader);
            }
        }
        if !expired.is_empty() {
            inner.to_plan.add(false);
        }
    }

    /// The reader's demand as a message.
    #[must_use]
    pub fn message(&self, reader: &ReaderState) -> v1::ReaderDemand {
        let view = self.view(reader);
        reader.told_paused.store(view.paused, Ordering::Relaxed);
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
            waiting: view.waiting && !view.paused,
            rate_bytes_per_second: reader.rate(),
            earned_bytes: self.earned_bytes(reader),
            player_buffer_ms: self.player_buffer_ms(reader),
            buffered_bytes: buffered_to.saturating_sub(view.position),
            lookahead_bytes: u64::from(self.lookahead_chunks) * u64::from(geometry.chunk_size()),
            paused: view.paused,
            viewer: reader.viewer.map_or(0, |viewer| viewer.session),
            expected: reader.is_expected,
            hints: reader.hints().into_iter().map(Into::into).collect(),
        }
    }
}

impl ReaderState {
    /// The bytes per second that it consumes; 0: not known yet.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.consumption.lock().rate()
    }

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
#[path = "demand_tests.rs"]
#[allow(clippy::unwrap_used)]
mod tests;
