//! The invented cluster: edges that obey, more or less; origins; readers.

use std::collections::BTreeMap;
use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Geometry, Level};

use super::super::api::*;
use super::super::{Config, Scheduler};
use crate::core::range_set::RangeSet;

const CHUNK: u64 = 64 << 10;

/// SplitMix64. Of our own, so that a seed means the same run for ever.
pub struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        crate::core::edge_choice::mix(self.0)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    pub fn per_mille(&mut self, chance: u64) -> bool {
        self.below(1_000) < chance
    }
}

/// Which faults a run has, in events of a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub origin: u64,
    pub stall: u64,
    pub peer: u64,
    pub edge: u64,
    pub membership: u64,
    pub local: u64,
}

impl Faults {
    /// Every other seed has none that excuses a second origin fetch.
    pub fn of(seed: u64) -> Self {
        match seed % 4 {
            0 => Self::default(),
            1 => Self {
                origin: 20,
                membership: 4,
                ..Self::default()
            },
            2 => Self {
                origin: 5,
                stall: 60,
                membership: 2,
                ..Self::default()
            },
            _ => Self {
                origin: 20,
                stall: 40,
                peer: 20,
                edge: 3,
                membership: 6,
                local: 10,
            },
        }
    }
}

#[derive(Clone, Debug)]
pub struct SimFlight {
    pub a: Assignment,
    pub cancelled: bool,
    pub local: bool,
    pub bytes: u64,
    pub begun: Option<Millis>,
    pub stalled: bool,
    pub deadline: Millis,
}

impl SimFlight {
    pub fn chunks(&self) -> Range<ChunkIndex> {
        self.a.first_chunk..self.a.first_chunk + self.a.chunk_count
    }
    /// Chunks it has brought.
    fn brought(&self) -> Range<ChunkIndex> {
        let done = u32::try_from(self.bytes / CHUNK)
            .unwrap()
            .min(self.a.chunk_count);
        self.a.first_chunk..self.a.first_chunk + done
    }
}

#[derive(Default)]
pub struct SimEdge {
    pub alive: bool,
    pub max: u32,
    pub fill: bool,
    pub flights: BTreeMap<AssignmentId, SimFlight>,
    pub held: BTreeMap<EntryNo, RangeSet<ChunkIndex>>,
}

impl SimEdge {
    fn present(&self, entry: EntryNo, chunk: ChunkIndex) -> bool {
        self.held
            .get(&entry)
            .is_some_and(|held| held.contains(chunk))
            || self
                .flights
                .values()
                .any(|f| f.a.entry == entry && f.brought().contains(&chunk))
    }
}

pub struct SimSource {
    pub max_connections: u32,
    pub max_rate: u64,
    latency: Millis,
    bytes_per_ms: u64,
}

pub struct World {
    pub seed: u64,
    pub faults: Faults,
    pub dice: Dice,
    pub now: Millis,
    pub scheduler: Scheduler,
    pub edges: Vec<SimEdge>,
    pub sources: Vec<SimSource>,
    pub entries: Vec<(SourceId, Geometry)>,
    pub readers: BTreeMap<ReaderId, Demand>,
    pub wants: BTreeMap<WantId, (EdgeId, EntryNo, Range<ChunkIndex>)>,
    /// Everything the scheduler said.
    pub journal: Vec<Effect>,
    /// A peer failed in this run: a second origin fetch may have that cause.
    pub peers_failed: bool,
    /// Its end is not reported yet, and the scheduler may still speak of it.
    ending: Option<(EdgeId, AssignmentId)>,
    next_number: u64,
    last_tick: Millis,
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x1000_0000));
        // A fixed window, so that a rebuilt scheduler, which has seen no fetch time, has the same.
        let config = Config {
            lookahead_max_bytes: CHUNK,
            max_uploads_per_edge: 2 + dice.below(6) as u32,
            ..Config::default()
        };
        let mut world = Self {
            seed,
            faults,
            now: 10_000,
            scheduler: Scheduler::new(config),
            edges: Vec::new(),
            sources: Vec::new(),
            entries: Vec::new(),
            readers: BTreeMap::new(),
            wants: BTreeMap::new(),
            journal: Vec::new(),
            peers_failed: false,
            ending: None,
            next_number: 1,
            last_tick: 0,
            dice,
        };
        for _ in 0..1 + world.dice.below(3) {
            let limited = world.dice.per_mille(600);
            let max_connections = if limited {
                1 + world.dice.below(6) as u32
            } else {
                0
            };
            let max_rate = if world.dice.per_mille(200) {
                2_000_000
            } else {
                0
            };
            let (latency, bytes_per_ms) =
                (5 + world.dice.below(100), 500 + world.dice.below(8_000));
            world.sources.push(SimSource {
                max_connections,
                max_rate,
                latency,
                bytes_per_ms,
            });
            world.set_source(world.sources.len() - 1);
        }
        for number in 0..1 + world.dice.below(4) as u32 {
            let source = SourceId(world.dice.below(world.sources.len() as u64) as u32);
            let geometry = Geometry::new(
                (5 + world.dice.below(120)) * CHUNK - world.dice.below(2),
                CHUNK as u32,
            )
            .unwrap();
            world.entries.push((source, geometry));
            world.apply(Event::EntryOpened {
                entry: EntryNo(number),
                source,
                geometry,
            });
        }
        for edge in 0..1 + world.dice.below(4) as usize {
            let (max, fill) = (1 + world.dice.below(4) as u32, world.dice.per_mille(500));
            world.edges.push(SimEdge {
                max,
                fill,
                ..SimEdge::default()
            });
            world.join(edge);
        }
        world
    }

    pub fn source_event(&self, index: usize) -> Event {
        let source = &self.sources[index];
        Event::SourceSet {
            source: SourceId(index as u32),
            max_connections: source.max_connections,
            max_rate_bytes_per_second: source.max_rate,
            background_fill: None,
        }
    }

    fn set_source(&mut self, index: usize) {
        self.apply(self.source_event(index));
    }

    pub fn join_event(&self, edge: usize) -> Event {
        let (max_downloads, background_fill) = (self.edges[edge].max, self.edges[edge].fill);
        Event::EdgeJoined {
            edge: EdgeId(edge as u32),
            max_downloads,
            background_fill,
        }
    }

    fn join(&mut self, edge: usize) {
        self.edges[edge].alive = true;
        self.apply(self.join_event(edge));
    }

    /// Gives the scheduler an event, obeys it, and checks everything.
    pub fn apply(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.scheduler.apply(event, self.now, &mut effects);
        let mut rounds = 0;
        while self.scheduler.has_more() {
            self.scheduler.apply(Event::Tick, self.now, &mut effects);
            rounds += 1;
            assert!(
                rounds < 200,
                "seed {}: planning does not come to an end",
                self.seed
            );
        }
        for effect in &effects {
            self.obey(effect);
        }
        self.journal.append(&mut effects);
        self.check();
    }

    fn obey(&mut self, effect: &Effect) {
        match effect {
            Effect::Assign(a) => {
                self.check_assignment(a);
                let stalled = a.from == From::Origin && self.dice.per_mille(self.faults.stall);
                let deadline = self.now.saturating_add(u64::from(a.deadline_ms));
                let flight = SimFlight {
                    a: a.clone(),
                    cancelled: false,
                    local: false,
                    bytes: 0,
                    begun: None,
                    stalled,
                    deadline,
                };
                let edge = &mut self.edges[a.edge.0 as usize];
                assert!(edge.alive && edge.flights.insert(a.id, flight).is_none());
            }
            Effect::Reprioritise {
                edge, assignment, ..
            }
            | Effect::Cancel { edge, assignment }
                if self.ending == Some((*edge, *assignment)) => {}
            Effect::Reprioritise {
                edge,
                assignment,
                level,
                deadline_ms,
            } => {
                let flight = self.edges[edge.0 as usize]
                    .flights
                    .get_mut(assignment)
                    .expect("reprioritised what is there");
                flight.a.level = *level;
                flight.deadline = self.now.saturating_add(u64::from(*deadline_ms));
            }
            Effect::Cancel { edge, assignment } => {
                let flight = self.edges[edge.0 as usize]
                    .flights
                    .get_mut(assignment)
                    .expect("cancelled what is there");
                assert!(!flight.cancelled, "seed {}: cancelled twice", self.seed);
                flight.cancelled = true;
            }
            Effect::WantDone { want } => {
                let (edge, entry, chunks) = self.wants.remove(want).expect("an open want is done");
                let held = self.edges[edge.0 as usize].held.get(&entry);
                assert!(
                    held.is_some_and(|held| held.covers(chunks)),
                    "seed {}: done is held",
                    self.seed
                );
            }
        }
    }

    pub fn step(&mut self, chaos: bool) {
        let ms = 1 + self.dice.below(40);
        self.now += ms;
        for edge in 0..self.edges.len() {
            self.run_edge(edge, ms);
        }
        self.run_readers(ms);
        if chaos {
            self.act();
        }
        if self.now >= self.last_tick + 100 {
            self.last_tick = self.now;
            self.apply(Event::Tick);
        }
    }

    /// An edge runs its flights by level and deadline, and reports.
    fn run_edge(&mut self, edge: usize, ms: Millis) {
        let id = EdgeId(edge as u32);
        let mut order: Vec<_> = self.edges[edge]
            .flights
            .values()
            .map(|f| (f.a.level, f.deadline, f.a.id))
            .collect();
        order.sort();
        let mut running = 0;
        for (level, _, assignment) in order {
            let Some(flight) = self.edges[edge].flights.get(&assignment).cloned() else {
                continue;
            };
            if flight.cancelled {
                if self.dice.per_mille(700) {
                    self.report_brought(id, &flight);
                    self.edges[edge].flights.remove(&assignment);
                    self.apply(Event::FetchCancelled {
                        edge: id,
                        assignment,
                    });
                }
                continue;
            }
            let slots = self.edges[edge].max + u32::from(level == Level::Critical);
            if running >= slots && !flight.local {
                continue;
            }
            running += 1;
            self.run_flight(id, &flight, ms);
        }
    }

    fn run_flight(&mut self, id: EdgeId, flight: &SimFlight, ms: Millis) {
        let edge = id.0 as usize;
        let assignment = flight.a.id;
        let source = self.entries[flight.a.entry.0 as usize].0;
        let begun = flight.begun.unwrap_or(self.now);
        if flight.begun.is_none() {
            self.edges[edge].flights.get_mut(&assignment).unwrap().begun = Some(begun);
        }
        let total = u64::from(flight.a.chunk_count) * CHUNK;
        let mut may = total;
        let mut speed = self.sources[source.0 as usize].bytes_per_ms;
        let mut latency = self.sources[source.0 as usize].latency;
        let mut fault = None;
        match flight.a.from {
            From::Origin => {
                if self.dice.per_mille(self.faults.origin) {
                    fault = Some(Fault::Origin);
                }
                if flight.stalled {
                    may = 0;
                    if self.now > begun + 10_000 {
                        fault = Some(Fault::Origin);
                    }
                }
                if flight.a.max_rate_bytes_per_second > 0 {
                    speed = speed.min(flight.a.max_rate_bytes_per_second.div_ceil(1_000));
                }
            }
            From::Peer(peer) => {
                (speed, latency) = (20_000, 1);
                let peer = &self.edges[peer.0 as usize];
                let has = flight
                    .chunks()
                    .take_while(|&chunk| peer.present(flight.a.entry, chunk))
                    .count() as u64;
                may = has * CHUNK;
                let next = flight.a.first_chunk + u32::try_from(flight.bytes / CHUNK).unwrap();
                let coming = |chunk: ChunkIndex| {
                    peer.flights
                        .values()
                        .any(|f| f.a.entry == flight.a.entry && f.chunks().contains(&chunk))
                };
                let lacks = !peer.alive
                    || (has < u64::from(flight.a.chunk_count)
                        && flight.bytes >= may
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
            self.report_brought(id, flight);
            self.edges[edge].flights.remove(&assignment);
            self.peers_failed |= fault == Fault::Peer;
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
        let bytes = (flight.bytes + speed * ms).min(may).max(flight.bytes);
        let kept = self.edges[edge].flights.get_mut(&assignment).unwrap();
        kept.bytes = bytes;
        if bytes == total {
            let flight = kept.clone();
            self.edges[edge].flights.remove(&assignment);
            self.edges[edge]
                .held
                .entry(flight.a.entry)
                .or_default()
                .insert(flight.chunks());
            if self.dice.per_mille(300) {
                self.ending = Some((id, assignment));
                let chunks = vec![flight.chunks()];
                self.apply(Event::ChunksHeld {
                    edge: id,
                    entry: flight.a.entry,
                    chunks,
                });
            }
            self.apply(Event::FetchFinished {
                edge: id,
                assignment,
            });
        } else if bytes > flight.bytes || flight.begun.is_none() {
            self.apply(Event::FetchProgressed {
                edge: id,
                assignment,
                bytes_done: bytes,
            });
        }
    }

    fn report_brought(&mut self, edge: EdgeId, flight: &SimFlight) {
        let brought = flight.brought();
        if !brought.is_empty() {
            self.edges[edge.0 as usize]
                .held
                .entry(flight.a.entry)
                .or_default()
                .insert(brought.clone());
            self.apply(Event::ChunksHeld {
                edge,
                entry: flight.a.entry,
                chunks: vec![brought],
            });
        }
    }

    fn run_readers(&mut self, ms: Millis) {
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

    /// One of the things people and machines do.
    fn act(&mut self) {
        let faults = self.faults;
        let edge = self.dice.below(self.edges.len() as u64) as usize;
        let id = EdgeId(edge as u32);
        let entry = EntryNo(self.dice.below(self.entries.len() as u64) as u32);
        let geometry = self.entries[entry.0 as usize].1;
        let position = self.dice.below(geometry.size());
        if self.dice.per_mille(faults.membership) {
            if self.edges[edge].alive {
                self.edges[edge].alive = false;
                self.edges[edge].flights.clear();
                self.readers.retain(|reader, _| reader.edge != id);
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

    fn local_fetch(&mut self, edge: EdgeId, entry: EntryNo, chunk: ChunkIndex) {
        if self.edges[edge.0 as usize].present(entry, chunk) {
            return;
        }
        self.next_number += 1;
        let id = AssignmentId(1 << 63 | self.next_number);
        let a = Assignment {
            id,
            edge,
            entry,
            first_chunk: chunk,
            chunk_count: 1,
            level: Level::Critical,
            deadline_ms: 0,
            start_at: 0,
            from: From::Origin,
            max_rate_bytes_per_second: 0,
            reason: Reason::BackgroundFill,
        };
        let flight = SimFlight {
            a,
            cancelled: false,
            local: true,
            bytes: 0,
            begun: None,
            stalled: false,
            deadline: self.now,
        };
        self.edges[edge.0 as usize].flights.insert(id, flight);
        let chunks = chunk..chunk + 1;
        self.apply(Event::LocalFetchStarted {
            edge,
            assignment: id,
            entry,
            chunks,
            level: Level::Critical,
        });
    }

    /// No more faults; everybody is there; readers stay where they are.
    pub fn calm(&mut self) {
        self.faults = Faults::default();
        for edge in 0..self.edges.len() {
            for flight in self.edges[edge].flights.values_mut() {
                flight.stalled = false;
            }
            if !self.edges[edge].alive {
                self.join(edge);
            }
            self.apply(Event::EdgeDraining {
                edge: EdgeId(edge as u32),
                draining: false,
            });
        }
    }

    pub fn settled(&self) -> bool {
        self.unsettled().is_empty()
    }

    pub fn unsettled(&self) -> String {
        let mut what = String::new();
        for (want, rest) in &self.wants {
            what += &format!("want {want:?} {rest:?}; ");
        }
        for demand in self
            .readers
            .values()
            .filter(|demand| !demand.paused && demand.position < demand.end)
        {
            what += &format!("reader {demand:?}; ");
        }
        for (edge, sim) in self.edges.iter().enumerate() {
            for (entry, held) in sim
                .held
                .iter()
                .filter(|(_, held)| sim.fill && !held.is_empty())
            {
                let count = self.entries[entry.0 as usize].1.chunk_count();
                if !held.covers(0..count) {
                    what += &format!("fill of {entry:?} on {edge}; ");
                }
            }
        }
        what
    }

    /// Schedulers built anew from the present state, in any order, want what this one wants.
    pub fn check_rebuild(&mut self) {
        // Readers have moved inside their chunks since they last said so.
        for demand in self.readers.values().cloned().collect::<Vec<_>>() {
            self.apply(Event::DemandSet(demand));
        }
        let build = |reversed: bool| {
            let mut scheduler = Scheduler::new(self.scheduler.config.clone());
            let mut effects = Vec::new();
            let mut events: Vec<Event> = Vec::new();
            for (number, &(source, geometry)) in (0..).zip(&self.entries) {
                events.push(Event::EntryOpened {
                    entry: EntryNo(number),
                    source,
                    geometry,
                });
            }
            if reversed {
                events.reverse();
            }
            let mut second: Vec<Event> = (0..self.sources.len())
                .map(|index| self.source_event(index))
                .collect();
            let alive = (0..self.edges.len()).filter(|&edge| self.edges[edge].alive);
            second.extend(alive.map(|edge| self.join_event(edge)));
            for (edge, sim) in (0..).zip(&self.edges) {
                for (&entry, held) in &sim.held {
                    second.push(Event::ChunksHeld {
                        edge: EdgeId(edge),
                        entry,
                        chunks: held.iter().collect(),
                    });
                }
            }
            for (&edge, state) in &self.scheduler.edges {
                second.push(Event::EdgeDraining {
                    edge,
                    draining: state.draining,
                });
            }
            if reversed {
                second.reverse();
            }
            events.append(&mut second);
            let mut third: Vec<Event> = self
                .readers
                .values()
                .cloned()
                .map(Event::DemandSet)
                .collect();
            for (&want, (edge, entry, chunks)) in &self.wants {
                let level = self.scheduler.claims[&super::super::claim::Owner::Want(want)].level;
                third.push(Event::WantSet {
                    want,
                    edge: *edge,
                    entry: *entry,
                    chunks: vec![chunks.clone()],
                    level,
                });
            }
            if reversed {
                third.reverse();
            }
            events.append(&mut third);
            for event in events {
                scheduler.apply(event, self.now, &mut effects);
            }
            (scheduler, effects)
        };
        let (first, effects) = build(false);
        let (again, same) = build(false);
        let (other, _) = build(true);
        assert_eq!(
            effects, same,
            "seed {}: a rebuilt scheduler repeats its plan",
            self.seed
        );
        assert_eq!(first.wanted(), again.wanted());
        assert_eq!(
            first.wanted(),
            other.wanted(),
            "seed {}: the order of rebuilding does not matter",
            self.seed
        );
        assert_eq!(
            first.wanted(),
            self.scheduler.wanted(),
            "seed {}: rebuilt, it wants the same",
            self.seed
        );
    }
}
