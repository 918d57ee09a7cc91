//! Edges' reports of their fetches.

use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Level};

use super::Scheduler;
use super::api::{EdgeId, Effect, EntryNo, Fault, FetchId, FetchSource, Millis, Reason};
use super::budget::back_off;
use super::invariant::Invariant;
use super::running::Withdrawal;
use super::state::{RunningFetch, Timer};
use crate::edge_choice::mix;

impl Scheduler {
    pub(super) fn fetch_progressed(&mut self, edge: EdgeId, id: FetchId, bytes_done: u64) {
        let state = self.edges.get_mut(&edge);
        let Some(fetch) = state.and_then(|state| state.fetch_mut(id)) else {
            // It ended with its session, or was never recorded.
            return;
        };
        if bytes_done > fetch.bytes_done || fetch.bytes_done == 0 {
            fetch.progress_at = self.now;
        }
        // None: its entry was closed, and it is stopping.
        let geometry = self.entries.get(&fetch.entry).map(|entry| entry.geometry);
        fetch.bytes_done = fetch.bytes_done.max(bytes_done);
        let chunk_size = geometry.map_or(1, |geometry| u64::from(geometry.chunk_size()));
        fetch.chunks_done = u32::try_from(fetch.bytes_done / chunk_size).unwrap_or(u32::MAX);
    }

    pub(super) fn fetch_finished(&mut self, edge: EdgeId, id: FetchId, effects: &mut Vec<Effect>) {
        let Some(fetch) = self.fetch((edge, id)) else {
            // It ended with its session, or was never recorded.
            return;
        };
        let (entry, chunks, followers) =
            (fetch.entry, fetch.chunks.clone(), fetch.followers.clone());
        let (pair, from, source) = (fetch.pair, fetch.from, fetch.source);
        let took = self.now.saturating_sub(fetch.assigned_at)
            / u64::from(chunks.end - chunks.start).max(1);
        let bytes = self.bytes_of(entry, &chunks);
        if let Some(fetch) = self.fetch_mut((edge, id)) {
            // All bytes arrived, whatever the progress reports said.
            fetch.bytes_done = bytes;
        }
        self.hold(edge, entry, chunks.clone(), effects);
        self.end_fetch((edge, id));
        if let Some(pair) = pair {
            self.cancel_fetch((edge, pair), effects);
        }
        match from {
            FetchSource::Origin => {
                self.origin_succeeded(entry);
                if let Some(replica) = self.replica_mut(edge, entry) {
                    replica.unsigned = 0;
                }
                if let Some(source) = self.sources.get_mut(&source) {
                    source.chunk_fetch_ms = Some(moving_average(source.chunk_fetch_ms, took));
                }
            }
            FetchSource::Peer(peer) => {
                if let Some(state) = self.edges.get_mut(&edge) {
                    let view = state.peers.entry(peer).or_default();
                    view.chunk_fetch_ms = Some(moving_average(view.chunk_fetch_ms, took));
                    // The peer sends: its earlier failures no longer count.
                    view.failures = 0;
                    view.bad_until = 0;
                }
            }
        }
        let now = self.now;
        if let Some(state) = self.edges.get_mut(&edge) {
            state.faults = 0;
        }
        for follower in followers {
            if let Some(fetch) = self.fetch_mut(follower) {
                fetch.upstream = None;
                // It was waiting for the origin, so its peer is not late yet.
                fetch.progress_at = now;
            }
        }
    }

    pub(super) fn fetch_cancelled(&mut self, edge: EdgeId, id: FetchId, effects: &mut Vec<Effect>) {
        let Some(fetch) = self.end_fetch((edge, id)) else {
            // It ended with its session, or was never recorded.
            return;
        };
        self.stop_followers(&fetch, effects);
        if let Some(upstream) = fetch.upstream {
            self.reassess(upstream, Withdrawal::Superseded, effects);
        }
    }

    pub(super) fn fetch_failed(
        &mut self,
        edge: EdgeId,
        id: FetchId,
        fault: Fault,
        retry_after: Option<Millis>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(fetch) = self.end_fetch((edge, id)) else {
            // It ended with its session, or was never recorded.
            return;
        };
        self.stop_followers(&fetch, effects);
        match fault {
            Fault::Origin | Fault::Busy => {
                let is_of_source = fault == Fault::Busy;
                self.origin_failed(fetch.entry, retry_after, is_of_source);
            }
            Fault::Peer => {
                if let FetchSource::Peer(peer) = fetch.from {
                    self.peer_failed(edge, peer);
                }
            }
            Fault::Edge => {
                let Some(state) = self.edges.get_mut(&edge).expected() else {
                    return;
                };
                state.faults = state.faults.saturating_add(1);
                // Start with some seconds: a disk is not freed faster.
                let rest = back_off(
                    &self.config,
                    state.faults.saturating_add(4),
                    mix(u64::from(edge.0)),
                );
                state.faulted_until = self.now.saturating_add(rest);
                self.timers.insert((state.faulted_until, Timer::Edge(edge)));
            }
            Fault::Changed => self.entry_changed(fetch.entry, effects),
            Fault::Quota => self.quota_used_up(edge, fetch.source),
            Fault::Unsigned => self.unsigned(edge, fetch.entry),
        }
    }

    /// Keeps this edge from asking the peer for a while.
    pub(super) fn peer_failed(&mut self, edge: EdgeId, peer: EdgeId) {
        let Some(state) = self.edges.get_mut(&edge).expected() else {
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

    /// Cancels the fetches that follow this one, so that they are planned again: it brings nothing
    /// more.
    pub(super) fn stop_followers(&mut self, fetch: &RunningFetch, effects: &mut Vec<Effect>) {
        for &follower in &fetch.followers {
            self.cancel_fetch(follower, effects);
        }
    }

    pub(super) fn local_fetch_started(
        &mut self,
        edge: EdgeId,
        id: FetchId,
        entry: EntryNo,
        chunks: Range<ChunkIndex>,
        level: Level,
        effects: &mut Vec<Effect>,
    ) {
        let Some(known) = self.entries.get_mut(&entry) else {
            // The entry was closed meanwhile.
            return;
        };
        let chunks = chunks.start..chunks.end.min(known.geometry.chunk_count());
        let source = known.source;
        let Some(state) = self.edges.get(&edge) else {
            // The edge is not known.
            return;
        };
        if chunks.is_empty() || !state.alive || state.fetch(id).is_some() {
            return;
        }
        known.replicas.entry(edge).or_default();
        let fetch = RunningFetch {
            reason: Reason::Own,
            ..RunningFetch::new(id, entry, source, chunks, level, self.now)
        };
        self.enter_fetch(edge, fetch, effects);
        self.mark_followers_dirty(edge, entry);
        self.dirty.insert(edge);
    }
}

/// Weighs the newest value by one eighth.
fn moving_average(old: Option<Millis>, new: Millis) -> Millis {
    old.map_or(new, |old| (old * 7 + new).div_ceil(8)).max(1)
}
