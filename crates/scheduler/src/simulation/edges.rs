//! Edges that run their assignments and report.

use chunkcache_proto::{ChunkIndex, Level};

use super::super::api::*;
use super::world::{CHUNK, SimFetch, World};

impl World {
    /// Runs an edge's fetches by level and deadline, and reports.
    pub fn run_edge(&mut self, edge: usize, ms: Millis) {
        let id = EdgeId(edge as u32);
        let mut order: Vec<_> = self.edges[edge]
            .fetches
            .values()
            .map(|f| (f.a.level, f.deadline, f.a.id))
            .collect();
        order.sort();
        let mut running = 0;
        for (level, _, assignment) in order {
            let Some(fetch) = self.edges[edge].fetches.get(&assignment).cloned() else {
                continue;
            };
            if fetch.cancelled {
                if self.dice.per_mille(700) {
                    self.report_brought(id, &fetch);
                    self.edges[edge].fetches.remove(&assignment);
                    self.apply(Event::FetchCancelled {
                        edge: id,
                        assignment,
                    });
                }
                continue;
            }
            let slots = self.edges[edge].max + u32::from(level == Level::Critical);
            if running >= slots && !fetch.is_local() {
                continue;
            }
            running += 1;
            self.run_fetch(id, &fetch, ms);
        }
    }

    pub fn run_fetch(&mut self, id: EdgeId, fetch: &SimFetch, ms: Millis) {
        let edge = id.0 as usize;
        let assignment = fetch.a.id;
        let source = self.entries[fetch.a.entry.0 as usize].0;
        let begun = fetch.begun.unwrap_or(self.now);
        if fetch.begun.is_none() {
            self.edges[edge].fetches.get_mut(&assignment).unwrap().begun = Some(begun);
        }
        let total = u64::from(fetch.a.chunk_count) * CHUNK;
        let mut may = total;
        let mut speed = self.sources[source.0 as usize].bytes_per_ms;
        let mut latency = self.sources[source.0 as usize].latency;
        let mut fault = None;
        match fetch.a.from {
            FetchSource::Origin => {
                if self.dice.per_mille(self.faults.origin) {
                    fault = Some(Fault::Origin);
                }
                if fetch.stalled {
                    may = 0;
                    if self.now > begun + 10_000 {
                        fault = Some(Fault::Origin);
                    }
                }
                if let Some(rate) = self.rate_of_fetch(edge, source) {
                    speed = speed.min(rate);
                }
            }
            FetchSource::Peer(peer) => {
                (speed, latency) = (20_000, 1);
                let peer = &self.edges[peer.0 as usize];
                let has = fetch
                    .chunks()
                    .take_while(|&chunk| peer.present(fetch.a.entry, chunk))
                    .count() as u64;
                may = has * CHUNK;
                let next = fetch.a.first_chunk + u32::try_from(fetch.bytes / CHUNK).unwrap();
                let coming = |chunk: ChunkIndex| {
                    peer.fetches
                        .values()
                        .any(|f| f.a.entry == fetch.a.entry && f.chunks().contains(&chunk))
                };
                let lacks = !peer.alive
                    || (has < u64::from(fetch.a.chunk_count)
                        && fetch.bytes >= may
                        && !coming(next));
                if lacks || self.dice.per_mille(self.faults.peer) {
                    fault = Some(Fault::Peer);
                }
            }
        }
        if self.dice.per_mille(self.faults.edge) {
            fault = Some(Fault::Edge);
        }
        if let Some(fault) = fault {
            self.report_brought(id, fetch);
            self.edges[edge].fetches.remove(&assignment);
            if let (Fault::Peer, FetchSource::Peer(peer)) = (fault, fetch.a.from) {
                self.peer_faults.insert((id, peer));
            }
            let retry_after = (fault == Fault::Origin && self.dice.per_mille(200)).then_some(500);
            return self.apply(Event::FetchFailed {
                edge: id,
                assignment,
                fault,
                retry_after,
            });
        }
        if self.now < begun + latency {
            return;
        }
        let bytes = (fetch.bytes + speed * ms).min(may).max(fetch.bytes);
        let kept = self.edges[edge].fetches.get_mut(&assignment).unwrap();
        kept.bytes = bytes;
        if bytes == total {
            let fetch = kept.clone();
            self.edges[edge].fetches.remove(&assignment);
            self.edges[edge]
                .held
                .entry(fetch.a.entry)
                .or_default()
                .insert(fetch.chunks());
            if self.dice.per_mille(300) {
                self.ending = Some((id, assignment));
                let chunks = vec![fetch.chunks()];
                self.apply(Event::ChunksHeld {
                    edge: id,
                    entry: fetch.a.entry,
                    chunks,
                });
            }
            self.apply(Event::FetchFinished {
                edge: id,
                assignment,
            });
        } else if bytes > fetch.bytes || fetch.begun.is_none() {
            self.apply(Event::FetchProgressed {
                edge: id,
                assignment,
                bytes_done: bytes,
            });
        }
    }

    /// Bytes per millisecond, if the source has a limit: the edge's rate is shared by its running
    /// fetches.
    fn rate_of_fetch(&self, edge: usize, source: SourceId) -> Option<u64> {
        if self.sources[source.0 as usize].max_rate == 0 {
            return None;
        }
        let edge = &self.edges[edge];
        let of_it = |f: &&SimFetch| {
            f.a.from == FetchSource::Origin && self.entries[f.a.entry.0 as usize].0 == source
        };
        let running = edge.fetches.values().filter(of_it).count() as u64;
        let lease = edge.quotas.get(&source).and_then(|quota| quota.lease);
        let rate = lease.map_or(1, |lease| lease.granted.bytes_per_second);
        Some((rate / 1_000 / running.max(1)).max(1))
    }

    pub fn report_brought(&mut self, edge: EdgeId, fetch: &SimFetch) {
        let brought = fetch.brought();
        if !brought.is_empty() {
            self.edges[edge.0 as usize]
                .held
                .entry(fetch.a.entry)
                .or_default()
                .insert(brought.clone());
            self.apply(Event::ChunksHeld {
                edge,
                entry: fetch.a.entry,
                chunks: vec![brought],
            });
        }
    }

    /// Evicts as an edge does, and reports the space in use.
    pub fn tell_space(&mut self, edge: usize) {
        if self.edges[edge].allowed == 0 || !self.edges[edge].alive {
            return;
        }
        let id = EdgeId(edge as u32);
        let headroom = super::super::space::Space::headroom(self.edges[edge].allowed);
        while self.edges[edge].used() > self.edges[edge].allowed - headroom {
            let held = self.edges[edge].held.iter();
            let chunks: Vec<_> = held
                .flat_map(|(&entry, held)| held.iter().flatten().map(move |chunk| (entry, chunk)))
                .filter(|&(entry, chunk)| !self.is_being_read(id, entry, chunk))
                .collect();
            if chunks.is_empty() {
                break;
            }
            let (entry, chunk) = chunks[self.dice.below(chunks.len() as u64) as usize];
            let one = chunk..chunk + 1;
            // As the job service does: a job that causes its own eviction does not ask again.
            let churning = |(on, of, asked): &(EdgeId, EntryNo, std::ops::Range<ChunkIndex>)| {
                *on == id && *of == entry && asked.contains(&chunk)
            };
            let given_up: Vec<_> = self
                .wants
                .iter()
                .filter(|(_, want)| churning(want))
                .map(|(&want, _)| want)
                .collect();
            for want in given_up {
                self.wants.remove(&want);
                self.apply(Event::WantClosed { want });
            }
            self.evicted += 1;
            self.edges[edge]
                .held
                .get_mut(&entry)
                .unwrap()
                .remove(one.clone());
            self.apply(Event::ChunksDropped {
                edge: id,
                entry,
                chunks: vec![one],
            });
        }
        self.apply(self.space_event(edge));
    }

    /// Whether a reader is at the chunk or about to reach it: the store counts it as recently used.
    fn is_being_read(&self, edge: EdgeId, entry: EntryNo, chunk: ChunkIndex) -> bool {
        self.readers.values().any(|demand| {
            let at = u32::try_from(demand.position / CHUNK).unwrap();
            demand.reader.edge == edge
                && demand.entry == entry
                && (at..at.saturating_add(20)).contains(&chunk)
        })
    }
}
