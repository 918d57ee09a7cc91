//! Measures the cost of one `apply`, with few and with many readers and outstanding chunks.
//!
//! Criterion gives the mean of the mixed stream; a table of percentiles follows, because the target
//! is p99 < 20 µs at 10,000 readers and 1,000,000 outstanding chunks, and a mean hides a tail.
//!
//! `--events N` measures nothing and applies N events; `tests/bench/guard` counts their
//! instructions. `--at EDGES READERS CHUNKS` prints the percentiles at that size
//! (docs/capacity.md).
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use chunkcache_proto::{Geometry, Level};
use criterion::{BatchSize, Criterion};
use scheduler::api::*;
use scheduler::{Config, Scheduler};

const CHUNK: u64 = 2 << 20;
const EDGES: u32 = 16;
const SOURCES: u32 = 4;
const CHUNKS_PER_ENTRY: u32 = 2_000;

/// A busy cluster, and the events that keep it busy.
struct Load {
    scheduler: Scheduler,
    edges: u32,
    now: Millis,
    readers: u64,
    entries: u32,
    dice: u64,
    running: Vec<(EdgeId, FetchId)>,
    effects: Vec<Effect>,
}

impl Load {
    fn new(edges: u32, readers: u64, outstanding_chunks: u64) -> Self {
        let mut load = Self {
            scheduler: Scheduler::new(Config::default()),
            edges,
            now: 1_000,
            readers,
            entries: u32::try_from(outstanding_chunks / u64::from(CHUNKS_PER_ENTRY))
                .unwrap()
                .max(4),
            dice: 1,
            running: Vec::new(),
            effects: Vec::new(),
        };
        for source in 0..SOURCES {
            let source = SourceId(source);
            load.apply(Event::SourceSet {
                source,
                max_connections: 0,
                max_rate_bytes_per_second: 0,
                background_fill: None,
            });
        }
        let geometry = Geometry::new(u64::from(CHUNKS_PER_ENTRY) * CHUNK, CHUNK as u32).unwrap();
        for entry in 0..load.entries {
            let source = SourceId(entry % SOURCES);
            load.apply(Event::EntryOpened {
                entry: EntryNo(entry),
                source,
                geometry,
            });
        }
        for edge in 0..edges {
            load.apply(Event::EdgeJoined {
                edge: EdgeId(edge),
                max_downloads: 3,
                background_fill: false,
            });
        }
        // Outstanding chunks: one job per entry, for the whole of it.
        for entry in 0..load.entries {
            let (want, edge) = (WantId(u64::from(entry)), EdgeId(entry % edges));
            let chunks = std::iter::once(0..CHUNKS_PER_ENTRY).collect();
            load.apply(Event::WantSet {
                want,
                edge,
                entry: EntryNo(entry),
                chunks,
                level: Level::Medium,
            });
        }
        for reader in 0..readers {
            let demand = load.demand(reader);
            load.apply(Event::DemandSet(demand));
        }
        // Skip the start, where everything is assigned at once.
        for _ in 0..20_000 {
            let event = load.next_event();
            load.apply(event);
        }
        load
    }

    fn roll(&mut self, below: u64) -> u64 {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % below
    }

    fn demand(&mut self, number: u64) -> Demand {
        let entry = EntryNo(self.roll(u64::from(self.entries)) as u32);
        let end = u64::from(CHUNKS_PER_ENTRY) * CHUNK;
        Demand {
            reader: ReaderId {
                edge: EdgeId((number % u64::from(self.edges)) as u32),
                number,
            },
            entry,
            position: self.roll(end),
            end,
            waiting: self.roll(10) == 0,
            rate_bytes_per_second: 500_000 + self.roll(4_000_000),
            buffered_bytes: 0,
            lookahead_bytes: 0,
            earned_bytes: 0,
            player_buffer_ms: None,
            viewer: 0,
            is_expected: false,
            paused: false,
            hints: Vec::new(),
        }
    }

    /// The next event of a cluster: progress, ends of fetches, readers that move and seek, ticks.
    fn next_event(&mut self) -> Event {
        self.now += self.roll(2);
        let pick = self.roll(100);
        if pick < 55 && !self.running.is_empty() {
            let index = self.roll(self.running.len() as u64) as usize;
            let (edge, assignment) = self.running[index];
            if pick < 15 {
                return Event::FetchProgressed {
                    edge,
                    assignment,
                    bytes_done: 1 + self.roll(CHUNK),
                };
            }
            self.running.swap_remove(index);
            return Event::FetchFinished { edge, assignment };
        }
        if pick < 98 {
            let number = self.roll(self.readers);
            return Event::DemandSet(self.demand(number));
        }
        Event::Tick
    }

    fn apply(&mut self, event: Event) {
        let mut effects = std::mem::take(&mut self.effects);
        effects.clear();
        self.scheduler.apply(event, self.now, &mut effects);
        self.effects = effects;
        self.obey();
    }

    /// Lets the edges carry out all effects at once.
    fn obey(&mut self) {
        let mut cancelled = Vec::new();
        for effect in &self.effects {
            match effect {
                Effect::Assign(a) => self.running.push((a.edge, a.id)),
                Effect::Cancel { edge, assignment } => cancelled.push((*edge, *assignment)),
                Effect::Reprioritise { .. } | Effect::Quota { .. } | Effect::WantDone { .. } => {}
            }
        }
        for (edge, assignment) in cancelled {
            self.running
                .retain(|&running| running != (edge, assignment));
            self.apply(Event::FetchCancelled { edge, assignment });
        }
    }
}

fn percentiles(name: &str, mut load: Load) {
    let queued: u64 = load.scheduler.queued_by_level().iter().sum();
    let mut nanos: Vec<u64> = Vec::with_capacity(200_000);
    for _ in 0..200_000 {
        let event = load.next_event();
        let mut effects = std::mem::take(&mut load.effects);
        effects.clear();
        let began = Instant::now();
        load.scheduler
            .apply(black_box(event), load.now, &mut effects);
        nanos.push(began.elapsed().as_nanos() as u64);
        load.effects = effects;
        load.obey();
    }
    nanos.sort_unstable();
    let at = |share: f64| nanos[((nanos.len() - 1) as f64 * share) as usize] as f64 / 1_000.0;
    let mean = nanos.iter().sum::<u64>() as f64 / nanos.len() as f64 / 1_000.0;
    println!(
        "{name}: {queued} chunks queued; apply mean {mean:.2} µs, p50 {:.2} µs, p90 {:.2} µs, p99 \
         {:.2} µs, p99.9 {:.2} µs, max {:.1} µs",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    if let Some(mib) = resident_mib() {
        println!("resident {mib} MiB");
    }
}

fn resident_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let asked = arguments.next();
    let mut number = || arguments.next().unwrap().parse::<u32>().unwrap();
    match asked.as_deref() {
        Some("--events") => {
            let mut load = Load::new(EDGES, 200, 20_000);
            for _ in 0..number() {
                let event = load.next_event();
                load.apply(event);
            }
            return;
        }
        Some("--at") => {
            let (edges, readers, chunks) = (number(), number(), number());
            let name = format!("{edges} edges, {readers} readers, {chunks} chunks");
            return percentiles(&name, Load::new(edges, readers.into(), chunks.into()));
        }
        _ => {}
    }
    let sizes = [
        ("100 readers, 10,000 chunks", 100, 10_000),
        ("10,000 readers, 1,000,000 chunks", 10_000, 1_000_000),
    ];
    let mut criterion = Criterion::default().configure_from_args();
    for (name, readers, chunks) in sizes {
        let mut load = Load::new(EDGES, readers, chunks);
        criterion.bench_function(&format!("apply, {name}"), |bencher| {
            bencher.iter_batched(
                || (),
                |()| {
                    let event = load.next_event();
                    load.apply(event);
                },
                BatchSize::SmallInput,
            );
        });
    }
    criterion.final_summary();
    for (name, readers, chunks) in sizes {
        percentiles(name, Load::new(EDGES, readers, chunks));
    }
}
