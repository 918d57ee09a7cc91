//! The invented cluster: edges that mostly obey, origins, and readers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Geometry};

use super::super::api::*;
use super::super::{Config, Scheduler};
use chunkcache_proto::RangeSet;

pub const CHUNK: u64 = 64 << 10;

/// SplitMix64. Our own implementation, so that a seed always gives the same run.
pub struct Dice(u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        crate::edge_choice::mix(self.0)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    pub fn per_mille(&mut self, chance: u64) -> bool {
        self.below(1_000) < chance
    }
}

/// The faults of a run, in events per thousand.
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
    /// Every other seed has no fault that excuses a second origin fetch.
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
pub struct SimFetch {
    pub a: Assignment,
    pub cancelled: bool,
    pub bytes: u64,
    pub begun: Option<Millis>,
    pub stalled: bool,
    pub deadline: Millis,
    /// It may be a duplicate: when it was made, a peer had just failed its edge, or unreported
    /// fetches were running.
    pub doubtful: bool,
}

impl SimFetch {
    pub fn is_local(&self) -> bool {
        self.a.id.is_local()
    }
    pub fn chunks(&self) -> Range<ChunkIndex> {
        self.a.first_chunk..self.a.first_chunk + self.a.chunk_count
    }
    /// The chunks it has brought so far.
    pub fn brought(&self) -> Range<ChunkIndex> {
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
    pub fetches: BTreeMap<FetchId, SimFetch>,
    pub held: BTreeMap<EntryNo, RangeSet<ChunkIndex>>,
    /// The space its chunks may use; 0: no limit.
    pub allowed: u64,
    /// Its limits for each source while it has no session.
    pub absent: BTreeMap<SourceId, super::quota::SimAbsent>,
    /// The number and the time of its last quota report.
    pub reported: u64,
    pub reported_at: Millis,
    /// Its own use of sources with a limit.
    pub quotas: BTreeMap<SourceId, super::quota::SimQuota>,
}

impl SimEdge {
    /// The space its chunks use, with running fetches counted as far as they came.
    pub fn used(&self) -> u64 {
        let held: u64 = self.held.values().map(RangeSet::count).sum();
        let coming: u64 = self.fetches.values().map(|f| f.bytes).sum();
        held * CHUNK + coming
    }

    pub fn present(&self, entry: EntryNo, chunk: ChunkIndex) -> bool {
        self.held
            .get(&entry)
            .is_some_and(|held| held.contains(chunk))
            || self
                .fetches
                .values()
                .any(|f| f.a.entry == entry && f.brought().contains(&chunk))
    }
}

pub struct SimSource {
    pub max_connections: u32,
    pub max_rate: u64,
    pub latency: Millis,
    pub bytes_per_ms: u64,
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
    /// All effects of the scheduler so far.
    pub journal: Vec<Effect>,
    /// A session ended, and its in-flight fetches are not reported yet.
    pub unnamed: bool,
    /// Which edge reported which peer. Peers are fast here, so a scheduler that calls one late is
    /// wrong.
    pub peer_faults: BTreeSet<(EdgeId, EdgeId)>,
    /// Idle entries that were closed.
    pub closed: BTreeSet<EntryNo>,
    /// Events applied so far.
    pub events: u64,
    /// A fetch whose end is not reported yet, so the scheduler may still name it.
    pub ending: Option<(EdgeId, FetchId)>,
    pub next_number: u64,
    pub last_tick: Millis,
    /// Chunks evicted so far.
    pub evicted: u64,
    /// Dice for edges' own requests; separate, so that older seeds keep their meaning.
    pub place_dice: Dice,
    /// Hand-overs of draining edges, by want.
    pub hand_overs: BTreeMap<WantId, super::restart::HandOver>,
    pub next_hand_over: u64,
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x1000_0000));
        // A fixed window, so that a rebuilt scheduler, which has not measured any fetch time, has
        // the same one.
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
            unnamed: false,
            peer_faults: BTreeSet::new(),
            closed: BTreeSet::new(),
            events: 0,
            ending: None,
            next_number: 1,
            last_tick: 0,
            evicted: 0,
            hand_overs: BTreeMap::new(),
            next_hand_over: 0,
            place_dice: Dice(crate::edge_choice::mix(seed)),
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
            // Large enough that nothing a reader waits for is evicted before it is read.
            let allowed = match world.dice.below(4) {
                0 => (60 + world.dice.below(100)) * CHUNK,
                _ => 0,
            };
            world.edges.push(SimEdge {
                max,
                fill,
                allowed,
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

    pub fn set_source(&mut self, index: usize) {
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

    pub fn join(&mut self, edge: usize) {
        self.edges[edge].alive = true;
        self.edges[edge].absent.clear();
        for quota in self.edges[edge].quotas.values_mut() {
            quota.new_session();
        }
        self.apply(self.space_event(edge));
        self.apply(self.join_event(edge));
        self.report(edge, Vec::new());
    }

    pub fn space_event(&self, edge: usize) -> Event {
        let allowed = self.edges[edge].allowed;
        Event::EdgeSpace {
            edge: EdgeId(edge as u32),
            bytes_used: if allowed > 0 {
                self.edges[edge].used()
            } else {
                0
            },
            bytes_allowed: allowed,
        }
    }

    /// Applies an event, carries out its effects, and checks all invariants.
    pub fn apply(&mut self, event: Event) {
        self.reopen_what_is_named(&event);
        let mut effects = Vec::new();
        self.events += 1;
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
        // The answer to a heartbeat changes nothing.
        effects.retain(|it| !matches!(it, Effect::Quota { leases, .. } if leases.is_empty()));
        self.journal.append(&mut effects);
        self.check();
    }

    pub fn obey(&mut self, effect: &Effect) {
        match effect {
            Effect::Assign(a) => {
                self.check_assignment(a);
                let stalled =
                    a.from == FetchSource::Origin && self.dice.per_mille(self.faults.stall);
                let deadline = self.now.saturating_add(u64::from(a.deadline_ms));
                let known = self.scheduler.edges.get(&a.edge);
                let failed = known.is_some_and(|edge| {
                    let mut bad = edge.peers.iter().filter(|(_, it)| it.bad_until > self.now);
                    bad.any(|(&peer, _)| self.peer_faults.contains(&(a.edge, peer)))
                });
                let fetch = SimFetch {
                    doubtful: failed || self.unnamed,
                    a: a.clone(),
                    cancelled: false,
                    bytes: 0,
                    begun: None,
                    stalled,
                    deadline,
                };
                let edge = &mut self.edges[a.edge.0 as usize];
                assert!(edge.alive && edge.fetches.insert(a.id, fetch).is_none());
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
                let fetch = self.edges[edge.0 as usize]
                    .fetches
                    .get_mut(assignment)
                    .expect("reprioritised what is there");
                fetch.a.level = *level;
                fetch.deadline = self.now.saturating_add(u64::from(*deadline_ms));
            }
            Effect::Cancel { edge, assignment } => {
                let fetch = self.edges[edge.0 as usize]
                    .fetches
                    .get_mut(assignment)
                    .expect("cancelled what is there");
                assert!(!fetch.cancelled, "seed {}: cancelled twice", self.seed);
                fetch.cancelled = true;
            }
            Effect::Quota {
                edge,
                answers,
                leases,
            } => {
                assert!(*answers <= self.edges[edge.0 as usize].reported);
                for lease in leases {
                    self.leased(*edge, *lease);
                }
            }
            Effect::WantDone { want } if self.hand_overs.remove(want).is_some() => {}
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
        self.run_quotas(chaos);
        self.heartbeats();
        if chaos {
            self.act();
            self.restart_now_and_then();
            self.close_an_idle_entry();
        }
        if self.now >= self.last_tick + 100 {
            self.last_tick = self.now;
            for edge in 0..self.edges.len() {
                self.tell_space(edge);
            }
            self.apply(Event::Tick);
            self.look_at_hand_overs();
        }
    }
}
