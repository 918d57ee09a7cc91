//! Entries that are not open yet, and the commands that wait for them, in order.
//!
//! An edge finds an object, and names it, before its row is committed. So commands for an entry
//! that the table does not have wait for a while before they are dropped.

use std::collections::{HashMap, VecDeque, hash_map};

use chunkcache_proto::EntryId;

use super::command::Command;
use scheduler::api::Millis;

/// Limit of commands kept for one entry. Further ones are dropped: edges report their demand again,
/// and the awaited load reads the rows.
const MAX_WAITING_PER_ENTRY: usize = 4096;
/// The longest time from the first mention to the row: a commit, or an outage of the database as
/// long as a probe's lease.
const UNREGISTERED_FOR: Millis = 5_000;

/// The load of one entry.
#[derive(Debug)]
struct Loading {
    waiting: VecDeque<Command>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The table is being read.
    Reading {
        /// It was registered meanwhile, so the result may be outdated.
        again: bool,
    },
    /// The table was not read, because the entry's row is being written.
    Expected { since: Millis },
    /// The table did not have it.
    Absent { since: Millis },
}

impl Loading {
    fn new(phase: Phase) -> Self {
        Self {
            waiting: VecDeque::new(),
            phase,
        }
    }

    fn is_reading(&self) -> bool {
        matches!(self.phase, Phase::Reading { .. })
    }
}

fn is_late(since: Millis, now: Millis) -> bool {
    now.saturating_sub(since) > UNREGISTERED_FOR
}

/// How to handle an absent entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsenceOutcome {
    /// Read it again.
    Load,
    /// It may still be registered.
    Wait,
    /// Forget it: only requests named it.
    Forget,
}

/// All loads.
#[derive(Debug, Default)]
pub struct Loads(HashMap<EntryId, Loading>);

impl Loads {
    /// Begins a load. True: none was running, so the entry must be read now.
    pub fn begin(&mut self, id: EntryId) -> bool {
        match self.0.entry(id) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Loading::new(Phase::Reading { again: false }));
                true
            }
            hash_map::Entry::Occupied(_) => false,
        }
    }

    /// Records that the entry's row is about to be written, so that it is not read before.
    pub fn expect(&mut self, id: EntryId, now: Millis) {
        let expected = || Loading::new(Phase::Expected { since: now });
        self.0.entry(id).or_insert_with(expected);
    }

    /// Records that the entry is in the table now. True: it must be read now.
    pub fn registered(&mut self, id: EntryId) -> bool {
        let Some(loading) = self.0.get_mut(&id) else {
            return self.begin(id);
        };
        let is_reading = loading.is_reading();
        loading.phase = Phase::Reading { again: is_reading };
        !is_reading
    }

    /// Like [`Self::registered`], for an entry that is read only if it was named.
    pub fn registered_quietly(&mut self, id: EntryId) -> bool {
        match self.0.get(&id) {
            None => false,
            Some(loading) if !loading.is_reading() && loading.waiting.is_empty() => {
                self.0.remove(&id);
                false
            }
            Some(_) => self.registered(id),
        }
    }

    /// Keeps a command until the entry is open; does nothing if it is not being loaded.
    pub fn keep(&mut self, id: EntryId, command: Command) {
        if let Some(loading) = self.0.get_mut(&id)
            && loading.waiting.len() < MAX_WAITING_PER_ENTRY
        {
            loading.waiting.push_back(command);
        }
    }

    /// Whether it is being loaded.
    #[must_use]
    pub fn contains(&self, id: EntryId) -> bool {
        self.0.contains_key(&id)
    }

    pub fn ids(&self) -> impl Iterator<Item = EntryId> {
        self.0.keys().copied()
    }

    /// Ends the load: returns the commands for the open entry.
    #[must_use]
    pub fn finish(&mut self, id: EntryId) -> VecDeque<Command> {
        let loading = self.0.remove(&id);
        loading.map(|loading| loading.waiting).unwrap_or_default()
    }

    /// Records that the table does not have it.
    pub fn absent(&mut self, id: EntryId, now: Millis) -> AbsenceOutcome {
        let Some(loading) = self.0.get_mut(&id) else {
            return AbsenceOutcome::Forget;
        };
        if loading.phase == (Phase::Reading { again: true }) {
            loading.phase = Phase::Reading { again: false };
            return AbsenceOutcome::Load;
        }
        if loading.waiting.is_empty() {
            self.0.remove(&id);
            return AbsenceOutcome::Forget;
        }
        loading.phase = Phase::Absent { since: now };
        AbsenceOutcome::Wait
    }

    /// Returns expected entries whose rows are late, and which were named meanwhile: they must be
    /// read now.
    pub fn overdue(&mut self, now: Millis) -> Vec<EntryId> {
        let mut overdue = Vec::new();
        for (id, loading) in &mut self.0 {
            if let Phase::Expected { since } = loading.phase
                && is_late(since, now)
                && !loading.waiting.is_empty()
            {
                loading.phase = Phase::Reading { again: false };
                overdue.push(*id);
            }
        }
        overdue
    }

    /// Forgets entries that were never registered, and returns them.
    pub fn expire(&mut self, now: Millis) -> Vec<EntryId> {
        let is_over = |loading: &Loading| match loading.phase {
            Phase::Reading { .. } => false,
            Phase::Expected { since } | Phase::Absent { since } => is_late(since, now),
        };
        self.0
            .extract_if(|_, loading| is_over(loading))
            .map(|(id, _)| id)
            .collect()
    }

    /// Filters the commands of one entry.
    pub fn retain(&mut self, id: EntryId, keep: impl FnMut(&Command) -> bool) {
        if let Some(loading) = self.0.get_mut(&id) {
            loading.waiting.retain(keep);
        }
    }

    /// Filters the commands of all entries.
    pub fn retain_all(&mut self, mut keep: impl FnMut(&Command) -> bool) {
        for loading in self.0.values_mut() {
            loading.waiting.retain(&mut keep);
        }
    }
}
