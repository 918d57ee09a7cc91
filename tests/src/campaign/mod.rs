//! The fault campaign: readers compare every byte with the origin's known content while edges, the
//! coordinator and PostgreSQL are killed and stopped, chunks are corrupted on disk, a disk is
//! filled, and objects change.
//!
//! One thread (the caller's) injects faults, one after the other, drawn from a seed; reader threads
//! never stop. A failed request is excused only by a fault of the edge that it went to, or by a
//! change of the object that it read: a dead coordinator or database excuses nothing. At the end
//! everything runs, readers are gone, and the rows are compared with the files.

mod audit;
mod inject;
pub mod network;
mod readers;
mod small_disk;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use crate::cluster::{Cluster, ClusterOptions, SOURCE};
use crate::origin::Object;
use crate::{CHUNK, MIB};

pub use audit::Audit;
pub use small_disk::SmallDisk;

/// How often each fault is injected, and which readers run meanwhile.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub edge_kills: u32,
    /// SIGSTOP for a moment, then SIGCONT.
    pub edge_pauses: u32,
    pub coordinator_kills: u32,
    pub coordinator_pauses: u32,
    pub database_kills: u32,
    /// At least this many, a few at each kill of an edge: a chunk that was checked once since the
    /// start is trusted afterwards.
    pub corrupted_chunks: u32,
    pub disk_fills: u32,
    /// Outage of the coordinator, of PostgreSQL, or of an edge, for some seconds.
    pub network_cuts: u32,
    pub object_changes: u32,
    pub readers: usize,
    pub objects: usize,
    pub object_bytes: u64,
}

impl Plan {
    /// Readers without faults.
    pub fn quiet(seed: u64) -> Plan {
        Plan {
            edge_kills: 0,
            edge_pauses: 0,
            coordinator_kills: 0,
            coordinator_pauses: 0,
            database_kills: 0,
            corrupted_chunks: 0,
            disk_fills: 0,
            network_cuts: 0,
            object_changes: 0,
            ..Plan::short(seed)
        }
    }

    /// Sets the count of one kind, by its name on the command line; false if there is no such kind.
    pub fn set(&mut self, kind: &str, count: u32) -> bool {
        let place = match kind {
            "edge-kills" => &mut self.edge_kills,
            "edge-pauses" => &mut self.edge_pauses,
            "coordinator-kills" => &mut self.coordinator_kills,
            "coordinator-pauses" => &mut self.coordinator_pauses,
            "database-kills" => &mut self.database_kills,
            "corrupted-chunks" => &mut self.corrupted_chunks,
            "disk-fills" => &mut self.disk_fills,
            "network-cuts" => &mut self.network_cuts,
            "object-changes" => &mut self.object_changes,
            _ => return false,
        };
        *place = count;
        true
    }

    /// Some tens of seconds: for a quick check.
    pub fn short(seed: u64) -> Plan {
        Plan {
            seed,
            edge_kills: 8,
            edge_pauses: 3,
            coordinator_kills: 4,
            coordinator_pauses: 2,
            database_kills: 3,
            corrupted_chunks: 40,
            disk_fills: 2,
            network_cuts: 4,
            object_changes: 4,
            readers: 6,
            objects: 8,
            object_bytes: 24 * MIB + 12_345,
        }
    }

    /// The promises that one campaign checks.
    pub fn full(seed: u64) -> Plan {
        Plan {
            edge_kills: 200,
            edge_pauses: 30,
            coordinator_kills: 50,
            coordinator_pauses: 10,
            database_kills: 20,
            corrupted_chunks: 1000,
            disk_fills: 20,
            network_cuts: 30,
            object_changes: 50,
            readers: 8,
            ..Plan::short(seed)
        }
    }
}

/// Counts of the events.
#[derive(Debug, Default)]
pub struct Counters {
    pub requests: AtomicU64,
    pub bytes_compared: AtomicU64,
    pub wrong_bytes: AtomicU64,
    /// A clean end before the announced length, or the bytes of another version than the ETag's.
    pub wrong_ends: AtomicU64,
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
    pub excused: u64,
    pub unexcused: u64,
    pub worst_stall_ms: u64,
    pub audit: Audit,
    pub seconds: u64,
    /// Processes of ours that panicked or ended on their own.
    pub broken_processes: Vec<String>,
    pub complaints: Vec<String>,
    pub left_out: Vec<&'static str>,
}

/// Runs the campaign. The disk that is filled is a loop-mounted file system if this machine allows
/// one.
pub fn run(plan: &Plan) -> Report {
    let began = Instant::now();
    let mut random = SmallRng::seed_from_u64(plan.seed);
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: 3,
        ..ClusterOptions::default()
    });
    let disk = if plan.disk_fills > 0 {
        SmallDisk::mount(cluster.directory.path(), 192 * MIB)
    } else {
        None
    };
    if let Some(disk) = &disk {
        let last = cluster.edges.last_mut().unwrap();
        last.put_data_at(disk.path().join("data"));
    }
    cluster.postgres.start_again();
    cluster.coordinator.start();
    cluster.add_source(SOURCE);
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

    let injected = inject::all(plan, &mut cluster, &shared, disk.as_ref(), &mut random);

    shared.stop.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.join().expect("a reader does not panic");
    }
    let audit = audit::settle_and_compare(&mut cluster);
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
        excused: load(&counters.excused),
        unexcused: load(&counters.unexcused),
        worst_stall_ms: load(&counters.worst_stall_ms),
        broken_processes,
        audit,
        seconds: began.elapsed().as_secs(),
        complaints: shared.complaints.lock().unwrap().clone(),
    };
    if report.verdict().is_err() {
        keep_logs(&cluster, plan.seed);
    }
    // The edge on it first, then the disk.
    drop(cluster.edges.pop());
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

fn prepare(plan: &Plan, cluster: &Cluster) -> Shared {
    let edges = cluster.edges.iter().map(|edge| Target {
        address: edge.http,
        down: AtomicBool::new(false),
        incidents: AtomicU64::new(0),
    });
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
        let zero = [
            ("wrong bytes", self.wrong_bytes),
            ("wrong ends", self.wrong_ends),
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
