//! A source's connection limit applies to all requests of edges, including those that the
//! coordinator does not plan.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chunkcache_tests::http::Call;
use chunkcache_tests::{
    Cluster, ClusterOptions, Coordinator, Edge, MIB, Object, Origin, content, eventually,
};
use rustix::process::Signal;

const LIMIT: usize = 4;
const SIZE: u64 = 200 << 10;
const LATENCY: Duration = Duration::from_millis(30);

fn limited(edges: usize) -> Cluster {
    let cluster = Cluster::with_edges(edges);
    cluster.add_source_with("media", &[&format!("--max-connections={LIMIT}")]);
    cluster
}

/// Requests this many cold keys, passed-through objects and objects to be revalidated, from every
/// edge at once.
fn storm(cluster: &Cluster, name: &str, count: u64) {
    let put = |kind: &str, object: &dyn Fn(u64) -> Object| -> Vec<String> {
        let path = |number| format!("/{name}-{kind}-{number}.mp4");
        let objects = (0..count).map(|it| cluster.put(&path(it), object(it).latency(LATENCY)));
        objects.collect()
    };
    let cold = put("cold", &|seed| Object::generated(seed, SIZE));
    let passed = put("passed", &|seed| {
        Object::generated(seed, SIZE).etag(None).last_modified(None)
    });
    let stale = put("stale", &|seed| {
        Object::generated(seed, SIZE).header("Cache-Control", "max-age=0")
    });
    for target in &stale {
        for edge in &cluster.edges {
            Call::get(target).send(edge.http).expect(200);
        }
    }
    std::thread::scope(|scope| {
        for edge in &cluster.edges {
            for targets in [&cold, &passed, &stale] {
                for (seed, target) in targets.iter().enumerate() {
                    scope.spawn(move || {
                        let reply = Call::get(target).send(edge.http).expect(200);
                        assert!(
                            reply.body == content::bytes(seed as u64, 0, SIZE),
                            "{target}"
                        );
                    });
                }
            }
        }
    });
}

#[test]
fn what_edges_ask_by_themselves_is_within_the_limit_of_the_source() {
    let cluster = limited(3);
    storm(&cluster, "first", 8);
    let most = cluster.origin.most_connections();
    assert!(most <= LIMIT, "{most} connections");
    assert!(most > 1, "they are used");
    assert!(cluster.origin.all_hits().len() > 3 * 8 * 2);
}

#[test]
fn without_a_coordinator_each_edge_has_a_part_of_the_limit() {
    let mut cluster = limited(3);
    storm(&cluster, "before", 2);
    cluster.coordinator.kill();
    storm(&cluster, "alone", 5);
    cluster.coordinator.start();
    // An edge's open connections count from the start of its session.
    cluster.edges.iter_mut().for_each(Edge::wait_ready);
    storm(&cluster, "after", 5);
    let most = cluster.origin.most_connections();
    assert!(most <= LIMIT, "{most} connections");
}

/// Requests one new object after another: every second one may not be cached. Returns what went
/// wrong.
fn one_after_another(
    origin: &Origin,
    edge: &Edge,
    stop: &AtomicBool,
    answers: &AtomicU64,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for seed in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let object = Object::generated(seed, SIZE).latency(LATENCY);
        let object = match seed % 2 {
            0 => object,
            _ => object.etag(None).last_modified(None),
        };
        let path = format!("/{}-{seed}.mp4", edge.name);
        origin.put(&path, object);
        let target = format!("/media{path}");
        let reply = Call::get(&target).send(edge.http);
        if reply.status != 200 || reply.body != content::bytes(seed, 0, SIZE) {
            wrong.push(format!("{target}: {}", reply.status));
        }
        answers.fetch_add(1, Ordering::Relaxed);
    }
    wrong
}

/// Stops even if the test fails.
struct StopAtTheEnd<'a>(&'a AtomicBool);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_coordinator_that_dies_or_hangs_under_load_lets_nobody_pass_the_limit() {
    const SEED: u64 = 77;
    const PIECE: u64 = 64 << 10;
    let mut cluster = limited(3);
    // Longer than the test.
    let film = Object::generated(SEED, 1024 * MIB).paced(MIB);
    let film = cluster.put("/film.mp4", film);
    let (stop, answers) = (
        AtomicBool::new(false),
        [AtomicU64::new(0), AtomicU64::new(0)],
    );
    let Cluster {
        edges,
        coordinator,
        origin,
        ..
    } = &mut cluster;
    let (edges, origin) = (&*edges, &*origin);
    let more = || {
        let before = answers.each_ref().map(|it| it.load(Ordering::Relaxed));
        eventually("both go on", Duration::from_secs(30), || {
            let now = answers.each_ref().map(|it| it.load(Ordering::Relaxed));
            (now[0] > before[0] + 10 && now[1] > before[1] + 10).then_some(())
        });
    };
    let sessions = |coordinator: &Coordinator| {
        eventually("the edges' sessions", Duration::from_secs(30), || {
            (coordinator.json(&["status"])["edges_active"] == 3).then_some(())
        });
    };
    std::thread::scope(|scope| {
        let stop = &stop;
        let stops = StopAtTheEnd(stop);
        // It gets more of the connections than its share.
        let playing = scope.spawn(move || {
            let mut reply = Call::get(&film).open(edges[0].http).unwrap();
            let mut position = 0;
            while !stop.load(Ordering::Relaxed) {
                let bytes = reply.take(PIECE as usize).unwrap();
                assert!(bytes == content::bytes(SEED, position, position + PIECE));
                position += PIECE;
            }
        });
        let asking = [0, 1].map(|it| {
            let answers = &answers[it];
            scope.spawn(move || one_after_another(origin, &edges[it + 1], stop, answers))
        });
        more();
        for _ in 0..2 {
            coordinator.kill();
            more();
            coordinator.start();
            sessions(coordinator);
            more();
        }
        coordinator.process().signal(Signal::STOP);
        more();
        coordinator.process().signal(Signal::CONT);
        sessions(coordinator);
        more();
        coordinator.kill();
        drop(stops);
        for asking in asking {
            assert_eq!(asking.join().unwrap(), Vec::<String>::new());
        }
        playing.join().unwrap();
    });
    let most = cluster.origin.most_connections();
    assert!(most <= LIMIT, "{most} connections");
    assert!(most > 2, "they are used");
}

/// No request is refused because of a limit that the operator set: waiting readers take connections
/// from lookahead, on whichever edge that runs.
#[test]
fn readers_on_three_edges_share_two_connections_and_the_whole_rate() {
    const RATE: f64 = 8_000_000.0;
    const FILM: u64 = 96 * MIB;
    const PLAYED: Duration = Duration::from_secs(8);
    let cluster = Cluster::with_edges(3);
    cluster.add_source_with("media", &["--max-connections=2", "--max-rate=8000000"]);
    let films: Vec<String> = (0..3)
        .map(|seed| {
            let object = Object::generated(seed, FILM).latency(LATENCY);
            cluster.put(&format!("/shared-{seed}.mp4"), object)
        })
        .collect();
    let begun = Instant::now();
    let played: Vec<(Duration, u64)> = std::thread::scope(|scope| {
        let viewers: Vec<_> = (0..3)
            .map(|number| {
                let (edge, film) = (cluster.edges[number].http, &films[number]);
                scope.spawn(move || {
                    let mut reply = Call::get(film).open(edge).unwrap();
                    assert_eq!(reply.status, 200, "{film}");
                    let first = reply.take(1).unwrap();
                    assert!(first == content::bytes(number as u64, 0, 1));
                    let (first, mut position) = (begun.elapsed(), 1);
                    while begun.elapsed() < PLAYED {
                        let piece = reply.take(64 << 10).unwrap();
                        let end = position + piece.len() as u64;
                        assert!(piece == content::bytes(number as u64, position, end));
                        position = end;
                    }
                    (first, position)
                })
            })
            .collect();
        let viewers = viewers.into_iter();
        viewers.map(|viewer| viewer.join().unwrap()).collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let paths = (0..3).map(|seed| format!("/shared-{seed}.mp4"));
    let sent: u64 = paths.map(|path| cluster.origin.body_bytes(&path)).sum();
    let rate = sent as f64 / seconds;
    eprintln!("{played:?}, {:.1} MB/s of 8", rate / 1e6);
    for (first, bytes) in &played {
        assert!(*first <= Duration::from_secs(2) + LATENCY, "{played:?}");
        assert!(*bytes > 4 * MIB, "{played:?}");
    }
    assert!(rate >= 0.8 * RATE, "{rate} bytes per second of {RATE}");
    let most = cluster.origin.most_connections();
    assert!(most <= 2, "{most} connections");
}

/// Players that are paused take nothing, and anybody can do the same.
#[track_caller]
fn rest_while_another_reads(cluster: &Cluster, lifetime: &str) {
    const FILM: u64 = 32 * MIB;
    let object = |seed| Object::generated(seed, FILM).header("Cache-Control", lifetime);
    let mut resting: Vec<_> = (0..LIMIT as u64 + 1)
        .map(|seed| {
            let target = cluster.put(&format!("/rests-{seed}.mp4"), object(seed));
            Call::get(&target).open(cluster.edge().http)
        })
        .collect();
    let target = cluster.put("/film.mp4", object(9));
    let reply = Call::get(&target).range(MIB, 2 * MIB);
    let reply = reply.send(cluster.edge().http).expect(206);
    assert!(reply.body == content::bytes(9, MIB, 2 * MIB));
    for (seed, reply) in resting.iter_mut().enumerate() {
        let rest = reply.as_mut().unwrap().take(FILM as usize).unwrap();
        assert!(rest == content::bytes(seed as u64, 0, FILM), "{seed}");
    }
    assert!(cluster.origin.most_connections() <= LIMIT);
}

#[test]
fn clients_that_take_nothing_keep_no_connection_that_others_wait_for() {
    rest_while_another_reads(&limited(1), "no-store");
}

/// Where not a chunk finds space, the bytes go past the store.
#[test]
fn nor_do_readers_of_what_cannot_be_stored() {
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        edge_arguments: vec!["--max-size=1MiB"],
        ..ClusterOptions::default()
    });
    cluster.add_source_with("media", &[&format!("--max-connections={LIMIT}")]);
    rest_while_another_reads(&cluster, "max-age=3600");
}
