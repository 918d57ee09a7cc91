//! The life of a fetch: recorded, raised or lowered, cancelled, ended.

use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Level};

use super::Scheduler;
use super::api::{EdgeId, Effect, EntryNo, FetchSource, Millis, Reason};
use super::claim::Owner;
use super::dispatch::relative;
use super::invariant::Invariant;
use super::state::{FetchKey, RunningFetch, Source};

/// Why claims were withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// The reader read on: the chunks it left behind are finished at LOW.
    Advanced,
    /// The reader sought, paused or left: fetches that only it wanted are stopped, unless all that
    /// remains of them is one partial chunk.
    Superseded,
}

impl Scheduler {
    /// Records a fetch in all indexes, and gives it a slot if there is one for its level.
    pub(super) fn enter_fetch(
        &mut self,
        edge: EdgeId,
        fetch: RunningFetch,
        effects: &mut Vec<Effect>,
    ) {
        self.count_again(edge, &fetch);
        let key = (edge, fetch.id);
        let (from, source, level) = (fetch.from, fetch.source, fetch.level);
        let (upstream, local) = (fetch.upstream, fetch.is_local());
        if let Some(replica) = self.replica_mut(edge, fetch.entry) {
            replica.covered.insert(fetch.chunks.clone());
        }
        // Record it before anything is preempted for it: which chunks a cancelled fetch leaves
        // missing is computed from the recorded fetches.
        if let Some(state) = self.edges.get_mut(&edge) {
            state.fetches.push(fetch);
        }
        self.update_slots(edge);
        match from {
            FetchSource::Origin => {
                let source_id = source;
                if let Some(source) = self.sources.get_mut(&source) {
                    source.running[level as usize] += 1;
                    source.fetches.insert((level, edge, key.1));
                    source.own += u32::from(local);
                    if source.max_rate_bytes_per_second > 0 {
                        // The edge's fetches changed, and so does its part of the rate.
                        self.dirty_sources.insert(source_id);
                    }
                }
                if level == Level::Critical {
                    self.preempt_fills(source, key.0, effects);
                }
            }
            FetchSource::Peer(peer) => {
                if let Some(peer) = self.edges.get_mut(&peer) {
                    peer.uploads += 1;
                }
            }
        }
        if level == Level::Critical
            && let Some(fetch) = self.fetch(key)
        {
            let estimate = self.estimate(edge, fetch);
            self.watch_fetch(edge, key.1, estimate);
        }
        if let Some(upstream) = upstream {
            if let Some(fetch) = self.fetch_mut(upstream) {
                fetch.followers.push(key);
            }
            self.reassess(upstream, Withdrawal::Advanced, effects);
        }
        self.claim_slot(key);
    }

    /// The estimated time to fetch one chunk of this fetch.
    pub(super) fn estimate(&self, edge: EdgeId, fetch: &RunningFetch) -> Millis {
        match fetch.from {
            FetchSource::Origin => self.origin_estimate(fetch.source),
            FetchSource::Peer(peer) => {
                let view = self.edges.get(&edge).and_then(|edge| edge.peers.get(&peer));
                view.and_then(|view| view.chunk_fetch_ms)
                    .unwrap_or(self.config.default_chunk_fetch_ms)
            }
        }
    }

    pub(super) fn fetch(&self, (edge, id): FetchKey) -> Option<&RunningFetch> {
        self.edges.get(&edge)?.fetch(id)
    }

    pub(super) fn fetch_mut(&mut self, (edge, id): FetchKey) -> Option<&mut RunningFetch> {
        self.edges.get_mut(&edge)?.fetch_mut(id)
    }

    /// The most urgent claim on a fetch, from its own edge or from fetches that follow it.
    pub(super) fn best_claim(&self, edge: EdgeId, fetch: &RunningFetch) -> Option<(Level, Millis)> {
        let entry = self.entries.get(&fetch.entry)?;
        let follower = |&key: &FetchKey| self.fetch(key).map(|fetch| (fetch.level, fetch.deadline));
        let mut best = fetch.followers.iter().filter_map(follower).min();
        let Some(replica) = entry.replicas.get(&edge).expected() else {
            return best;
        };
        let chunks = fetch.chunks.clone();
        let least = Owner::Waiting(super::api::ReaderId {
            edge: EdgeId(0),
            number: 0,
        });
        let own_fill = fetch.owner.is_some_and(Owner::is_background);
        let waiting = replica
            .waiting
            .range((chunks.start, least)..(chunks.end, least))
            .next();
        if let Some((_, owner)) = waiting {
            let since = self.claims.get(owner).map_or(0, |claim| claim.since);
            return Some((Level::Critical, since));
        }
        let longest = self.longest_window(entry.geometry);
        let windows = replica
            .windows
            .range((chunks.start.saturating_sub(longest), least)..(chunks.end, least))
            .rev();
        let wide = replica.wide.range(..(chunks.end, least));
        // All windows have the same level, so the first one found decides.
        for (_, owner) in windows.chain(wide) {
            let Some(claim) = self.claims.get(owner).filter(|claim| claim.wants(&chunks)) else {
                continue;
            };
            if owner.is_background() && !own_fill {
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

    /// A reader waits for a chunk: raises the fetch that brings it to CRITICAL, or stops it if
    /// other chunks come first.
    pub(super) fn reach_waited(
        &mut self,
        edge: EdgeId,
        entry: EntryNo,
        chunk: ChunkIndex,
        effects: &mut Vec<Effect>,
    ) {
        let Some(state) = self.edges.get(&edge).expected() else {
            return;
        };
        let brings = |fetch: &&RunningFetch| {
            fetch.entry == entry && !fetch.cancelling && fetch.chunks.contains(&chunk)
        };
        let found: Vec<_> = state
            .fetches
            .iter()
            .filter(brings)
            .map(|fetch| (fetch.id, fetch.current(), fetch.is_local()))
            .collect();
        for (id, current, local) in found {
            if current.saturating_add(2) <= chunk && !local {
                self.cancel_fetch((edge, id), effects);
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
        let Some(state) = self.edges.get(&edge).expected() else {
            return;
        };
        let touched = |fetch: &&RunningFetch| {
            fetch.entry == entry && !fetch.cancelling && fetch.overlaps(chunks)
        };
        let touched: Vec<_> = state
            .fetches
            .iter()
            .filter(touched)
            .map(|fetch| fetch.id)
            .collect();
        for id in touched {
            self.reassess((edge, id), how, effects);
        }
    }

    /// Sets a fetch to the level at which it is wanted now.
    pub(super) fn reassess(&mut self, key: FetchKey, how: Withdrawal, effects: &mut Vec<Effect>) {
        let Some(fetch) = self.fetch(key) else {
            // A fetch that this one followed has ended.
            return;
        };
        if fetch.cancelling || fetch.is_local() {
            return;
        }
        if matches!(fetch.reason, Reason::Hedge(_))
            && fetch.pair.is_some()
            && how == Withdrawal::Advanced
        {
            return;
        }
        let best = self.best_claim(key.0, fetch);
        let (level, deadline) = match best {
            // A starvation grant keeps its level.
            Some((level, deadline)) if fetch.shared => (level.min(fetch.level), deadline),
            Some(best) => best,
            None => {
                let last_chunk = fetch.current() + 1 >= fetch.chunks.end;
                let begun = fetch.bytes_done > 0 || (fetch.level == Level::Critical && fetch.slot);
                if how == Withdrawal::Superseded && !(last_chunk && begun) {
                    return self.cancel_fetch(key, effects);
                }
                (Level::Low, Millis::MAX)
            }
        };
        self.set_level(key, level, deadline, effects);
    }

    pub(super) fn set_level(
        &mut self,
        key: FetchKey,
        level: Level,
        deadline: Millis,
        effects: &mut Vec<Effect>,
    ) {
        let now = self.now;
        let Some(fetch) = self.fetch_mut(key).expected() else {
            return;
        };
        let was = fetch.level;
        if was == level {
            return;
        }
        fetch.level = level;
        fetch.deadline = deadline;
        let (source, origin, upstream) = (fetch.source, fetch.is_from_origin(), fetch.upstream);
        self.dirty.insert(key.0);
        let fetch = self.fetch(key);
        let estimate = fetch.map_or(0, |fetch| self.estimate(key.0, fetch));
        effects.push(Effect::Reprioritise {
            edge: key.0,
            assignment: key.1,
            level,
            deadline_ms: relative(deadline, now),
        });
        if was == Level::Critical && self.sources.get(&source).is_some_and(Source::limited) {
            // It may now have to give up its connection, on any edge.
            self.dirty_sources.insert(source);
        }
        if origin && let Some(source) = self.sources.get_mut(&source) {
            source.running[was as usize] = source.running[was as usize].saturating_sub(1);
            source.running[level as usize] += 1;
            source.fetches.remove(&(was, key.0, key.1));
            source.fetches.insert((level, key.0, key.1));
        }
        if level == Level::Critical {
            self.watch_fetch(key.0, key.1, estimate);
            if origin {
                self.preempt_fills(source, key.0, effects);
            }
        }
        if let Some(upstream) = upstream {
            self.reassess(upstream, Withdrawal::Advanced, effects);
        }
    }

    /// Tells the edge to stop. It finishes its current chunk. The others may be assigned again at
    /// once, because the edge receives a later assignment after the cancellation.
    pub(super) fn cancel_fetch(&mut self, key: FetchKey, effects: &mut Vec<Effect>) {
        let Some(fetch) = self.fetch_mut(key).expected() else {
            return;
        };
        if fetch.cancelling {
            return;
        }
        fetch.cancelling = true;
        fetch.slot = false;
        let (entry, chunks) = (fetch.entry, fetch.chunks.clone());
        let followers = std::mem::take(&mut fetch.followers);
        self.update_slots(key.0);
        effects.push(Effect::Cancel {
            edge: key.0,
            assignment: key.1,
        });
        for follower in followers {
            self.cancel_fetch(follower, effects);
        }
        self.recover(key.0, entry, &chunks);
        self.uncovered(key.0, entry, &chunks);
        self.mark_followers_dirty(key.0, entry);
    }

    /// Removes a fetch from all indexes; the chunks that it did not bring are missing again.
    pub(super) fn end_fetch(&mut self, key: FetchKey) -> Option<RunningFetch> {
        let state = self.edges.get_mut(&key.0)?;
        let index = state.fetches.iter().position(|fetch| fetch.id == key.1)?;
        let fetch = state.fetches.remove(index);
        state.space.landed = state.space.landed.saturating_add(fetch.bytes_done);
        if let Some(space) = state.source_spaces.get_mut(&fetch.source) {
            space.landed = space.landed.saturating_add(fetch.bytes_done);
        }
        self.update_slots(key.0);
        match fetch.from {
            FetchSource::Origin => {
                if let Some(source) = self.sources.get_mut(&fetch.source) {
                    let running = &mut source.running[fetch.level as usize];
                    *running = running.saturating_sub(1);
                    source.fetches.remove(&(fetch.level, key.0, key.1));
                    source.own = source.own.saturating_sub(u32::from(fetch.is_local()));
                    // At an origin without limits, only the fill ever waits.
                    if source.limited() || source.fill_may_start() {
                        self.dirty_sources.insert(fetch.source);
                    }
                }
            }
            FetchSource::Peer(peer) => {
                if let Some(peer) = self.edges.get_mut(&peer) {
                    peer.uploads = peer.uploads.saturating_sub(1);
                }
            }
        }
        if let Some(pair) = fetch.pair.and_then(|pair| self.fetch_mut((key.0, pair))) {
            pair.pair = None;
        }
        if let Some(upstream) = fetch.upstream.and_then(|upstream| self.fetch_mut(upstream)) {
            upstream.followers.retain(|&follower| follower != key);
        }
        self.recover(key.0, fetch.entry, &fetch.chunks);
        self.uncovered(key.0, fetch.entry, &fetch.chunks);
        self.mark_followers_dirty(key.0, fetch.entry);
        self.dirty.insert(key.0);
        Some(fetch)
    }
}
