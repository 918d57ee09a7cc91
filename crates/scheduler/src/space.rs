//! Space on an edge's disk, and where the background fill of it ends.
//!
//! An edge evicts when little of its allowed space is free. A fill that went on until then would
//! fetch what is evicted next, without end: it stops well before, and resumes only when there is
//! clearly more. Readers and jobs are not held back: what they fetch is worth more than what is
//! evicted for it.

use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Level};

use super::Scheduler;
use super::api::{EdgeId, Effect, EntryNo};
use super::claim::Owner;

/// An edge evicts when less than this part of its space is free, at most [`HEADROOM_MAX`].
const HEADROOM_DIVISOR: u64 = 50;
const HEADROOM_MAX: u64 = 1 << 30;

/// An edge's last report of its space, and what was fetched since.
#[derive(Clone, Debug, Default)]
pub struct Space {
    pub used: u64,
    pub allowed: u64,
    /// Bytes of fetches that ended since.
    pub landed: u64,
    /// The fill stopped for lack of space.
    pub is_full: bool,
}

impl Space {
    fn is_known(&self) -> bool {
        self.used > 0 || self.allowed > 0
    }

    /// The edge evicts when less than this is free.
    #[must_use]
    pub fn headroom(allowed: u64) -> u64 {
        (allowed / HEADROOM_DIVISOR).min(HEADROOM_MAX)
    }

    /// Enough is free for a fill that stopped for lack of space.
    #[must_use]
    pub fn is_roomy(used: u64, allowed: u64) -> bool {
        allowed.saturating_sub(used) > 4 * Self::headroom(allowed)
    }
}

impl Scheduler {
    pub(super) fn edge_space(
        &mut self,
        edge: EdgeId,
        used: u64,
        allowed: u64,
        effects: &mut Vec<Effect>,
    ) {
        // The report may arrive before the edge joins.
        let state = self.edges.entry(edge).or_default();
        let is_full = state.space.is_full;
        state.space = Space {
            used,
            allowed,
            landed: 0,
            is_full,
        };
        let headroom = Space::headroom(allowed);
        let left = self.room(edge);
        if is_full && left.is_none_or(|left| left > 4 * headroom) {
            self.set_full(edge, false);
        } else if left.is_some_and(|left| left < headroom) {
            self.set_full(edge, true);
            self.stop_fills(edge, effects);
        }
    }

    /// Bytes free once all running fetches have landed; unset: unknown.
    pub(super) fn room(&self, edge: EdgeId) -> Option<u64> {
        let state = self.edges.get(&edge)?;
        if !state.space.is_known() {
            return None;
        }
        let coming: u64 = state
            .flights
            .iter()
            .map(|flight| {
                self.bytes_of(flight.entry, &flight.chunks)
                    .saturating_sub(flight.bytes_done)
            })
            .sum();
        let taken = state.space.used.saturating_add(state.space.landed);
        Some(
            state
                .space
                .allowed
                .saturating_sub(taken)
                .saturating_sub(coming),
        )
    }

    /// Whether a fill of these chunks ends well before its edge begins to evict.
    pub(super) fn fill_fits(
        &self,
        edge: EdgeId,
        entry: EntryNo,
        chunks: &Range<ChunkIndex>,
    ) -> bool {
        let Some(room) = self.room(edge) else {
            return true;
        };
        let allowed = self.edges.get(&edge).map_or(0, |edge| edge.space.allowed);
        room.saturating_sub(self.bytes_of(entry, chunks)) >= 2 * Space::headroom(allowed).max(1)
    }

    pub(super) fn set_full(&mut self, edge: EdgeId, is_full: bool) {
        let Some(state) = self.edges.get_mut(&edge) else {
            return;
        };
        if state.space.is_full != is_full {
            state.space.is_full = is_full;
            self.ensure_fills_of_edge(edge);
        }
    }

    /// Stops fetches that only the fill wants: something else takes the space.
    fn stop_fills(&mut self, edge: EdgeId, effects: &mut Vec<Effect>) {
        let Some(state) = self.edges.get(&edge) else {
            return;
        };
        let fills: Vec<_> = state
            .flights
            .iter()
            .filter(|flight| {
                matches!(flight.owner, Some(Owner::Fill(..)))
                    && flight.level == Level::Low
                    && !flight.cancelling
            })
            .map(|flight| flight.id)
            .collect();
        for id in fills {
            self.cancel_flight((edge, id), effects);
        }
    }
}
