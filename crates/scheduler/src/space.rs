//! Space on an edge's disk, and where background fill stops for lack of it.
//!
//! An edge evicts when little of its allowed space is free. A fill that continued until then would
//! endlessly fetch what is evicted next. So it stops well before, and resumes only when clearly
//! more is free. Readers and jobs are not held back: what they fetch is worth more than what is
//! evicted for it.

use std::ops::Range;

use chunkcache_proto::{
    ChunkIndex, Level,
    space::{disk_headroom, quota_headroom},
};

use super::Scheduler;
use super::api::{EdgeId, Effect, EntryNo, Millis, SourceId, SourceSpace};
use super::claim::Owner;
use super::invariant::Invariant;
use super::state::Timer;

/// When to retry after a quota was used up: an eviction takes less time.
const QUOTA_PAUSE_MS: Millis = 2_000;

/// An edge's last report of its space, or of one source's space on it, and the bytes fetched since.
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
        disk_headroom(allowed)
    }

    /// Enough is free for a fill that stopped for lack of space.
    #[must_use]
    pub fn is_roomy(used: u64, allowed: u64) -> bool {
        allowed.saturating_sub(used) > 4 * Self::headroom(allowed)
    }

    /// The same for a source's quota on an edge.
    #[must_use]
    pub fn quota_is_roomy(used: u64, quota: u64) -> bool {
        quota.saturating_sub(used) > 4 * quota_headroom(quota)
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
            self.stop_fills(edge, None, effects);
        }
    }

    /// Replaces the known quotas of sources on an edge.
    pub(super) fn source_spaces(
        &mut self,
        edge: EdgeId,
        spaces: &[SourceSpace],
        effects: &mut Vec<Effect>,
    ) {
        let now = self.now;
        let state = self.edges.entry(edge).or_default();
        state.refused_until.retain(|_, until| *until > now);
        let before = std::mem::take(&mut state.source_spaces);
        let was_full = |source| before.get(&source).is_some_and(|space| space.is_full);
        let spaces = spaces.iter().map(|it| {
            let space = Space {
                used: it.bytes_used,
                allowed: it.quota_bytes,
                landed: 0,
                is_full: was_full(it.source),
            };
            (it.source, space)
        });
        state.source_spaces = spaces.collect();
        let now: Vec<SourceId> = state.source_spaces.keys().copied().collect();
        for source in now {
            let Some((left, quota)) = self.quota_room(edge, source).expected() else {
                continue;
            };
            let headroom = quota_headroom(quota);
            if was_full(source) && left > 3 * headroom {
                self.set_quota_full(edge, source, false);
            } else if left < headroom {
                self.set_quota_full(edge, source, true);
                self.stop_fills(edge, Some(source), effects);
            }
        }
        for (source, space) in before {
            let has_quota = |state: &super::state::Edge| state.source_spaces.contains_key(&source);
            if space.is_full && !self.edges.get(&edge).is_some_and(has_quota) {
                self.ensure_fills_of(edge, source);
            }
        }
    }

    /// Bytes of a source's quota on an edge that are free once all running fetches have landed, and
    /// the quota; `None`: no quota.
    fn quota_room(&self, edge: EdgeId, source: SourceId) -> Option<(u64, u64)> {
        let state = self.edges.get(&edge)?;
        let space = state.source_spaces.get(&source)?;
        let coming = self.coming(state, Some(source));
        let taken = space.used.saturating_add(space.landed);
        let left = space.allowed.saturating_sub(taken.saturating_add(coming));
        Some((left, space.allowed))
    }

    /// Bytes that running fetches will still bring.
    fn coming(&self, state: &super::state::Edge, source: Option<SourceId>) -> u64 {
        let fetches = state.fetches.iter();
        let of_source = fetches.filter(|it| source.is_none_or(|source| it.source == source));
        of_source
            .map(|fetch| {
                self.bytes_of(fetch.entry, &fetch.chunks)
                    .saturating_sub(fetch.bytes_done)
            })
            .sum()
    }

    /// Whether the fill of this entry stopped because its source's quota is used up on the edge.
    pub(super) fn quota_is_full(&self, edge: EdgeId, entry: EntryNo) -> bool {
        let source = self.entries.get(&entry).map(|known| known.source);
        let state = self.edges.get(&edge);
        let space = source
            .zip(state)
            .and_then(|(source, state)| state.source_spaces.get(&source));
        space.is_some_and(|space| space.is_full)
    }

    /// The edge reported that it cannot store more of the source now.
    pub(super) fn quota_used_up(&mut self, edge: EdgeId, source: SourceId) {
        let until = self.now.saturating_add(QUOTA_PAUSE_MS);
        if let Some(state) = self.edges.get_mut(&edge) {
            state.refused_until.insert(source, until);
            self.timers.insert((until, Timer::Edge(edge)));
        }
    }

    /// Whether nothing of the source may be assigned to the edge for now.
    pub(super) fn quota_refuses(&self, edge: EdgeId, source: SourceId) -> bool {
        let until = self
            .edges
            .get(&edge)
            .and_then(|state| state.refused_until.get(&source));
        until.is_some_and(|until| *until > self.now)
    }

    fn set_quota_full(&mut self, edge: EdgeId, source: SourceId, is_full: bool) {
        let state = self.edges.get_mut(&edge);
        let space = state.and_then(|state| state.source_spaces.get_mut(&source));
        if space.is_some_and(|space| std::mem::replace(&mut space.is_full, is_full) != is_full) {
            self.ensure_fills_of(edge, source);
        }
    }

    fn ensure_fills_of(&mut self, edge: EdgeId, source: SourceId) {
        let entries = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.source == source && entry.replicas.contains_key(&edge));
        let entries: Vec<_> = entries.map(|(&number, _)| number).collect();
        for entry in entries {
            self.ensure_fill(edge, entry);
        }
    }

    /// Bytes free once all running fetches have landed; `None`: unknown.
    pub(super) fn room(&self, edge: EdgeId) -> Option<u64> {
        let state = self.edges.get(&edge)?;
        if !state.space.is_known() {
            return None;
        }
        let coming = self.coming(state, None);
        let taken = state.space.used.saturating_add(state.space.landed);
        Some(
            state
                .space
                .allowed
                .saturating_sub(taken)
                .saturating_sub(coming),
        )
    }

    /// Ends the fill where these chunks would bring its edge, or its source there, close to
    /// evicting. Returns whether it did.
    pub(super) fn ends_fill(
        &mut self,
        edge: EdgeId,
        entry: EntryNo,
        chunks: &Range<ChunkIndex>,
    ) -> bool {
        let bytes = self.bytes_of(entry, chunks);
        if let Some(room) = self.room(edge) {
            let allowed = self.edges.get(&edge).map_or(0, |edge| edge.space.allowed);
            if room.saturating_sub(bytes) < 2 * Space::headroom(allowed).max(1) {
                self.set_full(edge, true);
                return true;
            }
        }
        let source = self.entries.get(&entry).map(|known| known.source);
        if let Some(source) = source
            && let Some((room, quota)) = self.quota_room(edge, source)
            && room.saturating_sub(bytes) < 2 * quota_headroom(quota).max(1)
        {
            self.set_quota_full(edge, source, true);
            return true;
        }
        false
    }

    pub(super) fn set_full(&mut self, edge: EdgeId, is_full: bool) {
        let Some(state) = self.edges.get_mut(&edge).expected() else {
            return;
        };
        if state.space.is_full != is_full {
            state.space.is_full = is_full;
            self.ensure_fills_of_edge(edge);
        }
    }

    /// Stops fetches that only the fill wants, of one source or of all, because something else
    /// takes the space.
    fn stop_fills(&mut self, edge: EdgeId, source: Option<SourceId>, effects: &mut Vec<Effect>) {
        let Some(state) = self.edges.get(&edge).expected() else {
            return;
        };
        let fills: Vec<_> = state
            .fetches
            .iter()
            .filter(|fetch| {
                matches!(fetch.owner, Some(Owner::Fill(..)))
                    && fetch.level == Level::Low
                    && source.is_none_or(|source| fetch.source == source)
                    && !fetch.cancelling
            })
            .map(|fetch| fetch.id)
            .collect();
        for id in fills {
            self.cancel_fetch((edge, id), effects);
        }
    }
}
