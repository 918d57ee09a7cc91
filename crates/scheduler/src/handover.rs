//! Hand-over by a draining edge: while it is still up, other edges fetch from it the chunks that
//! its readers will need next.
//!
//! A hand-over never asks the origin: it drops a chunk that no edge holds any longer, and waits for
//! one whose holder cannot send now.

use std::ops::Range;

use chunkcache_proto::ChunkIndex;

use super::Scheduler;
use super::api::{EdgeId, Effect, EntryNo, FetchSource, Millis, WantId};
use super::claim::Owner;
use super::invariant::Invariant;
use super::route::RouteOutcome;
use chunkcache_proto::RangeSet;

/// When to look again if the only holder has just failed, or is at its upload limit.
const LOOK_AGAIN_MS: Millis = 500;

impl Scheduler {
    /// Chunks that no other edge holds which is up and not draining: first those ahead of its
    /// readers, then the others.
    #[must_use]
    pub fn only_held_by(&self, edge: EdgeId, entry: EntryNo, most: u64) -> Vec<Range<ChunkIndex>> {
        let Some(known) = self.entries.get(&entry).filter(|known| !known.changed) else {
            return Vec::new();
        };
        let Some(replica) = known.replicas.get(&edge) else {
            // It holds nothing of the entry.
            return Vec::new();
        };
        let mut held: RangeSet<ChunkIndex> = replica.held.clone();
        for (other, on) in &known.replicas {
            let stays = self
                .edges
                .get(other)
                .is_some_and(|it| it.alive && !it.draining);
            if *other != edge && stays {
                on.held.iter().for_each(|range| held.remove(range));
            }
        }
        let begin = replica.windows.first().map_or(0, |&(chunk, _)| chunk);
        let ahead = held.present_in(begin..known.geometry.chunk_count());
        let behind = held.present_in(0..begin);
        let mut left = u32::try_from(most).unwrap_or(u32::MAX);
        let mut found = Vec::new();
        for range in ahead.chain(behind).take_while(|_| most > 0) {
            let taken = left.min(range.end - range.start);
            if taken > 0 {
                found.push(range.start..range.start + taken);
            }
            left -= taken;
        }
        found
    }

    /// Whether the edge is draining, so that it gets no new readers.
    #[must_use]
    pub fn is_draining(&self, edge: EdgeId) -> bool {
        self.edges.get(&edge).is_some_and(|edge| edge.draining)
    }

    /// How many chunks of an entry the edge holds.
    #[must_use]
    pub fn chunks_held(&self, edge: EdgeId, entry: EntryNo) -> u64 {
        self.replica(edge, entry)
            .map_or(0, |replica| replica.held.count())
    }

    /// Chunks of a want that its edge does not hold yet.
    #[must_use]
    pub fn missing_of_want(&self, want: WantId) -> u64 {
        self.wants.get(&want).map_or(0, |want| want.missing)
    }

    /// How many chunks a hand-over may bring to this edge without causing an eviction there;
    /// `None`: unknown.
    #[must_use]
    pub fn room_for_chunks(&self, edge: EdgeId, chunk_size: u64) -> Option<u64> {
        let allowed = self.edges.get(&edge)?.space.allowed;
        let room = self.room(edge)?;
        let kept = 2 * super::Space::headroom(allowed);
        Some(room.saturating_sub(kept) / chunk_size.max(1))
    }

    pub(super) fn is_hand_over(&self, owner: Owner) -> bool {
        matches!(
            owner,
            Owner::Want(want) if self.wants.get(&want).is_some_and(|it| it.from_edges_only)
        )
    }

    /// The route of a hand-over: like any other, but never from the origin. `None`: no edge holds
    /// the chunk.
    pub(super) fn route_between_edges(
        &self,
        outcome: RouteOutcome,
        edge: EdgeId,
        entry: EntryNo,
        gap: ChunkIndex,
    ) -> Option<RouteOutcome> {
        match outcome {
            RouteOutcome::Take(route) if route.from == FetchSource::Origin => {}
            RouteOutcome::Refused(_) => {}
            other => return Some(other),
        }
        let held = self.entries.get(&entry).is_some_and(|known| {
            let mut others = known.replicas.iter().filter(|&(&other, _)| other != edge);
            others.any(|(other, replica)| {
                replica.held.contains(gap) && self.edges.get(other).is_some_and(|it| it.alive)
            })
        });
        held.then(|| RouteOutcome::Wait(self.now.saturating_add(LOOK_AGAIN_MS)))
    }

    /// Drops one chunk from the want.
    pub(super) fn let_go(&mut self, owner: Owner, chunk: ChunkIndex, effects: &mut Vec<Effect>) {
        let Owner::Want(id) = owner else {
            // Only a want is a hand-over.
            return;
        };
        let Some(want) = self.wants.get_mut(&id).expected() else {
            return;
        };
        want.chunks.remove(chunk..chunk + 1);
        want.missing = want.missing.saturating_sub(1);
        if want.missing == 0 {
            self.wants.remove(&id);
            self.remove_claim(owner);
            effects.push(Effect::WantDone { want: id });
            return;
        }
        if let Some(ranges) = self
            .claims
            .get_mut(&owner)
            .and_then(|it| it.ranges.as_mut())
        {
            ranges.remove(chunk..chunk + 1);
        }
        self.requeue(owner, 0);
    }
}
