//! After the faults: all activity ends, and a rebuilt scheduler agrees.

use chunkcache_proto::Level;

use super::super::Scheduler;
use super::super::api::*;
use super::world::{Faults, World};

impl World {
    /// Schedulers rebuilt from the present state, in any order, want what this one wants.
    pub fn check_rebuild(&mut self) {
        // Hand-overs are derived as well, when they are reviewed: see `restart`.
        for want in std::mem::take(&mut self.hand_overs).into_keys() {
            self.apply(Event::WantClosed { want });
        }
        // Readers have moved inside their chunks since their last report.
        for demand in self.readers.values().cloned().collect::<Vec<_>>() {
            self.apply(Event::DemandSet(demand));
        }
        let build = |reversed: bool, keeps: bool| {
            let mut scheduler = Scheduler::new(self.scheduler.config.clone());
            let mut effects = Vec::new();
            let mut events: Vec<Event> = Vec::new();
            for (number, &(source, geometry)) in (0..).zip(&self.entries) {
                events.push(Event::EntryOpened {
                    entry: EntryNo(number),
                    source,
                    geometry,
                });
            }
            if reversed {
                events.reverse();
            }
            let mut second: Vec<Event> = (0..self.sources.len())
                .map(|index| self.source_event(index))
                .collect();
            second.extend((0..self.edges.len()).map(|edge| self.space_event(edge)));
            if keeps {
                let alive = (0..self.edges.len()).filter(|&edge| self.edges[edge].alive);
                second.extend(alive.map(|edge| Event::FetchesKept {
                    edge: EdgeId(edge as u32),
                    fetches: self.kept_fetches(edge),
                }));
            }
            let alive = (0..self.edges.len()).filter(|&edge| self.edges[edge].alive);
            second.extend(alive.map(|edge| self.join_event(edge)));
            for (edge, sim) in (0..).zip(&self.edges) {
                for (&entry, held) in &sim.held {
                    second.push(Event::ChunksHeld {
                        edge: EdgeId(edge),
                        entry,
                        chunks: held.iter().collect(),
                    });
                }
            }
            for (&edge, state) in &self.scheduler.edges {
                second.push(Event::EdgeDraining {
                    edge,
                    draining: state.draining,
                });
            }
            if reversed {
                second.reverse();
            }
            events.append(&mut second);
            let mut third: Vec<Event> = self
                .readers
                .values()
                .cloned()
                .map(Event::DemandSet)
                .collect();
            for (&want, (edge, entry, chunks)) in &self.wants {
                let level = self.scheduler.claims[&super::super::claim::Owner::Want(want)].level;
                third.push(Event::WantSet {
                    want,
                    edge: *edge,
                    entry: *entry,
                    chunks: vec![chunks.clone()],
                    level,
                });
            }
            if reversed {
                third.reverse();
            }
            events.append(&mut third);
            for event in events {
                scheduler.apply(event, self.now, &mut effects);
            }
            (scheduler, effects)
        };
        let (first, effects) = build(false, false);
        let (again, same) = build(false, false);
        let (other, _) = build(true, false);
        let (kept, given) = build(false, true);
        assert_eq!(
            effects, same,
            "seed {}: a rebuilt scheduler repeats its plan",
            self.seed
        );
        // Where a fill ends for lack of space depends on which fetches were running and on how much
        // was free before.
        let wanted = |scheduler: &Scheduler| {
            let mut wanted = scheduler.wanted();
            // Chunks evicted from a closed entry are filled again only when it is opened or its
            // edge returns.
            wanted.retain(|(edge, entry, level), _| {
                let filled = self.edges[edge.0 as usize].allowed == 0;
                *level < Level::Low || (filled && !self.closed.contains(entry))
            });
            wanted
        };
        assert_eq!(wanted(&first), wanted(&again));
        assert_eq!(
            wanted(&first),
            wanted(&other),
            "seed {}: the order of rebuilding does not matter",
            self.seed
        );
        assert_eq!(
            wanted(&first),
            wanted(&kept),
            "seed {}: what goes on changes nothing of what is wanted",
            self.seed
        );
        self.check_nothing_given_twice(&given);
        assert_eq!(
            wanted(&first),
            wanted(&self.scheduler),
            "seed {}: rebuilt, it wants the same",
            self.seed
        );
    }

    /// Chunks of in-flight fetches are not assigned again, to their edge or to others from the
    /// origin, when the plan is rebuilt.
    fn check_nothing_given_twice(&self, given: &[Effect]) {
        let mut kept: Vec<(EdgeId, InFlightFetch)> = Vec::new();
        for edge in (0..self.edges.len()).filter(|&edge| self.edges[edge].alive) {
            let of_edge = self.kept_fetches(edge).into_iter();
            kept.extend(of_edge.map(|it| (EdgeId(edge as u32), it)));
        }
        for effect in given {
            let Effect::Assign(a) = effect else { continue };
            let chunks = a.first_chunk..a.first_chunk + a.chunk_count;
            for (edge, it) in &kept {
                let same = it.entry == a.entry
                    && it.chunks.start < chunks.end
                    && chunks.start < it.chunks.end;
                // A fetch that was stopped for a waiting reader starts again at the reader's
                // position.
                let stopped = given.iter().any(|other| {
                    matches!(
                        other,
                        Effect::Cancel { edge: of, assignment } if of == edge
                            && *assignment == it.id
                    )
                });
                assert!(
                    !same || stopped || (*edge != a.edge && a.from != FetchSource::Origin),
                    "seed {}: given again: {a:?} beside {it:?} of {edge:?}",
                    self.seed
                );
            }
        }
    }

    /// Ends all faults: all edges are up; readers stay where they are.
    pub fn calm(&mut self) {
        self.faults = Faults::default();
        for edge in 0..self.edges.len() {
            for fetch in self.edges[edge].fetches.values_mut() {
                fetch.stalled = false;
            }
            if !self.edges[edge].alive {
                self.join(edge);
            }
            self.apply(Event::EdgeDraining {
                edge: EdgeId(edge as u32),
                draining: false,
            });
        }
    }

    pub fn settled(&self) -> bool {
        self.unsettled().is_empty()
    }

    pub fn unsettled(&self) -> String {
        let mut what = String::new();
        for (want, rest) in &self.wants {
            what += &format!("want {want:?} {rest:?}; ");
        }
        for demand in self
            .readers
            .values()
            .filter(|demand| !demand.paused && demand.position < demand.end)
        {
            what += &format!("reader {demand:?}; ");
        }
        let waits = self.longest_wait_for_a_connection();
        if waits > 0 {
            what += &format!("a request waits for a connection for {waits} ms; ");
        }
        for (edge, sim) in self.edges.iter().enumerate() {
            for (entry, held) in sim
                .held
                .iter()
                .filter(|(_, held)| sim.fill && sim.allowed == 0 && !held.is_empty())
                .filter(|(entry, _)| !self.closed.contains(entry))
            {
                let count = self.entries[entry.0 as usize].1.chunk_count();
                if !held.covers(0..count) {
                    what += &format!("fill of {entry:?} on {edge}; ");
                }
            }
        }
        what
    }
}
