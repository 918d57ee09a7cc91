//! Which of the fetches this edge was told of, or decided on itself, run now.
//!
//! At most `max_running` run, the earliest deadline of the most urgent level first. A CRITICAL one
//! starts in any case: in the one reserved slot beyond, or in the place of the least urgent running
//! fetch, which waits again and later resumes from what it wrote. Only when every running fetch is
//! CRITICAL itself does a CRITICAL one wait.
//!
//! While a CRITICAL fetch of an origin runs, MEDIUM and LOW ones of that origin do not: the way to
//! the origin is one, and what they have on it stands before the byte a reader waits for. They are
//! stopped here, at once, not when the coordinator gets to know. No level starves of it: after
//! [`MAX_YIELD_MS`] one of them runs to its end.
//!
//! Of CRITICAL ones of several sources none takes all slots: see [`FetchQueue::settle`].
//!
//! A state machine without clock or tasks: each change returns what to start and what to stop.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use chunkcache_proto::{ChunkIndex, EntryId, Level};

/// Given by the coordinator, or by this edge with the highest bit set.
pub type TaskId = u64;

/// Tasks held at most; beyond it new ones below CRITICAL are refused.
pub const MAX_TASKS: usize = 4096;
/// So long MEDIUM and LOW of an origin give way to its CRITICAL fetches before one of them may run
/// beside these.
pub const MAX_YIELD_MS: u64 = 3_000;

/// A run of adjacent chunks to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub id: TaskId,
    pub entry: EntryId,
    /// The source it is asked of; none: a peer.
    pub origin: Option<Arc<str>>,
    pub first_chunk: ChunkIndex,
    pub chunk_count: u32,
    pub level: Level,
    /// On the caller's clock, in milliseconds.
    pub deadline_ms: u64,
}

impl Task {
    /// The chunk is one of the run.
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

type Rank = (Level, u64, TaskId);

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Start(TaskId),
    /// StopMode at once, keeping what is written; answer with [`FetchQueue::preempted`].
    Preempt(TaskId),
    /// StopMode at the next chunk's end; answer with [`FetchQueue::ended`].
    Cancel(TaskId),
    /// It waited, and nobody wants it any more: it is no longer in the queue.
    Drop(TaskId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    /// Told to stop; gives its slot up already, and waits again once it did.
    Preempting,
    /// Told to stop for good; gives its slot up already, and is over once it did.
    Leaving,
}

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskStanding {
    Waiting,
    Running,
    /// Told to stop.
    Stopping,
}

/// Lower levels of one origin that give way.
#[derive(Debug)]
struct Yielding {
    since_ms: u64,
    /// The one that runs all the same, to its end.
    spared: Option<TaskId>,
}

/// The queue.
#[derive(Debug)]
pub struct FetchQueue {
    max_running: usize,
    tasks: HashMap<TaskId, (Task, State)>,
    waiting: BTreeSet<Rank>,
    running: BTreeSet<Rank>,
    /// Kept until one of its lower tasks ended: a gap between two CRITICAL fetches is no turn.
    yielding: HashMap<Arc<str>, Yielding>,
}

impl FetchQueue {
    #[must_use]
    pub fn new(max_running: usize) -> Self {
        Self {
            max_running: max_running.max(1),
            tasks: HashMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            yielding: HashMap::new(),
        }
    }

    /// Takes a task in. `false`: the queue is full, or the id is known.
    #[must_use]
    pub fn push(&mut self, task: Task) -> bool {
        let full = self.tasks.len() >= MAX_TASKS && task.level != Level::Critical;
        if full || self.tasks.contains_key(&task.id) {
            return false;
        }
        self.waiting.insert(task.rank());
        self.tasks.insert(task.id, (task, State::Waiting));
        true
    }

    /// Takes a task in that runs already (the body of a probe).
    pub fn adopt_running(&mut self, task: Task) {
        self.running.insert(task.rank());
        self.tasks.insert(task.id, (task, State::Running));
    }

    /// Another level and deadline. Unknown ids are ignored: the task may have ended meanwhile.
    pub fn reprioritise(&mut self, id: TaskId, level: Level, deadline_ms: u64) {
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

    /// Not wanted any more. A waiting task is gone at once (`None`); a running one is to be
    /// stopped.
    #[must_use]
    pub fn cancel(&mut self, id: TaskId) -> Option<Effect> {
        let (task, state) = self.tasks.get_mut(&id)?;
        match state {
            State::Waiting => {
                self.waiting.remove(&task.rank());
                self.tasks.remove(&id);
                None
            }
            State::Running | State::Preempting | State::Leaving => {
                self.running.remove(&task.rank());
                *state = State::Leaving;
                Some(Effect::Cancel(id))
            }
        }
    }

    /// The task is over, for whatever reason.
    pub fn ended(&mut self, id: TaskId) {
        if let Some((task, _)) = self.tasks.remove(&id) {
            self.running.remove(&task.rank());
            self.waiting.remove(&task.rank());
            if task.level >= Level::Medium
                && let Some(origin) = &task.origin
            {
                self.yielding.remove(origin);
            }
        }
    }

    /// The task stopped after [`Effect::Preempt`]: it waits again. `false`: it was cancelled
    /// meanwhile, and is over.
    #[must_use]
    pub fn preempted(&mut self, id: TaskId) -> bool {
        let Some((task, state)) = self.tasks.get_mut(&id) else {
            return false;
        };
        match state {
            State::Preempting => {
                *state = State::Waiting;
                self.waiting.insert(task.rank());
            }
            State::Leaving => {
                self.tasks.remove(&id);
                return false;
            }
            State::Waiting | State::Running => {}
        }
        true
    }

    /// What to start and stop now. To be called after each change, and from time to time. A waiting
    /// task that is not wanted any more is dropped before anything gives way to it.
    #[must_use]
    pub fn settle(&mut self, now_ms: u64, is_wanted: impl Fn(&Task) -> bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.drop_unwanted(is_wanted, &mut effects);
        let urgent = self.urgent_origins();
        self.give_way(&urgent, now_ms, &mut effects);
        while let Some(mut best) = self.next_to_start(&urgent, now_ms) {
            let critical = best.0 == Level::Critical;
            let slots = self.max_running + usize::from(critical);
            if self.running.len() >= slots {
                let Some(&worst) = self.running.last() else {
                    break;
                };
                if !critical {
                    break;
                }
                let victim = if worst.0 == Level::Critical {
                    let Some((next, victim)) = self.fairer() else {
                        break;
                    };
                    best = next;
                    victim
                } else {
                    worst
                };
                self.preempt(victim, &mut effects);
            }
            self.waiting.remove(&best);
            self.running.insert(best);
            self.set_state(best.2, State::Running);
            effects.push(Effect::Start(best.2));
        }
        effects
    }

    /// Jobs and fills, which are below HIGH, have no reader who could leave.
    fn drop_unwanted(&mut self, is_wanted: impl Fn(&Task) -> bool, effects: &mut Vec<Effect>) {
        let readers = self.waiting.iter().take_while(|rank| rank.0 <= Level::High);
        let unwanted = readers.filter(|rank| !self.get(rank.2).is_none_or(&is_wanted));
        for rank in unwanted.copied().collect::<Vec<_>>() {
            self.waiting.remove(&rank);
            self.tasks.remove(&rank.2);
            effects.push(Effect::Drop(rank.2));
        }
    }

    /// Where all slots are CRITICAL: a waiting one of a source that has two running ones fewer than
    /// another, and the least urgent of that other. So a source that hangs keeps its part of the
    /// slots and no more.
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

    fn origin_of(&self, id: TaskId) -> Option<&Arc<str>> {
        self.tasks.get(&id)?.0.origin.as_ref()
    }

    /// Origins a CRITICAL fetch runs from, or is about to.
    fn urgent_origins(&self) -> HashSet<Arc<str>> {
        let critical = |rank: &&Rank| rank.0 == Level::Critical;
        let running = self.running.iter().take_while(critical);
        let waiting = self.waiting.iter().take_while(critical);
        running
            .chain(waiting)
            .filter_map(|rank| self.origin_of(rank.2).cloned())
            .collect()
    }

    fn give_way(&mut self, urgent: &HashSet<Arc<str>>, now_ms: u64, effects: &mut Vec<Effect>) {
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

    /// The first that waits and may start.
    fn next_to_start(&mut self, urgent: &HashSet<Arc<str>>, now_ms: u64) -> Option<Rank> {
        let full = self.running.len() >= self.max_running;
        for &rank in &self.waiting {
            if rank.0 < Level::Medium {
                return Some(rank);
            }
            if full {
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

    fn set_state(&mut self, id: TaskId, state: State) {
        if let Some((_, held)) = self.tasks.get_mut(&id) {
            *held = state;
        }
    }

    #[must_use]
    pub fn get(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id).map(|(task, _)| task)
    }

    /// Tasks whose run holds the chunk, and whether each runs.
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

    /// What has to do with an origin, the most urgent first; `Waiting` is what has no slot.
    #[must_use]
    pub fn of_origin(&self, origin: &str) -> Vec<(TaskId, TaskStanding)> {
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
