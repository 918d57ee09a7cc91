//! Where a chunk comes from: a peer that holds it, a peer that is receiving it, or the origin.

use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Level};

use super::Scheduler;
use super::api::{EdgeId, EntryNo, FetchId, FetchSource, Millis};
use super::budget::Refusal;
use super::invariant::Invariant;
use super::state::{Edge, Entry, FetchKey, Timer};

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

/// What other edges offer for a run of chunks. Of several offers of a kind, the least is the best.
struct Offers {
    /// A peer that holds the first chunk: its uploads, how long it takes for a chunk, the peer, and
    /// where its chunks end.
    holder: Option<(u32, Millis, EdgeId, ChunkIndex)>,
    /// A peer that is receiving it from the origin: its uploads, the peer, its fetch, and where
    /// that ends.
    receiver: Option<(u32, EdgeId, FetchId, ChunkIndex)>,
    /// Another edge has the first chunk, or gets it: the origin is not asked for it.
    is_taken: bool,
    /// Where a run from the origin would end, because other edges have what follows, or get it.
    origin_end: ChunkIndex,
    /// See [`RouteOutcome::Split`].
    split: Option<FetchKey>,
}

fn least<T: Ord>(best: Option<T>, offer: T) -> Option<T> {
    best.into_iter().chain([offer]).min()
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

        let offers = self.offers((edge, me), (entry, known), gap..end, level);
        if let Some(fetch) = offers.split {
            return RouteOutcome::Split(fetch);
        }
        if let Some((_, _, peer, end)) = offers.holder {
            return RouteOutcome::Take(Route {
                chunks: gap..end,
                from: FetchSource::Peer(peer),
                upstream: None,
            });
        }
        if let Some((_, peer, id, end)) = offers.receiver {
            return RouteOutcome::Take(Route {
                chunks: gap..end,
                from: FetchSource::Peer(peer),
                upstream: Some((peer, id)),
            });
        }
        if offers.is_taken {
            return RouteOutcome::Wait(self.now + LOOK_AGAIN_MS);
        }
        let unsigned_until = self.unsigned_until((edge, entry), level);
        let until = known.back_off_until.max(unsigned_until);
        if until > self.now {
            return RouteOutcome::Wait(until);
        }
        let chunks = gap..offers.origin_end.max(gap + 1);
        self.ask_origin((edge, entry), chunks, level, ahead)
    }

    /// Looks at the other edges for a run of chunks.
    fn offers(
        &self,
        (edge, me): (EdgeId, &Edge),
        (entry, known): (EntryNo, &Entry),
        run: Range<ChunkIndex>,
        level: Level,
    ) -> Offers {
        let is_critical = level == Level::Critical;
        let max_uploads = self.config.max_uploads_per_edge * if is_critical { 2 } else { 1 };
        let gap = run.start;
        let mut offers = Offers {
            holder: None,
            receiver: None,
            is_taken: false,
            origin_end: run.end,
            split: None,
        };
        let replicas = &known.replicas;
        let around = replicas.range(edge..).chain(replicas.range(..edge));
        let others = around.filter(|&(&peer, _)| peer != edge);
        for (&peer, replica) in others.take(MAX_PEERS_LOOKED_AT) {
            let Some(other) = self.edges.get(&peer).expected() else {
                continue;
            };
            if !other.alive {
                continue;
            }
            let view = me.peers.get(&peer);
            let is_usable = view.is_none_or(|view| view.bad_until <= self.now);
            let is_trusted = view.is_none_or(|view| view.failures <= PATIENT_FAILURES);
            let is_awaited = is_usable || (!is_critical && is_trusted);
            let may_send = is_usable && other.uploads < max_uploads;
            if let Some(held_to) = replica.held.run_end(gap) {
                if may_send {
                    let cost = view.and_then(|view| view.chunk_fetch_ms).unwrap_or(0);
                    let offer = (other.uploads, cost, peer, held_to.min(run.end));
                    offers.holder = least(offers.holder, offer);
                }
                offers.is_taken |= is_awaited;
                continue;
            }
            if is_awaited && let Some(next) = replica.held.first_present(gap..offers.origin_end) {
                offers.origin_end = next;
            }
            let receiving = other.fetches.iter();
            for fetch in receiving.filter(|it| it.entry == entry && it.is_from_origin()) {
                let brings = fetch.brings();
                if !brings.contains(&gap) {
                    if brings.start > gap {
                        offers.origin_end = offers.origin_end.min(brings.start);
                    }
                    continue;
                }
                // One fetch at a time, except that a blocked reader does not wait for a peer that
                // failed it.
                offers.is_taken |= is_usable || !is_critical;
                if fetch.cancelling {
                    continue;
                }
                let is_far = fetch.current().saturating_add(2) <= gap;
                if is_critical && is_far && !fetch.is_local() {
                    offers.split = Some((peer, fetch.id));
                    return offers;
                }
                if may_send {
                    let offer = (other.uploads, peer, fetch.id, brings.end.min(run.end));
                    offers.receiver = least(offers.receiver, offer);
                }
            }
        }
        offers
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
