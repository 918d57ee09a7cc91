//! Closes entries that were idle for long, so that memory does not grow with every entry ever
//! played.
//!
//! Their state is in the table, and is loaded again when a command names the entry.

use std::collections::{HashMap, HashSet};

use chunkcache_proto::EntryId;

use super::{Action, Plan};
use scheduler::api::{EntryNo, Event, Millis};

/// A viewer that returns within this time finds the entry open, so that no load delays the first
/// chunk.
const IDLE_FOR: Millis = 600_000;
/// If more entries than this are open, idle ones are closed at once: some 2 KiB each, 20 MiB in
/// total.
const MAX_OPEN: usize = 10_000;
/// Time between checks, and entries per check: ten times as many per second as objects become
/// known, at a microsecond each.
const LOOK_EVERY: Millis = 100;
const LOOKS: usize = 1_024;

/// The time since when each open entry is idle, as far as known.
#[derive(Debug, Default)]
pub(super) struct Idle {
    since: HashMap<EntryNo, Millis>,
    /// Where the next check begins, so that all are reached.
    next: EntryNo,
    look_at: Millis,
}

impl Idle {
    /// Records that a command named the entry.
    pub(super) fn used(&mut self, entry: EntryNo) {
        self.since.remove(&entry);
    }

    /// Whether to close the idle entry.
    fn is_over(&mut self, entry: EntryNo, now: Millis, crowded: bool) -> bool {
        let since = *self.since.entry(entry).or_insert(now);
        crowded || now.saturating_sub(since) >= IDLE_FOR
    }
}

impl Plan {
    pub(super) fn close_idle_entries(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if now < self.idle.look_at {
            return;
        }
        self.idle.look_at = now.saturating_add(LOOK_EVERY);
        let looked: Vec<(EntryNo, EntryId)> = self
            .directory
            .entries_from(self.idle.next)
            .take(LOOKS)
            .collect();
        // At the end, or with nothing open, start again from the beginning.
        self.idle.next = match looked.last() {
            Some(&(last, _)) if looked.len() == LOOKS => EntryNo(last.0.saturating_add(1)),
            _ => EntryNo::default(),
        };
        // Paused readers have no claims, but keep their positions.
        let mut named: HashSet<EntryId> = self.readers.values().copied().collect();
        named.extend(self.wants.values().map(|want| want.entry));
        for (entry, id) in looked {
            if named.contains(&id) || !self.scheduler.is_idle(entry) {
                self.idle.used(entry);
                continue;
            }
            let crowded = self.directory.entry_count() > MAX_OPEN;
            if self.idle.is_over(entry, now, crowded) {
                self.idle.used(entry);
                self.event(Event::EntryClosed { entry }, now, actions);
                self.directory.close_entry(id);
            }
        }
    }
}
