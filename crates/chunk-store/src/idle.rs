//! Entries without chunks: forgotten by age and by number, in bounded batches.
//!
//! Why: each request for an object makes an entry, and clients choose what they request. The edge
//! learns of each through [`Store::take_forgotten`](super::Store::take_forgotten) and forgets its
//! key, too; the next request for the key asks the coordinator, and registers the entry again.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{entry_file::EntryFile, journal_record::EntryNumber, shared::Shared};

/// An entry without chunks that is not requested is forgotten after this time, and before twice
/// this time.
const MAX_AGE: Duration = Duration::from_secs(240);
/// Beyond this number, entries are forgotten at once, the oldest first.
const MAX_ENTRIES: usize = 20_000;
/// Entries examined in one step, to keep the step short.
const BATCH: usize = 2_000;

/// Entries without chunks, each with the time it was listed, the oldest first.
#[derive(Default)]
pub(super) struct IdleEntries(Mutex<VecDeque<(EntryNumber, Instant)>>);

impl IdleEntries {
    /// Lists the entry, which has no chunk now.
    pub fn put(&self, entry: &EntryFile) {
        if !entry.is_removed() && entry.set_idle(true) {
            self.0.lock().push_back((entry.number(), Instant::now()));
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    fn take_due(&self, now: Instant) -> Vec<EntryNumber> {
        let mut entries = self.0.lock();
        let mut due = Vec::new();
        while due.len() < BATCH
            && let Some((number, since)) = entries.front()
            && (entries.len() > MAX_ENTRIES || now.saturating_duration_since(*since) >= MAX_AGE)
        {
            due.push(*number);
            entries.pop_front();
        }
        due
    }
}

/// Forgets entries that are due; false: there may be more.
pub(super) fn forget(shared: &Shared, now: Instant) -> bool {
    let due = shared.idle.take_due(now);
    let is_done = due.len() < BATCH;
    for number in due {
        let Some(entry) = shared.catalog.read().by_number(number).cloned() else {
            continue;
        };
        entry.set_idle(false);
        let is_wanted = entry.take_asked() || entry.is_pinned();
        let is_forgotten = {
            let mut catalog = shared.catalog.write();
            // The catalogue's two handles and this one: no other thread can be about to write.
            let is_free = Arc::strong_count(&entry) == 3 && entry.table().is_empty();
            if is_free && !is_wanted {
                entry.set_removed();
                catalog.remove(&entry);
            }
            is_free && !is_wanted
        };
        if is_forgotten {
            shared.forgotten.send(entry.description());
            shared.queue.entry_removed(entry);
        } else if entry.table().is_empty() {
            shared.idle.put(&entry);
        }
    }
    is_done
}
