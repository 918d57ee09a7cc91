//! What becomes of a fetch: entered, raised or lowered, cancelled, ended.

use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Level};

use super::Scheduler;
use super::api::{AssignmentId, EdgeId, Effect, EntryNo, Fault, From, Millis, Reason};
use super::budget::back_off;
use super::claim::Owner;
use super::dispatch::relative;
use super::state::{Flight, FlightKey, Timer};
use crate::core::edge_choice::mix;

/// Why claims went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// The reader read on: what it left behind it had wanted, and is finished at LOW.
    Advanced,
    /// It jumped, paused or left: what only it wanted is stopped, unless one begun chunk is all that is left.
    Superseded,
}

impl Scheduler {
    pub(super) fn enter_flight(&mut self, edge: EdgeId, flight: Flight, effects: &mut Vec<Effect>) {
        let key = (edge, flight.id);
        let bytes = self.bytes_of(flight.entry, &flight.chunks);
        if let Some(line) = self.line_mut(edge, flight.entry) {
            line.covered.insert(flight.chunks.clone());
        }
        match flight.from {
            From::Origin => {
                if let Some(source) = self.sources.get_mut(&flight.source) {
                    source.running[flight.level as usize] += 1;
                    source.rate_given += flight.rate_bytes_per_second;
                    source.charge(bytes, self.now);
                }
                if flight.level == Level::Critical {
                    self.yield_fills(flight.source, effects);
                }
            }
            From::Peer(peer) => {
                if let Some(peer) = self.edges.get_mut(&peer) {
                    peer.uploads += 1;
                }
            }
        }
        let upstream = flight.upstream;
        if flight.level == Level::Critical {
            let estimate = self.estimate(edge, &flight);
            self.watch_flight(edge, flight.id, estimate);
        }
        if let Some(state) = self.edges.get_mut(&edge) {
            state.flights.push(flight);
        }
        if let Some(upstream) = upstream {
            if let Some(flight) = self.flight_mut(upstream) {
                flight.followers.push(key);
            }
            self.reassess(upstream, Withdrawal::Advanced, effects);
        }
    }

    /// Background fills of an origin stop when somebody waits for it.
    fn yield_fills(&mut self, source: super::api::SourceId, effects: &mut Vec<Effect>) {
        if self
            .sources
            .get(&source)
            .is_none_or(|source| source.running[Level::Low as usize] == 0)
        {
            return;
        }
        let mut fills = Vec::new();
        for (&edge, state) in &self.edges {
            let yields = |flight: &&Flight| {
                flight.source == source
                    && flight.from_origin()
                    && flight.level == Level::Low
                    && matches!(flight.owner, Some(Owner::Fill(..)))
                    && !flight.cancelling
            };
            fills.extend(
                state
                    .flights
                    .iter()
                    .filter(yields)
                    .map(|flight| (edge, flight.id)),
            );
        }
        for fill in fills {
            self.cancel_flight(fill, effects);
        }
    }

    /// How long one chunk of this fetch should take.
    pub(super) fn estimate(&self, edge: EdgeId, flight: &Flight) -> Millis {
        match flight.from {
            From::Origin => self.origin_estimate(flight.source),
            From::Peer(peer) => {
                let view = self.edges.get(&edge).and_then(|edge| edge.peers.get(&peer));
                view.and_then(|view| view.chunk_fetch_ms)
                    .unwrap_or(self.config.default_chunk_fetch_ms)
            }
        }
    }

    pub(super) fn flight(&self, (edge, id): FlightKey) -> Option<&Flight> {
        self.edges.get(&edge)?.flight(id)
    }

    pub(super) fn flight_mut(&mut self, (edge, id): FlightKey) -> Option<&mut Flight> {
        self.edges.get_mut(&edge)?.flight_mut(id)
    }

    /// The most urgent that is wanted of a fetch, by claims of its edge and by those who follow it.
    pub(super) fn best_claim(&self, edge: EdgeId, flight: &Flight) -> Option<(Level, Millis)> {
        let entry = self.entries.get(&flight.entry)?;
        let follower = |&key: &FlightKey| {
            self.flight(key)
                .map(|flight| (flight.level, flight.deadline))
        };
        let mut best = flight.followers.iter().filter_map(follower).min();
        let Some(line) = entry.lines.get(&edge) else {
            return best;
        };
        let chunks = flight.chunks.clone();
        let least = Owner::Waiting(super::api::ReaderId {
            edge: EdgeId(0),
            number: 0,
        });
        let own_fill = matches!(flight.owner, Some(Owner::Fill(..)));
        let waiting = line
            .waiting
            .range((chunks.start, least)..(chunks.end, least))
            .next();
        if let Some((_, owner)) = waiting {
            let since = self.claims.get(owner).map_or(0, |claim| claim.since);
            return Some((Level::Critical, since));
        }
        let longest = self.longest_window(entry.geometry);
        let windows = line
            .windows
            .range((chunks.start.saturating_sub(longest), least)..(chunks.end, least))
            .rev();
        let wide = line.wide.range(..(chunks.end, least));
        // The nearest window decides for all: they have one level, and it is found first.
        for (_, owner) in windows.chain(wide) {
            let Some(claim) = self.claims.get(owner).filter(|claim| claim.wants(&chunks)) else {
                continue;
            };
            if matches!(owner, Owner::Fill(..)) && !own_fill {
                continue;
            }
            let offer = (
                claim.level,
                if claim.level == Level::High {
                    claim.since
                } else {
                    Millis::MAX
                },
            );
            best = Some(best.map_or(offer, |best| best.min(offer)));
            if claim.level <= Level::High {
                break;
            }
        }
        best
    }

    /// Somebody waits for a chunk: what brings it becomes CRITICAL, or is stopped if others come first.
    pub(super) fn reach_waited(
        &mut self,
        edge: EdgeId,
        entry: EntryNo,
        chunk: ChunkIndex,
        effects: &mut Vec<Effect>,
    ) {
        let Some(state) = self.edges.get(&edge) else {
            return;
        };
        let brings = |flight: &&Flight| {
            flight.entry == entry && !flight.cancelling && flight.chunks.contains(&chunk)
        };
        let found: Vec<_> = state
            .flights
            .iter()
            .filter(brings)
            .map(|flight| (flight.id, flight.current(), flight.local))
            .collect();
        for (id, current, local) in found {
            if current.saturating_add(2) <= chunk && !local {
                self.cancel_flight((edge, id), effects);
            } else {
                self.reassess((edge, id), Withdrawal::Advanced, effects);
            }
        }
    }

    pub(super) fn reassess_overlapping(
        &mut self,
        edge: EdgeId,
        entry: EntryNo,
        chunks: &Range<ChunkIndex>,
        how: Withdrawal,
        effects: &mut Vec<Effect>,
    ) {
        let Some(state) = self.edges.get(&edge) else {
            return;
        };
        let touched = |flight: &&Flight| {
            flight.entry == entry && !flight.cancelling && flight.overlaps(chunks)
        };
        let touched: Vec<_> = state
            .flights
            .iter()
            .filter(touched)
            .map(|flight| flight.id)
            .collect();
        for id in touched {
            self.reassess((edge, id), how, effects);
        }
    }

    /// Gives a fetch the level it is wanted at now.
    pub(super) fn reassess(&mut self, key: FlightKey, how: Withdrawal, effects: &mut Vec<Effect>) {
        let Some(flight) = self.flight(key) else {
            return;
        };
        if flight.cancelling || flight.local {
            return;
        }
        if matches!(flight.reason, Reason::Hedge(_))
            && flight.twin.is_some()
            && how == Withdrawal::Advanced
        {
            return;
        }
        let best = self.best_claim(key.0, flight);
        let (level, deadline) = match best {
            Some(best) => best,
            None => {
                let last_chunk = flight.current() + 1 >= flight.chunks.end;
                let begun =
                    flight.bytes_done > 0 || (flight.level == Level::Critical && flight.slot);
                if how == Withdrawal::Superseded && !(last_chunk && begun) {
                    return self.cancel_flight(key, effects);
                }
                (Level::Low, Millis::MAX)
            }
        };
        self.set_level(key, level, deadline, effects);
    }

    fn set_level(
        &mut self,
        key: FlightKey,
        level: Level,
        deadline: Millis,
        effects: &mut Vec<Effect>,
    ) {
        let now = self.now;
        let Some(flight) = self.flight_mut(key) else {
            return;
        };
        let was = flight.level;
        if was == level {
            return;
        }
        flight.level = level;
        flight.deadline = deadline;
        self.dirty.insert(key.0);
        let Some(flight) = self.flight(key) else {
            return;
        };
        let (source, origin, upstream, had_slot) = (
            flight.source,
            flight.from_origin(),
            flight.upstream,
            flight.slot,
        );
        let estimate = self
            .flight(key)
            .map_or(0, |flight| self.estimate(key.0, flight));
        effects.push(Effect::Reprioritise {
            edge: key.0,
            assignment: key.1,
            level,
            deadline_ms: relative(deadline, now),
        });
        if was == Level::Critical {
            // It may have to give way now, on whatever edge.
            self.woken.insert(source);
        }
        if origin && let Some(source) = self.sources.get_mut(&source) {
            source.running[was as usize] = source.running[was as usize].saturating_sub(1);
            source.running[level as usize] += 1;
        }
        if level == Level::Critical {
            self.watch_flight(key.0, key.1, estimate);
            if !had_slot {
                self.claim_slot(key, effects);
            }
            if origin {
                self.yield_fills(source, effects);
            }
        }
        if let Some(upstream) = upstream {
            self.reassess(upstream, Withdrawal::Advanced, effects);
        }
    }

    /// CRITICAL fetches handed out ahead take slots that lower levels have, or that came free.
    pub(super) fn give_slots_to_critical(&mut self, edge: EdgeId, effects: &mut Vec<Effect>) {
        let Some(state) = self.edges.get(&edge) else {
            return;
        };
        let without = |flight: &&Flight| {
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

    /// Lowered ones may be more than an edge should have ahead: the lowest are taken back.
    pub(super) fn trim_ahead(&mut self, edge: EdgeId, effects: &mut Vec<Effect>) {
        let Some(state) = self.edges.get(&edge) else {
            return;
        };
        let ahead =
            |flight: &&Flight| flight.level > Level::Critical && !flight.slot && !flight.cancelling;
        let mut lower: Vec<_> = state
            .flights
            .iter()
            .filter(ahead)
            .map(|flight| (flight.level, flight.deadline, flight.id))
            .collect();
        lower.sort_unstable();
        for (.., id) in lower.into_iter().skip(state.max_downloads as usize) {
            self.cancel_flight((edge, id), effects);
        }
    }

    /// A fetch handed out ahead became CRITICAL: it does not wait for a slot lower levels have.
    pub(super) fn claim_slot(&mut self, key: FlightKey, effects: &mut Vec<Effect>) {
        let Some(state) = self.edges.get(&key.0) else {
            return;
        };
        let free = state.slots_used() <= state.max_downloads;
        if (free || self.preempt(key.0, Level::Critical, effects))
            && let Some(flight) = self.flight_mut(key)
        {
            flight.slot = true;
        }
    }

    /// Tells the edge to stop. It finishes the chunk it is at; the others are free at once, since
    /// what is assigned next reaches the edge after the cancel.
    pub(super) fn cancel_flight(&mut self, key: FlightKey, effects: &mut Vec<Effect>) {
        let Some(flight) = self.flight_mut(key) else {
            return;
        };
        if flight.cancelling {
            return;
        }
        flight.cancelling = true;
        flight.slot = false;
        let (entry, chunks) = (flight.entry, flight.chunks.clone());
        let followers = std::mem::take(&mut flight.followers);
        effects.push(Effect::Cancel {
            edge: key.0,
            assignment: key.1,
        });
        for follower in followers {
            self.cancel_flight(follower, effects);
        }
        self.recover(key.0, entry, &chunks);
        self.uncovered(key.0, entry, &chunks);
        self.others_may_follow(key.0, entry);
    }

    /// Takes a fetch out of everything; the chunks it did not bring are missing again.
    pub(super) fn end_flight(&mut self, key: FlightKey) -> Option<Flight> {
        let state = self.edges.get_mut(&key.0)?;
        let index = state.flights.iter().position(|flight| flight.id == key.1)?;
        let flight = state.flights.remove(index);
        match flight.from {
            From::Origin => {
                let bytes = self
                    .bytes_of(flight.entry, &flight.chunks)
                    .saturating_sub(flight.bytes_done);
                if let Some(source) = self.sources.get_mut(&flight.source) {
                    let running = &mut source.running[flight.level as usize];
                    *running = running.saturating_sub(1);
                    source.rate_given = source
                        .rate_given
                        .saturating_sub(flight.rate_bytes_per_second);
                    source.refund(bytes, self.now);
                    self.woken.insert(flight.source);
                }
            }
            From::Peer(peer) => {
                if let Some(peer) = self.edges.get_mut(&peer) {
                    peer.uploads = peer.uploads.saturating_sub(1);
                }
            }
        }
        if let Some(twin) = flight.twin.and_then(|twin| self.flight_mut((key.0, twin))) {
            twin.twin = None;
        }
        if let Some(upstream) = flight
            .upstream
            .and_then(|upstream| self.flight_mut(upstream))
        {
            upstream.followers.retain(|&follower| follower != key);
        }
        self.recover(key.0, flight.entry, &flight.chunks);
        self.uncovered(key.0, flight.entry, &flight.chunks);
        self.others_may_follow(key.0, flight.entry);
        self.dirty.insert(key.0);
        Some(flight)
    }

    pub(super) fn fetch_progressed(&mut self, edge: EdgeId, id: AssignmentId, bytes_done: u64) {
        let now = self.now;
        let Some(flight) = self.flight((edge, id)) else {
            return;
        };
        let geometry = self.entries.get(&flight.entry).map(|entry| entry.geometry);
        let Some(flight) = self.flight_mut((edge, id)) else {
            return;
        };
        if bytes_done > flight.bytes_done || flight.bytes_done == 0 {
            flight.progress_at = now;
        }
        flight.bytes_done = flight.bytes_done.max(bytes_done);
        let chunk_size = geometry.map_or(1, |geometry| u64::from(geometry.chunk_size()));
        flight.chunks_done = u32::try_from(flight.bytes_done / chunk_size).unwrap_or(u32::MAX);
    }

    pub(super) fn fetch_finished(
        &mut self,
        edge: EdgeId,
        id: AssignmentId,
        effects: &mut Vec<Effect>,
    ) {
        let Some(flight) = self.flight((edge, id)) else {
            return;
        };
        let (entry, chunks, followers) = (
            flight.entry,
            flight.chunks.clone(),
            flight.followers.clone(),
        );
        let (twin, from, source) = (flight.twin, flight.from, flight.source);
        let took = self.now.saturating_sub(flight.assigned_at)
            / u64::from(chunks.end - chunks.start).max(1);
        self.hold(edge, entry, chunks.clone(), effects);
        self.end_flight((edge, id));
        if let Some(twin) = twin {
            self.cancel_flight((edge, twin), effects);
        }
        match from {
            From::Origin => {
                self.origin_succeeded(entry);
                if let Some(source) = self.sources.get_mut(&source) {
                    source.chunk_fetch_ms = Some(moving_average(source.chunk_fetch_ms, took));
                }
            }
            From::Peer(peer) => {
                if let Some(state) = self.edges.get_mut(&edge) {
                    let view = state.peers.entry(peer).or_default();
                    view.chunk_fetch_ms = Some(moving_average(view.chunk_fetch_ms, took));
                    view.failures = 0;
                }
            }
        }
        if let Some(state) = self.edges.get_mut(&edge) {
            state.faults = 0;
        }
        for follower in followers {
            if let Some(flight) = self.flight_mut(follower) {
                flight.upstream = None;
            }
        }
    }

    pub(super) fn fetch_cancelled(
        &mut self,
        edge: EdgeId,
        id: AssignmentId,
        effects: &mut Vec<Effect>,
    ) {
        let Some(flight) = self.end_flight((edge, id)) else {
            return;
        };
        self.stop_followers(&flight, effects);
        if let Some(upstream) = flight.upstream {
            self.reassess(upstream, Withdrawal::Superseded, effects);
        }
    }

    pub(super) fn fetch_failed(
        &mut self,
        edge: EdgeId,
        id: AssignmentId,
        fault: Fault,
        retry_after: Option<Millis>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(flight) = self.end_flight((edge, id)) else {
            return;
        };
        self.stop_followers(&flight, effects);
        match fault {
            Fault::Origin => self.origin_failed(flight.entry, retry_after),
            Fault::Peer => {
                if let From::Peer(peer) = flight.from {
                    self.peer_failed(edge, peer);
                }
            }
            Fault::Edge => {
                let Some(state) = self.edges.get_mut(&edge) else {
                    return;
                };
                state.faults = state.faults.saturating_add(1);
                // From some seconds on: a disk is not freed faster.
                let rest = back_off(
                    &self.config,
                    state.faults.saturating_add(4),
                    mix(u64::from(edge.0)),
                );
                state.faulted_until = self.now.saturating_add(rest);
                self.timers.insert((state.faulted_until, Timer::Edge(edge)));
            }
            Fault::Changed => self.entry_changed(flight.entry, effects),
        }
    }

    /// The peer is not asked by this edge for a while.
    pub(super) fn peer_failed(&mut self, edge: EdgeId, peer: EdgeId) {
        let Some(state) = self.edges.get_mut(&edge) else {
            return;
        };
        let view = state.peers.entry(peer).or_default();
        view.failures = view.failures.saturating_add(1);
        let jitter = mix(u64::from(edge.0) << 32 | u64::from(peer.0));
        view.bad_until = self.now.saturating_add(back_off(
            &self.config,
            view.failures.saturating_add(2),
            jitter,
        ));
        self.timers.insert((view.bad_until, Timer::Edge(edge)));
    }

    /// What they follow brings nothing more: they are planned anew.
    pub(super) fn stop_followers(&mut self, flight: &Flight, effects: &mut Vec<Effect>) {
        for &follower in &flight.followers {
            self.cancel_flight(follower, effects);
        }
    }

    pub(super) fn local_fetch_started(
        &mut self,
        edge: EdgeId,
        id: AssignmentId,
        entry: EntryNo,
        chunks: Range<ChunkIndex>,
        level: Level,
        effects: &mut Vec<Effect>,
    ) {
        let Some(known) = self.entries.get_mut(&entry) else {
            return;
        };
        let chunks = chunks.start..chunks.end.min(known.geometry.chunk_count());
        let source = known.source;
        if chunks.is_empty()
            || !self
                .edges
                .get(&edge)
                .is_some_and(|state| state.alive && state.flight(id).is_none())
        {
            return;
        }
        known.lines.entry(edge).or_default();
        let flight = Flight {
            id,
            entry,
            source,
            chunks,
            level,
            deadline: self.now,
            from: From::Origin,
            reason: Reason::BackgroundFill,
            owner: None,
            slot: true,
            cancelling: false,
            local: true,
            shared: false,
            assigned_at: self.now,
            progress_at: self.now,
            bytes_done: 0,
            chunks_done: 0,
            rate_bytes_per_second: 0,
            twin: None,
            upstream: None,
            followers: Vec::new(),
        };
        self.enter_flight(edge, flight, effects);
        self.others_may_follow(edge, entry);
        self.dirty.insert(edge);
    }
}

impl super::state::Edge {
    /// The next of those handed out ahead have the free slots now, as they have on the edge.
    pub fn promote_ahead(&mut self) {
        while self.slots_used() < self.max_downloads {
            let ahead = self
                .flights
                .iter_mut()
                .filter(|flight| !flight.slot && !flight.cancelling);
            let Some(next) = ahead.min_by_key(|flight| (flight.level, flight.deadline, flight.id))
            else {
                return;
            };
            next.slot = true;
        }
    }
}

/// An eighth of the newest.
fn moving_average(old: Option<Millis>, new: Millis) -> Millis {
    old.map_or(new, |old| (old * 7 + new).div_ceil(8)).max(1)
}
