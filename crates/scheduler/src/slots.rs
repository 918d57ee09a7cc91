//! Decides which fetch has a slot, and which gives one up.
//!
//! CRITICAL takes a slot from the lowest fetch that has one. Its edge does the same by itself: the
//! fetch is paused, and resumed where it was, with the answer it was reading. For a connection of
//! an origin, and for a slot below CRITICAL, a fetch is cancelled.

use chunkcache_proto::Level;

use super::Scheduler;
use super::api::{AssignmentId, EdgeId, Effect, Millis, SourceId};
use super::claim::Owner;
use super::state::{Edge, FetchKey, RunningFetch};

impl Scheduler {
    /// Takes the slot of the lowest fetch below `level`; false if there is none.
    pub(super) fn preempt(
        &mut self,
        edge: EdgeId,
        level: Level,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(victim) = self.lowest_slot(edge, level) else {
            return false;
        };
        if level > Level::Critical {
            self.cancel_flight((edge, victim), effects);
        } else if let Some(flight) = self.flight_mut((edge, victim)) {
            flight.pause();
        }
        true
    }

    pub(super) fn lowest_slot(&self, edge: EdgeId, level: Level) -> Option<AssignmentId> {
        let flights = &self.edges.get(&edge)?.flights;
        let able = |flight: &&RunningFetch| {
            flight.slot
                && !flight.cancelling
                && !flight.local
                && flight.level > level
                && (level == Level::Critical || !flight.shared)
        };
        flights
            .iter()
            .filter(able)
            .max_by_key(|flight| (flight.level, flight.deadline, flight.id))
            .map(|flight| flight.id)
    }

    /// Gives queued CRITICAL fetches the slots that lower levels have, or that came free.
    pub(super) fn give_slots_to_critical(&mut self, edge: EdgeId, effects: &mut Vec<Effect>) {
        let Some(state) = self.edges.get(&edge) else {
            return;
        };
        let without = |flight: &&RunningFetch| {
            flight.level == Level::Critical && !flight.slot && !flight.cancelling
        };
        let mut waiting: Vec<_> = state
            .flights
            .iter()
            .filter(without)
            .map(|flight| (flight.deadline, flight.id))
            .collect();
        waiting.sort_unstable();
        for (_, id) in waiting {
            self.claim_slot((edge, id), effects);
        }
    }

    /// Takes back the lowest queued fetches: lowered ones may exceed what an edge should have
    /// queued. What a paused one has asked its origin for was sent already, so it goes last.
    pub(super) fn trim_ahead(&mut self, edge: EdgeId, effects: &mut Vec<Effect>) {
        let Some(state) = self.edges.get(&edge) else {
            return;
        };
        let ahead = |flight: &&RunningFetch| {
            flight.level > Level::Critical && !flight.slot && !flight.cancelling
        };
        let mut lower: Vec<_> = state
            .flights
            .iter()
            .filter(ahead)
            .map(|flight| (flight.level, !flight.paused, flight.deadline, flight.id))
            .collect();
        lower.sort_unstable();
        for (.., id) in lower.into_iter().skip(state.max_downloads as usize) {
            self.cancel_flight((edge, id), effects);
        }
    }

    /// Gives a slot to a queued fetch that became CRITICAL, if lower levels have one.
    pub(super) fn claim_slot(&mut self, key: FetchKey, effects: &mut Vec<Effect>) {
        let Some(state) = self.edges.get(&key.0) else {
            return;
        };
        let free = state.slots_used() <= state.max_downloads;
        let now = self.now;
        if (free || self.preempt(key.0, Level::Critical, effects))
            && let Some(flight) = self.flight_mut(key)
        {
            flight.begin(now);
            self.note_room(key.0);
        }
    }

    /// Updates the index of edges with free slots. Must follow each change of what
    /// [`Edge::has_room`] reads.
    pub(super) fn note_room(&mut self, edge: EdgeId) {
        let has_room = self.edges.get(&edge).is_some_and(Edge::has_room);
        self.roomy.set(edge, has_room);
    }

    /// Preempts lower levels for CRITICAL claims that find the origin's budget used up: one fetch
    /// for each that waits, on any edge, with those already stopping counted.
    pub(super) fn make_way(&mut self, source: SourceId, level: Level, effects: &mut Vec<Effect>) {
        if level != Level::Critical {
            return;
        }
        // A reader waits here now, so edges may have more of their own than their part.
        self.grant(source, effects);
        let waiting = self
            .sources
            .get(&source)
            .map_or(0, |source| source.queued[Level::Critical as usize]);
        self.give_way(source, waiting, effects);
    }

    /// Stops `needed` of an origin's fetches below CRITICAL, the lowest first, with those already
    /// stopping counted.
    pub(super) fn give_way(&mut self, source: SourceId, needed: u32, effects: &mut Vec<Effect>) {
        let mut leaving = 0;
        let mut able = Vec::new();
        let fetches = self.sources.get(&source).map(|known| &known.fetches);
        for &(level, edge, id) in fetches.into_iter().flatten() {
            let Some(flight) = self.flight((edge, id)).filter(|flight| !flight.local) else {
                continue;
            };
            if flight.cancelling {
                leaving += 1;
            } else if level > Level::Critical {
                able.push((level, flight.deadline, edge, id));
            }
        }
        able.sort_unstable();
        let more = needed.saturating_sub(leaving) as usize;
        for (_, _, edge, flight) in able.into_iter().rev().take(more) {
            self.cancel_flight((edge, flight), effects);
        }
    }

    /// Stops background fills of an origin that somebody waits for.
    pub(super) fn yield_fills(&mut self, source: super::api::SourceId, effects: &mut Vec<Effect>) {
        let Some(known) = self.sources.get(&source) else {
            return;
        };
        let yields = |flight: &RunningFetch| {
            flight.owner.is_some_and(Owner::is_background) && !flight.cancelling
        };
        let low = (Level::Low, EdgeId(0), AssignmentId(0));
        let fills: Vec<_> = known
            .fetches
            .range(low..)
            .map(|&(_, edge, id)| (edge, id))
            .filter(|&key| self.flight(key).is_some_and(yields))
            .collect();
        for fill in fills {
            self.cancel_flight(fill, effects);
        }
    }
}

impl Edge {
    /// Gives free slots to the next queued fetches, as the edge does.
    pub fn promote_ahead(&mut self, now: Millis) {
        while self.slots_used() < self.max_downloads {
            let ahead = self
                .flights
                .iter_mut()
                .filter(|flight| !flight.slot && !flight.cancelling);
            let Some(next) = ahead.min_by_key(|flight| (flight.level, flight.deadline, flight.id))
            else {
                return;
            };
            next.begin(now);
        }
    }
}
