//! Readers: the chunk they wait for is CRITICAL, the lookahead HIGH.
//!
//! A seek is one event: the reader's claims move, fetches that only the old position wanted are
//! demoted or cancelled, and the target and its lookahead are planned, all in the same `apply`.

use std::ops::Range;

use chunkcache_proto::{ByteRange, ChunkIndex, Geometry, Level};

use super::Scheduler;
use super::api::{Demand, EdgeId, Effect, EntryNo, Millis, ReaderId, SourceId};
use super::claim::{Claim, Owner};
use super::invariant::Invariant;
use super::queue::Key;
use super::running::Withdrawal;
use chunkcache_proto::RangeSet;

impl Scheduler {
    pub(super) fn demand_set(&mut self, demand: &Demand, effects: &mut Vec<Effect>) {
        let (reader, edge) = (demand.reader, demand.reader.edge);
        let Some(entry) = self.entries.get(&demand.entry) else {
            return self.demand_closed(reader, effects);
        };
        if !self.edges.get(&edge).is_some_and(|edge| edge.alive) {
            // Its session has ended.
            return;
        }
        let (source, geometry) = (entry.source, entry.geometry);
        let current = geometry.chunk_of(demand.position);
        let before = self.withdraw(reader);
        let wants_nothing = demand.paused || demand.position >= demand.end.min(geometry.size());

        if !demand.paused {
            let since = match &before.waiting {
                Some(old) if old.entry == demand.entry && old.span.start == current => old.since,
                _ => self.now,
            };
            let claim = |level, span: Range<ChunkIndex>, since, rate, served| Claim {
                position: demand.position,
                rate_bytes_per_second: rate,
                player_buffer_ms: demand.player_buffer_ms,
                viewer: demand.viewer,
                is_expected: demand.is_expected,
                served,
                ..Claim::new((edge, demand.entry), source, level, span, since)
            };
            let served = |old: &Option<Claim>| old.as_ref().map_or(0, |old| old.served);
            if demand.waiting && !wants_nothing {
                let span = current..current + 1;
                let claim = claim(Level::Critical, span, since, 0, served(&before.waiting));
                self.add_claim(Owner::Waiting(reader), claim, effects);
            }
            // A reader that has read all it asked for may have left, or may still have hints.
            let window = match wants_nothing {
                true => current..current,
                false => self.window(demand, source, geometry),
            };
            let rate = self.rate_of(demand.rate_bytes_per_second);
            let ahead = claim(
                Level::High,
                window,
                self.now,
                rate,
                served(&before.lookahead),
            );
            self.add_claim(Owner::Lookahead(reader), ahead, effects);
            let count = geometry.chunk_count();
            let hints: RangeSet<ChunkIndex> = demand
                .hints
                .iter()
                .map(|range| range.start..range.end.min(count))
                .collect();
            if let Some(span) = hints.span() {
                let mut hint = claim(Level::High, span, self.now, 0, served(&before.hints));
                hint.ranges = Some(hints);
                self.add_claim(Owner::Hints(reader), hint, effects);
            }
        }
        // Chunks that reading on leaves behind are finished; those that a seek leaves behind are
        // not.
        let advanced = before.lookahead.as_ref().is_some_and(|old| {
            old.entry == demand.entry
                && demand.position >= old.position
                && old.span.contains(&current)
        });
        let withdrawal = if advanced && !demand.paused {
            Withdrawal::Advanced
        } else {
            Withdrawal::Superseded
        };
        self.reassess_after(edge, &before, withdrawal, effects);
        self.dirty.insert(edge);
    }

    pub(super) fn demand_closed(&mut self, reader: ReaderId, effects: &mut Vec<Effect>) {
        let before = self.withdraw(reader);
        self.reassess_after(reader.edge, &before, Withdrawal::Superseded, effects);
        if self.edges.contains_key(&reader.edge) {
            self.dirty.insert(reader.edge);
        }
    }

    /// The chunks this reader should have ahead: its requested lookahead, or what it consumes in a
    /// few fetch times.
    fn window(&self, demand: &Demand, source: SourceId, geometry: Geometry) -> Range<ChunkIndex> {
        let chunk_size = u64::from(geometry.chunk_size());
        let min = u64::from(self.config.lookahead_min_chunks) * chunk_size;
        let bytes = if demand.lookahead_bytes > 0 {
            demand.lookahead_bytes
        } else {
            let rate = u128::from(self.rate_of(demand.rate_bytes_per_second));
            let fetch_ms = u128::from(self.origin_estimate(source));
            let times = u128::from(self.config.lookahead_fetch_times);
            u64::try_from(rate * fetch_ms * times / 1_000)
                .unwrap_or(u64::MAX)
                .max(min)
        };
        let bytes = bytes.min(self.config.lookahead_max_bytes.max(min));
        let bytes = match demand.earned_bytes {
            0 => bytes,
            earned => bytes.min(earned),
        };
        let end = demand.position.saturating_add(bytes);
        // In steps of a whole request: a window that moved with each chunk read would ask the
        // origin for one chunk at a time.
        let step = u64::from(self.config.max_run_chunks[Level::High as usize].max(1)) * chunk_size;
        let end = if bytes < step {
            end
        } else {
            end.div_ceil(step).saturating_mul(step)
        };
        let end = end.min(demand.end);
        geometry.chunks_covering(ByteRange::new(demand.position, end))
    }

    fn rate_of(&self, observed: u64) -> u64 {
        if observed == 0 {
            self.config.default_rate_bytes_per_second.max(1)
        } else {
            observed
        }
    }

    /// The longest lookahead that any reader of such an entry can have.
    pub(super) fn longest_window(&self, geometry: Geometry) -> u32 {
        let chunks = self.config.lookahead_max_bytes / u64::from(geometry.chunk_size());
        u32::try_from(chunks)
            .unwrap_or(u32::MAX)
            .max(self.config.lookahead_min_chunks)
            .saturating_add(1)
            .saturating_add(self.config.max_run_chunks[Level::High as usize])
    }

    fn withdraw(&mut self, reader: ReaderId) -> Withdrawn {
        Withdrawn {
            waiting: self.remove_claim(Owner::Waiting(reader)),
            lookahead: self.remove_claim(Owner::Lookahead(reader)),
            hints: self.remove_claim(Owner::Hints(reader)),
        }
    }

    fn reassess_after(
        &mut self,
        edge: EdgeId,
        before: &Withdrawn,
        how: Withdrawal,
        effects: &mut Vec<Effect>,
    ) {
        for old in [&before.waiting, &before.lookahead, &before.hints]
            .into_iter()
            .flatten()
        {
            // A reader that seeks or leaves also withdraws chunks behind its position, and chunks
            // that an earlier, longer lookahead requested.
            let span = match how {
                Withdrawal::Superseded => 0..ChunkIndex::MAX,
                Withdrawal::Advanced => old.span.clone(),
            };
            self.reassess_overlapping(edge, old.entry, &span, how, effects);
        }
    }

    /// Enters a claim in the indexes of its replica, raises running fetches that it wants, and
    /// queues it if anything is missing.
    pub(super) fn add_claim(&mut self, owner: Owner, claim: Claim, effects: &mut Vec<Effect>) {
        let (edge, entry, span, level) = (claim.edge, claim.entry, claim.span.clone(), claim.level);
        if span.is_empty() {
            return;
        }
        let Some(known) = self.entries.get_mut(&entry).expected() else {
            return;
        };
        let replica = known.replicas.entry(edge).or_default();
        match owner {
            Owner::Waiting(_) => replica.waiting.insert((span.start, owner)),
            Owner::Lookahead(_) => replica.windows.insert((span.start, owner)),
            _ => replica.wide.insert((span.start, owner)),
        };
        self.claims.insert(owner, claim);
        match level {
            Level::Critical if matches!(owner, Owner::Waiting(_)) => {
                self.reach_waited(edge, entry, span.start, effects);
            }
            Level::Low => {}
            _ => self.reassess_overlapping(edge, entry, &span, Withdrawal::Advanced, effects),
        }
        self.requeue(owner, 0);
    }

    /// Removes a claim from all indexes.
    pub(super) fn remove_claim(&mut self, owner: Owner) -> Option<Claim> {
        let mut claim = self.claims.remove(&owner)?;
        if let Some(key) = claim.queued.take() {
            self.unqueue((claim.edge, claim.entry, claim.source, claim.level), key);
        }
        if let Some(replica) = self.replica_mut(claim.edge, claim.entry) {
            let place = (claim.span.start, owner);
            match owner {
                Owner::Waiting(_) => replica.waiting.remove(&place),
                Owner::Lookahead(_) => replica.windows.remove(&place),
                _ => replica.wide.remove(&place),
            };
        }
        Some(claim)
    }

    /// Queues a claim by its first missing chunk; dequeues it if nothing is missing.
    pub(super) fn requeue(&mut self, owner: Owner, not_before: Millis) {
        let Some(claim) = self.claims.get_mut(&owner).expected() else {
            return;
        };
        let replica = self
            .entries
            .get(&claim.entry)
            .and_then(|entry| Some((entry.replicas.get(&claim.edge)?, entry.geometry)));
        let gap = replica
            .and_then(|(replica, geometry)| Some((claim.first_gap(&replica.covered)?.0, geometry)));
        let Some((gap, geometry)) = gap else {
            return self.dequeue(owner);
        };
        let deadline = deadline(claim, owner, gap, geometry, self.now, &self.config);
        let Some(edge) = self.edges.get(&claim.edge).expected() else {
            return;
        };
        let queued = claim.queued;
        let tag = match queued {
            // Looking at a claim does not change its place in the queue.
            Some(key) if key.deadline == deadline => key.tag,
            _ => edge.queues[claim.level as usize].tag(claim.served),
        };
        let key = Key {
            not_before,
            deadline,
            tag,
            owner,
        };
        if queued == Some(key) {
            return;
        }
        self.dequeue(owner);
        let Some(claim) = self.claims.get_mut(&owner).expected() else {
            return;
        };
        claim.queued = Some(key);
        let (edge_id, entry, source, level) =
            (claim.edge, claim.entry, claim.source, claim.level as usize);
        if let Some(edge) = self.edges.get_mut(&edge_id) {
            edge.queues[level].insert(source, key);
        }
        if level <= Level::High as usize {
            self.update_slots(edge_id);
        }
        self.count_queued(edge_id, entry, |queued| queued + 1);
        if let Some(source) = self.sources.get_mut(&source) {
            source.queued[level] += 1;
            *source.waiting_edges.entry(edge_id).or_insert(0) += 1;
        }
        if not_before > self.now {
            self.timers
                .insert((not_before, super::state::Timer::Edge(edge_id)));
        }
    }

    pub(super) fn dequeue(&mut self, owner: Owner) {
        if let Some(claim) = self.claims.get_mut(&owner)
            && let Some(key) = claim.queued.take()
        {
            let place = (claim.edge, claim.entry, claim.source, claim.level);
            self.unqueue(place, key);
        }
    }

    fn count_queued(&mut self, edge: EdgeId, entry: EntryNo, change: impl FnOnce(u32) -> u32) {
        if let Some(known) = self.entries.get_mut(&entry)
            && let Some(replica) = known.replicas.get_mut(&edge)
        {
            replica.queued = change(replica.queued);
            known.waiting.set(edge, replica.queued > 0);
        }
    }

    fn unqueue(&mut self, place: (EdgeId, EntryNo, SourceId, Level), key: Key) {
        let (edge_id, entry, source_id, level) = place;
        let level = level as usize;
        if let Some(edge) = self.edges.get_mut(&edge_id) {
            edge.queues[level].remove(source_id, &key);
        }
        if level <= Level::High as usize {
            self.update_slots(edge_id);
        }
        self.count_queued(edge_id, entry, |queued| queued.saturating_sub(1));
        let Some(source) = self.sources.get_mut(&source_id).expected() else {
            return;
        };
        source.queued[level] = source.queued[level].saturating_sub(1);
        if let Some(count) = source.waiting_edges.get_mut(&edge_id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                source.waiting_edges.remove(&edge_id);
            }
        }
        if level < Level::Low as usize && source.fill_may_start() {
            // The fill may have been waiting for this.
            self.dirty_sources.insert(source_id);
        }
    }

    /// Chunks are no longer covered: queues every claim that wants them again.
    pub(super) fn uncovered(&mut self, edge: EdgeId, entry: EntryNo, chunks: &Range<ChunkIndex>) {
        if chunks.is_empty() {
            return;
        }
        for owner in self.owners_of(edge, entry, chunks) {
            if let Some(claim) = self.claims.get_mut(&owner) {
                claim.uncovered(chunks);
                self.requeue(owner, 0);
            }
        }
        self.dirty.insert(edge);
    }

    /// The owners of claims on any of these chunks on this edge, the most urgent level first.
    pub(super) fn owners_of(
        &self,
        edge: EdgeId,
        entry: EntryNo,
        chunks: &Range<ChunkIndex>,
    ) -> Vec<Owner> {
        let Some(known) = self.entries.get(&entry) else {
            // It was closed, and with it all claims.
            return Vec::new();
        };
        let Some(replica) = known.replicas.get(&edge) else {
            // The edge never held or wanted any of it.
            return Vec::new();
        };
        let longest = self.longest_window(known.geometry);
        let wants = |owner: &Owner| {
            self.claims
                .get(owner)
                .is_some_and(|claim| claim.wants(chunks))
        };
        let least = Owner::Waiting(ReaderId {
            edge: EdgeId(0),
            number: 0,
        });
        let waiting = replica
            .waiting
            .range((chunks.start, least)..(chunks.end, least));
        let windows = replica
            .windows
            .range((chunks.start.saturating_sub(longest), least)..(chunks.end, least));
        let wide = replica.wide.range(..(chunks.end, least));
        waiting
            .chain(windows)
            .chain(wide)
            .map(|(_, owner)| *owner)
            .filter(wants)
            .collect()
    }
}

/// A reader's claims that were removed.
struct Withdrawn {
    waiting: Option<Claim>,
    lookahead: Option<Claim>,
    hints: Option<Claim>,
}

/// When the claim's owner needs the chunk `gap`.
fn deadline(
    claim: &Claim,
    owner: Owner,
    gap: ChunkIndex,
    geometry: Geometry,
    now: Millis,
    config: &super::Config,
) -> Millis {
    let exact = match owner {
        Owner::Waiting(_) => return claim.since,
        Owner::Lookahead(_) => {
            let ahead = geometry
                .chunk_range(gap)
                .start
                .saturating_sub(claim.position);
            let rate = u128::from(claim.rate_bytes_per_second.max(1));
            let ms = u128::from(ahead) * 1_000 / rate;
            // An unreported buffer counts as empty, so a player gains nothing by reporting an empty
            // one.
            let buffer = Millis::from(claim.player_buffer_ms.unwrap_or(0));
            claim
                .since
                .saturating_add(buffer)
                .saturating_add(u64::try_from(ms).unwrap_or(u64::MAX / 2))
        }
        // A player requests the index before it reads on, so hints must not queue behind the
        // lookahead of a fast reader, which may be the whole file.
        Owner::Hints(_) => claim.since,
        Owner::Want(_) if claim.level <= Level::High => match claim.queued {
            Some(key) => return key.deadline,
            None => now.saturating_add(config.want_deadline_ms),
        },
        // Jobs before fills; among jobs, fair shares alone decide.
        Owner::Want(_) => return 0,
        Owner::Fill(..) => return 1,
    };
    let grain = config.deadline_grain_ms.max(1);
    exact.div_ceil(grain).saturating_mul(grain)
}
