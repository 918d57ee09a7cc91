//! Wants of services and jobs, and the chunks that edges hold.

use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Level};

use super::Scheduler;
use super::api::{EdgeId, Effect, EntryNo, WantId};
use super::claim::{Claim, Owner};
use super::invariant::Invariant;
use super::running::Withdrawal;
use super::state::Want;
use chunkcache_proto::RangeSet;

impl Scheduler {
    /// `from_edges_only`: set for a hand-over.
    #[allow(clippy::too_many_arguments)] // the fields of one event
    pub(super) fn want_set(
        &mut self,
        want: WantId,
        edge: EdgeId,
        entry: EntryNo,
        chunks: Vec<Range<ChunkIndex>>,
        level: Level,
        from_edges_only: bool,
        effects: &mut Vec<Effect>,
    ) {
        self.want_closed(want, effects);
        let Some(known) = self.entries.get_mut(&entry) else {
            // The entry was closed meanwhile.
            return;
        };
        let count = known.geometry.chunk_count();
        let source = known.source;
        let chunks: RangeSet<ChunkIndex> = chunks
            .into_iter()
            .map(|range| range.start.min(count)..range.end.min(count))
            .collect();
        let replica = known.replicas.entry(edge).or_default();
        let held: u64 = chunks
            .iter()
            .map(|range| replica.held.count_in(range))
            .sum();
        let missing = chunks.count() - held;
        let Some(span) = chunks.span().filter(|_| missing > 0) else {
            effects.push(Effect::WantDone { want });
            return;
        };
        // It may be set before its edge has returned: it is planned for then.
        self.edges.entry(edge).or_default();
        let claim = Claim {
            ranges: Some(chunks.clone()),
            ..Claim::new((edge, entry), source, level, span, self.now)
        };
        self.wants.insert(
            want,
            Want {
                chunks,
                missing,
                from_edges_only,
            },
        );
        self.add_claim(Owner::Want(want), claim, effects);
        self.dirty.insert(edge);
    }

    pub(super) fn want_closed(&mut self, want: WantId, effects: &mut Vec<Effect>) {
        self.wants.remove(&want);
        let Some(claim) = self.remove_claim(Owner::Want(want)) else {
            // It is done, or is not known.
            return;
        };
        self.reassess_overlapping(
            claim.edge,
            claim.entry,
            &claim.span,
            Withdrawal::Superseded,
            effects,
        );
        self.dirty.insert(claim.edge);
    }

    /// Records that the edge holds these durably.
    pub(super) fn hold(
        &mut self,
        edge: EdgeId,
        entry: EntryNo,
        chunks: Range<ChunkIndex>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(known) = self.entries.get_mut(&entry) else {
            // The entry was closed meanwhile.
            return;
        };
        let chunks = chunks.start..chunks.end.min(known.geometry.chunk_count());
        if chunks.is_empty() {
            return;
        }
        self.edges.entry(edge).or_default();
        let replica = known.replicas.entry(edge).or_default();
        let fresh = replica.held.missing_of(chunks.clone());
        replica.held.insert(chunks.clone());
        replica.covered.insert(chunks.clone());
        if fresh.is_empty() {
            return;
        }
        for owner in self.owners_of(edge, entry, &chunks) {
            let Owner::Want(id) = owner else {
                // Readers and fills wait for coverage only.
                continue;
            };
            let Some(want) = self.wants.get_mut(&id).expected() else {
                continue;
            };
            let now_held: u64 = fresh
                .iter()
                .map(|range| want.chunks.count_in(range.clone()))
                .sum();
            want.missing = want.missing.saturating_sub(now_held);
            if want.missing == 0 {
                self.wants.remove(&id);
                self.remove_claim(owner);
                effects.push(Effect::WantDone { want: id });
            }
        }
        self.ensure_fill(edge, entry);
        self.mark_followers_dirty(edge, entry);
        self.dirty.insert(edge);
    }

    /// Records that the edge no longer holds these.
    pub(super) fn drop_held(&mut self, edge: EdgeId, entry: EntryNo, chunks: Range<ChunkIndex>) {
        let Some(replica) = self.replica_mut(edge, entry) else {
            // The edge holds nothing of it.
            return;
        };
        let gone: Vec<_> = replica.held.present_in(chunks.clone()).collect();
        replica.held.remove(chunks.clone());
        self.recover(edge, entry, &chunks);
        for owner in self.owners_of(edge, entry, &chunks) {
            if let Owner::Want(id) = owner
                && let Some(want) = self.wants.get_mut(&id)
            {
                want.missing += gone
                    .iter()
                    .map(|range| want.chunks.count_in(range.clone()))
                    .sum::<u64>();
            }
        }
        self.ensure_fill(edge, entry);
        self.uncovered(edge, entry, &chunks);
    }

    /// Recomputes which of these are covered: held, or brought by a running fetch.
    pub(super) fn recover(&mut self, edge: EdgeId, entry: EntryNo, chunks: &Range<ChunkIndex>) {
        let fetches = self
            .edges
            .get(&edge)
            .map_or(&[][..], |edge| &edge.fetches[..]);
        let Some(replica) = self
            .entries
            .get_mut(&entry)
            .and_then(|entry| entry.replicas.get_mut(&edge))
        else {
            // The entry was closed while the fetch was stopping.
            return;
        };
        replica.covered.remove(chunks.clone());
        let held: Vec<_> = replica.held.present_in(chunks.clone()).collect();
        for range in held {
            replica.covered.insert(range);
        }
        for fetch in fetches.iter().filter(|fetch| fetch.entry == entry) {
            let brings = fetch.brings();
            replica
                .covered
                .insert(brings.start.max(chunks.start)..brings.end.min(chunks.end));
        }
    }

    /// Marks the other edges that want the entry as dirty: its chunks are on this edge or on their
    /// way, so the others need no origin for them.
    pub(super) fn mark_followers_dirty(&mut self, edge: EdgeId, entry: EntryNo) {
        let Some(known) = self.entries.get(&entry) else {
            // The entry was closed while the fetch was stopping.
            return;
        };
        // Many edges may wait for it, so none is examined here.
        self.dirty
            .insert_both(&known.waiting, &self.edges_with_slots, edge);
    }
}
