//! Which of the fetches this edge was told of, or decided on itself, run now.
//!
//! At most `max_running` run, the earliest deadline of the most urgent level first. A CRITICAL one
//! starts in any case: in the one reserved slot beyond, or in the place of the least urgent running
//! fetch, which waits again and later resumes from what it wrote. Only when every
//! running fetch is CRITICAL itself does a CRITICAL one wait.
//!
//! A state machine without clock or tasks: each change returns what to start and what to stop.

use std::collections::{BTreeSet, HashMap};

use chunkcache_proto::{ChunkIndex, EntryId, Level};

/// Given by the coordinator, or by this edge with the highest bit set.
pub type TaskId = u64;

/// Tasks held at most; beyond it new ones below CRITICAL are refused.
pub const MAX_TASKS: usize = 4096;

/// A run of adjacent chunks to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub id: TaskId,
    pub entry: EntryId,
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
    /// Stop at once, keeping what is written; answer with [`FetchQueue::preempted`].
    Preempt(TaskId),
    /// Stop at the next chunk's end; answer with [`FetchQueue::ended`].
    Cancel(TaskId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    /// Told to stop; gives its slot up already, and waits again once it did.
    Preempting,
    /// Told to stop for good; gives its slot up already.
    Cancelling,
}

/// The queue.
#[derive(Debug)]
pub struct FetchQueue {
    max_running: usize,
    tasks: HashMap<TaskId, (Task, State)>,
    waiting: BTreeSet<Rank>,
    running: BTreeSet<Rank>,
}

impl FetchQueue {
    #[must_use]
    pub fn new(max_running: usize) -> Self {
        Self {
            max_running: max_running.max(1),
            tasks: HashMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
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
            State::Preempting | State::Cancelling => return,
        };
        set.remove(&old);
        set.insert(new);
    }

    /// Not wanted any more. A waiting task is gone at once (`None`); a running one is to be stopped.
    #[must_use]
    pub fn cancel(&mut self, id: TaskId) -> Option<Effect> {
        let (task, state) = self.tasks.get_mut(&id)?;
        match state {
            State::Waiting => {
                self.waiting.remove(&task.rank());
                self.tasks.remove(&id);
                None
            }
            State::Running | State::Preempting | State::Cancelling => {
                self.running.remove(&task.rank());
                *state = State::Cancelling;
                Some(Effect::Cancel(id))
            }
        }
    }

    /// The task is over, for whatever reason.
    pub fn ended(&mut self, id: TaskId) {
        if let Some((task, _)) = self.tasks.remove(&id) {
            self.running.remove(&task.rank());
            self.waiting.remove(&task.rank());
        }
    }

    /// The task stopped after [`Effect::Preempt`]: it waits again. `false`: it was cancelled meanwhile, and is over.
    pub fn preempted(&mut self, id: TaskId) -> bool {
        let Some((task, state)) = self.tasks.get_mut(&id) else {
            return false;
        };
        match state {
            State::Preempting => {
                *state = State::Waiting;
                self.waiting.insert(task.rank());
            }
            State::Waiting | State::Running => {}
            State::Cancelling => {
                self.tasks.remove(&id);
                return false;
            }
        }
        true
    }

    /// What to start and stop now. To be called after each change.
    #[must_use]
    pub fn settle(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        while let Some(&best) = self.waiting.first() {
            let critical = best.0 == Level::Critical;
            let slots = self.max_running + usize::from(critical);
            if self.running.len() >= slots {
                let Some(&worst) = self.running.last() else {
                    break;
                };
                if !critical || worst.0 == Level::Critical {
                    break;
                }
                self.running.remove(&worst);
                self.set_state(worst.2, State::Preempting);
                effects.push(Effect::Preempt(worst.2));
            }
            self.waiting.remove(&best);
            self.running.insert(best);
            self.set_state(best.2, State::Running);
            effects.push(Effect::Start(best.2));
        }
        effects
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
            .filter(move |(task, state)| *state != State::Cancelling && task.covers(&entry, chunk))
            .map(|(task, state)| (task, *state == State::Running))
    }

    #[must_use]
    pub fn running_count(&self) -> usize {
        self.running.len()
    }

    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    pub fn ids(&self) -> impl Iterator<Item = TaskId> + '_ {
        self.tasks.keys().copied()
    }
}

#[cfg(test)]
#[path = "fetch_queue_tests.rs"]
mod tests;
