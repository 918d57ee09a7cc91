//! Hands the next chunks of a draining edge's readers over to the edges that will serve them.
//!
//! Hot entries are those being read there, pinned ones, and recently used ones, which are the open
//! ones. A hand-over is bounded, is fetched from the draining edge while it is up, and ends when it
//! leaves.
//!
//! It is derived: computed again when edges join or leave, entries are opened, or a part of it is
//! done. A restarted coordinator loads the hot entries (`sessions/connection.rs`) and so reaches
//! the same result.

use std::collections::{BTreeMap, HashSet};

use chunkcache_proto::EntryId;

use super::{Action, Plan};
use scheduler::{
    api::{EdgeId, EntryNo, Event, Millis, WantId},
    edge_choice::{Candidate, choose_edge},
};

/// Limit for one edge at a time: 4 GiB of chunks of 2 MiB, which take half a minute at 1 Gbit/s.
const MAX_CHUNKS: u64 = 2048;
const MAX_BYTES: u64 = 4 << 30;
const MAX_ENTRIES: usize = 256;
/// Edges that return together are all up by then, so that each entry goes where its readers will
/// go.
const LOOK_AFTER: Millis = 500;
/// Separates the numbers of hand-overs from those of requests and jobs.
const OWN: u64 = 1 << 63;

/// Chunks on their way from draining edges to others.
#[derive(Debug, Default)]
pub(super) struct HandOvers {
    open: BTreeMap<WantId, HandOver>,
    last: u64,
    /// When to compute again, after a change that affects the outcome.
    look_at: Option<Millis>,
}

#[derive(Clone, Copy, Debug)]
struct HandOver {
    from: EdgeId,
    to: EdgeId,
    entry: EntryNo,
}

impl HandOvers {
    /// Ends a want if it is a hand-over, and returns whether it was. There may be more to hand
    /// over.
    pub(super) fn is_done(&mut self, want: WantId, now: Millis) -> bool {
        let is_one = self.open.remove(&want).is_some();
        if is_one {
            self.look_again(now);
        }
        is_one
    }

    pub(super) fn look_again(&mut self, now: Millis) {
        self.look_at.get_or_insert(now.saturating_add(LOOK_AFTER));
    }

    fn begin(&mut self, one: HandOver) -> WantId {
        self.last += 1;
        let want = WantId(OWN | self.last);
        self.open.insert(want, one);
        want
    }
}

impl Plan {
    /// Chunks that a draining edge still has to hand over.
    #[must_use]
    pub fn chunks_to_hand_over(&self, edge: EdgeId) -> u64 {
        let of_it = self.handovers.open.iter().filter(|(_, it)| it.from == edge);
        of_it
            .map(|(want, _)| self.scheduler.missing_of_want(*want))
            .sum()
    }

    /// Computes again if it is time.
    pub(super) fn look_at_hand_overs(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if self.handovers.look_at.is_none_or(|at| at > now) {
            return;
        }
        self.handovers.look_at = None;
        let mut draining: Vec<EdgeId> = self.epochs.keys().copied().collect();
        draining.retain(|&edge| self.scheduler.is_draining(edge));
        draining.sort_unstable();
        for edge in draining {
            self.hand_over(edge, now, actions);
        }
    }

    pub(super) fn hand_over(&mut self, from: EdgeId, now: Millis, actions: &mut Vec<Action>) {
        for (entry, id) in self.hot_entries(from) {
            self.hand_over_entry(from, entry, id, now, actions);
        }
    }

    /// Hands over an entry that was opened since.
    pub(super) fn hand_over_one(
        &mut self,
        from: EdgeId,
        id: EntryId,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        if let Some(entry) = self.directory.entry_number(id) {
            self.hand_over_entry(from, entry, id, now, actions);
        }
    }

    fn hand_over_entry(
        &mut self,
        from: EdgeId,
        entry: EntryNo,
        id: EntryId,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        let is_there = self.epochs.contains_key(&from) && self.scheduler.is_draining(from);
        let known = self.directory.entry(entry);
        let Some(chunk_size) = known.map(|it| u64::from(it.geometry.chunk_size())) else {
            return;
        };
        let mut open = self.handovers.open.values();
        if !is_there || open.any(|it| it.from == from && it.entry == entry) {
            return;
        }
        let Some(to) = self.next_edge(from, entry, id) else {
            return;
        };
        let of = |is_it: fn(&HandOver, EdgeId) -> bool, edge| -> u64 {
            let open = self.handovers.open.iter();
            let left = open.filter(|(_, it)| is_it(it, edge));
            left.map(|(want, _)| self.scheduler.missing_of_want(*want))
                .sum()
        };
        let room = self.scheduler.room_for_chunks(to, chunk_size);
        let room = room.map_or(u64::MAX, |room| {
            room.saturating_sub(of(|it, edge| it.to == edge, to))
        });
        let most = MAX_CHUNKS.min(MAX_BYTES / chunk_size);
        let most = most
            .saturating_sub(of(|it, edge| it.from == edge, from))
            .min(room);
        let chunks = self.scheduler.only_held_by(from, entry, most);
        if chunks.is_empty() || self.handovers.open.len() >= MAX_ENTRIES {
            return;
        }
        let want = self.handovers.begin(HandOver { from, to, entry });
        let event = Event::HandOver {
            want,
            edge: to,
            entry,
            chunks,
        };
        self.event(event, now, actions);
    }

    /// Ends all hand-overs from, or to, this edge.
    pub(super) fn end_hand_overs(&mut self, edge: EdgeId, now: Millis, actions: &mut Vec<Action>) {
        let open = &mut self.handovers.open;
        let over: Vec<WantId> = open
            .extract_if(.., |_, it| it.from == edge || it.to == edge)
            .map(|(want, _)| want)
            .collect();
        if !over.is_empty() {
            self.handovers.look_again(now);
        }
        for want in over {
            self.event(Event::WantClosed { want }, now, actions);
        }
    }

    /// Entries that are being read there first, then pinned ones, then other open ones.
    fn hot_entries(&self, from: EdgeId) -> Vec<(EntryNo, EntryId)> {
        let read: HashSet<EntryId> = self
            .readers
            .iter()
            .filter(|(reader, _)| reader.edge == from)
            .map(|(_, entry)| *entry)
            .collect();
        let mut hot: Vec<_> = self
            .directory
            .entries()
            .map(|(number, record)| {
                let order = (!read.contains(&record.id), !record.entry.pinned, number);
                (order, record.id)
            })
            .filter(|((.., number), _)| !self.scheduler.only_held_by(from, *number, 1).is_empty())
            .collect();
        hot.sort_unstable_by_key(|(order, _)| *order);
        hot.truncate(MAX_ENTRIES);
        hot.into_iter()
            .map(|((.., number), id)| (number, id))
            .collect()
    }

    /// The edge to which its readers are sent when they open the entry, as in `service/entries.rs`.
    fn next_edge(&self, from: EdgeId, entry: EntryNo, id: EntryId) -> Option<EdgeId> {
        // In one pass, because an edge may be drained while ten thousand readers are open.
        let mut readers: BTreeMap<EdgeId, u32> =
            self.epochs.keys().map(|&edge| (edge, 0)).collect();
        readers.remove(&from);
        for reader in self.readers.keys() {
            if let Some(count) = readers.get_mut(&reader.edge) {
                *count += 1;
            }
        }
        let candidates: Vec<Candidate> = readers
            .into_iter()
            .map(|(edge, readers)| Candidate {
                edge,
                alive: true,
                draining: self.scheduler.is_draining(edge),
                chunks_held: self.scheduler.chunks_held(edge, entry),
                readers,
            })
            .collect();
        choose_edge(id.as_u64_pair().0, &candidates)
    }
}
