//! Timers: back-offs that end, and CRITICAL fetches that are late.
//!
//! A late fetch from the origin gets a second, independent one (a hedge); the first to finish wins.
//! A late fetch from a peer is cancelled, and planned again from another peer or the origin.

use chunkcache_proto::Level;

use super::Scheduler;
use super::api::{EdgeId, Effect, FetchId, FetchSource, Reason};
use super::invariant::Invariant;
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
        let Some(fetch) = self.fetch((edge, id)) else {
            // It has ended.
            return;
        };
        if fetch.cancelling || fetch.level != Level::Critical || fetch.pair.is_some() {
            return;
        }
        let estimate = self.estimate(edge, fetch);
        let allowed = self
            .config
            .late_after_ms
            .max(estimate.saturating_mul(self.config.late_factor));
        if !fetch.slot || self.is_overtaken(edge, id) {
            // Its edge has not begun it, so neither the origin nor the peer is late, and a second
            // fetch would not begin sooner.
            let now = self.now;
            if let Some(fetch) = self.fetch_mut((edge, id)) {
                fetch.progress_at = now;
            }
            self.timers
                .insert((now.saturating_add(allowed), Timer::RunningFetch(edge, id)));
            return;
        }
        let due = fetch
            .progress_at
            .max(fetch.assigned_at)
            .saturating_add(allowed);
        if self.now < due {
            self.timers.insert((due, Timer::RunningFetch(edge, id)));
            return;
        }
        match fetch.from {
            // It is as late as the origin fetch that it follows, which has its own hedge.
            FetchSource::Peer(_) if fetch.upstream.is_some() => {
                self.timers.insert((
                    self.now.saturating_add(allowed),
                    Timer::RunningFetch(edge, id),
                ));
            }
            FetchSource::Peer(peer) => {
                self.peer_failed(edge, peer);
                self.cancel_fetch((edge, id), effects);
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
        let place = |fetch: &RunningFetch| (fetch.level, fetch.deadline, fetch.id);
        let under_way = state.fetches.iter().filter(|fetch| !fetch.cancelling);
        let own = under_way.clone().find(|fetch| fetch.id == id).map(place);
        let most = state.max_downloads as usize;
        own.is_some_and(|own| {
            under_way
                .filter(|fetch| place(fetch) < own)
                .nth(most)
                .is_some()
        })
    }

    /// Starts a second fetch of the remaining chunks of a late one.
    fn hedge(&mut self, edge: EdgeId, id: FetchId, effects: &mut Vec<Effect>) {
        let Some(fetch) = self.fetch((edge, id)).expected() else {
            return;
        };
        let (entry, source, deadline) = (fetch.entry, fetch.source, fetch.deadline);
        let chunk = fetch.current();
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
        let waited = self.owners_of(edge, entry, &(chunk..chunk + 1));
        let claims = waited.iter().filter_map(|owner| self.claims.get(owner));
        let position = claims.map(|claim| claim.position).max().unwrap_or(0);
        let start_at = self.start_in(entry, chunk, position);
        let chunks = chunk..chunk + 1;
        let second = self.next_id();
        let fetch = RunningFetch {
            deadline,
            reason: Reason::Hedge(id),
            pair: Some(id),
            ..RunningFetch::new(second, entry, source, chunks, Level::Critical, self.now)
        };
        self.start_fetch(edge, fetch, start_at, effects);
        if let Some(fetch) = self.fetch_mut((edge, id)) {
            fetch.pair = Some(second);
        }
    }
}
