//! What edges that are away may still have open of a source with a limit.
//!
//! An edge does not close its connections because its session ended: it goes on with what it has,
//! comes down to its part for itself within a second of missing the coordinator, and may grow to
//! its part after that. Until it comes back and says what it has, that much of the limit is given
//! to nobody else. After a moment all but one connection: a reader that waits is not left waiting
//! for somebody who may never come back.

use std::collections::BTreeMap;

use super::Scheduler;
use super::api::{EdgeId, Effect, Millis, SourceId};
use super::state::{Source, Timer};

/// An edge notices within 10 s that nobody answers it, and is down to its part a second later.
const AWAY_MS: Millis = 15_000;
/// So long the last connection is kept as well. When a term begins, its edges may have all there is
/// until they have missed the last coordinator (2.5 s without a heartbeat, of which a lease takes
/// longer to expire) and come down (0.6 s).
const ALL_MS: Millis = 1_500;

/// Of one edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Away {
    pub places: u32,
    /// It has no more than this once the moment is over.
    pub part: u32,
    pub until: Millis,
}

impl Source {
    /// Connections that edges which are away may have; later but for the last place.
    pub fn away(&self) -> u32 {
        if self.away.is_empty() {
            return 0;
        }
        let places = self.away.values().map(|away| away.places);
        let sum = places.fold(0, u32::saturating_add);
        let left = u32::from(self.all_away_until == 0);
        sum.min(self.max_connections.saturating_sub(left))
    }

    fn keep_away(&mut self, edge: EdgeId, places: u32, part: u32, now: Millis) -> bool {
        if self.max_connections > 0 && places > 0 {
            let until = now.saturating_add(AWAY_MS);
            self.away.insert(
                edge,
                Away {
                    places,
                    part,
                    until,
                },
            );
            self.all_away_until = now.saturating_add(ALL_MS);
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
        let now = self.now;
        for (&id, source) in &mut self.sources {
            let lent = source.lent.get(&edge).copied().unwrap_or_default();
            let fetches = assigned.get(&id).copied().unwrap_or(0);
            let places = fetches.saturating_add(lent.counted).max(lent.alone);
            // It may miss us later than we miss it.
            if source.keep_away(edge, places, places, now) {
                self.timers.insert((now + ALL_MS, Timer::Source(id)));
                self.timers.insert((now + AWAY_MS, Timer::Source(id)));
            }
        }
    }

    /// A term began, and these edges had sessions in the last one: any of them may have all there
    /// is, and soon its part.
    pub(super) fn edges_expected(&mut self, edges: &[EdgeId], effects: &mut Vec<Effect>) {
        let now = self.now;
        let count = u32::try_from(edges.len()).unwrap_or(u32::MAX).max(1);
        let absent = |edge: &&EdgeId| !self.edges.get(edge).is_some_and(|it| it.alive);
        let absent: Vec<EdgeId> = edges.iter().filter(absent).copied().collect();
        for (&id, source) in &mut self.sources {
            let alone = (source.max_connections / count).max(1);
            for &edge in &absent {
                if source.keep_away(edge, source.max_connections, alone, now) {
                    self.timers.insert((now + ALL_MS, Timer::Source(id)));
                    self.timers.insert((now + AWAY_MS, Timer::Source(id)));
                }
            }
        }
        self.lend_to_all(effects);
    }

    /// It is back, and its fetches that went on are counted by themselves from now on. Its places
    /// are when it has said them.
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

    /// Who was not heard of for a moment has no more than its part by now; for long, it is not
    /// counted on.
    pub(super) fn away_over(&mut self, id: SourceId, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        let was = source.away();
        source.away.retain(|_, away| away.until > now);
        if source.all_away_until <= now {
            source.all_away_until = 0;
            for away in source.away.values_mut() {
                away.places = away.places.min(away.part);
            }
        }
        if source.away() != was {
            self.woken.insert(id);
            self.lend_to_all(effects);
        }
    }
}
