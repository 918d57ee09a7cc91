//! Readers that read, and the actions of users, operators and machines.

use chunkcache_proto::{ChunkIndex, Level};

use super::super::api::*;
use super::world::{CHUNK, SimFetch, World};

impl World {
    pub fn run_readers(&mut self, ms: Millis) {
        let readers: Vec<_> = self.readers.values().cloned().collect();
        for mut demand in readers {
            let Some(known) = self.readers.get(&demand.reader) else {
                continue;
            };
            if demand.paused || known.position >= known.end {
                continue;
            }
            let (chunk, was_waiting) = (demand.position / CHUNK, demand.waiting);
            let present = |at: u64| {
                self.edges[demand.reader.edge.0 as usize].present(demand.entry, (at / CHUNK) as u32)
            };
            demand.waiting = !present(demand.position);
            if !demand.waiting {
                let step = demand.rate_bytes_per_second * ms / 1_000;
                demand.position = (demand.position + step)
                    .min((chunk + 1) * CHUNK)
                    .min(demand.end);
                demand.waiting = demand.position < demand.end && !present(demand.position);
            }
            self.readers.insert(demand.reader, demand.clone());
            if demand.position / CHUNK != chunk
                || demand.waiting != was_waiting
                || demand.position >= demand.end
            {
                self.apply(Event::DemandSet(demand));
            }
        }
    }

    /// Performs one action of a user, an operator or a machine.
    pub fn act(&mut self) {
        let faults = self.faults;
        let edge = self.dice.below(self.edges.len() as u64) as usize;
        let id = EdgeId(edge as u32);
        let entry = EntryNo(self.dice.below(self.entries.len() as u64) as u32);
        let geometry = self.entries[entry.0 as usize].1;
        let position = self.dice.below(geometry.size());
        if self.dice.per_mille(faults.membership) {
            if self.edges[edge].alive && self.dice.per_mille(500) {
                self.begin_session_anew(edge);
            } else if self.edges[edge].alive {
                self.leave(edge);
                self.apply(Event::EdgeLost { edge: id });
            } else {
                self.join(edge);
            }
        }
        if !self.edges[edge].alive {
            return;
        }
        let some_reader = self
            .readers
            .keys()
            .copied()
            .nth(self.dice.below(self.readers.len().max(1) as u64) as usize);
        match self.dice.below(100) {
            0..8 => {
                self.next_number += 1;
                let reader = ReaderId {
                    edge: id,
                    number: self.next_number,
                };
                let end = if self.dice.per_mille(800) {
                    geometry.size()
                } else {
                    (position + 3 * CHUNK).min(geometry.size())
                };
                let hint = self.dice.below(u64::from(geometry.chunk_count())) as u32;
                let demand = Demand {
                    reader,
                    entry,
                    position,
                    end,
                    waiting: !self.edges[edge].present(entry, geometry.chunk_of(position)),
                    rate_bytes_per_second: CHUNK / 2 + self.dice.below(8 * CHUNK),
                    buffered_bytes: 0,
                    lookahead_bytes: 0,
                    earned_bytes: 0,
                    player_buffer_ms: None,
                    viewer: 0,
                    is_expected: false,
                    paused: false,
                    hints: if self.dice.per_mille(100) {
                        vec![hint..hint + 1]
                    } else {
                        Vec::new()
                    },
                };
                self.readers.insert(reader, demand.clone());
                self.apply(Event::DemandSet(demand));
            }
            8..14 => {
                let Some(mut demand) =
                    some_reader.and_then(|reader| self.readers.get(&reader).cloned())
                else {
                    return;
                };
                let size = self.entries[demand.entry.0 as usize].1.size();
                demand.position = self.dice.below(size);
                demand.end = size;
                demand.paused = false;
                let at = (demand.position / CHUNK) as u32;
                demand.waiting =
                    !self.edges[demand.reader.edge.0 as usize].present(demand.entry, at);
                self.readers.insert(demand.reader, demand.clone());
                self.apply(Event::DemandSet(demand));
            }
            14..16 => {
                let Some(mut demand) =
                    some_reader.and_then(|reader| self.readers.get(&reader).cloned())
                else {
                    return;
                };
                demand.paused = !demand.paused;
                self.readers.insert(demand.reader, demand.clone());
                self.apply(Event::DemandSet(demand));
            }
            16..20 => {
                let Some(reader) = some_reader else { return };
                self.readers.remove(&reader);
                self.apply(Event::DemandClosed { reader });
            }
            20..23 => {
                self.next_number += 1;
                let want = WantId(self.next_number);
                let start = geometry.chunk_of(position);
                let end = (start + 1 + self.dice.below(40) as u32).min(geometry.chunk_count());
                let level = Level::ALL[self.dice.below(4) as usize];
                self.wants.insert(want, (id, entry, start..end));
                self.apply(Event::WantSet {
                    want,
                    edge: id,
                    entry,
                    chunks: vec![start..end],
                    level,
                });
            }
            23 => {
                if let Some(&want) = self.wants.keys().next() {
                    self.wants.remove(&want);
                    self.apply(Event::WantClosed { want });
                }
            }
            24 => {
                // Eviction.
                let chunk = geometry.chunk_of(position);
                let chunks = chunk..(chunk + 5).min(geometry.chunk_count());
                self.edges[edge]
                    .held
                    .entry(entry)
                    .or_default()
                    .remove(chunks.clone());
                self.apply(Event::ChunksDropped {
                    edge: id,
                    entry,
                    chunks: vec![chunks],
                });
            }
            25 if faults.origin > 0 => {
                let source = SourceId(self.dice.below(self.sources.len() as u64) as u32);
                self.apply(Event::SourceBackOff {
                    source,
                    until: self.now + 300,
                });
            }
            26 => {
                let draining = self.dice.per_mille(300);
                self.apply(Event::EdgeDraining { edge: id, draining });
            }
            27 if self.dice.per_mille(faults.local * 10) => {
                self.local_fetch(id, entry, geometry.chunk_of(position))
            }
            _ => {}
        }
    }

    pub fn leave(&mut self, edge: usize) {
        self.goes_away(edge);
        self.edges[edge].alive = false;
        self.edges[edge].fetches.clear();
        self.edges[edge].quotas.clear();
        self.readers
            .retain(|reader, _| reader.edge != EdgeId(edge as u32));
    }

    /// The edge continues its origin fetches and reports them.
    fn begin_session_anew(&mut self, edge: usize) {
        let id = EdgeId(edge as u32);
        // They are unknown until then, so a second fetch of the same chunks is excused.
        self.unnamed = true;
        self.edges[edge].alive = false;
        self.apply(Event::EdgeLost { edge: id });
        let kept = self.kept_fetches(edge);
        self.edges[edge]
            .fetches
            .retain(|_, f| f.a.from == FetchSource::Origin && !f.cancelled);
        self.apply(Event::FetchesKept {
            edge: id,
            fetches: kept,
        });
        self.join(edge);
        for number in 0..self.sources.len() {
            self.say_quota(edge, number);
        }
        self.unnamed = false;
        let demands = self.readers.values().filter(|it| it.reader.edge == id);
        for demand in demands.cloned().collect::<Vec<_>>() {
            self.apply(Event::DemandSet(demand));
        }
    }

    pub fn kept_fetches(&self, edge: usize) -> Vec<InFlightFetch> {
        let fetches = self.edges[edge].fetches.values();
        fetches
            .filter(|f| f.a.from == FetchSource::Origin && !f.cancelled)
            .map(|f| InFlightFetch {
                id: f.a.id,
                entry: f.a.entry,
                chunks: f.chunks(),
                level: f.a.level,
            })
            .collect()
    }

    pub fn local_fetch(&mut self, edge: EdgeId, entry: EntryNo, chunk: ChunkIndex) {
        if self.edges[edge.0 as usize].present(entry, chunk) {
            return;
        }
        self.next_number += 1;
        let id = FetchId::Local(self.next_number);
        let a = Assignment {
            id,
            edge,
            entry,
            first_chunk: chunk,
            chunk_count: 1,
            level: Level::Critical,
            deadline_ms: 0,
            start_at: 0,
            from: FetchSource::Origin,
            reason: Reason::BackgroundFill,
        };
        let fetch = SimFetch {
            a,
            cancelled: false,
            bytes: 0,
            begun: None,
            stalled: false,
            deadline: self.now,
            doubtful: false,
        };
        self.edges[edge.0 as usize].fetches.insert(id, fetch);
        let chunks = chunk..chunk + 1;
        self.apply(Event::LocalFetchStarted {
            edge,
            assignment: id,
            entry,
            chunks,
            level: Level::Critical,
        });
    }
}
