//! Measures the main promise: time from a seek to its first byte, idle, in a saturated system, and
//! with a node down, in one run.
//!
//! One edge; an origin 40 ms away behind one 10 MB/s link that all its connections share. Idle:
//! seeks into a cold file, nothing else. Loaded: the same seeks while background fill completes
//! other files and a precache job runs. With a node down: three edges, one of which holds half of
//! the seek targets, or is fetching them, and is killed; the later seeks, at the other edges, are
//! measured. Prints Markdown and, last, one JSON line.
//!
//! `--at ADDRESS TARGET SEED SEEKS LONG` measures seeks at any server instead, of which LONG read
//! on to 9 MiB, and prints one JSON line (`tests/bench/seeks.py`).
// A wrong measurement stops at the line that is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use chunkcache_tests::cluster::{Cluster, ClusterOptions, SOURCE};
use chunkcache_tests::http::{Call, Reply};
use chunkcache_tests::{CHUNK, MIB, Object, content, eventually};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};

const LATENCY: Duration = Duration::from_millis(40);
const LINK_BYTES_PER_SECOND: u64 = 10_000_000;
const SEEK_BYTES: u64 = 64 << 10;
/// Pause between two seeks, as of a person; the lookahead of the last one is then running.
const PAUSE: Duration = Duration::from_millis(150);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [at, address, target, numbers @ ..] = arguments.as_slice()
        && at == "--at"
    {
        let numbers: Vec<u64> = numbers.iter().map(|it| it.parse().unwrap()).collect();
        let [seed, seeks, long] = numbers.try_into().expect("SEED SEEKS LONG");
        let viewer = Viewer {
            server: address.parse().expect("an address"),
            target: target.clone(),
            seed,
        };
        return viewer.measure(seeks as usize, long as usize);
    }
    let seeks: usize = std::env::args()
        .nth(1)
        .map_or(200, |it| it.parse().expect("number of seeks"));
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        ..ClusterOptions::default()
    });
    cluster.origin.set_link(Some(LINK_BYTES_PER_SECOND));
    // One title for each half, large enough that no seek meets chunks that another fetched.
    let size = (seeks as u64 + 2) * 16 * CHUNK;
    // Nothing must complete the title between the seeks.
    fill(&cluster, false);
    let idle = run(&cluster, "/idle.mp4", 11, size, seeks);
    cluster
        .coordinator
        .cli(&["entry", "invalidate", "media/idle.mp4", "--purge"]);
    fill(&cluster, true);
    let filling = cluster.put(
        "/filling.mp4",
        Object::generated(12, 4096 * MIB).latency(LATENCY),
    );
    Call::get(&filling)
        .range(0, 1)
        .send(cluster.edge().http)
        .expect(206);
    cluster.put(
        "/precached.mp4",
        Object::generated(13, 4096 * MIB).latency(LATENCY),
    );
    let job = cluster
        .coordinator
        .cli(&["precache", "media/precached.mp4"]);
    assert!(
        job.status.success(),
        "precache: {}",
        String::from_utf8_lossy(&job.stderr)
    );
    eventually(
        "the origin's link is saturated",
        Duration::from_secs(20),
        || {
            let others = || {
                cluster.origin.body_bytes("/filling.mp4")
                    + cluster.origin.body_bytes("/precached.mp4")
            };
            let (before, began) = (others(), Instant::now());
            std::thread::sleep(Duration::from_millis(500));
            let rate = (others() - before) as f64 / began.elapsed().as_secs_f64();
            (rate > 0.7 * LINK_BYTES_PER_SECOND as f64).then_some(())
        },
    );
    let before =
        cluster.origin.body_bytes("/filling.mp4") + cluster.origin.body_bytes("/precached.mp4");
    let began = Instant::now();
    let loaded = run(&cluster, "/loaded.mp4", 14, size, seeks);
    let background = (cluster.origin.body_bytes("/filling.mp4")
        + cluster.origin.body_bytes("/precached.mp4")
        - before) as f64
        / began.elapsed().as_secs_f64();
    drop(cluster);
    let down = with_a_node_down(seeks);
    println!("| seek to first byte, ms | p50 | p99 | seeks |\n|---|---|---|---|");
    for (name, times) in [
        ("idle", &idle),
        ("saturated by background fill and a precache job", &loaded),
        ("one of three edges killed, which held or fetched it", &down),
    ] {
        println!(
            "| {name} | {:.1} | {:.1} | {} |",
            at(times, 0.5),
            at(times, 0.99),
            times.len()
        );
    }
    let to_idle = |times: &[f64]| {
        (
            at(times, 0.5) / at(&idle, 0.5),
            at(times, 0.99) / at(&idle, 0.99),
        )
    };
    let (ratios, ratios_down) = (to_idle(&loaded), to_idle(&down));
    println!(
        "| saturated to idle | {:.2} | {:.2} | |\n| a node down to idle | {:.2} | {:.2} | |\n\n\
         The slowest seeks with a node down: {}.\nBackground work in the saturated case: {:.1} \
         MB/s of the link's {:.1}.",
        ratios.0,
        ratios.1,
        ratios_down.0,
        ratios_down.1,
        slowest(&down),
        background / 1e6,
        LINK_BYTES_PER_SECOND as f64 / 1e6
    );
    println!(
        "{}",
        serde_json::json!(
            { "idle_ms": { "p50": at(&idle, 0.5), "p99": at(&idle, 0.99) },
                "loaded_ms": { "p50": at(&loaded, 0.5), "p99": at(&loaded, 0.99) },
                "ratio": { "p50": ratios.0, "p99": ratios.1 },
                "down_ms": { "p50": at(&down, 0.5), "p99": at(&down, 0.99) },
                "ratio_down": { "p50": ratios_down.0, "p99": ratios_down.1 },
                "background_bytes_per_second": background }
        )
    );
}

/// Three edges: before the seeks at two of them, the third holds the chunk (every other time) or is
/// fetching it (the first time); then it is killed.
fn with_a_node_down(seeks: usize) -> Vec<f64> {
    const SEED: u64 = 15;
    let mut cluster = Cluster::start_with(ClusterOptions {
        edges: 3,
        ..ClusterOptions::default()
    });
    fill(&cluster, false);
    let size = (seeks as u64 + 2) * 16 * CHUNK;
    let target = cluster.put("/down.mp4", Object::generated(SEED, size).latency(LATENCY));
    let mut doomed = cluster.edges.pop().expect("three edges");
    let edges: Vec<_> = cluster.edges.iter().map(|edge| edge.http).collect();
    for edge in edges.iter().chain([&doomed.http]) {
        Call::get(&target).range(0, 1).send(*edge).expect(206);
    }
    let mut places = places(SEED, seeks);
    let first = places.pop().expect("a place");
    for &place in places.iter().step_by(2) {
        let chunk = place / CHUNK * CHUNK;
        let held = Call::get(&target).range(chunk, chunk + CHUNK);
        held.send(doomed.http).expect(206);
    }
    eventually("what it holds is known", Duration::from_secs(20), || {
        let held = cluster.recorded_bytes("/down.mp4", &doomed.name);
        (held >= places.len().div_ceil(2) as u64 * CHUNK).then_some(())
    });
    cluster.origin.set_link(Some(LINK_BYTES_PER_SECOND));
    // A fetch that is running when the edge dies.
    let mut playing = Call::get(&target)
        .header("Range", &format!("bytes={}-", first / CHUNK * CHUNK))
        .open(doomed.http)
        .expect("an answer");
    playing.take(1).expect("a first byte");
    doomed.kill();
    let mut times = Vec::with_capacity(seeks);
    for (number, place) in [first].into_iter().chain(places).enumerate() {
        // Each of them gets both kinds of seeks: to chunks that were held, and to chunks that no
        // edge has.
        let edge = edges[number / 2 % edges.len()];
        times.push(seek(edge, &target, SEED, place));
    }
    times.sort_by(f64::total_cmp);
    times
}

/// Seeks to unvisited positions, each on a new connection with an open-ended range, cutting the old
/// one: as players do.
fn run(cluster: &Cluster, path: &str, seed: u64, size: u64, seeks: usize) -> Vec<f64> {
    let target = cluster.put(path, Object::generated(seed, size).latency(LATENCY));
    let edge = cluster.edge().http;
    Call::get(&target).range(0, 1).send(edge).expect(206);
    let places = places(seed, seeks).into_iter();
    let mut times: Vec<f64> = places
        .map(|place| seek(edge, &target, seed, place))
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

/// Positions far enough apart that no seek hits the lookahead of another, in random order.
fn places(seed: u64, seeks: usize) -> Vec<u64> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut places: Vec<u64> = (1..=seeks as u64)
        .map(|number| number * 16 * CHUNK + random.random_range(0..CHUNK))
        .collect();
    places.shuffle(&mut random);
    places
}

/// Milliseconds to the first byte; the bytes are compared, and the connection cut.
fn seek(edge: SocketAddr, target: &str, seed: u64, place: u64) -> f64 {
    let asked = Instant::now();
    let mut reply = Call::get(target)
        .header("Range", &format!("bytes={place}-"))
        .open(edge)
        .expect("an answer");
    assert_eq!(reply.status, 206);
    let mut first = reply.take(1).expect("a first byte");
    let time = asked.elapsed().as_secs_f64() * 1000.0;
    let rest = reply.take(SEEK_BYTES as usize - 1);
    first.extend(rest.expect("the bytes after it"));
    assert!(
        first == content::bytes(seed, place, place + SEEK_BYTES),
        "wrong bytes at {place}"
    );
    drop(reply);
    std::thread::sleep(PAUSE);
    time
}

/// One viewer at any server. It is watching when it seeks.
struct Viewer {
    server: SocketAddr,
    target: String,
    seed: u64,
}

impl Viewer {
    fn measure(&self, seeks: usize, long: usize) {
        let [mut first, mut two, mut nine] = [const { Vec::new() }; 3];
        // Whatever is asked for once about the object, and of a server that has just begun.
        let mut watching = eventually("an answer", Duration::from_secs(20), || {
            let reply = self.ask(0).ok()?;
            (reply.status == 206).then_some(reply)
        });
        self.read(&mut watching, 0, SEEK_BYTES);
        let every = seeks / long.max(1);
        for (number, place) in places(self.seed, seeks).into_iter().enumerate() {
            std::thread::sleep(PAUSE);
            drop(watching);
            let asked = Instant::now();
            let took = || asked.elapsed().as_secs_f64() * 1000.0;
            watching = self.open(place);
            self.read(&mut watching, place, 1);
            first.push(took());
            let mut read = 1;
            let is_long = number % every.max(1) == every.max(1) - 1;
            let goes_on = if is_long { 9 * MIB } else { SEEK_BYTES };
            while read < goes_on {
                let until = if read < 2 * MIB {
                    goes_on.min(2 * MIB)
                } else {
                    goes_on
                };
                self.read(&mut watching, place + read, until - read);
                read = until;
                match read {
                    read if read == 2 * MIB => two.push(took()),
                    read if read == 9 * MIB => nine.push(took()),
                    _ => {}
                }
            }
        }
        let told = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            serde_json::json!({ "p50": at(times, 0.5), "p99": at(times, 0.99) })
        };
        let told = serde_json::json!({
            "first_ms": told(&mut first), "mib2_ms": told(&mut two), "mib9_ms": told(&mut nine),
        });
        println!("{told}");
    }

    fn open(&self, place: u64) -> Reply {
        let reply = self.ask(place).expect("an answer");
        assert_eq!(reply.status, 206);
        reply
    }

    fn ask(&self, place: u64) -> std::io::Result<Reply> {
        let call = Call::get(&self.target).header("Range", &format!("bytes={place}-"));
        call.open(self.server)
    }

    fn read(&self, reply: &mut Reply, place: u64, count: u64) {
        let bytes = reply.take(count as usize).expect("the bytes");
        let expected = content::bytes(self.seed, place, place + count);
        assert!(bytes == expected, "wrong bytes at {place}");
    }
}

fn slowest(sorted: &[f64]) -> String {
    let slowest = sorted.iter().rev().take(4);
    let slowest: Vec<String> = slowest.map(|time| format!("{time:.1}")).collect();
    slowest.join(", ") + " ms"
}

/// Background fill of the one source, on or off.
fn fill(cluster: &Cluster, on: bool) {
    let (url, option) = (cluster.origin.url(), format!("--background-fill={on}"));
    let set = cluster
        .coordinator
        .cli(&["source", "add", SOURCE, &url, &option]);
    assert!(set.status.success(), "source add {option}");
}

fn at(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}
