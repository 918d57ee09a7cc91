//! A second request in parallel with a late one, to an origin that delays some answers.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chunkcache_tests::http::Call;
use chunkcache_tests::{CHUNK, Cluster, Object, Origin, content, heavy};

const OBJECTS: u64 = 1_000;
const READERS: u64 = 8;
const LATENCY: Duration = Duration::from_millis(30);
const DELAY: Duration = Duration::from_secs(2);

/// Reads objects that are not at the edge. Returns the times to their first bytes, sorted.
fn read_cold(cluster: &Cluster, source: &str, folder: &str, objects: u64) -> Vec<Duration> {
    let (next, times) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= objects {
                        return;
                    }
                    let call = Call::get(&format!("/{source}/{folder}/{number}"));
                    let begun = Instant::now();
                    let reply = call.open(cluster.edge().http).unwrap();
                    times.lock().unwrap().push(begun.elapsed());
                    let got = reply.finish().expect(200);
                    assert_eq!(got.body, content::bytes(number, 0, 1000), "{number}");
                }
            });
        }
    });
    let mut times = times.into_inner().unwrap();
    times.sort();
    times
}

fn put(origin: &Origin, folder: &str, objects: u64) {
    for number in 0..objects {
        let object = Object::generated(number, 1000).latency(LATENCY);
        origin.put(&format!("/{folder}/{number}"), object);
    }
}

/// 99 % of the times are no longer.
fn p99(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() * 99 / 100 - 1]
}

fn later_than_a_second(times: &[Duration]) -> usize {
    let is_late = |time: &&Duration| **time > Duration::from_secs(1);
    times.iter().filter(is_late).count()
}

/// The hedges of a source with this result.
fn hedges(cluster: &Cluster, source: &str, result: &str) -> u64 {
    let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
    let name = "cache_edge_origin_hedges_total";
    let labels = format!("{{source=\"{source}\",result=\"{result}\"}} ");
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(&labels));
    line.map_or(0, |value| value.parse().unwrap())
}

#[test]
fn one_late_answer_in_a_hundred_is_overtaken_at_three_percent_more_requests() {
    let _alone = heavy();
    let cluster = Cluster::start();
    put(&cluster.origin, "even", OBJECTS);
    put(&cluster.origin, "odd", OBJECTS);
    let even = read_cold(&cluster, "media", "even", OBJECTS);
    let of_even = cluster.origin.all_hits().len() as u64;
    cluster.origin.delay_every(100, DELAY);
    let odd = read_cold(&cluster, "media", "odd", OBJECTS);
    let of_odd = cluster.origin.all_hits().len() as u64 - of_even;
    let won = hedges(&cluster, "media", "won");
    println!(
        "p99 of an even origin {:?}, of one that delays {:?}; requests {of_even}, {of_odd}; \
         hedges won {won}, lost {}, without budget {}",
        p99(&even),
        p99(&odd),
        hedges(&cluster, "media", "lost"),
        hedges(&cluster, "media", "no_budget"),
    );
    for requests in [of_even, of_odd] {
        let most = OBJECTS + OBJECTS * 3 / 100 + 3;
        assert!(requests <= most, "{requests} of at most {most}");
    }
    // Ten answers were delayed.
    assert!(won >= 8, "{won} hedges won");
    let late = later_than_a_second(&odd);
    assert!(late <= 2, "{late} of {OBJECTS}: {:?}", odd.last());
}

#[test]
fn a_late_answer_is_overtaken_by_the_next_origin() {
    const FEW: u64 = 200;
    let cluster = Cluster::start();
    let mirror = Origin::start();
    cluster.add_source_with("films", &[&mirror.url()]);
    put(&cluster.origin, "films", FEW);
    put(&mirror, "films", FEW);
    cluster.origin.delay_every(50, DELAY);
    let times = read_cold(&cluster, "films", "films", FEW);
    let asked = cluster.origin.all_hits().len() as u64;
    assert_eq!(asked, FEW, "the first origin is asked once for each");
    let beside = mirror.all_hits().len();
    assert!((3..=8).contains(&beside), "{beside} at the mirror");
    let late = later_than_a_second(&times);
    assert!(late <= 1, "{late} of {FEW}: {:?}", times.last());
}

#[test]
fn a_late_answer_for_chunks_is_overtaken_too() {
    const CHUNKS: u64 = 80;
    let cluster = Cluster::start();
    let film = Object::generated(1, CHUNKS * CHUNK).latency(LATENCY);
    let target = cluster.put("/film.mp4", film);
    let read = |nth: u64| {
        // Not one after the other: each is a seek.
        let start = nth * 37 % CHUNKS * CHUNK;
        let begun = Instant::now();
        let call = Call::get(&target).range(start, start + 1_000);
        let got = call.send(cluster.edge().http).expect(206);
        assert_eq!(got.body, content::bytes(1, start, start + 1_000));
        begun.elapsed()
    };
    // After these the usual time is known.
    for nth in 0..30 {
        read(nth);
    }
    cluster.origin.delay_every(20, DELAY);
    let times: Vec<Duration> = (30..CHUNKS).map(read).collect();
    let late = later_than_a_second(&times);
    assert!(late <= 1, "{late}: {times:?}");
    assert!(hedges(&cluster, "media", "won") >= 1);
}

#[test]
fn an_only_connection_is_not_taken_for_a_second_request() {
    const FEW: u64 = 60;
    let cluster = Cluster::start();
    cluster.add_source_with("films", &["--max-connections", "1"]);
    put(&cluster.origin, "films", FEW);
    cluster.origin.delay_every(50, DELAY);
    let times = read_cold(&cluster, "films", "films", FEW);
    assert_eq!(times.len() as u64, FEW);
    assert_eq!(cluster.origin.all_hits().len() as u64, FEW, "each once");
    assert_eq!(cluster.origin.most_connections(), 1);
    assert!(hedges(&cluster, "films", "no_budget") >= 1);
}

/// An origin that accepts connections and answers nothing is asked last, like one that refuses
/// them.
#[test]
fn an_origin_that_is_silent_beside_another_is_dead() {
    let cluster = Cluster::start();
    let mirror = Origin::start();
    cluster.add_source_with("films", &[&mirror.url()]);
    for number in 0..12 {
        let path = format!("/films/{number}");
        let silent = Object::generated(number, 1000).latency(Duration::from_secs(60));
        cluster.origin.put(&path, silent);
        mirror.put(&path, Object::generated(number, 1000));
    }
    for number in 0..12 {
        let call = Call::get(&format!("/films/films/{number}"));
        let got = call.send(cluster.edge().http).expect(200);
        assert_eq!(got.body, content::bytes(number, 0, 1000), "{number}");
    }
    // Two by what was asked, the others to see whether it answers again.
    let asked = cluster.origin.all_hits().len();
    assert!(asked < 6, "{asked} of 12 waited for it");
}
