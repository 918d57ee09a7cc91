//! Timers: back-offs that end, and CRITICAL fetches that are late.
//!
//! A late fetch from the origin gets a second, independent one (a hedge); the first to finish wins.
//! A late fetch from a peer is cancelled, and planned again from another peer or the origin.

use chunkcache_proto::Level;

use super::Scheduler;
use super::api::{EdgeId, Effect, FetchId, FetchSource, Reason};
use super::invariant::Invariant;
use super::route::Route;
use super::state::{RunningFetch, Timer};

impl Scheduler {
    /// Runs at most `most` timers that are due; the others run with the next event.
    pub(super) fn run_timers(&mut self, most: usize, effects: &mut Vec<Effect>) {
        for _ in 0..most {
            let Some(&due) = self.timers.first().filter(|(at, _)| *at <= self.now) else {
                return;
            };
            self.timers.remove(&due);
            match due.1 {
                Timer::Edge(edge) => {
                    self.dirty.insert(edge);
                }
                Timer::Source(source) => {
                    self.quotas_expired(source, effects);
                }
                Timer::Entry(entry) => {
                    if let Some(known) = self.entries.get(&entry) {
                        self.dirty.insert_all(&known.waiting);
                    }
                }
                Timer::RunningFetch(edge, id) => self.check_late(edge, id, effects),
            }
        }
    }

    fn check_late(&mut self, edge: EdgeId, id: FetchId, effects: &mut Vec<Effect>) {
        let Some(flight) = self.flight((edge, id)) else {
            // It has ended.
            return;
        };
        if flight.cancelling || flight.level != Level::Critical || flight.twin.is_some() {
            return;
        }
        let estimate = self.estimate(edge, flight);
        let allowed = self
            .config
            .late_after_ms
            .max(estimate.saturating_mul(self.config.late_factor));
        if !flight.slot || self.is_overtaken(edge, id) {
            // Its edge has not begun it, so neither the origin nor the peer is late, and a second
            // fetch would not begin sooner.
            let now = self.now;
            if let Some(flight) = self.flight_mut((edge, id)) {
                flight.progress_at = now;
            }
            self.timers
                .insert((now.saturating_add(allowed), Timer::RunningFetch(edge, id)));
            return;
        }
        let due = flight
            .progress_at
            .max(flight.assigned_at)
            .saturating_add(allowed);
        if self.now < due {
            self.timers.insert((due, Timer::RunningFetch(edge, id)));
            return;
        }
        match flight.from {
            // It is as late as the origin fetch that it follows, which has its own hedge.
            FetchSource::Peer(_) if flight.upstream.is_some() => {
                self.timers.insert((
                    self.now.saturating_add(allowed),
                    Timer::RunningFetch(edge, id),
                ));
            }
            FetchSource::Peer(peer) => {
                self.peer_failed(edge, peer);
                self.cancel_flight((edge, id), effects);
            }
            FetchSource::Origin => {
                self.hedge(edge, id, effects);
                self.timers.insert((
                    self.now.saturating_add(allowed),
                    Timer::RunningFetch(edge, id),
                ));
            }
        }
    }

    /// Whether enough other fetches of the edge come before this one. The edge orders by level and
    /// deadline, so later assignments may overtake it.
    fn is_overtaken(&self, edge: EdgeId, id: FetchId) -> bool {
        let Some(state) = self.edges.get(&edge).expected() else {
            return false;
        };
        let place = |flight: &RunningFetch| (flight.level, flight.deadline, flight.id);
        let under_way = state.flights.iter().filter(|flight| !flight.cancelling);
        let own = under_way.clone().find(|flight| flight.id == id).map(place);
        let most = state.max_downloads as usize;
        own.is_some_and(|own| {
            under_way
                .filter(|flight| place(flight) < own)
                .nth(most)
                .is_some()
        })
    }

    /// Starts a second fetch of the remaining chunks of a late one.
    fn hedge(&mut self, edge: EdgeId, id: FetchId, effects: &mut Vec<Effect>) {
        let Some(flight) = self.flight((edge, id)).expected() else {
            return;
        };
        let (entry, source, deadline) = (flight.entry, flight.source, flight.deadline);
        let chunk = flight.current();
        let Some(state) = self.edges.get(&edge).expected() else {
            return;
        };
        if state.critical() > 2 * state.max_downloads || !self.may_fetch(edge) {
            return;
        }
        let offer = |source: &super::state::Source| source.offer(Level::Critical, false, self.now);
        if !matches!(self.sources.get(&source).map(offer), Some(Ok(()))) {
            return;
        }
        let slot = state.slots_used() <= state.max_downloads
            || self.preempt(edge, Level::Critical, effects);
        let start = self
            .entries
            .get(&entry)
            .map_or(0, |entry| entry.geometry.chunk_range(chunk).start);
        let waited = self.owners_of(edge, entry, &(chunk..chunk + 1));
        let start_at = waited
            .iter()
            .filter_map(|owner| self.claims.get(owner))
            .map(|claim| claim.position)
            .max()
            .unwrap_or(0);
        let chunk_end = self
            .entries
            .get(&entry)
            .map_or(0, |entry| entry.geometry.chunk_range(chunk).end);
        let start_at = if (start..chunk_end).contains(&start_at) {
            start_at
        } else {
            start
        };
        let route = Route {
            chunks: chunk..chunk + 1,
            from: FetchSource::Origin,
            upstream: None,
        };
        let reason = Reason::Hedge(id);
        let twin = self.start_flight(
            edge,
            entry,
            reason,
            None,
            Level::Critical,
            deadline,
            route,
            slot,
            effects,
            start_at,
        );
        if let Some(flight) = self.flight_mut((edge, id)) {
            flight.twin = Some(twin);
        }
        if let Some(flight) = self.flight_mut((edge, twin)) {
            flight.twin = Some(id);
        }
    }
}
