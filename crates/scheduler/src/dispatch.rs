//! Decides who gets a slot.
//!
//! Each edge has `max_downloads` slots, one more that only CRITICAL may use, and as many queued
//! assignments, so that its connection does not idle for a round trip. CRITICAL of all edges is
//! planned before anything else of any edge.

use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Level};

use super::Scheduler;
use super::api::{Assignment, EdgeId, Effect, EntryNo, FetchId, FetchSource, SourceId};
use super::budget::Refusal;
use super::claim::Owner;
use super::invariant::Invariant;
use super::queue::Key;
use super::route::{Route, RouteOutcome};
use super::state::{RunningFetch, Timer};

/// After a refusal by the origin, how many further claims of the source to examine for one that a
/// peer can serve.
const LOOKS_PAST_REFUSAL: usize = 8;

impl Scheduler {
    /// Plans for some of the edges that have something to decide.
    pub(super) fn plan(&mut self, effects: &mut Vec<Effect>) {
        self.grant_woken(effects);
        self.wake_edges();
        let most = self.config.max_edges_per_event.max(1);
        let from = self.first_edge;
        let batch = self.dirty.take(most, from);
        if let Some(last) = batch.last() {
            self.first_edge = EdgeId(last.0.wrapping_add(1));
        }
        for &edge in &batch {
            self.give_slots(edge, Level::Critical);
            self.plan_critical(edge, effects);
        }
        for &edge in &batch {
            self.give_slots(edge, Level::Low);
            self.revoke_queued(edge, effects);
            self.plan_rest(edge, effects);
        }
    }

    fn plan_critical(&mut self, edge: EdgeId, effects: &mut Vec<Effect>) {
        loop {
            let Some(state) = self.edges.get(&edge).expected() else {
                return;
            };
            // As for the other levels: as many assignments as slots, and as many queued.
            if state.queues[Level::Critical as usize].is_empty()
                || !self.may_fetch(edge)
                || state.critical() > 2 * state.max_downloads
            {
                return;
            }
            let Some((owner, route)) = self.pick(edge, Level::Critical, false, effects) else {
                return;
            };
            self.assign(edge, owner, route, false, effects);
        }
    }

    fn plan_rest(&mut self, edge: EdgeId, effects: &mut Vec<Effect>) {
        loop {
            let Some(state) = self.edges.get(&edge).expected() else {
                return;
            };
            if !self.may_fetch(edge)
                || state.queues[1..]
                    .iter()
                    .all(super::queue::LevelQueue::is_empty)
            {
                return;
            }
            let (used, ahead, slots) = (
                state.slots_used(),
                state.queued_ahead(),
                state.max_downloads,
            );
            let draining = state.draining;
            let contended = !state.queues[Level::High as usize].is_empty();
            let (levels, shared) = self.level_order(state.grants);
            if contended
                && let Some(level) = shared
                && self.raise_as_share(edge, level, effects)
            {
                self.count_grant(edge);
                continue;
            }
            let may = |level: Level| level == Level::High || !draining;
            let mut granted = None;
            if used < slots {
                let levels = levels.into_iter().filter(|&level| may(level));
                granted = self.pick_of(edge, levels, false, effects);
            } else if self.lowest_slot(edge, Level::High).is_some() {
                granted = self.pick_of(edge, [Level::High], false, effects);
            }
            if granted.is_none() && used >= slots && ahead < slots {
                // LOW is queued ahead only as its minimal share.
                let ahead = |level| level != Level::Low || shared == Some(Level::Low);
                let levels = levels
                    .into_iter()
                    .filter(|&level| may(level) && ahead(level));
                granted = self.pick_of(edge, levels, true, effects);
            }
            let Some((level, (owner, route))) = granted else {
                return;
            };
            self.count_grant(edge);
            let by_share = shared == Some(level) && contended;
            self.assign(edge, owner, route, by_share, effects);
        }
    }

    /// The first claim of the first of these levels that has one which can be served now.
    fn pick_of(
        &mut self,
        edge: EdgeId,
        levels: impl IntoIterator<Item = Level>,
        ahead: bool,
        effects: &mut Vec<Effect>,
    ) -> Option<(Level, (Owner, Route))> {
        let mut levels = levels.into_iter();
        levels.find_map(|level| Some((level, self.pick(edge, level, ahead, effects)?)))
    }

    fn count_grant(&mut self, edge: EdgeId) {
        if let Some(state) = self.edges.get_mut(&edge).expected() {
            state.grants += 1;
        }
    }

    pub(super) fn may_fetch(&self, edge: EdgeId) -> bool {
        self.edges
            .get(&edge)
            .is_some_and(|edge| edge.alive && edge.faulted_until <= self.now)
    }

    /// The order of the levels below CRITICAL: strict, but for the grants of a level's minimal
    /// share.
    fn level_order(&self, grants: u64) -> ([Level; 3], Option<Level>) {
        let medium = self.config.medium_share.max(2);
        let low = self.config.low_share.max(2);
        if grants % (2 * low) == 2 * low - 1 {
            ([Level::Low, Level::High, Level::Medium], Some(Level::Low))
        } else if grants % medium == medium - 1 {
            (
                [Level::Medium, Level::High, Level::Low],
                Some(Level::Medium),
            )
        } else if grants % low == low - 1 {
            ([Level::High, Level::Low, Level::Medium], None)
        } else {
            ([Level::High, Level::Medium, Level::Low], None)
        }
    }

    /// Finds the first claim of a level that can be served now, and its route.
    fn pick(
        &mut self,
        edge: EdgeId,
        level: Level,
        ahead: bool,
        effects: &mut Vec<Effect>,
    ) -> Option<(Owner, Route)> {
        self.admit_due(edge, level);
        let sources = self.edges.get(&edge)?.queues[level as usize].sources(self.now);
        let mut looks = self.config.max_looks.max(1);
        let mut moved = 0;
        let refusals = match level {
            Level::Critical => looks,
            _ => LOOKS_PAST_REFUSAL,
        };
        for source in sources {
            if self.quota_refuses(edge, source) {
                continue;
            }
            let mut refused = 0;
            let mut after: Option<Key> = None;
            while looks > 0 && refused < refusals {
                let Some(key) =
                    self.edges.get(&edge)?.queues[level as usize].next(source, after.as_ref())
                else {
                    break;
                };
                if key.not_before > self.now {
                    break;
                }
                looks -= 1;
                match self.look(edge, level, source, key, ahead) {
                    ClaimOutcome::Take(route) => return Some((key.owner, route)),
                    // It moved in the queue or left it.
                    ClaimOutcome::Moved => moved += 1,
                    ClaimOutcome::LetGo(chunk) => {
                        self.let_go(key.owner, chunk, effects);
                        moved += 1;
                    }
                    ClaimOutcome::Split(fetch) => self.cancel_fetch(fetch, effects),
                    ClaimOutcome::Refused(refusal) => {
                        self.look_again_after(source, refusal);
                        let full = refusal == Refusal::Connections;
                        if full && refused == 0 {
                            self.preempt_for_critical(source, level, effects);
                        }
                        refused += 1;
                        after = Some(key);
                    }
                    ClaimOutcome::NotNow => {
                        refused += 1;
                        after = Some(key);
                    }
                }
            }
        }
        if looks == 0 && moved > 0 {
            // There may be more claims behind these: continue with the next event.
            self.dirty.insert(edge);
        }
        None
    }

    fn look(
        &mut self,
        edge: EdgeId,
        level: Level,
        source: SourceId,
        key: Key,
        ahead: bool,
    ) -> ClaimOutcome {
        let owner = key.owner;
        self.requeue(owner, 0);
        let Some(claim) = self.claims.get_mut(&owner).expected() else {
            if let Some(edge) = self.edges.get_mut(&edge) {
                edge.queues[level as usize].remove(source, &key);
            }
            return ClaimOutcome::Moved;
        };
        if claim.queued != Some(key) {
            return ClaimOutcome::Moved;
        }
        let entry = claim.entry;
        let replica = self
            .entries
            .get(&entry)
            .and_then(|known| known.replicas.get(&edge));
        let Some((gap, limit)) = replica.and_then(|replica| claim.first_gap(&replica.covered))
        else {
            return ClaimOutcome::Moved;
        };
        if owner.is_background() && !self.fill_may_run(source) {
            return ClaimOutcome::NotNow;
        }
        let mut route = self.find_route(edge, entry, gap, limit, level, ahead);
        if self.is_hand_over(owner) {
            match self.route_between_edges(route, edge, entry, gap) {
                Some(between) => route = between,
                None => return ClaimOutcome::LetGo(gap),
            }
        }
        match route {
            RouteOutcome::Take(route)
                if matches!(owner, Owner::Fill(..))
                    && self.ends_fill(edge, entry, &route.chunks) =>
            {
                ClaimOutcome::Moved
            }
            RouteOutcome::Take(route) => ClaimOutcome::Take(route),
            RouteOutcome::Split(fetch) => ClaimOutcome::Split(fetch),
            RouteOutcome::Refused(refusal) => ClaimOutcome::Refused(refusal),
            RouteOutcome::Wait(until) => {
                self.requeue(owner, until.max(self.now + 1));
                ClaimOutcome::Moved
            }
        }
    }

    /// Puts claims whose hold has ended back into the queue.
    fn admit_due(&mut self, edge: EdgeId, level: Level) {
        let Some(state) = self.edges.get(&edge).expected() else {
            return;
        };
        if !state.queues[level as usize].any_held_back() {
            return;
        }
        let sources: Vec<SourceId> = state.queues[level as usize].all_sources().collect();
        for source in sources {
            for _ in 0..self.config.max_looks {
                let due = self
                    .edges
                    .get(&edge)
                    .and_then(|state| state.queues[level as usize].due(source, self.now));
                let Some(key) = due else { break };
                self.requeue(key.owner, 0);
            }
        }
    }

    /// Records the fetch in all indexes and sends the assignment.
    fn assign(
        &mut self,
        edge: EdgeId,
        owner: Owner,
        route: Route,
        shared: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(claim) = self.claims.get_mut(&owner).expected() else {
            return;
        };
        let (entry, source, level) = (claim.entry, claim.source, claim.level);
        let chunks = route.chunks.clone();
        let count = u64::from(chunks.end - chunks.start);
        let key = claim.queued;
        claim.served = key.map_or(claim.served, |key| key.tag) + count;
        let position = claim.position;
        let deadline = match owner {
            _ if shared => self.now,
            Owner::Fill(..) => u64::MAX,
            Owner::Want(_) if level >= Level::Medium => u64::MAX,
            _ => key.map_or(self.now, |key| key.deadline),
        };
        let start_at = self.start_in(entry, chunks.start, position);
        self.dequeue(owner);
        if let (Some(state), Some(key)) = (self.edges.get_mut(&edge), key) {
            state.queues[level as usize].served(source, key.tag, count);
        }
        if level > Level::Critical
            && route.from == FetchSource::Origin
            && let Some(source) = self.sources.get_mut(&source)
        {
            source.grants += 1;
        }
        // The edge also orders by level and deadline, so a starvation grant takes effect only if
        // this run is sent as HIGH.
        let granted = if shared {
            level.min(Level::High)
        } else {
            level
        };
        let fetch = RunningFetch {
            deadline,
            from: route.from,
            reason: owner.reason(),
            owner: Some(owner),
            shared,
            upstream: route.upstream,
            ..RunningFetch::new(self.next_id(), entry, source, chunks, granted, self.now)
        };
        self.start_fetch(edge, fetch, start_at, effects);
        self.requeue(owner, 0);
        self.mark_followers_dirty(edge, entry);
    }

    pub(super) fn next_id(&mut self) -> FetchId {
        self.last_assignment += 1;
        FetchId::Coordinated(self.last_assignment)
    }

    /// The byte of a chunk at which to begin: the one its reader is at, if it is in the chunk.
    pub(super) fn start_in(&self, entry: EntryNo, chunk: ChunkIndex, position: u64) -> u64 {
        let Some(known) = self.entries.get(&entry).expected() else {
            return 0;
        };
        let range = known.geometry.chunk_range(chunk);
        if range.contains(position) {
            position
        } else {
            range.start
        }
    }

    /// Sends the assignment of a fetch, and records it in all indexes.
    pub(super) fn start_fetch(
        &mut self,
        edge: EdgeId,
        mut fetch: RunningFetch,
        start_at: u64,
        effects: &mut Vec<Effect>,
    ) {
        // Another owner may want part of it more urgently.
        if let Some((best, _)) = self.best_claim(edge, &fetch) {
            fetch.level = best.min(fetch.level);
        }
        effects.push(Effect::Assign(Assignment {
            id: fetch.id,
            edge,
            entry: fetch.entry,
            first_chunk: fetch.chunks.start,
            chunk_count: fetch.chunks.end - fetch.chunks.start,
            level: fetch.level,
            deadline_ms: relative(fetch.deadline, self.now),
            start_at,
            from: fetch.from,
            reason: fetch.reason,
        }));
        self.enter_fetch(edge, fetch, effects);
    }

    /// Sets a timer to check a CRITICAL fetch when it should have finished.
    pub(super) fn watch_fetch(&mut self, edge: EdgeId, id: FetchId, estimate: u64) {
        let after = self
            .config
            .late_after_ms
            .max(estimate.saturating_mul(self.config.late_factor));
        self.timers.insert((
            self.now.saturating_add(after),
            Timer::RunningFetch(edge, id),
        ));
    }

    pub(super) fn bytes_of(&self, entry: EntryNo, chunks: &Range<ChunkIndex>) -> u64 {
        let geometry = self.entries.get(&entry).map(|known| known.geometry);
        geometry.map_or(0, |geometry| {
            geometry
                .run_range(chunks.start, chunks.end - chunks.start)
                .len()
        })
    }
}

/// Converts an absolute deadline to milliseconds from `now`.
pub(super) fn relative(deadline: u64, now: u64) -> u32 {
    u32::try_from(deadline.saturating_sub(now)).unwrap_or(u32::MAX)
}

/// The outcome of looking at one claim.
enum ClaimOutcome {
    Take(Route),
    Moved,
    Split(super::state::FetchKey),
    /// A chunk of a hand-over that no edge holds any longer.
    LetGo(ChunkIndex),
    Refused(Refusal),
    NotNow,
}
