//! What edges that are away may still have open of a source with a limit.
//!
//! An edge does not close its connections because its session ended: what it was assigned goes on, and so do the requests of
//! its viewers. Until it comes back and says what it has, or has had the time to come down to its part for itself, that much of the
//! limit is given to nobody else. But for one connection: a reader that waits is not left waiting for somebody who may never come back.

use std::collections::BTreeMap;

use super::Scheduler;
use super::api::{EdgeId, Effect, Millis, SourceId};
use super::state::{Source, Timer};

/// An edge notices within 10 s that nobody answers it, and tries again within 3 s. What it was assigned ends by itself, run by run; it is
/// not cut, so an edge that is slow and does not come back may still have more than its part open when this is over.
const AWAY_MS: Millis = 15_000;

/// Of one edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Away {
    pub places: u32,
    pub until: Millis,
}

impl Source {
    /// Connections that edges which are away may have, but for the last place.
    pub fn away(&self) -> u32 {
        if self.away.is_empty() {
            return 0;
        }
        let places = self.away.values().map(|away| away.places);
        let sum = places.fold(0, u32::saturating_add);
        sum.min(self.max_connections.saturating_sub(1))
    }

    fn keep_away(&mut self, edge: EdgeId, places: u32, until: Millis) -> bool {
        if self.max_connections > 0 && places > 0 {
            self.away.insert(edge, Away { places, until });
        }
        !self.away.is_empty()
    }
}

impl Scheduler {
    /// Its session ended. To be said while its fetches and its places are still known.
    pub(super) fn away_since_lost(&mut self, edge: EdgeId) {
        let Some(state) = self.edges.get(&edge) else {
            return;
        };
        let mut assigned: BTreeMap<SourceId, u32> = BTreeMap::new();
        for flight in &state.flights {
            // Its own run in places it was lent.
            if flight.is_from_origin() && !flight.local {
                *assigned.entry(flight.source).or_default() += 1;
            }
        }
        let until = self.now.saturating_add(AWAY_MS);
        for (&id, source) in &mut self.sources {
            let lent = source.lent.get(&edge).copied().unwrap_or_default();
            let fetches = assigned.get(&id).copied().unwrap_or(0);
            let places = fetches.saturating_add(lent.counted).max(lent.alone);
            if source.keep_away(edge, places, until) {
                self.timers.insert((until, Timer::Source(id)));
            }
        }
    }

    /// A term began, and these edges had sessions in the last one: each may have its part for itself.
    pub(super) fn edges_expected(&mut self, edges: &[EdgeId], effects: &mut Vec<Effect>) {
        let until = self.now.saturating_add(AWAY_MS);
        let count = u32::try_from(edges.len()).unwrap_or(u32::MAX).max(1);
        let absent = |edge: &&EdgeId| !self.edges.get(edge).is_some_and(|it| it.alive);
        let absent: Vec<EdgeId> = edges.iter().filter(absent).copied().collect();
        for (&id, source) in &mut self.sources {
            let alone = (source.max_connections / count).max(1);
            for &edge in &absent {
                if source.keep_away(edge, alone, until) {
                    self.timers.insert((until, Timer::Source(id)));
                }
            }
        }
        self.lend_to_all(effects);
    }

    /// It is back, and its fetches that went on are counted by themselves from now on. Its places are when it has said them.
    pub(super) fn back_with_fetches(&mut self, edge: EdgeId) {
        let Some(state) = self.edges.get(&edge) else {
            return;
        };
        for flight in state.flights.iter().filter(|flight| !flight.local) {
            if let Some(source) = self.sources.get_mut(&flight.source)
                && let Some(away) = source.away.get_mut(&edge)
            {
                away.places = away.places.saturating_sub(1);
            }
        }
    }

    /// Who was not heard of in time has no more than its part by now, and is not counted on.
    pub(super) fn away_over(&mut self, id: SourceId, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        let was = source.away.len();
        source.away.retain(|_, away| away.until > now);
        if source.away.len() != was {
            self.lend_to_all(effects);
        }
    }
}
