//! Decides which fetch has a slot, and which gives one up.
//!
//! CRITICAL takes a slot from the lowest fetch that has one, and HIGH takes one from MEDIUM or LOW.
//! Their edge does the same by itself: it pauses that fetch and later resumes it with the response
//! it was reading. For a connection to an origin, a fetch is cancelled.

use chunkcache_proto::Level;

use super::Scheduler;
use super::api::{EdgeId, Effect, FetchId, SourceId};
use super::claim::Owner;
use super::invariant::Invariant;
use super::state::{Edge, FetchKey, RunningFetch};

impl Scheduler {
    /// The fetch whose slot this level takes if none is free.
    pub(super) fn lowest_slot(&self, edge: EdgeId, level: Level) -> Option<FetchId> {
        let fetches = &self.edges.get(&edge)?.fetches;
        let able = |fetch: &&RunningFetch| {
            fetch.slot && !fetch.cancelling && !fetch.is_local() && fetch.level > level
        };
        let lower = fetches.iter().filter(able);
        let lowest = lower.max_by_key(|fetch| (fetch.level, fetch.deadline, fetch.id))?;
        (level <= Level::High).then_some(lowest.id)
    }

    /// Gives a queued fetch a slot: a free one, or that of the lowest fetch below it.
    pub(super) fn claim_slot(&mut self, key: FetchKey) {
        let level = self.fetch(key).map(|fetch| fetch.level);
        let (Some(level), Some(state)) = (level, self.edges.get(&key.0)) else {
            return;
        };
        if !state.may_start(level) {
            let Some(lowest) = self.lowest_slot(key.0, level) else {
                return;
            };
            if let Some(fetch) = self.fetch_mut((key.0, lowest)) {
                fetch.pause();
            }
        }
        let now = self.now;
        if let Some(fetch) = self.fetch_mut(key) {
            fetch.begin(now);
        }
        self.update_slots(key.0);
    }

    /// Gives slots to queued fetches of these levels, the most urgent first, as their edge does.
    pub(super) fn give_slots(&mut self, edge: EdgeId, lowest: Level) {
        let Some(state) = self.edges.get(&edge).expected() else {
            return;
        };
        let is_queued =
            |fetch: &&RunningFetch| fetch.level <= lowest && !fetch.slot && !fetch.cancelling;
        let queued = state.fetches.iter().filter(is_queued);
        let mut queued: Vec<_> = queued
            .map(|fetch| (fetch.level, fetch.deadline, fetch.id))
            .collect();
        queued.sort_unstable();
        for (.., id) in queued {
            self.claim_slot((edge, id));
        }
    }

    /// Cancels the lowest fetches without a slot: lowered ones may exceed the number that an edge
    /// should have queued, and so may those that were paused, whose origin was already asked.
    pub(super) fn revoke_queued(&mut self, edge: EdgeId, effects: &mut Vec<Effect>) {
        let Some(state) = self.edges.get(&edge).expected() else {
            return;
        };
        let is_queued = |fetch: &&RunningFetch| {
            fetch.level > Level::Critical && !fetch.slot && !fetch.cancelling && !fetch.is_local()
        };
        let queued = state.fetches.iter().filter(is_queued);
        let mut queued: Vec<_> = queued
            .map(|fetch| (fetch.level, fetch.deadline, fetch.id, fetch.paused))
            .collect();
        queued.sort_unstable();
        let mut left = [state.max_downloads; 2];
        for (.., id, paused) in queued {
            match &mut left[usize::from(paused)] {
                0 => self.cancel_fetch((edge, id), effects),
                left => *left -= 1,
            }
        }
    }

    /// Raises the first fetch of a level to HIGH, as the level's share: what is running or paused
    /// comes before anything new. False: there is none.
    pub(super) fn raise_as_share(
        &mut self,
        edge: EdgeId,
        level: Level,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(state) = self.edges.get(&edge).expected() else {
            return false;
        };
        let of_level =
            |fetch: &&RunningFetch| fetch.level == level && !fetch.cancelling && !fetch.is_local();
        let fetches = state.fetches.iter().filter(of_level);
        let Some(first) = fetches.min_by_key(|fetch| (!fetch.slot, fetch.id)) else {
            return false;
        };
        let key = (edge, first.id);
        if let Some(fetch) = self.fetch_mut(key) {
            fetch.shared = true;
        }
        self.set_level(key, Level::High, self.now, effects);
        true
    }

    /// Updates the index of edges with free slots. Must follow each change of what
    /// [`Edge::has_room`] reads.
    pub(super) fn update_slots(&mut self, edge: EdgeId) {
        let has_room = self.edges.get(&edge).is_some_and(Edge::has_room);
        self.edges_with_slots.set(edge, has_room);
    }

    /// Preempts lower levels for CRITICAL claims that find the origin's budget used up: one fetch
    /// per waiting claim, on any edge, counting those that are already stopping.
    pub(super) fn preempt_for_critical(
        &mut self,
        source: SourceId,
        level: Level,
        effects: &mut Vec<Effect>,
    ) {
        if level != Level::Critical {
            return;
        }
        // A reader waits here now, so edges may be granted more than their usual part.
        self.grant(source, effects);
        let waiting = self
            .sources
            .get(&source)
            .map_or(0, |source| source.queued[Level::Critical as usize]);
        self.preempt_lowest(source, waiting, effects);
    }

    /// Stops `needed` of an origin's fetches below CRITICAL, the lowest first, counting those that
    /// are already stopping.
    pub(super) fn preempt_lowest(
        &mut self,
        source: SourceId,
        needed: u32,
        effects: &mut Vec<Effect>,
    ) {
        let mut leaving = 0;
        let mut able = Vec::new();
        let fetches = self.sources.get(&source).map(|known| &known.fetches);
        for &(level, edge, id) in fetches.into_iter().flatten() {
            let Some(fetch) = self.fetch((edge, id)).expected() else {
                continue;
            };
            if fetch.is_local() {
                continue;
            }
            if fetch.cancelling {
                leaving += 1;
            } else if level > Level::Critical {
                able.push((level, fetch.deadline, edge, id));
            }
        }
        able.sort_unstable();
        let more = needed.saturating_sub(leaving) as usize;
        for (_, _, edge, fetch) in able.into_iter().rev().take(more) {
            self.cancel_fetch((edge, fetch), effects);
        }
    }

    /// Stops background fills of an origin that a reader of `reading` waits for. That edge pauses
    /// its own.
    pub(super) fn preempt_fills(
        &mut self,
        source: SourceId,
        reading: EdgeId,
        effects: &mut Vec<Effect>,
    ) {
        let Some(known) = self.sources.get(&source).expected() else {
            return;
        };
        let is_fill = |fetch: &RunningFetch| fetch.owner.is_some_and(Owner::is_background);
        let low = (Level::Low, EdgeId(0), FetchId::Coordinated(0));
        let fills: Vec<_> = known
            .fetches
            .range(low..)
            .map(|&(_, edge, id)| (edge, id))
            .filter(|&key| key.0 != reading && self.fetch(key).is_some_and(is_fill))
            .collect();
        for fill in fills {
            self.cancel_fetch(fill, effects);
        }
    }
}
