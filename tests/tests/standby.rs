//! Two coordinators over one PostgreSQL: one leads, the other takes over, and players, fetches and
//! watchers notice nothing.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chunkcache_tests::http::Call;
use chunkcache_tests::process::Process;
use chunkcache_tests::services::program;
use chunkcache_tests::{
    Cluster, ClusterOptions, Coordinator, Edge, MIB, Object, content, eventually, heavy,
};
use rustix::process::Signal;
use serde_json::Value;

const HITS: &str = "/hits.mp4";
const HITS_SEED: u64 = 150;
const HITS_SIZE: u64 = 8 * MIB;

/// The cluster's own coordinator leads; `standby` does not lead yet.
struct Pair {
    standby: Coordinator,
    cluster: Cluster,
}

impl Pair {
    fn start(edges: usize) -> Pair {
        let mut cluster = Cluster::start_with(ClusterOptions::default());
        let directory = cluster.directory.path().to_owned();
        let mut standby = Coordinator::prepare("standby", &directory, &cluster.postgres.url(), &[]);
        standby.start();
        let both = endpoints(&cluster.coordinator, &standby);
        for name in ["edge-a", "edge-b"].iter().take(edges) {
            let mut edge = Edge::prepare(name, &directory, &both, &["--background-fill=false"]);
            edge.start();
            cluster.edges.push(edge);
        }
        let target = cluster.put(HITS, Object::generated(HITS_SEED, HITS_SIZE));
        for edge in &cluster.edges {
            Call::get(&target).send(edge.http).expect(200);
            cluster.wait_recorded_on(HITS, &edge.name, &[(0, HITS_SIZE)]);
        }
        Pair { standby, cluster }
    }

    fn json(&self, coordinator: &Coordinator, arguments: &[&str]) -> Value {
        coordinator.json(arguments)
    }

    /// Runs `watch` for an entry, on both coordinators; its lines are in its log.
    fn watch(&self, path: &str) -> Process {
        let mut command = Command::new(program("cache-coordinator"));
        let both = endpoints(&self.cluster.coordinator, &self.standby);
        command.args([
            "watch",
            &format!("media{path}"),
            &format!("--endpoint={both}"),
        ]);
        let log = self.cluster.directory.path().join("watch.log");
        let watching = Process::spawn("watch", &command, &log);
        eventually("the watch begins", Duration::from_secs(20), || {
            watching.output().contains("snapshot").then_some(())
        });
        watching
    }
}

fn endpoints(one: &Coordinator, other: &Coordinator) -> String {
    format!("http://{},http://{}", one.grpc, other.grpc)
}

fn leads(coordinator: &Coordinator) -> bool {
    let Ok(reply) = Call::get("/readyz").open(coordinator.http) else {
        return false;
    };
    let answer = reply.finish();
    answer.status == 200 && answer.json()["role"] == "leader"
}

/// How long from `since` until the coordinator leads.
#[track_caller]
fn led_after(coordinator: &Coordinator, since: Instant, within: Duration) -> Duration {
    eventually("the standby leads", Duration::from_secs(20), || {
        leads(coordinator).then_some(())
    });
    let took = since.elapsed();
    println!("led after {took:?}");
    assert!(took < within, "took over after {took:?}");
    took
}

#[track_caller]
fn edges_are_back(coordinator: &Coordinator, count: u64) {
    eventually("the edges' sessions", Duration::from_secs(15), || {
        (coordinator.json(&["status"])["edges_active"] == count).then_some(())
    });
}

/// Clients that continuously read cached objects on every edge; every byte is compared.
struct Readers {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Readers {
    fn start(cluster: &Cluster) -> Readers {
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(AtomicU64::new(0));
        let threads = cluster.edges.iter().map(|edge| {
            let (stop, answers, address) = (Arc::clone(&stop), Arc::clone(&answers), edge.http);
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                let mut start = 1;
                while !stop.load(Ordering::Relaxed) {
                    start = (start * 48_271) % (HITS_SIZE - 70_000);
                    if let Err(why) = read(address, start, start + 65_536) {
                        failures.push(why);
                    }
                    answers.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
                failures
            })
        });
        let threads = threads.collect();
        Readers {
            stop,
            answers,
            threads,
        }
    }

    #[track_caller]
    fn none_failed(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let failures = thread.join().unwrap();
            assert_eq!(failures, Vec::<String>::new());
        }
        assert!(self.answers.load(Ordering::Relaxed) > 50);
    }
}

fn read(address: SocketAddr, start: u64, end: u64) -> Result<(), String> {
    let call = Call::get(&format!("/media{HITS}")).range(start, end);
    let answer = call
        .open(address)
        .map_err(|error| error.to_string())?
        .finish();
    let is_right = answer.status == 206
        && answer.complete
        && answer.body == content::bytes(HITS_SEED, start, end);
    match is_right {
        true => Ok(()),
        false => Err(format!(
            "{} for {start}..{end}: {:?}",
            answer.status, answer.headers
        )),
    }
}

/// Adds up the lines of a watch, by edge; panics if a revision does not rise, or bytes are reported
/// twice.
#[track_caller]
fn add_up(lines: &str) -> BTreeMap<String, BTreeMap<u64, u64>> {
    let mut held: BTreeMap<String, BTreeMap<u64, u64>> = BTreeMap::new();
    let mut last = 0;
    let mut snapshots = 0;
    for line in lines.lines().filter(|line| line.starts_with('{')) {
        let event: Value = serde_json::from_str(line).unwrap();
        let revision = event["revision"].as_u64().unwrap();
        assert!(revision > last || last == 0, "{line} after revision {last}");
        last = revision;
        let mut add = |edge: &Value, ranges: &Value| {
            let held = held.entry(edge.as_str().unwrap().to_owned()).or_default();
            for range in ranges.as_array().unwrap() {
                let (start, end) = (
                    range["start"].as_u64().unwrap(),
                    range["end"].as_u64().unwrap(),
                );
                let before = held.range(..end).next_back();
                assert!(
                    before.is_none_or(|(_, it)| *it <= start),
                    "told twice: {line}"
                );
                held.insert(start, end);
            }
        };
        match event["event"].as_str().unwrap() {
            "snapshot" => {
                snapshots += 1;
                for edge in event["edges"].as_array().unwrap() {
                    add(&edge["name"], &edge["ranges"]);
                }
            }
            "stored" => add(&event["edge"], &event["ranges"]),
            other => panic!("not expected here: {other}: {line}"),
        }
    }
    assert_eq!(snapshots, 1, "resumed, not begun again");
    held
}

fn joined(ranges: &BTreeMap<u64, u64>) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some(last) if last.1 == *start => last.1 = *end,
            _ => joined.push((*start, *end)),
        }
    }
    joined
}

#[test]
fn a_killed_leader_is_replaced_under_playback_and_a_running_job() {
    let _turn = heavy();
    let mut pair = Pair::start(2);
    let size = 40 * MIB;
    let film = pair
        .cluster
        .put("/film.mp4", Object::generated(151, size).paced(4 * MIB));
    pair.cluster
        .put("/job.mp4", Object::generated(152, size).paced(4 * MIB));
    let leader = &pair.cluster.coordinator;
    let job = leader.json(&["precache", "media/job.mp4", "--edge=edge-b"]);
    let readers = Readers::start(&pair.cluster);
    let mut reply = Call::get(&film).open(pair.cluster.edge().http).unwrap();
    let first = reply.take(MIB as usize).unwrap();
    let mut watching = pair.watch("/film.mp4");
    eventually("the job is under way", Duration::from_secs(20), || {
        (pair.cluster.recorded_bytes("/job.mp4", "edge-b") > 0).then_some(())
    });
    let recorded = pair.cluster.recorded("/job.mp4", "edge-b");
    let asked = pair.cluster.origin.hits("/job.mp4").len();
    assert_ne!(recorded, [(0, size)], "the job was too fast for this test");

    pair.cluster.coordinator.kill();
    led_after(&pair.standby, Instant::now(), Duration::from_secs(5));
    edges_are_back(&pair.standby, 2);

    let rest = reply.finish();
    assert!(rest.complete, "playback ended with the leader");
    let body = [first, rest.body].concat();
    assert_eq!(content::sha256_of(&body), content::sha256(151, size));
    pair.cluster
        .wait_recorded_on("/film.mp4", "edge-a", &[(0, size)]);
    pair.cluster
        .wait_recorded_on("/job.mp4", "edge-b", &[(0, size)]);
    eventually("the job ends", Duration::from_secs(10), || {
        let jobs = pair.json(&pair.standby, &["precache", "list", "--all"]);
        let jobs = jobs.as_array().unwrap();
        let state = jobs.iter().find(|it| it["id"] == job["id"]).unwrap()["state"].clone();
        (state == "done").then_some(())
    });
    let hits = pair.cluster.origin.hits("/job.mp4");
    for hit in &hits[asked..] {
        let range = hit.header("range").unwrap();
        let first = range.trim_start_matches("bytes=").split('-').next();
        let first: u64 = first.unwrap().parse().unwrap();
        let known = recorded.iter().any(|it| (it.0..it.1).contains(&first));
        assert!(!known, "{range} was recorded before: {recorded:?}");
    }
    readers.none_failed();

    eventually("the watch tells all", Duration::from_secs(15), || {
        let held = add_up(&watching.output());
        (joined(held.get("edge-a")?) == [(0, size)]).then_some(())
    });
    watching.kill();
}

#[test]
fn a_planned_change_takes_less_than_a_second() {
    let _turn = heavy();
    let mut pair = Pair::start(2);
    let late = pair
        .cluster
        .put("/late.mp4", Object::generated(154, 6 * MIB));
    Call::get(&late)
        .range(0, 1)
        .send(pair.cluster.edge().http)
        .expect(206);
    // A watch names an entry in the table; an edge's observation gets there a moment after its
    // first answer.
    eventually("its entry is recorded", Duration::from_secs(20), || {
        (pair.cluster.recorded_bytes("/late.mp4", "edge-a") > 0).then_some(())
    });
    let mut watching = pair.watch("/late.mp4");
    let readers = Readers::start(&pair.cluster);

    let leader = pair.cluster.coordinator.process();
    leader.signal(Signal::TERM);
    led_after(&pair.standby, Instant::now(), Duration::from_secs(1));
    edges_are_back(&pair.standby, 2);
    let status = leader.wait_for_exit(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0));

    // Back as a standby, it redirects the request to the leader.
    pair.cluster.coordinator.start();
    assert!(!leads(&pair.cluster.coordinator));
    let asked = Instant::now();
    let answer = pair.json(&pair.cluster.coordinator, &["step-down"]);
    assert_eq!(answer["name"], format!("http://{}", pair.standby.grpc));
    led_after(&pair.cluster.coordinator, asked, Duration::from_secs(1));
    edges_are_back(&pair.cluster.coordinator, 2);
    assert!(!leads(&pair.standby));

    // Chunks stored after two changes of the leader reach watchers from before them.
    Call::get(&late).send(pair.cluster.edge().http).expect(200);
    eventually("the watch tells all", Duration::from_secs(20), || {
        let held = add_up(&watching.output());
        (joined(held.get("edge-a")?) == [(0, 6 * MIB)]).then_some(())
    });
    assert!(watching.is_running(), "{}", watching.output());
    readers.none_failed();
    watching.kill();
}

#[test]
fn a_leader_that_was_stopped_for_ten_seconds_changes_nothing() {
    let _turn = heavy();
    let mut pair = Pair::start(2);
    let size = 32 * MIB;
    let film = pair
        .cluster
        .put("/film.mp4", Object::generated(153, size).paced(8 * MIB));
    let readers = Readers::start(&pair.cluster);
    let mut reply = Call::get(&film).open(pair.cluster.edge().http).unwrap();
    // Reports of chunks are on the way to the leader when it stops: it finds them when it resumes.
    let first = reply.take(MIB as usize).unwrap();

    let stopped = Instant::now();
    pair.cluster.coordinator.process().signal(Signal::STOP);
    led_after(&pair.standby, stopped, Duration::from_secs(5));
    edges_are_back(&pair.standby, 2);
    let rest = reply.finish();
    assert!(rest.complete);
    assert_eq!(
        content::sha256_of(&[first, rest.body].concat()),
        content::sha256(153, size)
    );
    pair.cluster
        .wait_recorded_on("/film.mp4", "edge-a", &[(0, size)]);
    std::thread::sleep(Duration::from_secs(10).saturating_sub(stopped.elapsed()));

    let before = everything(&pair.cluster);
    pair.cluster.coordinator.process().signal(Signal::CONT);
    eventually(
        "it knows that it was replaced",
        Duration::from_secs(5),
        || {
            let answer = pair.cluster.coordinator.get("/readyz");
            (answer.status == 200 && answer.json()["role"] == "standby").then_some(())
        },
    );
    let status = pair.json(&pair.cluster.coordinator, &["status"]);
    assert_eq!(status["leader"], format!("http://{}", pair.standby.grpc));
    assert_eq!(everything(&pair.cluster), before, "the old leader wrote");
    assert!(leads(&pair.standby));
    edges_are_back(&pair.standby, 2);
    readers.none_failed();
}

/// All rows, except those that the present leader updates on its own: its renewal, and the time of
/// an edge's last message.
fn everything(cluster: &Cluster) -> Vec<Vec<String>> {
    cluster.postgres.query(
        "SELECT 'lease', holder::text || term FROM coordinator_lease
         UNION ALL SELECT 'chunks', md5(string_agg(c::text, ',' ORDER BY c::text))
         FROM cache_chunks c
         UNION ALL SELECT 'changes', md5(string_agg(c::text, ',' ORDER BY revision))
         FROM cache_changes c
         UNION ALL SELECT 'entries', md5(string_agg(e::text, ',' ORDER BY id)) FROM cache_entries e
         UNION ALL SELECT 'keys', md5(string_agg(k::text, ',' ORDER BY k::text)) FROM cache_keys k
         UNION ALL SELECT 'edges', string_agg(name || state || epoch || draining, ',' ORDER BY name)
         FROM edges
         UNION ALL SELECT 'sources', md5(string_agg(s::text, ',' ORDER BY name)) FROM sources s
         ORDER BY 1",
    )
}

#[test]
fn a_standby_is_ready_names_the_leader_and_keeps_quiet() {
    let pair = Pair::start(0);
    let readiness = pair.standby.get("/readyz").expect(200).json();
    assert_eq!(readiness["role"], "standby");
    let status = pair.json(&pair.standby, &["status"]);
    assert_eq!(
        status["leader"],
        format!("http://{}", pair.cluster.coordinator.grpc)
    );
    // The command line follows to the leader; another service gets its name (`as_a_service.rs`).
    let url = pair.cluster.origin.url();
    assert!(
        pair.standby
            .cli(&["source", "add", "more", &url])
            .status
            .success()
    );
    assert!(
        pair.standby
            .get("/")
            .expect(200)
            .text()
            .contains("Chunk cache")
    );

    let directory = pair.cluster.directory.path();
    let log = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    for error in ["ERROR", "FATAL"] {
        let lines: Vec<_> = log("postgres.log")
            .lines()
            .filter(|line| line.contains(error))
            .map(str::to_owned)
            .collect();
        // The harness asks before the server is up.
        let lines: Vec<_> = lines
            .iter()
            .filter(|line| !line.contains("starting up"))
            .collect();
        assert!(lines.is_empty(), "{lines:?}");
    }
    for name in ["coordinator.log", "standby.log"] {
        let log = log(name);
        assert!(
            !log.contains("NOTICE") && !log.contains("already exists"),
            "{log}"
        );
    }
}
