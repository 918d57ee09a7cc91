//! A coordinator that restarts in the middle of a run, and hand-overs by draining edges. After a
//! restart, both the plan and the hand-overs are derived from the present state.

use super::super::Scheduler;
use super::super::api::*;
use super::super::claim::Owner;
use super::world::World;

/// From, to, and the entry.
pub type HandOver = (EdgeId, EdgeId, EntryNo);

/// Separates the numbers of hand-overs from those of jobs.
const OWN: u64 = 1 << 62;

impl World {
    /// Decided without the dice, and not for runs that are kept by name, so that those keep their
    /// meaning.
    pub fn has_restarts(&self) -> bool {
        matches!(self.seed % 11, 3 | 7 | 8) || self.seed % 7 == 3 || self.has_late_returns()
    }

    /// Whether some edges return later than others to a new coordinator.
    fn has_late_returns(&self) -> bool {
        self.seed.is_multiple_of(13)
    }

    pub fn restart_now_and_then(&mut self) {
        if self.has_restarts() && self.place_dice.per_mille(25) {
            self.restart();
        }
    }

    /// Drops the scheduler's whole state. Meanwhile edges continue to fetch; then they report what
    /// they have.
    pub fn restart(&mut self) {
        let hand_overs = self.derived_hand_overs();
        let draining: Vec<bool> = (0..self.edges.len())
            .map(|edge| self.scheduler.is_draining(edge_id(edge)))
            .collect();
        let wants: Vec<Event> = self
            .wants
            .iter()
            .map(|(&want, (edge, entry, chunks))| Event::WantSet {
                want,
                edge: *edge,
                entry: *entry,
                chunks: vec![chunks.clone()],
                level: self.scheduler.claims[&Owner::Want(want)].level,
            })
            .collect();
        let mut config = self.scheduler.config.clone();
        config.first_assignment = self.scheduler.last_assignment + 1_000;
        self.scheduler = Scheduler::new(config);
        self.unnamed = true;
        self.hand_overs.clear();
        // Entries are opened when an event names them.
        self.closed = (0..)
            .zip(&self.entries)
            .map(|(it, _)| EntryNo(it))
            .collect();
        for source in 0..self.sources.len() {
            self.set_source(source);
        }
        self.expect_edges();
        if self.has_late_returns() {
            for edge in 0..self.edges.len() {
                let some = crate::edge_choice::mix(self.now ^ edge as u64) % 3;
                if self.edges[edge].alive && some == 0 {
                    self.leave(edge);
                }
            }
        }
        for (edge, draining) in draining.into_iter().enumerate() {
            if self.edges[edge].alive {
                let kept = self.kept_fetches(edge);
                self.edges[edge]
                    .fetches
                    .retain(|_, f| f.a.from == FetchSource::Origin && !f.cancelled);
                self.apply(Event::FetchesKept {
                    edge: edge_id(edge),
                    fetches: kept,
                });
                self.join(edge);
                for source in 0..self.sources.len() {
                    self.say_quota(edge, source);
                }
            }
            self.apply(Event::EdgeDraining {
                edge: edge_id(edge),
                draining,
            });
        }
        self.unnamed = false;
        for demand in self.readers.values().cloned().collect::<Vec<_>>() {
            self.apply(Event::DemandSet(demand));
        }
        for want in wants {
            self.apply(want);
        }
        let derived = self.derived_hand_overs();
        let is_there = |edge: EdgeId| self.edges[edge.0 as usize].alive;
        let mut edges = (0..self.edges.len()).map(edge_id);
        let somebody_stays = edges.any(|it| is_there(it) && !self.scheduler.is_draining(it));
        let goes_on = |it: &(HandOver, Vec<std::ops::Range<u32>>)| {
            let (from, to, entry) = it.0;
            if is_there(to) {
                derived.contains(it)
            } else {
                // Then choose another edge, if there is one.
                let mut others = derived.iter().map(|it| (it.0.0, it.0.2));
                !somebody_stays || others.any(|it| it == (from, entry))
            }
        };
        // A hand-over ends when its edge leaves.
        let missing: Vec<_> = hand_overs
            .into_iter()
            .filter(|it| is_there(it.0.0) && !goes_on(it))
            .collect();
        assert!(
            missing.is_empty(),
            "seed {}: not handed over any more: {missing:?}",
            self.seed
        );
        self.look_at_hand_overs();
    }

    /// Announces the edges that recently had a session.
    fn expect_edges(&mut self) {
        let lately = |edge: &super::world::SimEdge| edge.alive || !edge.absent.is_empty();
        let edges: Vec<EdgeId> = (0..self.edges.len())
            .filter(|&edge| lately(&self.edges[edge]))
            .map(edge_id)
            .collect();
        self.apply(Event::EdgesExpected { edges });
    }

    /// The chunks that only a draining edge holds, and the edges that should receive them.
    fn derived_hand_overs(&self) -> Vec<(HandOver, Vec<std::ops::Range<u32>>)> {
        let alive = || (0..self.edges.len()).filter(|&edge| self.edges[edge].alive);
        let (draining, staying): (Vec<_>, Vec<_>) = alive()
            .map(edge_id)
            .partition(|&edge| self.scheduler.is_draining(edge));
        let Some(&to) = staying.first() else {
            return Vec::new();
        };
        let entries = (0..).zip(&self.entries).map(|(it, _)| EntryNo(it));
        let all = entries.flat_map(|entry| draining.iter().map(move |&from| (from, to, entry)));
        all.filter(|(.., entry)| !self.closed.contains(entry))
            .map(|it| (it, self.scheduler.only_held_by(it.0, it.2, 40)))
            .filter(|(_, chunks)| !chunks.is_empty())
            .collect()
    }

    /// Updates the hand-overs from time to time, as the plan does.
    pub fn look_at_hand_overs(&mut self) {
        if !self.has_restarts() {
            return;
        }
        let over = |it: &HandOver| {
            let is_there = |edge: EdgeId| self.edges[edge.0 as usize].alive;
            !is_there(it.0) || !is_there(it.1) || !self.scheduler.is_draining(it.0)
        };
        let ended: Vec<WantId> = self
            .hand_overs
            .iter()
            .filter(|(_, it)| over(it))
            .map(|(&want, _)| want)
            .collect();
        for want in ended {
            self.hand_overs.remove(&want);
            self.apply(Event::WantClosed { want });
        }
        for (it, chunks) in self.derived_hand_overs() {
            if self
                .hand_overs
                .values()
                .any(|open| (open.0, open.2) == (it.0, it.2))
            {
                continue;
            }
            self.next_hand_over += 1;
            let want = WantId(OWN | self.next_hand_over);
            self.hand_overs.insert(want, it);
            self.apply(Event::HandOver {
                want,
                edge: it.1,
                entry: it.2,
                chunks,
            });
        }
    }
}

fn edge_id(edge: usize) -> EdgeId {
    EdgeId(u32::try_from(edge).unwrap())
}
