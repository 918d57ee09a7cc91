//! Live titles: what is not there yet, and answers that are kept as a whole, once for the cluster.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use chunkcache_tests::http::{Call, Response};
use chunkcache_tests::origin::Times;
use chunkcache_tests::{Cluster, Edge, Fault, Object, content, eventually};

/// Longer than a usual question waits alone, and longer than a coordinator lets others wait.
const BLOCKED: Duration = Duration::from_secs(5);
const VIEWERS_OF_EDGE: usize = 5;

/// As live servers answer: without a validator, a length or ranges.
fn whole(object: Object, cache_control: &str) -> Object {
    let faults = [Fault::Chunked, Fault::IgnoreRange].into_iter();
    let object = object.etag(None).header("Cache-Control", cache_control);
    faults.fold(object, |it, fault| it.fault(fault, Times::Always))
}

fn playlist(version: u32, cache_control: &str) -> Object {
    let text = format!("#EXTM3U\n#EXTINF:1,\n{version}.ts\n");
    whole(Object::text(&text).unwrap(), cache_control)
}

fn addresses(cluster: &Cluster) -> Vec<SocketAddr> {
    cluster.edges.iter().map(|edge| edge.http).collect()
}

/// Some viewers on each of these edges, at once.
fn view(edges: &[SocketAddr], target: &str) -> Vec<Response> {
    std::thread::scope(|scope| {
        let viewers = edges.iter().flat_map(|&edge| [edge; VIEWERS_OF_EDGE]);
        let asked: Vec<_> = viewers
            .map(|edge| scope.spawn(move || Call::get(target).send(edge).expect(200)))
            .collect();
        asked.into_iter().map(|it| it.join().unwrap()).collect()
    })
}

/// Asks all of these edges until each has the version.
fn await_version(edges: &[SocketAddr], target: &str, version: u32) {
    let expected = format!("\n{version}.ts\n");
    eventually("the version is at all edges", BLOCKED * 4, || {
        let answers = view(edges, target);
        let has = |it: &Response| it.text().contains(&expected);
        answers.iter().all(has).then_some(())
    });
}

#[test]
fn a_playlist_that_waits_is_asked_for_once() {
    let cluster = Cluster::with_edges(1);
    let waiting = |part: u32| {
        let object = Object::text(&format!("#EXTM3U\n#EXTINF:1,\n{part}.ts\n")).unwrap();
        let object = object.header("Cache-Control", "max-age=6");
        object.latency(BLOCKED)
    };
    let at = |kind: &str, part: u32| format!("/{kind}/index.m3u8?_HLS_msn=3&_HLS_part={part}");
    for part in 0..2 {
        cluster.put(&at("stored", part), waiting(part));
        let whole = playlist(part, "max-age=6").latency(BLOCKED);
        cluster.put(&at("whole", part), whole);
    }
    let mut viewers = Vec::new();
    for kind in ["stored", "whole"] {
        for viewer in 0..30 {
            let (part, edge) = (viewer % 2, cluster.edge().http);
            let target = format!("/media{}", at(kind, part));
            let asked = move || (part, Call::get(&target).send(edge).expect(200).text());
            viewers.push(std::thread::spawn(asked));
        }
    }
    for viewer in viewers {
        let (part, text) = viewer.join().unwrap();
        assert!(text.contains(&format!("{part}.ts")), "{part}: {text}");
    }
    for kind in ["stored", "whole"] {
        let hits = cluster.origin.hits(&format!("/{kind}/index.m3u8"));
        let targets: BTreeSet<&str> = hits.iter().map(|hit| hit.target.as_str()).collect();
        assert_eq!((hits.len(), targets.len()), (2, 2), "{kind}: {hits:?}");
    }
}

#[test]
fn parts_and_reloads_that_wait_are_asked_for_once_by_all_edges() {
    let cluster = Cluster::with_edges(3);
    let edges = addresses(&cluster);
    let size = 300_000;
    // Shorter than what gets a second request beside it.
    let delays = [0, 400, 2_500].map(Duration::from_millis);
    let mut targets = Vec::new();
    for (number, delay) in delays.into_iter().enumerate() {
        let seed = number as u64;
        let part = whole(Object::generated(seed, size), "max-age=6").latency(delay);
        targets.push((seed, cluster.put(&format!("/ladder/{number}.m4s"), part)));
        // One that becomes an entry is joined likewise, however long the origin takes.
        let stored = Object::generated(seed, size).latency(delay);
        targets.push((seed, cluster.put(&format!("/stored/{number}.m4s"), stored)));
    }
    std::thread::scope(|scope| {
        for (seed, target) in &targets {
            let edges = &edges;
            scope.spawn(move || {
                for answer in view(edges, target) {
                    let is_equal = answer.body == content::bytes(*seed, 0, size);
                    assert!(answer.complete && is_equal, "{target}");
                }
            });
        }
        let target = cluster.put(
            "/ladder/index.m3u8?_HLS_msn=3&_HLS_part=1",
            playlist(7, "max-age=6").latency(BLOCKED),
        );
        for answer in view(&edges, &target) {
            assert!(answer.text().contains("7.ts"));
        }
    });
    for (_, target) in &targets {
        let mut hits = cluster.origin.hits(target.strip_prefix("/media").unwrap());
        // An edge may fetch a late chunk of a known entry by itself.
        hits.retain(|hit| hit.header("if-match").is_none());
        assert_eq!(hits.len(), 1, "{target}: {hits:?}");
    }
    let reloads = cluster.origin.hits("/ladder/index.m3u8");
    assert_eq!(reloads.len(), 1, "{reloads:?}");
}

#[test]
fn a_version_of_a_playlist_is_one_request_for_all_edges() {
    let cluster = Cluster::with_edges(3);
    let edges = addresses(&cluster);
    let lifetime = Duration::from_secs(1);
    let target = cluster.put("/live.m3u8", playlist(0, "max-age=1"));
    let began = Instant::now();
    for version in 0..5 {
        cluster.put("/live.m3u8", playlist(version, "max-age=1"));
        await_version(&edges, &target, version);
    }
    // An answer is asked for when the last one has expired everywhere: its age goes with it.
    let lifetimes = began.elapsed().div_duration_f64(lifetime).ceil() as usize;
    let hits = cluster.origin.hits("/live.m3u8").len();
    assert!(
        (5..=1 + lifetimes).contains(&hits),
        "{hits} in {lifetimes} s"
    );
}

#[test]
fn what_a_keeper_receives_reaches_the_others_before_its_end() {
    let cluster = Cluster::with_edges(2);
    let part = whole(Object::generated(5, 100_000), "max-age=6");
    let part = part.fault(Fault::StallAfter(40_000), Times::Always);
    let target = cluster.put("/part.m4s", part);
    // Nobody's answer ends.
    let opened = addresses(&cluster).into_iter().map(|edge| {
        let call = Call::get(&target).timeout(Duration::from_secs(2));
        call.open(edge).unwrap()
    });
    for reply in opened.collect::<Vec<_>>() {
        let arrived = reply.finish();
        assert!(!arrived.complete && arrived.body == content::bytes(5, 0, 40_000));
    }
    assert_eq!(cluster.origin.hits("/part.m4s").len(), 1);
}

/// Requests whose answer an edge is sending.
fn metric(edge: &Edge, name: &str) -> Option<usize> {
    let metrics = Call::get("/metrics").send(edge.admin).expect(200).text();
    let mut lines = metrics.lines().filter_map(|line| line.split_once(' '));
    let (_, value) = lines.find(|(named, _)| *named == name)?;
    value.parse().ok()
}

fn requests_active(edge: &Edge) -> Option<usize> {
    metric(edge, "cache_edge_http_requests_active")
}

#[test]
fn when_the_keeper_dies_one_of_the_others_asks() {
    let mut cluster = Cluster::with_edges(3);
    let mut keeper = cluster.edges.remove(0);
    let others = addresses(&cluster);
    let lifetime = Duration::from_secs(1);
    let target = cluster.put("/live.m3u8", playlist(0, "max-age=1"));
    let reload = playlist(9, "max-age=6").latency(BLOCKED);
    let reload = cluster.put("/reload.m3u8?_HLS_msn=9", reload);
    // An answer is kept at the edge that asks first.
    Call::get(&target).send(keeper.http).expect(200);
    await_version(&others, &target, 0);
    std::thread::scope(|scope| {
        let first = keeper.http;
        let (reload, others) = (&reload, &others);
        scope.spawn(move || Call::get(reload).open(first).is_ok());
        let is_asked = || (cluster.origin.hits("/reload.m3u8").len() == 1).then_some(());
        eventually("the reload waits at the origin", BLOCKED, is_asked);
        let viewers = scope.spawn(move || view(others, reload));
        let wait = || (requests_active(&keeper)? == others.len()).then_some(());
        eventually("the others wait for the keeper", BLOCKED, wait);
        keeper.kill();
        for answer in viewers.join().unwrap() {
            assert!(answer.text().contains("9.ts"));
        }
    });
    let reloads = cluster.origin.hits("/reload.m3u8");
    assert_eq!(reloads.len(), 2, "once more for both: {reloads:?}");
    for edge in &cluster.edges {
        let failed = metric(edge, "cache_edge_peer_errors_total");
        assert!(failed.is_some_and(|count| count > 0), "it is counted");
    }
    let began = Instant::now();
    let before = cluster.origin.hits("/live.m3u8").len();
    for version in 1..4 {
        cluster.put("/live.m3u8", playlist(version, "max-age=1"));
        await_version(&others, &target, version);
    }
    let lifetimes = began.elapsed().div_duration_f64(lifetime).ceil() as usize;
    let hits = cluster.origin.hits("/live.m3u8").len() - before;
    assert!(
        (3..=1 + lifetimes).contains(&hits),
        "{hits} in {lifetimes} s"
    );
}

#[test]
fn without_a_coordinator_each_edge_asks_for_itself() {
    let mut cluster = Cluster::with_edges(2);
    cluster.coordinator.kill();
    let target = cluster.put("/live.m3u8", playlist(3, "max-age=600"));
    await_version(&addresses(&cluster), &target, 3);
    assert_eq!(cluster.origin.hits("/live.m3u8").len(), 2);
}

#[test]
fn a_purge_holds_for_answers_of_other_edges() {
    let cluster = Cluster::with_edges(2);
    let edges = addresses(&cluster);
    let target = cluster.put("/live.m3u8", playlist(1, "max-age=600"));
    await_version(&edges[..1], &target, 1);
    await_version(&edges[1..], &target, 1);
    for version in 2..5 {
        cluster.put("/live.m3u8", playlist(version, "max-age=600"));
        let purged = cluster
            .coordinator
            .json(&["purge", "--key", "media/live.m3u8"]);
        assert_eq!(purged["purged"], 2, "a copy at each edge: {purged}");
        // The other edge first, in turn.
        let first = version as usize % 2;
        for edge in [edges[first], edges[1 - first]] {
            for answer in view(&[edge], &target) {
                assert!(answer.text().contains(&format!("\n{version}.ts")));
            }
        }
    }
    assert_eq!(cluster.origin.hits("/live.m3u8").len(), 4);
}
