//! Decides which of this edge's fetches, assigned or local, run now.
//!
//! At most `max_running` run, the earliest deadline of the most urgent level first. A CRITICAL one
//! starts at once: in the one additional, reserved slot, or in place of the least urgent running
//! fetch, which waits again and later resumes with the answer that it was reading. It waits only
//! if every running fetch is CRITICAL too. A HIGH one takes the place of a MEDIUM or LOW one.
//!
//! While a CRITICAL fetch from an origin runs, MEDIUM and LOW ones from that origin do not: they
//! share the path to the origin, and their bytes would delay the one that a reader waits for. They
//! are stopped here at once, before the coordinator knows. No level starves: after [`MAX_YIELD_MS`]
//! one of them runs to its end.
//!
//! If the link to an origin is full, so that a second fetch adds nothing, they are read one after
//! the other: a HIGH one starts when no other one from there, CRITICAL or HIGH, has more than its
//! end to bring. So a reader's bytes come in the order in which it needs them. MEDIUM and LOW ones
//! do the same among themselves, and yield to HIGH as well, and for [`QUIET_MS`] after it: the next
//! request of a player that seeks comes a moment after the end of its last one.
//!
//! No source can take all slots with its CRITICAL fetches: see [`FetchQueue::settle`].
//!
//! A state machine without clock or tasks: each change returns the tasks to start and to stop.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use chunkcache_proto::{ChunkIndex, EntryId, FetchId, Level};

/// Maximum number of tasks; beyond it new ones below CRITICAL are refused.
pub const MAX_TASKS: usize = 4096;
/// How long fetches from an origin yield to more urgent ones before one of them may run in parallel
/// with these.
pub const MAX_YIELD_MS: u64 = 3_000;
/// How long MEDIUM and LOW do not use a full link after a more urgent fetch: what they asked for
/// fills the sockets' buffers, and the link, although they stop at once.
pub const QUIET_MS: u64 = 300;

/// A run of adjacent chunks to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub id: FetchId,
    pub entry: EntryId,
    /// The source to fetch from; `None`: a peer.
    pub origin: Option<Arc<str>>,
    pub first_chunk: ChunkIndex,
    pub chunk_count: u32,
    pub level: Level,
    /// On the caller's clock, in milliseconds.
    pub deadline_ms: u64,
    /// The reader that it is ahead of; 0: none.
    pub reader: u64,
}

impl Task {
    /// Whether the chunk is one of the run.
    #[must_use]
    pub fn covers(&self, entry: &EntryId, chunk: ChunkIndex) -> bool {
        self.entry == *entry
            && chunk >= self.first_chunk
            && u64::from(chunk) < u64::from(self.first_chunk) + u64::from(self.chunk_count)
    }

    fn rank(&self) -> Rank {
        (self.level, self.deadline_ms, self.id)
    }
}

type Rank = (Level, u64, FetchId);

/// An instruction to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Start(FetchId),
    /// Stop at once, keeping the written bytes; answer with [`FetchQueue::preempted`].
    Preempt(FetchId),
    /// Stop at the end of the chunk; answer with [`FetchQueue::ended`].
    Cancel(FetchId),
    /// A waiting task that is no longer wanted was removed from the queue.
    Drop(FetchId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    /// Told to stop. Its slot is free already, and it waits again once it has stopped.
    Preempting,
    /// Told to stop for good. Its slot is free already, and it is over once it has stopped.
    Leaving,
}

/// The state of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskStanding {
    Waiting,
    Running,
    /// Told to stop.
    Stopping,
}

/// MEDIUM and LOW of one origin, which yield to its more urgent fetches.
#[derive(Clone, Debug)]
struct Yielding {
    since_ms: u64,
    /// The task that is exempt and runs to its end.
    spared: Option<FetchId>,
}

/// The queue of this edge's fetches.
#[derive(Clone, Debug)]
pub struct FetchQueue {
    max_running: usize,
    tasks: HashMap<FetchId, (Task, State)>,
    /// The origins of all tasks, and how many tasks each has.
    origins: HashMap<Arc<str>, usize>,
    waiting: BTreeSet<Rank>,
    running: BTreeSet<Rank>,
    /// Kept until a fetch that began at these levels has ended by itself, so that neither a gap
    /// between two urgent fetches nor the rest of one resets it.
    yielding: HashMap<Arc<str>, Yielding>,
    /// Since when HIGH fetches of an origin wait because its link is full.
    ahead_since_ms: HashMap<Arc<str>, u64>,
    /// When readers last fetched from an origin whose link is full.
    read_at_ms: HashMap<Arc<str>, u64>,
    /// Running tasks that have only their end to bring.
    ending: HashSet<FetchId>,
    /// Running tasks that began at MEDIUM or LOW.
    begun_low: HashSet<FetchId>,
}

impl FetchQueue {
    #[must_use]
    pub fn new(max_running: usize) -> Self {
        Self {
            max_running: max_running.max(1),
            tasks: HashMap::new(),
            origins: HashMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            yielding: HashMap::new(),
            ahead_since_ms: HashMap::new(),
            read_at_ms: HashMap::new(),
            ending: HashSet::new(),
            begun_low: HashSet::new(),
        }
    }

    /// Adds a task. `false`: the queue is full, or the id is known.
    #[must_use]
    pub fn push(&mut self, mut task: Task) -> bool {
        let full = self.tasks.len() >= MAX_TASKS && task.level != Level::Critical;
        if full || self.tasks.contains_key(&task.id) {
            return false;
        }
        task.deadline_ms = task.deadline_ms.max(self.deadline_before(&task));
        self.waiting.insert(task.rank());
        self.insert(task, State::Waiting);
        true
    }

    /// The latest deadline of waiting tasks that bring the reader's chunks before these. They were
    /// estimated when the reader was slower.
    fn deadline_before(&self, task: &Task) -> u64 {
        if task.reader == 0 {
            return 0;
        }
        let is_before = |other: &&Task| {
            other.reader == task.reader
                && other.entry == task.entry
                && other.level == task.level
                && other.first_chunk < task.first_chunk
        };
        let waiting = self.waiting.iter().filter_map(|rank| self.get(rank.2));
        let before = waiting.filter(is_before);
        before.map(|it| it.deadline_ms).max().unwrap_or(0)
    }

    /// Adds a task that is already running (the body of a probe).
    pub fn adopt_running(&mut self, task: Task) {
        self.running.insert(task.rank());
        self.insert(task, State::Running);
    }

    fn insert(&mut self, task: Task, state: State) {
        if let Some(origin) = &task.origin {
            *self.origins.entry(origin.clone()).or_insert(0) += 1;
        }
        self.tasks.insert(task.id, (task, state));
    }

    /// Changes level and deadline. Ignores unknown ids, because the task may have ended meanwhile.
    pub fn reprioritise(&mut self, id: FetchId, level: Level, deadline_ms: u64) {
        let Some((task, state)) = self.tasks.get_mut(&id) else {
            return;
        };
        let old = task.rank();
        task.level = level;
        task.deadline_ms = deadline_ms;
        let new = task.rank();
        let set = match state {
            State::Waiting => &mut self.waiting,
            State::Running => &mut self.running,
            State::Preempting | State::Leaving => return,
        };
        set.remove(&old);
        set.insert(new);
    }

    /// Cancels a task. A waiting one is removed at once (`None`); a running one is to be stopped.
    #[must_use]
    pub fn cancel(&mut self, id: FetchId) -> Option<Effect> {
        let (task, state) = self.tasks.get_mut(&id)?;
        match state {
            State::Waiting => {
                self.ended(id);
                None
            }
            State::Running | State::Preempting | State::Leaving => {
                self.running.remove(&task.rank());
                *state = State::Leaving;
                Some(Effect::Cancel(id))
            }
        }
    }

    /// A running task has only its end to bring: the next one may be requested, so that the link
    /// does not idle for a round trip.
    pub fn near_end(&mut self, id: FetchId) {
        if self
            .tasks
            .get(&id)
            .is_some_and(|(_, state)| *state == State::Running)
        {
            self.ending.insert(id);
        }
    }

    /// Removes a task that is over, for whatever reason.
    pub fn ended(&mut self, id: FetchId) {
        self.ending.remove(&id);
        let had_its_turn = self.begun_low.remove(&id);
        let Some((task, state)) = self.tasks.remove(&id) else {
            return;
        };
        self.running.remove(&task.rank());
        self.waiting.remove(&task.rank());
        let Some(origin) = &task.origin else {
            return;
        };
        if let Some(count) = self.origins.get_mut(origin) {
            *count -= 1;
            if *count == 0 {
                self.origins.remove(origin);
            }
        }
        if let Some(yielding) = self.yielding.get(origin)
            && (yielding.spared == Some(id) || (had_its_turn && state == State::Running))
        {
            self.yielding.remove(origin);
        }
    }

    /// Requeues a task that stopped after [`Effect::Preempt`]. False: it was cancelled meanwhile,
    /// and is over.
    #[must_use]
    pub fn preempted(&mut self, id: FetchId) -> bool {
        self.ending.remove(&id);
        self.begun_low.remove(&id);
        let Some((task, state)) = self.tasks.get_mut(&id) else {
            return false;
        };
        match state {
            State::Preempting => {
                *state = State::Waiting;
                self.waiting.insert(task.rank());
            }
            State::Leaving => {
                self.ended(id);
                return false;
            }
            State::Waiting | State::Running => {}
        }
        true
    }

    /// Returns what to start and stop now. Call it after each change, and from time to time. A
    /// waiting task that is no longer wanted is dropped before another task yields to it.
    /// `is_full`: whether the link to an origin is full.
    #[must_use]
    pub fn settle(
        &mut self,
        now_ms: u64,
        is_wanted: impl Fn(&Task) -> bool,
        is_full: impl Fn(&str) -> bool,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.drop_unwanted(is_wanted, &mut effects);
        let origins = self.origins.keys().cloned();
        let (full, wide): (HashSet<_>, HashSet<_>) = origins.partition(|origin| is_full(origin));
        self.ahead_since_ms
            .retain(|origin, _| full.contains(origin));
        // Also if its last task is over: the next one may come at once.
        self.read_at_ms
            .retain(|origin, at| !wide.contains(origin) && now_ms < *at + QUIET_MS);
        let urgent = self.urgent_origins(&full, now_ms);
        self.yield_to_urgent(&urgent, now_ms, &mut effects);
        while let Some(mut best) = self.next_to_start(&urgent, &full, now_ms) {
            let critical = best.0 == Level::Critical;
            let slots = self.max_running + usize::from(critical);
            if self.running.len() >= slots {
                let lower = self.running.last().copied();
                let victim = if let Some(lower) = lower.filter(|lower| lower.0 > best.0) {
                    lower
                } else if critical && let Some((next, victim)) = self.fairer() {
                    best = next;
                    victim
                } else {
                    break;
                };
                self.preempt(victim, &mut effects);
            }
            self.waiting.remove(&best);
            self.running.insert(best);
            self.set_state(best.2, State::Running);
            if best.0 == Level::High
                && let Some(origin) = self.origin_of(best.2).cloned()
            {
                self.ahead_since_ms.remove(&origin);
            }
            if best.0 > Level::High {
                self.begun_low.insert(best.2);
            }
            effects.push(Effect::Start(best.2));
        }
        effects
    }

    /// Drops unwanted waiting tasks. Jobs and fills, which are below HIGH, have no reader that
    /// could leave.
    fn drop_unwanted(&mut self, is_wanted: impl Fn(&Task) -> bool, effects: &mut Vec<Effect>) {
        let readers = self.waiting.iter().take_while(|rank| rank.0 <= Level::High);
        let unwanted = readers.filter(|rank| !self.get(rank.2).is_none_or(&is_wanted));
        for rank in unwanted.copied().collect::<Vec<_>>() {
            self.ended(rank.2);
            effects.push(Effect::Drop(rank.2));
        }
    }

    /// If all slots are CRITICAL: a waiting task of a source that has at least two running tasks
    /// fewer than another source, and the least urgent running task of that other source. So a
    /// source that hangs keeps no more than its share of the slots.
    fn fairer(&self) -> Option<(Rank, Rank)> {
        let mut running: HashMap<Option<&Arc<str>>, (usize, Rank)> = HashMap::new();
        for &rank in &self.running {
            let (count, worst) = running.entry(self.origin_of(rank.2)).or_insert((0, rank));
            (*count, *worst) = (*count + 1, rank);
        }
        let (most, victim) = running.values().max_by_key(|(count, _)| *count).copied()?;
        let mut critical = self
            .waiting
            .iter()
            .take_while(|rank| rank.0 == Level::Critical);
        let next = critical.find(|rank| {
            let own = running.get(&self.origin_of(rank.2));
            own.map_or(0, |(count, _)| *count) + 2 <= most
        });
        Some((*next?, victim))
    }

    fn preempt(&mut self, rank: Rank, effects: &mut Vec<Effect>) {
        self.running.remove(&rank);
        self.set_state(rank.2, State::Preempting);
        effects.push(Effect::Preempt(rank.2));
    }

    fn origin_of(&self, id: FetchId) -> Option<&Arc<str>> {
        self.tasks.get(&id)?.0.origin.as_ref()
    }

    /// Origins from which a fetch of this level or above reads, or is about to read.
    fn origins_up_to(&self, level: Level) -> impl Iterator<Item = &Arc<str>> {
        let of_level = move |rank: &&Rank| rank.0 <= level;
        let running = self.running.iter().take_while(of_level);
        let waiting = self.waiting.iter().take_while(of_level);
        running
            .chain(waiting)
            .filter_map(|rank| self.origin_of(rank.2))
    }

    /// Origins to whose fetches for readers the lower levels yield.
    fn urgent_origins(&mut self, full: &HashSet<Arc<str>>, now_ms: u64) -> HashSet<Arc<str>> {
        let is_full = |origin: &&Arc<str>| full.contains(*origin);
        let read: Vec<_> = self
            .origins_up_to(Level::High)
            .filter(is_full)
            .cloned()
            .collect();
        for origin in read {
            self.read_at_ms.insert(origin, now_ms);
        }
        let critical = self.origins_up_to(Level::Critical);
        critical.chain(self.read_at_ms.keys()).cloned().collect()
    }

    fn yield_to_urgent(
        &mut self,
        urgent: &HashSet<Arc<str>>,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        let lower = |rank: &&Rank| rank.0 >= Level::Medium;
        let yields: Vec<Rank> = self
            .running
            .iter()
            .rev()
            .take_while(lower)
            .filter(|rank| {
                self.origin_of(rank.2).is_some_and(|origin| {
                    let spared = self.yielding.get(origin).and_then(|it| it.spared);
                    urgent.contains(origin) && spared != Some(rank.2)
                })
            })
            .copied()
            .collect();
        for rank in yields {
            if let Some(origin) = self.origin_of(rank.2).cloned() {
                self.yielding.entry(origin).or_insert(Yielding {
                    since_ms: now_ms,
                    spared: None,
                });
            }
            self.preempt(rank, effects);
        }
    }

    /// The first waiting task that may start.
    fn next_to_start(
        &mut self,
        urgent: &HashSet<Arc<str>>,
        full: &HashSet<Arc<str>>,
        now_ms: u64,
    ) -> Option<Rank> {
        let is_busy = self.running.len() >= self.max_running;
        for &rank in &self.waiting {
            if rank.0 > Level::Critical
                && let Some(origin) = self.held_back(rank, full)
            {
                if rank.0 > Level::High {
                    continue;
                }
                let since_ms = *self.ahead_since_ms.entry(origin).or_insert(now_ms);
                if now_ms.saturating_sub(since_ms) < MAX_YIELD_MS {
                    continue;
                }
            }
            if rank.0 < Level::Medium {
                return Some(rank);
            }
            if is_busy {
                return None;
            }
            let Some(origin) = self.tasks.get(&rank.2).and_then(|it| it.0.origin.clone()) else {
                return Some(rank);
            };
            if !urgent.contains(&origin) {
                return Some(rank);
            }
            let yielding = self.yielding.entry(origin).or_insert(Yielding {
                since_ms: now_ms,
                spared: None,
            });
            let patient = now_ms.saturating_sub(yielding.since_ms) < MAX_YIELD_MS;
            if !patient && yielding.spared.is_none_or(|spared| spared == rank.2) {
                yielding.spared = Some(rank.2);
                return Some(rank);
            }
        }
        None
    }

    /// The origin of a waiting task, if its link is full and another fetch uses it that is not less
    /// urgent.
    fn held_back(&self, rank: Rank, full: &HashSet<Arc<str>>) -> Option<Arc<str>> {
        let origin = self.origin_of(rank.2)?;
        // MEDIUM and LOW yield to the levels above by another rule.
        let is_for_reader = |rank: &Rank| rank.0 <= Level::High;
        let mut running = self.running.iter().take_while(|it| it.0 <= rank.0);
        let is_used = full.contains(origin)
            && running.any(|it| {
                is_for_reader(it) == is_for_reader(&rank)
                    && self.origin_of(it.2) == Some(origin)
                    && !self.ending.contains(&it.2)
            });
        is_used.then(|| origin.clone())
    }

    fn set_state(&mut self, id: FetchId, state: State) {
        if let Some((_, held)) = self.tasks.get_mut(&id) {
            *held = state;
        }
    }

    #[must_use]
    pub fn get(&self, id: FetchId) -> Option<&Task> {
        self.tasks.get(&id).map(|(task, _)| task)
    }

    /// Tasks whose run contains the chunk, and whether each is running.
    pub fn covering(
        &self,
        entry: EntryId,
        chunk: ChunkIndex,
    ) -> impl Iterator<Item = (&Task, bool)> {
        self.tasks
            .values()
            .filter(move |(task, state)| *state != State::Leaving && task.covers(&entry, chunk))
            .map(|(task, state)| (task, *state == State::Running))
    }

    /// All tasks of an origin, the most urgent first; `Waiting` ones have no slot.
    #[must_use]
    pub fn of_origin(&self, origin: &str) -> Vec<(FetchId, TaskStanding)> {
        let of_it = |(task, _): &&(Task, State)| task.origin.as_deref() == Some(origin);
        let mut tasks: Vec<_> = self.tasks.values().filter(of_it).collect();
        tasks.sort_unstable_by_key(|(task, _)| task.rank());
        let standing = |state: &State| match state {
            State::Waiting => TaskStanding::Waiting,
            State::Running => TaskStanding::Running,
            State::Preempting | State::Leaving => TaskStanding::Stopping,
        };
        let tasks = tasks.into_iter();
        tasks
            .map(|(task, state)| (task.id, standing(state)))
            .collect()
    }

    #[must_use]
    pub fn running_count(&self) -> usize {
        self.running.len()
    }

    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
#[path = "fetch_queue_tests.rs"]
mod tests;
