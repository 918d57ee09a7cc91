//! Readers that left, until the coordinator has answered: what it handed out ahead for them is not
//! begun meanwhile.
//!
//! A reader's leaving frees places here at once, with the fetches it alone had reason for, and the
//! coordinator hears of it some milliseconds later. What it handed out ahead for that reader would
//! begin in those places only to be cancelled.

use std::time::{Duration, Instant};

use chunkcache_proto::{ByteRange, EntryId};

use super::ReaderState;

/// An answer that did not come within this holds nothing back any more.
const HOLD_BACK: Duration = Duration::from_millis(500);
/// Remembered at a time; the oldest are let go.
const MAX_DEPARTURES: usize = 64;
/// No lookahead reaches farther: the coordinator's limit.
const FARTHEST: u64 = 256 << 20;
/// So far ahead of a reader that came after the departure anything is taken as wanted: the least
/// lookahead, in whole requests. More of it can not have been handed out, since the coordinator has
/// not heard of it either.
const NEAR: u64 = 28 << 20;

struct Departure {
    entry: EntryId,
    at: Instant,
    /// Readers from this number on came after it.
    next_reader: u64,
    /// Of the message that told it; 0: not told yet.
    sequence: u64,
}

/// See the module.
#[derive(Default)]
pub struct Departures {
    list: Vec<Departure>,
    last_sequence: u64,
}

impl Departures {
    pub fn left(&mut self, entry: EntryId, next_reader: u64) {
        self.forget_old();
        if self.list.len() >= MAX_DEPARTURES {
            self.list.remove(0);
        }
        self.list.push(Departure {
            entry,
            at: Instant::now(),
            next_reader,
            sequence: 0,
        });
    }

    /// They are told now. The number that the answer is to name; 0: none is waited for.
    pub fn tell(&mut self) -> u64 {
        self.forget_old();
        if self.list.is_empty() {
            return 0;
        }
        self.last_sequence += 1;
        for departure in self.list.iter_mut().filter(|it| it.sequence == 0) {
            departure.sequence = self.last_sequence;
        }
        self.last_sequence
    }

    /// What was told until then is known: what it superseded has been cancelled.
    pub fn answered(&mut self, sequence: u64) {
        self.list
            .retain(|it| it.sequence == 0 || it.sequence > sequence);
    }

    fn forget_old(&mut self) {
        self.list.retain(|it| it.at.elapsed() < HOLD_BACK);
    }

    /// When the last of them is over, answered or not.
    pub fn over_in(&mut self) -> Option<Duration> {
        self.forget_old();
        let left = |it: &Departure| HOLD_BACK.saturating_sub(it.at.elapsed());
        self.list.iter().map(left).max()
    }

    /// A run of the entry that none of these readers is near was, as far as is known here, for one
    /// that left.
    pub fn hold_back<'a>(
        &self,
        entry: EntryId,
        run: ByteRange,
        mut readers: impl Iterator<Item = &'a ReaderState>,
    ) -> bool {
        let of_entry = |it: &&Departure| it.entry == entry && it.at.elapsed() < HOLD_BACK;
        let Some(last) = self.list.iter().rev().find(of_entry) else {
            return false;
        };
        let wants = |reader: &ReaderState| {
            let is_new = reader.id >= last.next_reader;
            let reach = if is_new { NEAR } else { FARTHEST };
            let position = reader.position();
            let end = position.saturating_add(reach).min(reader.end);
            (position < run.end && run.start < end)
                || reader
                    .hints()
                    .iter()
                    .any(|hint| !hint.intersect(run).is_empty())
        };
        !readers.any(|reader| reader.file.id() == entry && wants(reader))
    }
}
