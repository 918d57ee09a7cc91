//! The fetches of this edge: `core::fetch_queue` decides, this module carries out.

mod reports;
mod shed;
mod view;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use chunkcache_proto::{ChunkIndex, EntryId, FetchId, Level, v1};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    Assignment,
    handle::{FetchHandle, StopMode},
    run::{Fetcher, OpenAnswer, RunEnd},
};
use crate::upstream::answer::Part;
use crate::{
    core::fetch_queue::{Effect, FetchQueue, Task},
    readers::{Announce, DemandRegistry},
    worker_pool::Workers,
};

/// The next fetch from a full link is requested when the one before has this much left, or more.
const LEAST_LEAD: u64 = 64 << 10;

/// Which fetch, if any, brings a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    None,
    /// A fetch of it waits for a slot.
    Queued(FetchId),
    /// A running fetch has received the byte, or is this many bytes before it.
    Coming {
        id: FetchId,
        distance: u64,
    },
    /// A running fetch will reach the byte late: it is past the byte, and fetches the chunk's head
    /// last.
    Late(FetchId),
}

/// All fetches of this edge. Cheap to clone.
#[derive(Clone)]
pub struct Downloads(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    fetcher: Arc<Fetcher>,
    announce: Arc<dyn Announce>,
    demand: Arc<DemandRegistry>,
    workers: Workers,
    /// Notified when a fetch is submitted.
    ordered: Notify,
    begun: Instant,
    next_local: AtomicU64,
}

struct State {
    queue: FetchQueue,
    fetches: HashMap<FetchId, Fetch>,
    closed: bool,
    refused: Option<Instant>,
    origin_bytes_told: u64,
}

struct Fetch {
    assignment: Assignment,
    handle: Arc<FetchHandle>,
    /// Chunks that were missing when the fetch was submitted and are not durable yet.
    undurable: HashSet<ChunkIndex>,
    finished: bool,
    ordered: Instant,
    /// The answer that it was reading when it was preempted.
    paused: Option<OpenAnswer>,
}

impl Downloads {
    /// `workers`: the fetching threads, which may block on the disk.
    #[must_use]
    pub fn new(
        max_downloads: usize,
        fetcher: Arc<Fetcher>,
        announce: Arc<dyn Announce>,
        demand: Arc<DemandRegistry>,
        workers: Workers,
    ) -> Self {
        let state = State {
            queue: FetchQueue::new(max_downloads),
            fetches: HashMap::new(),
            closed: false,
            refused: None,
            origin_bytes_told: 0,
        };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            fetcher,
            announce,
            demand,
            workers,
            ordered: Notify::new(),
            begun: Instant::now(),
            next_local: AtomicU64::new(1),
        }))
    }

    #[must_use]
    pub fn fetcher(&self) -> &Arc<Fetcher> {
        &self.0.fetcher
    }

    #[must_use]
    pub fn workers(&self) -> &Workers {
        &self.0.workers
    }

    /// A new id for a local fetch.
    #[must_use]
    pub fn local_id(&self) -> FetchId {
        FetchId::Local(self.0.next_local.fetch_add(1, Ordering::Relaxed))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn task(&self, assignment: &Assignment) -> Task {
        Task {
            id: assignment.id,
            entry: assignment.file.id(),
            origin: assignment.peer.is_none().then(|| assignment.source()),
            first_chunk: assignment.first_chunk,
            chunk_count: assignment.chunk_count,
            level: assignment.level,
            deadline_ms: self.now_ms() + u64::from(assignment.deadline_in_ms),
            reader: assignment.reader,
        }
    }

    /// Submits a fetch. `false`: refused, because the queue is full or closing.
    pub fn submit(&self, assignment: Assignment) -> bool {
        let mut state = self.0.state.lock();
        let is_taken = !state.closed && self.take_in(&mut state, assignment);
        if is_taken {
            self.settle(state);
        }
        is_taken
    }

    fn take_in(&self, state: &mut State, assignment: Assignment) -> bool {
        if !state.queue.push(self.task(&assignment)) {
            return false;
        }
        self.announce_local(&assignment);
        let handle = self.handle(&assignment, Instant::now());
        state
            .fetches
            .insert(assignment.id, Fetch::new(assignment, handle));
        self.0.ordered.notify_waiters();
        true
    }

    /// Takes over an answer that has already begun.
    pub fn adopt(&self, assignment: Assignment, opened: OpenAnswer) {
        let task = self.task(&assignment);
        if opened.part == Part::Whole {
            self.0
                .fetcher
                .incoming
                .of(&assignment.file)
                .set_ignores_ranges();
        }
        let mut state = self.0.state.lock();
        state.queue.adopt_running(task);
        self.announce_local(&assignment);
        let handle = self.handle(&assignment, Instant::now());
        let fetch = Fetch::new(assignment.clone(), handle.clone());
        state.fetches.insert(assignment.id, fetch);
        self.0.ordered.notify_waiters();
        // The caller has just received the answer's head: its connection is on this worker.
        // Its announcement has just said that it runs.
        let run = self.clone().carry_out(assignment, handle, Some(opened));
        self.0.workers.spawn_here(run);
        self.settle(state);
    }

    /// Makes the handle. It reports each chunk's end to the coordinator, which decides by the
    /// position whether a run reaches a chunk soon.
    fn handle(&self, assignment: &Assignment, ordered: Instant) -> Arc<FetchHandle> {
        let run = assignment.run();
        let (this, id, level) = (Arc::downgrade(&self.0), assignment.id, assignment.level);
        let inner = this.clone();
        let source = self.0.fetcher.catalogue.get(&assignment.source());
        let lead = source.and_then(|source| source.bytes_of_round_trip());
        // Twice, because the edge and the coordinator take their time too.
        let lead = lead.unwrap_or(0).saturating_mul(2).max(LEAST_LEAD);
        let end_begins = run.end.saturating_sub(lead.min(run.len() / 2));
        let handle = FetchHandle::new(run.start, assignment.start_at, move |reached| {
            if let Some(inner) = this.upgrade() {
                inner.fetcher.counters.chunk_came(level, ordered.elapsed());
                Self(inner).report(id, v1::fetch_report::State::Progress, reached, None);
            }
        });
        let handle = handle.with_end(end_begins, move || {
            if let Some(inner) = inner.upgrade() {
                let this = Self(inner);
                let mut state = this.0.state.lock();
                state.queue.near_end(id);
                this.settle(state);
            }
        });
        handle.set_level(level);
        Arc::new(handle)
    }

    fn settle(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        let State { queue, fetches, .. } = &mut *state;
        let is_wanted = |task: &Task| {
            let assignment = fetches.get(&task.id).map(|fetch| &fetch.assignment);
            assignment.is_none_or(|assignment| {
                assignment.reader == 0
                    || self
                        .0
                        .demand
                        .still_wants(assignment.reader, task.entry, assignment.run())
            })
        };
        let is_full = |name: &str| {
            let source = self.0.fetcher.catalogue.get(name);
            source.is_some_and(|source| source.is_link_full())
        };
        for effect in queue.settle(self.now_ms(), is_wanted, is_full) {
            match effect {
                Effect::Start(id) => {
                    let level = state.queue.get(id).map(|task| task.level);
                    let Some(fetch) = state.fetches.get_mut(&id) else {
                        continue;
                    };
                    fetch.handle = self.handle(&fetch.assignment, fetch.ordered);
                    fetch
                        .handle
                        .set_level(level.unwrap_or(fetch.assignment.level));
                    let rest = fetch.paused.take();
                    let (assignment, handle) = (fetch.assignment.clone(), fetch.handle.clone());
                    let run = self.clone().run(assignment, handle, rest);
                    self.0.workers.spawn(run);
                }
                Effect::Preempt(id) => stop(&state, id, StopMode::Preempted),
                Effect::Cancel(id) => stop(&state, id, StopMode::AtChunkEnd),
                Effect::Drop(id) => {
                    let fetch = state.fetches.remove(&id);
                    self.end_unstarted(id, fetch);
                }
            }
        }
    }

    async fn run(
        self,
        assignment: Assignment,
        handle: Arc<FetchHandle>,
        opened: Option<OpenAnswer>,
    ) {
        self.report(assignment.id, v1::fetch_report::State::Started, 0, None);
        self.carry_out(assignment, handle, opened).await;
    }

    async fn carry_out(
        self,
        assignment: Assignment,
        handle: Arc<FetchHandle>,
        opened: Option<OpenAnswer>,
    ) {
        let end = self.0.fetcher.run(&assignment, &handle, opened).await;
        if !matches!(end, RunEnd::Paused(_)) {
            self.0.fetcher.connection_closed(&assignment).await;
        }
        self.ended(assignment.id, &handle, end);
    }

    fn ended(&self, id: FetchId, handle: &FetchHandle, end: RunEnd) {
        let mut state = self.0.state.lock();
        let bytes = handle.bytes_done();
        tracing::debug!(fetch = id.number(), bytes, "a fetch ended");
        match end {
            RunEnd::Paused(rest) => {
                if !state.closed && state.queue.preempted(id) {
                    if let Some(fetch) = state.fetches.get_mut(&id) {
                        fetch.paused = rest.map(|rest| *rest);
                    }
                } else if let Some(mut fetch) = state.fetches.remove(&id) {
                    fetch.paused = rest.map(|rest| *rest);
                    self.cancel_paused(fetch, bytes);
                }
            }
            RunEnd::Stopped => {
                state.queue.ended(id);
                if let Some(fetch) = state.fetches.remove(&id) {
                    self.complete_partial_chunks(&mut state, &fetch.assignment, None);
                }
                self.report_cancelled(id, bytes);
            }
            RunEnd::Failed(failure) => {
                state.queue.ended(id);
                state.fetches.remove(&id);
                let fetch = id.number();
                self.0.fetcher.counters.failed(failure.fault);
                if failure.fault == v1::fetch_failure::Fault::Edge {
                    state.refused = Some(Instant::now());
                }
                let is_usual = [
                    // The store has already logged why it refuses.
                    v1::fetch_failure::Fault::Edge,
                    v1::fetch_failure::Fault::Quota,
                    // A job for an object that only clients may request.
                    v1::fetch_failure::Fault::Unsigned,
                ];
                if is_usual.contains(&failure.fault) {
                    tracing::debug!(fetch, message = failure.message, "a fetch failed");
                } else {
                    tracing::info!(fetch, message = failure.message, "a fetch failed");
                }
                self.report(id, v1::fetch_report::State::Failed, bytes, Some(failure));
            }
            RunEnd::Finished => {
                state.queue.ended(id);
                let durable = match state.fetches.get_mut(&id) {
                    Some(fetch) => {
                        fetch.finished = true;
                        fetch.undurable.is_empty()
                    }
                    None => true,
                };
                if durable {
                    state.fetches.remove(&id);
                    self.report(id, v1::fetch_report::State::Finished, bytes, None);
                } else {
                    self.report_later(id);
                }
            }
        }
        self.settle(state);
    }

    pub fn reprioritise(&self, id: FetchId, level: Level, deadline_in_ms: u32) {
        let deadline = self.now_ms() + u64::from(deadline_in_ms);
        let mut state = self.0.state.lock();
        self.set_level(&mut state, id, level, deadline);
        self.settle(state);
    }

    fn set_level(&self, state: &mut State, id: FetchId, level: Level, deadline: u64) {
        state.queue.reprioritise(id, level, deadline);
        if let Some(fetch) = state.fetches.get(&id) {
            fetch.handle.set_level(level);
        }
    }

    /// Cancels a fetch. `chunk_wanted`: a reader is in the current chunk, so that chunk is
    /// finished.
    pub fn cancel(&self, id: FetchId, chunk_wanted: bool) {
        let mut state = self.0.state.lock();
        match state.queue.cancel(id) {
            Some(_) => stop(
                &state,
                id,
                if chunk_wanted {
                    StopMode::AtChunkEnd
                } else {
                    StopMode::Now
                },
            ),
            None => {
                if state.fetches.get(&id).is_some_and(|fetch| !fetch.finished) {
                    let fetch = state.fetches.remove(&id);
                    self.end_unstarted(id, fetch);
                }
            }
        }
        self.settle(state);
    }

    /// Raises the fetch that covers a byte to CRITICAL without a round trip, because a reader of
    /// this edge is blocked on it. Returns whether any fetch brings the byte soon.
    pub fn promote(&self, entry: EntryId, chunk: ChunkIndex, position: u64) -> bool {
        let coverage = self.coverage(entry, chunk, position);
        let mut state = self.0.state.lock();
        let soon = match coverage {
            Coverage::Queued(id) => {
                if let Some(fetch) = state.fetches.get_mut(&id) {
                    fetch.assignment.start_at = position;
                    fetch.assignment.level = Level::Critical;
                }
                self.set_level(&mut state, id, Level::Critical, 0);
                true
            }
            Coverage::Coming { id, distance } => {
                let near = state.fetches.get(&id).is_some_and(|f| {
                    distance <= u64::from(f.assignment.file.geometry().chunk_size())
                });
                if near {
                    self.set_level(&mut state, id, Level::Critical, 0);
                }
                near
            }
            Coverage::Late(_) | Coverage::None => false,
        };
        self.settle(state);
        soon
    }

    /// Raises a local fetch to the level at which another edge wants its chunk. The coordinator,
    /// which sent that edge here, can raise only fetches that it assigned.
    pub fn raise_for_peer(&self, entry: EntryId, chunk: ChunkIndex, position: u64, level: Level) {
        let id = match self.coverage(entry, chunk, position) {
            Coverage::Queued(id) | Coverage::Coming { id, .. } | Coverage::Late(id) => id,
            Coverage::None => return,
        };
        let now = self.now_ms();
        let mut state = self.0.state.lock();
        let was = state.queue.get(id).map(|task| task.level);
        if id.is_local() && was > Some(level) {
            self.set_level(&mut state, id, level, now);
            self.settle(state);
        }
    }

    /// Which fetch brings the byte at `position` in `chunk`.
    #[must_use]
    pub fn coverage(&self, entry: EntryId, chunk: ChunkIndex, position: u64) -> Coverage {
        let state = self.0.state.lock();
        let mut found = Coverage::None;
        for (task, running) in state.queue.covering(entry, chunk) {
            if !running {
                if matches!(found, Coverage::None | Coverage::Late(_)) {
                    found = Coverage::Queued(task.id);
                }
                continue;
            }
            let Some(fetch) = state.fetches.get(&task.id) else {
                continue;
            };
            if let Some(distance) = fetch.handle.distance_to(position) {
                let id = task.id;
                return Coverage::Coming { id, distance };
            }
            if found == Coverage::None {
                found = Coverage::Late(task.id);
            }
        }
        found
    }

    /// Local fetches that may no longer be wanted, with their runs.
    #[must_use]
    pub fn local_orders(&self) -> Vec<Assignment> {
        let state = self.0.state.lock();
        let local = state
            .fetches
            .iter()
            .filter(|(id, fetch)| id.is_local() && !fetch.finished);
        local.map(|(_, fetch)| fetch.assignment.clone()).collect()
    }

    /// Lets time pass: fetches that yielded for long may run.
    pub fn tick(&self) {
        let state = self.0.state.lock();
        self.settle(state);
    }

    /// Cancels fetches from peers after a session ended: they cost no origin anything, and are
    /// planned again. Fetches from origins continue, and the next session reports them.
    pub fn forget_peers(&self) {
        let of_peers =
            |fetch: &&Fetch| fetch.assignment.peer.is_some() && !fetch.assignment.is_local();
        let ids: Vec<_> = {
            let state = self.0.state.lock();
            let fetches = state.fetches.values().filter(of_peers);
            fetches.map(|fetch| fetch.assignment.id).collect()
        };
        for id in ids {
            self.cancel(id, true);
        }
    }

    /// In-flight fetches to report to a new session.
    #[must_use]
    pub fn kept(&self) -> Vec<v1::KeptFetch> {
        let state = self.0.state.lock();
        let from_origin = |fetch: &&Fetch| fetch.assignment.peer.is_none();
        let kept = state.fetches.values().filter(from_origin).map(|fetch| {
            let assignment = &fetch.assignment;
            let level = state
                .queue
                .get(assignment.id)
                .map_or(assignment.level, |task| task.level);
            v1::KeptFetch {
                assignment_id: assignment.id.into(),
                entry_id: assignment.file.id().to_string(),
                first_chunk: assignment.first_chunk,
                chunk_count: assignment.chunk_count,
                priority: v1::Priority::from(level).into(),
            }
        });
        kept.collect()
    }

    /// Reports in-flight fetches that ended before the new session could list them.
    pub fn report_ended(&self, kept: &[v1::KeptFetch]) {
        let state = self.0.state.lock();
        for id in kept.iter().map(|fetch| fetch.assignment_id.into()) {
            if !state.fetches.contains_key(&id) {
                self.report_cancelled(id, 0);
            }
        }
    }

    /// Refuses new fetches and stops the running ones.
    pub fn close(&self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        for fetch in state.fetches.values() {
            fetch.handle.stop(StopMode::Now);
        }
    }
}

impl Fetch {
    fn new(assignment: Assignment, handle: Arc<FetchHandle>) -> Self {
        let chunks = assignment.first_chunk
            ..assignment
                .first_chunk
                .saturating_add(assignment.chunk_count);
        let undurable = chunks
            .filter(|chunk| !assignment.file.is_present(*chunk))
            .collect();
        Self {
            assignment,
            handle,
            undurable,
            finished: false,
            ordered: Instant::now(),
            paused: None,
        }
    }
}

fn stop(state: &State, id: FetchId, stop: StopMode) {
    if let Some(fetch) = state.fetches.get(&id) {
        fetch.handle.stop(stop);
    }
}
