//! Where a chunk comes from: a peer that holds it, a peer that is receiving it, or the origin.

use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Level};

use super::Scheduler;
use super::api::{EdgeId, EntryNo, FetchSource, Millis};
use super::budget::Refusal;
use super::invariant::Invariant;
use super::state::{FetchKey, Timer};

/// How many other edges to look at for one chunk.
const MAX_PEERS_LOOKED_AT: usize = 64;
/// Below CRITICAL, a peer that failed no more often than this is waited for: on a busy machine it
/// was probably just late, and an origin is not asked for chunks that an edge holds.
const PATIENT_FAILURES: u32 = 2;
/// When to look again if no edge can send the chunk now and no end of that is known.
const LOOK_AGAIN_MS: Millis = 50;

/// How to get a run of chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub chunks: Range<ChunkIndex>,
    pub from: FetchSource,
    /// The peer's fetch that this one follows.
    pub upstream: Option<FetchKey>,
}

/// The outcome of a search for a chunk's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteOutcome {
    Take(Route),
    /// Another edge's fetch would bring it, but long after other chunks: stop that fetch, then look
    /// again.
    Split(FetchKey),
    /// Nothing can be done before this time.
    Wait(Millis),
    /// The origin cannot be asked at this level now.
    Refused(Refusal),
}

impl Scheduler {
    /// Finds a source for the chunks that `edge` wants from `gap` on, up to `limit`.
    pub(super) fn find_route(
        &self,
        edge: EdgeId,
        entry: EntryNo,
        gap: ChunkIndex,
        limit: ChunkIndex,
        level: Level,
        ahead: bool,
    ) -> RouteOutcome {
        let Some(known) = self.entries.get(&entry).expected() else {
            return RouteOutcome::Wait(Millis::MAX);
        };
        let Some(me) = self.edges.get(&edge).expected() else {
            return RouteOutcome::Wait(Millis::MAX);
        };
        let Some(replica) = known.replicas.get(&edge).expected() else {
            return RouteOutcome::Wait(Millis::MAX);
        };
        let registered = self
            .sources
            .get(&known.source)
            .is_some_and(|source| source.registered);
        if known.changed || !registered {
            return RouteOutcome::Refused(Refusal::Unregistered);
        }
        let longest = self.config.max_run_chunks[level as usize].max(1);
        let mut end = limit.min(gap.saturating_add(longest));
        end = replica.covered.first_present(gap..end).unwrap_or(end);
        end = self.before_more_urgent(edge, entry, gap, end, level);

        let uploads_allowed =
            self.config.max_uploads_per_edge * if level == Level::Critical { 2 } else { 1 };
        let usable = |peer: EdgeId| {
            let view = me.peers.get(&peer);
            view.is_none_or(|view| view.bad_until <= self.now)
        };
        let worth_waiting = |peer: EdgeId| {
            let failures = me.peers.get(&peer).map_or(0, |view| view.failures);
            level != Level::Critical && failures <= PATIENT_FAILURES
        };
        let mut holder: Option<(u32, Millis, EdgeId, ChunkIndex)> = None;
        let mut receiver: Option<(u32, EdgeId, super::api::FetchId, ChunkIndex)> = None;
        let mut taken = false;
        let mut origin_end = end;
        let around = known
            .replicas
            .range(edge..)
            .chain(known.replicas.range(..edge));
        for (&peer, other_replica) in around
            .filter(|&(&peer, _)| peer != edge)
            .take(MAX_PEERS_LOOKED_AT)
        {
            let Some(other) = self.edges.get(&peer).expected() else {
                continue;
            };
            if !other.alive {
                continue;
            }
            let usable = usable(peer);
            if let Some(held_to) = other_replica.held.run_end(gap) {
                let cost = me
                    .peers
                    .get(&peer)
                    .and_then(|view| view.chunk_fetch_ms)
                    .unwrap_or(0);
                let offer = (other.uploads, cost, peer, held_to.min(end));
                if usable && other.uploads < uploads_allowed {
                    holder = Some(holder.map_or(offer, |best| best.min(offer)));
                }
                taken |= usable || worth_waiting(peer);
                continue;
            }
            if (usable || worth_waiting(peer))
                && let Some(next) = other_replica.held.first_present(gap..origin_end)
            {
                origin_end = next;
            }
            for flight in other
                .flights
                .iter()
                .filter(|flight| flight.entry == entry && flight.is_from_origin())
            {
                let brings = flight.brings();
                if brings.contains(&gap) {
                    // One fetch at a time, except that a blocked reader does not wait for a peer
                    // that failed it.
                    taken |= usable || level != Level::Critical;
                    let far = flight.current().saturating_add(2) <= gap;
                    if flight.cancelling {
                        continue;
                    }
                    if level == Level::Critical && far && !flight.is_local() {
                        return RouteOutcome::Split((peer, flight.id));
                    }
                    let offer = (other.uploads, peer, flight.id, brings.end.min(end));
                    if usable && other.uploads < uploads_allowed {
                        receiver = Some(receiver.map_or(offer, |best| best.min(offer)));
                    }
                } else if brings.start > gap {
                    origin_end = origin_end.min(brings.start);
                }
            }
        }
        if let Some((_, _, peer, end)) = holder {
            let chunks = gap..end;
            return RouteOutcome::Take(Route {
                chunks,
                from: FetchSource::Peer(peer),
                upstream: None,
            });
        }
        if let Some((_, peer, flight, end)) = receiver {
            let upstream = Some((peer, flight));
            return RouteOutcome::Take(Route {
                chunks: gap..end,
                from: FetchSource::Peer(peer),
                upstream,
            });
        }
        if taken {
            return RouteOutcome::Wait(self.now + LOOK_AGAIN_MS);
        }
        let unsigned_until = self.unsigned_until((edge, entry), level);
        let until = known.back_off_until.max(unsigned_until);
        if until > self.now {
            return RouteOutcome::Wait(until);
        }
        self.ask_origin((edge, entry), gap..origin_end.max(gap + 1), level, ahead)
    }

    fn ask_origin(
        &self,
        (edge, entry): (EdgeId, EntryNo),
        chunks: Range<ChunkIndex>,
        level: Level,
        ahead: bool,
    ) -> RouteOutcome {
        let Some(known) = self.entries.get(&entry).expected() else {
            return RouteOutcome::Wait(Millis::MAX);
        };
        let Some(source) = self.sources.get(&known.source).expected() else {
            return RouteOutcome::Refused(Refusal::Unregistered);
        };
        match source.offer(level, ahead, self.now) {
            Err(refusal) => RouteOutcome::Refused(refusal),
            Ok(()) => {
                let mut chunks = chunks;
                let rate = self.rate_of_edge(edge, known.source);
                if rate > 0 {
                    // At a slow rate, limit a request to about two seconds, so that it does not
                    // hold a connection for minutes.
                    let fits = rate.saturating_mul(2) / u64::from(known.geometry.chunk_size());
                    let fits = u32::try_from(fits).unwrap_or(u32::MAX).max(1);
                    chunks.end = chunks.end.min(chunks.start.saturating_add(fits));
                }
                RouteOutcome::Take(Route {
                    chunks,
                    from: FetchSource::Origin,
                    upstream: None,
                })
            }
        }
    }

    /// Ends a run before a chunk that a reader waits for, unless the run begins with it.
    fn before_more_urgent(
        &self,
        edge: EdgeId,
        entry: EntryNo,
        gap: ChunkIndex,
        end: ChunkIndex,
        level: Level,
    ) -> ChunkIndex {
        use super::claim::Owner;
        let least = Owner::Waiting(super::api::ReaderId {
            edge: EdgeId(0),
            number: 0,
        });
        if level == Level::Critical || gap + 1 >= end {
            return end;
        }
        let waited = self
            .replica(edge, entry)
            .and_then(|replica| replica.waiting.range((gap + 1, least)..(end, least)).next());
        waited.map_or(end, |&(chunk, _)| chunk)
    }

    /// Sets a timer for a refusal that ends by itself.
    pub(super) fn look_again_after(&mut self, source_id: super::api::SourceId, refusal: Refusal) {
        let Refusal::BackOff(at) = refusal else {
            return;
        };
        let Some(source) = self.sources.get_mut(&source_id).expected() else {
            return;
        };
        if source.timer_at <= self.now || at < source.timer_at {
            source.timer_at = at;
            self.timers.insert((at, Timer::Source(source_id)));
        }
    }
}
