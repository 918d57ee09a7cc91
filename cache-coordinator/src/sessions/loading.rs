//! Entries that are not open yet, and what was said of them meanwhile, in its order.
//!
//! An edge meets an object, and speaks of it, before the row of it is committed: an entry the table
//! does not have is waited for a while before what was said of it is dropped.

use std::collections::{HashMap, VecDeque, hash_map};

use chunkcache_proto::EntryId;

use super::command::Command;
use scheduler::api::Millis;

/// Commands kept for one entry. What is beyond is dropped: demand
/// is said again by the edges, rows are loaded by the very load that is waited for.
const MAX_WAITING_PER_ENTRY: usize = 4096;
/// From the first mention to the row: a commit, or an outage of the database as long as a probe's
/// lease.
const UNREGISTERED_FOR: Millis = 5_000;

/// One entry.
#[derive(Debug, Default)]
struct Loading {
    waiting: VecDeque<Command>,
    /// Registered while it was being read: what is read may be from before.
    again: bool,
    /// When the table did not have it.
    absent_since: Option<Millis>,
}

/// What follows from an entry's absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Read it again.
    Load,
    /// It may come.
    Wait,
    /// Nobody spoke of it but to ask for it.
    Forget,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Loads(HashMap<EntryId, Loading>);

impl Loads {
    /// True: it was not being loaded, and is to be read now.
    pub fn begin(&mut self, id: EntryId) -> bool {
        match self.0.entry(id) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Loading::default());
                true
            }
            hash_map::Entry::Occupied(_) => false,
        }
    }

    /// It is in the table from now on. True: it is to be read now.
    pub fn registered(&mut self, id: EntryId) -> bool {
        let Some(loading) = self.0.get_mut(&id) else {
            return self.begin(id);
        };
        let was_absent = loading.absent_since.take().is_some();
        loading.again |= !was_absent;
        was_absent
    }

    /// Keeps a command until the entry is open; nothing if it is not being loaded.
    pub fn keep(&mut self, id: EntryId, command: Command) {
        if let Some(loading) = self.0.get_mut(&id)
            && loading.waiting.len() < MAX_WAITING_PER_ENTRY
        {
            loading.waiting.push_back(command);
        }
    }

    /// Is it being loaded?
    #[must_use]
    pub fn contains(&self, id: EntryId) -> bool {
        self.0.contains_key(&id)
    }

    /// It is open: what was said of it.
    #[must_use]
    pub fn finish(&mut self, id: EntryId) -> VecDeque<Command> {
        self.0.remove(&id).unwrap_or_default().waiting
    }

    /// The table does not have it.
    pub fn absent(&mut self, id: EntryId, now: Millis) -> Absent {
        let Some(loading) = self.0.get_mut(&id) else {
            return Absent::Forget;
        };
        if std::mem::take(&mut loading.again) {
            return Absent::Load;
        }
        if loading.waiting.is_empty() {
            self.0.remove(&id);
            return Absent::Forget;
        }
        loading.absent_since = Some(now);
        Absent::Wait
    }

    /// Forgets, and names, what was never registered.
    pub fn expire(&mut self, now: Millis) -> Vec<EntryId> {
        let is_over = |loading: &Loading| {
            loading
                .absent_since
                .is_some_and(|since| now.saturating_sub(since) > UNREGISTERED_FOR)
        };
        self.0
            .extract_if(|_, loading| is_over(loading))
            .map(|(id, _)| id)
            .collect()
    }

    /// Takes commands of one entry back.
    pub fn retain(&mut self, id: EntryId, keep: impl FnMut(&Command) -> bool) {
        if let Some(loading) = self.0.get_mut(&id) {
            loading.waiting.retain(keep);
        }
    }

    /// Takes commands of all entries back.
    pub fn retain_all(&mut self, mut keep: impl FnMut(&Command) -> bool) {
        for loading in self.0.values_mut() {
            loading.waiting.retain(&mut keep);
        }
    }
}
