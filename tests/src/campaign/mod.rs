//! The fault campaign: readers compare every byte with the origin's known content while edges, the
//! coordinator and PostgreSQL are killed and stopped, COMMITs lose their answers, chunks are
//! corrupted on disk, a disk is filled, clocks jump, another origin hangs, and objects change. One
//! edge is too small for what is read, so that it evicts all the time, also while its session ends.
//!
//! One thread (the caller's) injects faults, one after the other, drawn from a seed; reader threads
//! never stop. A failed request is excused only by a fault of the edge that it went to, or by a
//! change of the object that it read: a dead coordinator or database excuses nothing. At the end
//! everything runs, readers are gone, and the rows are compared with the files. The last edge has
//! no readers that are judged: its disk is corrupted while it runs, and its peers must notice.

mod audit;
mod clock;
mod commits;
mod inject;
pub mod network;
mod readers;
mod small_disk;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use crate::cluster::{Cluster, ClusterOptions, SOURCE};
use crate::origin::{Object, Origin};
use crate::{CHUNK, MIB};

pub use audit::Audit;
pub use small_disk::SmallDisk;

/// A fault to inject: its name on the command line, what the table calls it, and how often the
/// short and the full form do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub name: &'static str,
    pub words: &'static str,
    pub short: u32,
    pub full: u32,
}

const fn fault(name: &'static str, words: &'static str, short: u32, full: u32) -> Fault {
    Fault {
        name,
        words,
        short,
        full,
    }
}

pub const EDGE_KILL: Fault = fault(
    "edge-kills",
    "edge killed (SIGKILL) and started again",
    8,
    200,
);
/// SIGSTOP for a moment, then SIGCONT.
pub const EDGE_PAUSE: Fault = fault("edge-pauses", "edge stopped for a moment (SIGSTOP)", 3, 30);
pub const COORDINATOR_KILL: Fault = fault(
    "coordinator-kills",
    "coordinator killed and started again",
    4,
    50,
);
pub const COORDINATOR_PAUSE: Fault = fault(
    "coordinator-pauses",
    "coordinator stopped for a moment",
    2,
    10,
);
pub const DATABASE_KILL: Fault = fault(
    "database-kills",
    "PostgreSQL killed and started again",
    3,
    20,
);
/// A COMMIT succeeds, and its connection breaks before the answer.
pub const LOST_COMMIT: Fault = fault(
    "lost-commits",
    "COMMIT done, its answer lost with the connection",
    4,
    50,
);
/// At least this many, a few at each kill of an edge: a chunk that was checked once since the start
/// is trusted afterwards.
pub const CORRUPTED_CHUNK: Fault = fault(
    "corrupted-chunks",
    "chunks corrupted on the disk of a killed edge",
    40,
    1000,
);
/// Its own readers are not judged: what an edge has checked once it does not check again for each
/// reader. Those of its peers are.
pub const RUNNING_CORRUPTION: Fault = fault(
    "running-corruptions",
    "chunks corrupted on the disk of a running peer",
    6,
    100,
);
pub const DISK_FILL: Fault = fault("disk-fills", "disk filled by another program", 2, 20);
/// Outage of the coordinator, of PostgreSQL, or of an edge, for some seconds.
pub const NETWORK_CUT: Fault = fault(
    "network-cuts",
    "coordinator, PostgreSQL or an edge cut off the network",
    4,
    30,
);
pub const OBJECT_CHANGE: Fault = fault("object-changes", "object changed at the origin", 4, 50);
pub const CLOCK_SKEW: Fault = fault(
    "clock-skews",
    "an edge's clock an hour ahead or behind for a moment",
    3,
    15,
);
pub const HANGING_ORIGIN: Fault = fault(
    "hanging-origins",
    "another source's origin hangs for a moment, with readers",
    2,
    20,
);

const FAULTS: [Fault; 13] = [
    EDGE_KILL,
    EDGE_PAUSE,
    COORDINATOR_KILL,
    COORDINATOR_PAUSE,
    DATABASE_KILL,
    LOST_COMMIT,
    CORRUPTED_CHUNK,
    RUNNING_CORRUPTION,
    DISK_FILL,
    NETWORK_CUT,
    OBJECT_CHANGE,
    CLOCK_SKEW,
    HANGING_ORIGIN,
];

/// How often each fault is injected, and which readers run meanwhile.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    counts: Vec<(Fault, u32)>,
    pub readers: usize,
    pub objects: usize,
    pub object_bytes: u64,
}

impl Plan {
    fn new(seed: u64, readers: usize, count: impl Fn(&Fault) -> u32) -> Plan {
        Plan {
            seed,
            counts: FAULTS.iter().map(|fault| (*fault, count(fault))).collect(),
            readers,
            objects: 8,
            object_bytes: 24 * MIB + 12_345,
        }
    }

    /// Readers without faults.
    pub fn quiet(seed: u64) -> Plan {
        Plan::new(seed, 6, |_| 0)
    }

    /// Some tens of seconds: for a quick check.
    pub fn short(seed: u64) -> Plan {
        Plan::new(seed, 6, |fault| fault.short)
    }

    /// The promises that one campaign checks.
    pub fn full(seed: u64) -> Plan {
        Plan::new(seed, 8, |fault| fault.full)
    }

    pub fn count(&self, fault: Fault) -> u32 {
        let found = self.counts.iter().find(|(it, _)| *it == fault);
        found.map_or(0, |(_, count)| *count)
    }

    /// Sets the count of one kind, by its name on the command line; false if there is no such kind.
    pub fn set(&mut self, name: &str, wanted: u32) -> bool {
        let found = self.counts.iter_mut().find(|(it, _)| it.name == name);
        found.map(|(_, count)| *count = wanted).is_some()
    }
}

/// Which edge has what; any of them is killed, stopped and cut off.
const SKEWED: usize = 0;
const EVICTING: usize = 1;
const FILLED: usize = 2;
const CORRUPTED: usize = 3;
/// Lines that an edge logs when it finds its own bytes wrong, or a peer's.
const NOTICED: [&str; 2] = [
    "chunks were found corrupt",
    "a peer's bytes do not have the hash it sent",
];
/// The source whose origin hangs at times.
const OTHER: &str = "other";

/// Counts of the events.
#[derive(Debug, Default)]
pub struct Counters {
    pub requests: AtomicU64,
    pub bytes_compared: AtomicU64,
    pub wrong_bytes: AtomicU64,
    /// A clean end before the announced length, or the bytes of another version than the ETag's.
    pub wrong_ends: AtomicU64,
    /// Answers with a version that had changed more than its freshness before they were asked for.
    pub outdated: AtomicU64,
    /// Failed because of a fault of the edge, or a change of the object.
    pub excused: AtomicU64,
    /// Failed although the edge ran and the bytes were cached or the origin reachable.
    pub unexcused: AtomicU64,
    pub worst_stall_ms: AtomicU64,
}

/// One edge, as readers see it.
#[derive(Debug)]
pub struct Target {
    pub address: std::net::SocketAddr,
    pub down: AtomicBool,
    /// Incremented when a fault of this edge begins and when it ends.
    pub incidents: AtomicU64,
    /// Whether its readers are judged.
    pub is_judged: bool,
}

/// One object, and how often it changed.
#[derive(Debug)]
pub struct Title {
    pub path: String,
    pub size: u64,
    pub version: AtomicU64,
    /// Seed of the version that its origin has now.
    pub seed: AtomicU64,
}

/// Added to [`Title::version`] once nobody may serve the version before.
const SETTLED: u64 = 1_000_000;

impl Title {
    /// The seed of the only version that may be served; none while it changes.
    fn current(&self) -> Option<u64> {
        let version = self.version.load(Ordering::SeqCst);
        let is_settled = version / SETTLED == version % SETTLED;
        let seed = self.seed.load(Ordering::SeqCst);
        (is_settled && self.version.load(Ordering::SeqCst) == version).then_some(seed)
    }
}

#[derive(Debug)]
pub struct Shared {
    pub edges: Vec<Target>,
    pub titles: Vec<Title>,
    pub counters: Counters,
    pub stop: AtomicBool,
    /// The first few failures without an excuse, in words.
    pub complaints: std::sync::Mutex<Vec<String>>,
}

impl Shared {
    pub fn complain(&self, text: String) {
        let mut complaints = self.complaints.lock().unwrap();
        if complaints.len() < 20 {
            complaints.push(text);
        }
    }
}

/// The result: printed as a table, judged by [`Report::verdict`].
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub injected: Vec<(&'static str, u32)>,
    pub requests: u64,
    pub bytes_compared: u64,
    pub wrong_bytes: u64,
    pub wrong_ends: u64,
    pub outdated: u64,
    pub excused: u64,
    pub unexcused: u64,
    pub worst_stall_ms: u64,
    pub audit: Audit,
    /// Times that an edge noticed wrong bytes on its own disk or from a peer.
    pub noticed: u64,
    pub seconds: u64,
    /// Processes of ours that panicked or ended on their own.
    pub broken_processes: Vec<String>,
    pub complaints: Vec<String>,
    pub left_out: Vec<String>,
}

/// Runs the campaign. The disk that is filled is a loop-mounted file system if this machine allows
/// one.
pub fn run(plan: &Plan) -> Report {
    let began = Instant::now();
    let mut random = SmallRng::seed_from_u64(plan.seed);
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: 4,
        ..ClusterOptions::default()
    });
    let disk = if plan.count(DISK_FILL) > 0 {
        SmallDisk::mount(cluster.directory.path(), 192 * MIB)
    } else {
        None
    };
    if let Some(disk) = &disk {
        cluster.edges[FILLED].put_data_at(disk.path().join("data"));
    }
    cluster.edges[EVICTING]
        .arguments
        .push(format!("--max-size={}", 96 * MIB));
    let clock = (plan.count(CLOCK_SKEW) > 0)
        .then(|| clock::Clock::prepare(cluster.directory.path(), &mut cluster.edges[SKEWED]))
        .flatten();
    let commits = commits::Proxy::start(cluster.postgres.port());
    let url = commits.url();
    for argument in &mut cluster.coordinator.arguments {
        if argument.starts_with("--database-url=") {
            *argument = format!("--database-url={url}");
        }
    }
    cluster.postgres.start_again();
    cluster.coordinator.start();
    cluster.add_source(SOURCE);
    let other = Origin::start();
    add_other_source(&cluster, &other);
    for edge in &mut cluster.edges {
        edge.start();
    }
    let shared = Arc::new(prepare(plan, &cluster));
    let readers: Vec<_> = (0..plan.readers)
        .map(|number| {
            let (shared, seed) = (
                Arc::clone(&shared),
                plan.seed ^ (number as u64 + 1).wrapping_mul(0x9E37_79B9),
            );
            std::thread::spawn(move || readers::read_until_stopped(&shared, seed))
        })
        .collect();

    let mut tools = inject::Tools {
        disk: disk.as_ref(),
        clock: clock.as_ref(),
        commits: &commits,
        other: &other,
    };
    let injected = inject::all(plan, &mut cluster, &shared, &mut tools, &mut random);

    shared.stop.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.join().expect("a reader does not panic");
    }
    // So that it checks again what was corrupted while it ran.
    cluster.edges[CORRUPTED].terminate();
    cluster.edges[CORRUPTED].start();
    let audit = audit::settle_and_compare(&mut cluster);
    let noticed = noticed(&cluster);
    let broken_processes = broken_processes(&mut cluster);
    let counters = &shared.counters;
    let load = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let report = Report {
        seed: plan.seed,
        left_out: injected.left_out,
        injected: injected.counts,
        requests: load(&counters.requests),
        bytes_compared: load(&counters.bytes_compared),
        wrong_bytes: load(&counters.wrong_bytes),
        wrong_ends: load(&counters.wrong_ends),
        outdated: load(&counters.outdated),
        excused: load(&counters.excused),
        unexcused: load(&counters.unexcused),
        worst_stall_ms: load(&counters.worst_stall_ms),
        broken_processes,
        audit,
        noticed,
        seconds: began.elapsed().as_secs(),
        complaints: shared.complaints.lock().unwrap().clone(),
    };
    if report.verdict().is_err() {
        keep_logs(&cluster, plan.seed);
    }
    // The edge on it first, then the disk.
    drop(cluster.edges.remove(FILLED));
    drop(disk);
    report
}

/// Keeps the logs of the processes, for finding the cause.
fn keep_logs(cluster: &Cluster, seed: u64) {
    let to = std::env::temp_dir().join(format!("chunkcache-faults-seed-{seed}"));
    let logs = std::fs::read_dir(cluster.directory.path())
        .into_iter()
        .flatten();
    let logs = logs.flatten().map(|it| it.path());
    if std::fs::create_dir_all(&to).is_ok() {
        for log in logs.filter(|it| it.extension().is_some_and(|it| it == "log")) {
            if let Some(name) = log.file_name() {
                let _ = std::fs::copy(&log, to.join(name));
            }
        }
        eprintln!("the logs are in {}", to.display());
    }
}

/// Shows that corruptions were met; counters would begin again with each kill, and logs do not.
fn noticed(cluster: &Cluster) -> u64 {
    let found = |edge: &crate::services::Edge| {
        let log = std::fs::read_to_string(edge.log()).unwrap_or_default();
        let of = |line: &str| log.matches(line).count() as u64;
        NOTICED.into_iter().map(of).sum::<u64>()
    };
    cluster.edges.iter().map(found).sum()
}

/// Failures that no fault of the plan explains: a service that ended on its own, or a task in it
/// that panicked.
fn broken_processes(cluster: &mut Cluster) -> Vec<String> {
    let edges = cluster.edges.iter_mut().map(crate::services::Edge::process);
    let mut broken = Vec::new();
    for process in edges.chain([cluster.coordinator.process()]) {
        if !process.is_running() {
            broken.push(format!("{} ended by itself", process.name));
        }
        let output = process.output();
        let panics = output.lines().filter(|line| line.contains("panicked at"));
        broken.extend(panics.map(|line| format!("{}: {line}", process.name)));
    }
    broken
}

fn add_other_source(cluster: &Cluster, other: &Origin) {
    let output = cluster
        .coordinator
        .cli(&["source", "add", OTHER, &other.url()]);
    assert!(output.status.success(), "{output:?}");
}

fn prepare(plan: &Plan, cluster: &Cluster) -> Shared {
    let target = |(number, edge): (usize, &crate::services::Edge)| Target {
        address: edge.http,
        down: AtomicBool::new(false),
        incidents: AtomicU64::new(0),
        is_judged: number != CORRUPTED,
    };
    let edges = cluster.edges.iter().enumerate().map(target);
    let titles = (0..plan.objects).map(|number| {
        let title = Title {
            path: format!("/title-{number}.mp4"),
            size: plan.object_bytes + number as u64 * CHUNK / 3,
            version: AtomicU64::new(0),
            seed: AtomicU64::new(seed(plan, number, 0)),
        };
        cluster
            .origin
            .put(&title.path, object(plan, number, 0, title.size));
        title
    });
    Shared {
        edges: edges.collect(),
        titles: titles.collect(),
        counters: Counters::default(),
        stop: AtomicBool::new(false),
        complaints: std::sync::Mutex::default(),
    }
}

fn seed(plan: &Plan, number: usize, version: u64) -> u64 {
    plan.seed.wrapping_mul(1009) % 1_000_000 * 1_000 + number as u64 * 100_000_000_000 + version
}

/// Version `version` of a title. Its seed is in its ETag, so that a reader knows the right bytes.
/// It is fresh for a second, so that changes are noticed.
fn object(plan: &Plan, number: usize, version: u64, size: u64) -> Object {
    Object::generated(seed(plan, number, version), size)
        .header("Cache-Control", "max-age=1")
        .latency(Duration::from_millis(3))
}

impl Report {
    /// `Ok` if nothing went wrong.
    pub fn verdict(&self) -> Result<(), String> {
        let corrupted = [CORRUPTED_CHUNK, RUNNING_CORRUPTION].map(|fault| fault.words);
        let mut corruptions = self.injected.iter().filter(|it| corrupted.contains(&it.0));
        let is_unnoticed = corruptions.any(|it| it.1 > 0) && self.noticed == 0;
        let zero = [
            (
                "corruptions of which none was noticed",
                u64::from(is_unnoticed),
            ),
            ("wrong bytes", self.wrong_bytes),
            ("wrong ends", self.wrong_ends),
            ("answers older than their freshness", self.outdated),
            (
                "rows without bytes after settling",
                self.audit.rows_without_bytes,
            ),
            (
                "bytes without rows after settling",
                self.audit.bytes_without_rows,
            ),
            (
                "requests failed that had a cached or reachable answer",
                self.unexcused,
            ),
            (
                "processes that broke by themselves",
                self.broken_processes.len() as u64,
            ),
        ];
        let wrong: Vec<_> = zero
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(what, count)| format!("{what}: {count}"))
            .collect();
        if wrong.is_empty() {
            Ok(())
        } else {
            let lines = [
                &self.complaints,
                &self.audit.complaints,
                &self.broken_processes,
            ];
            Err(format!(
                "{}\n{}",
                wrong.join(", "),
                lines.map(|it| it.join("\n")).join("\n")
            ))
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "fault campaign, seed {}, {} s", self.seed, self.seconds)?;
        writeln!(f, "| what | count |\n|---|---|")?;
        for (what, count) in &self.injected {
            writeln!(f, "| injected: {what} | {count} |")?;
        }
        for what in &self.left_out {
            writeln!(f, "| left out: {what} | - |")?;
        }
        let rows = [
            ("requests", self.requests),
            ("MiB compared", self.bytes_compared / MIB),
            ("wrong bytes", self.wrong_bytes),
            ("wrong ends (short but clean, or mixed)", self.wrong_ends),
            ("answers older than their freshness", self.outdated),
            ("rows audited after settling", self.audit.rows),
            (
                "rows without bytes after settling",
                self.audit.rows_without_bytes,
            ),
            (
                "bytes without rows after settling (chunks)",
                self.audit.bytes_without_rows,
            ),
            (
                "requests failed by a fault of their own edge or object",
                self.excused,
            ),
            (
                "requests failed that had a cached or reachable answer",
                self.unexcused,
            ),
            (
                "processes that broke by themselves",
                self.broken_processes.len() as u64,
            ),
            ("times that edges noticed corrupted chunks", self.noticed),
            ("worst stall, ms", self.worst_stall_ms),
        ];
        for (what, count) in rows {
            writeln!(f, "| {what} | {count} |")?;
        }
        Ok(())
    }
}

/// A pause between faults, so that readers meet the system in every state of recovery.
fn breathe(random: &mut SmallRng) {
    std::thread::sleep(Duration::from_millis(random.random_range(50..400)));
}
