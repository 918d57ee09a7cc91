//! What edges ask by themselves: requests that take a place of their source, and wait for one.

use std::collections::BTreeMap;

use super::super::api::*;
use super::world::World;

/// Of a source on an edge.
#[derive(Clone, Debug, Default)]
pub struct SimPlaces {
    pub sequence: u64,
    pub granted: u32,
    /// What it may open while no coordinator answers.
    pub part: u32,
    /// When each request ends.
    pub open: Vec<Millis>,
    /// Since when each waits.
    pub waiting: Vec<Millis>,
    /// Held and wanted, as said last of which grant.
    told: Option<(u64, u32, u32)>,
}

/// Of a source, on an edge that is away.
#[derive(Clone, Copy, Debug)]
pub struct SimAway {
    pub since: Millis,
    /// When it noticed.
    pub missed: Millis,
    /// All that it was given.
    pub had: u32,
    /// What it may have by itself.
    pub part: u32,
}

/// As `away` does.
const GIVEN_UP_MS: Millis = 14_900;
const ALL_MS: Millis = 1_400;
/// As an edge does (its `coordinator::absence`).
const CUT_MS: Millis = 600;
const ALONE_MS: Millis = 1_000;

impl SimAway {
    /// At the most.
    fn has(&self, now: Millis) -> u32 {
        let missed_for = now.saturating_sub(self.missed);
        if now < self.missed || missed_for < CUT_MS {
            self.had
        } else if missed_for < ALONE_MS {
            self.had.min(self.part)
        } else {
            self.part
        }
    }
}

impl SimPlaces {
    pub fn new_session(&mut self) {
        self.sequence = 0;
        self.granted = 0;
        self.told = None;
    }

    fn say(&self) -> (u64, u32, u32) {
        let open = u32::try_from(self.open.len()).unwrap();
        let wanted = open + u32::try_from(self.waiting.len()).unwrap();
        (self.sequence, open.max(self.granted), wanted)
    }
}

impl World {
    pub fn places_granted(
        &mut self,
        edge: EdgeId,
        source: SourceId,
        sequence: u64,
        (granted, part): (u32, u32),
    ) {
        let edge = &mut self.edges[edge.0 as usize];
        assert!(edge.alive, "places for an edge that is away");
        let places = edge.places.entry(source).or_default();
        assert!(places.sequence <= sequence);
        (places.sequence, places.granted) = (sequence, granted);
        places.part = part;
    }

    /// Requests come, find a place or wait, and end.
    pub fn run_places(&mut self, chaos: bool) {
        let some = self.has_restarts();
        for edge in 0..self.edges.len() {
            for number in 0..self.sources.len() {
                let source = SourceId(u32::try_from(number).unwrap());
                if self.sources[number].max_connections == 0 || !self.edges[edge].alive {
                    continue;
                }
                let come = match chaos && some && self.place_dice.per_mille(120) {
                    true => 1 + self.place_dice.below(6),
                    false => 0,
                };
                let takes: Vec<Millis> = (0..8).map(|_| 5 + self.place_dice.below(400)).collect();
                let slow = self.place_dice.per_mille(300);
                let now = self.now;
                let places = self.edges[edge].places.entry(source).or_default();
                places.waiting.extend((0..come).map(|_| now));
                places.open.retain(|&end| end > now);
                for takes in takes {
                    if places.open.len() < places.granted as usize && !places.waiting.is_empty() {
                        places.waiting.remove(0);
                        places.open.push(now + takes);
                    }
                }
                // A smaller number is said a moment later, a larger one at once.
                if !slow || places.told.is_none_or(|told| places.say().2 > told.2) {
                    self.say_places(edge, number);
                }
            }
        }
    }

    pub fn say_places(&mut self, edge: usize, number: usize) {
        let source = SourceId(u32::try_from(number).unwrap());
        let Some(places) = self.edges[edge].places.get_mut(&source) else {
            return;
        };
        let say = places.say();
        if places.told != Some(say) {
            places.told = Some(say);
            self.apply(Event::PlacesAsked {
                edge: EdgeId(u32::try_from(edge).unwrap()),
                source,
                sequence: say.0,
                held: say.1,
                wanted: say.2,
            });
        }
    }

    /// Connections to a source that are open outside of assignments, or may be opened without
    /// asking.
    pub fn places_held(&self, source: SourceId) -> usize {
        let of_it = self
            .edges
            .iter()
            .filter_map(|edge| edge.places.get(&source));
        of_it
            .map(|places| places.open.len().max(places.granted as usize))
            .sum()
    }

    /// It goes on by itself with what it has, and misses the coordinator `missed_after`
    /// milliseconds later. By no throw of the dice: seeds kept from before mean the same runs as
    /// ever.
    pub fn goes_away(&mut self, edge: usize, missed_after: Millis) {
        let flights = self.edges[edge].flights.values();
        let mut open: BTreeMap<SourceId, u32> = BTreeMap::new();
        for flight in flights.filter(|f| f.a.from == From::Origin && !f.local) {
            *open
                .entry(self.entries[flight.a.entry.0 as usize].0)
                .or_default() += 1;
        }
        let now = self.now;
        let edge = &mut self.edges[edge];
        for (&source, places) in &edge.places {
            let assigned = open.get(&source).copied().unwrap_or(0);
            let own = u32::try_from(places.open.len()).unwrap();
            let away = SimAway {
                since: now,
                missed: now + missed_after,
                had: assigned + own.max(places.granted),
                part: places.part,
            };
            edge.away.insert(source, away);
        }
    }

    /// Connections of those that are away.
    pub fn held_away(&self, source: SourceId) -> usize {
        let held: u32 = self.away_of(source).map(|away| away.has(self.now)).sum();
        held as usize
    }

    fn away_of(&self, source: SourceId) -> impl Iterator<Item = &SimAway> {
        let away = self
            .edges
            .iter()
            .filter_map(move |edge| edge.away.get(&source));
        away.filter(|away| away.since + GIVEN_UP_MS > self.now)
    }

    /// A moment after the last edge went, the last place of a source is not kept for those that are
    /// away: a reader that waits may have it. It has it still when another edge goes then, or a new
    /// term begins: all is kept again, and until that moment is over as well nothing more is given.
    pub fn note_last_given(&mut self) {
        for number in 0..self.sources.len() {
            let id = SourceId(u32::try_from(number).unwrap());
            let limit = self.sources[number].max_connections as usize;
            let here = self.assigned_of(id) + self.places_held(id);
            let may: u32 = self.away_of(id).map(|it| it.had.max(it.part)).sum();
            if here + limit.min(may as usize) <= limit {
                self.last_given.remove(&id);
            } else if self.away_of(id).all(|it| it.since + ALL_MS <= self.now) {
                self.last_given.insert(id, here);
            } else if let Some(given) = self.last_given.get_mut(&id) {
                *given = here.min(*given);
            }
        }
    }

    /// Requests of one that waits longest, in milliseconds.
    pub fn longest_wait_for_a_place(&self) -> Millis {
        let alive = self.edges.iter().filter(|edge| edge.alive);
        let waiting = alive.flat_map(|edge| edge.places.values().flat_map(|it| &it.waiting));
        waiting.map(|&since| self.now - since).max().unwrap_or(0)
    }
}
