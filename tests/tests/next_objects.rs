//! What a viewer is expected to ask for next is there before it asks.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::{Cluster, KIB, Object, content, eventually};

const SOON: Duration = Duration::from_secs(20);
const SEGMENT: u64 = 300 * KIB;

fn put_segment(cluster: &Cluster, path: &str, seed: u64) -> String {
    let object = Object::generated(seed, SEGMENT).header("Cache-Control", "max-age=3600");
    cluster.put(path, object)
}

fn next_objects(cluster: &Cluster, result: &str) -> u64 {
    let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
    let name = format!("cache_edge_next_objects_total{{result=\"{result}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap().parse().unwrap()
}

fn wait_for(cluster: &Cluster, result: &str, count: u64) {
    eventually(&format!("{count} {result}"), SOON, || {
        (next_objects(cluster, result) >= count).then_some(())
    });
}

fn play(cluster: &Cluster, target: &str, seed: u64, cmcd: &str) -> String {
    let mut call = Call::get(target);
    if !cmcd.is_empty() {
        call = call.header("CMCD-Request", cmcd);
    }
    let response = call.send(cluster.edge().http).expect(200);
    assert!(response.body == content::bytes(seed, 0, SEGMENT));
    response.header("Cache-Status").unwrap().to_owned()
}

#[test]
fn what_a_player_names_is_there_before_it_asks() {
    let cluster = Cluster::start();
    let targets: Vec<String> = (1..=4)
        .map(|n| put_segment(&cluster, &format!("/v/{n}.m4s"), n))
        .collect();
    play(&cluster, &targets[0], 1, "bl=20000,nor=\"2.m4s\"");
    wait_for(&cluster, "fetched", 1);
    let status = play(&cluster, &targets[1], 2, "bl=20000,nor=\"..%2Fv%2F3.m4s\"");
    assert!(status.ends_with("; hit"), "{status}");
    wait_for(&cluster, "fetched", 2);
    // A starved player has other worries.
    let status = play(&cluster, &targets[2], 3, "bl=20000,bs,nor=\"4.m4s\"");
    assert!(status.ends_with("; hit"), "{status}");
    for n in 1..=3 {
        assert_eq!(cluster.origin.hits(&format!("/v/{n}.m4s")).len(), 1);
    }
    assert!(cluster.origin.hits("/v/4.m4s").is_empty());
    assert_eq!(next_objects(&cluster, "fetched"), 2);
}

#[test]
fn nothing_outside_of_the_source_is_asked_for_whatever_a_player_names() {
    let cluster = Cluster::start();
    cluster.add_source("other");
    let target = put_segment(&cluster, "/v/1.m4s", 1);
    put_segment(&cluster, "/secret.m4s", 2);
    let names = [
        "%2Fother%2Fsecret.m4s",
        "..%2F..%2Fother%2Fsecret.m4s",
        "%2F%2Fevil.example%2Fsecret.m4s",
        "http%3A%2F%2Fevil.example%2Fsecret.m4s",
    ];
    for name in names {
        play(&cluster, &target, 1, &format!("bl=20000,nor=\"{name}\""));
    }
    assert_eq!(next_objects(&cluster, "outside"), 4);
    // One that is not there costs one request.
    for _ in 0..5 {
        play(&cluster, &target, 1, "bl=20000,nor=\"missing.m4s\"");
    }
    wait_for(&cluster, "repeated", 4);
    assert_eq!(cluster.origin.hits("/v/missing.m4s").len(), 1);
    assert!(cluster.origin.hits("/secret.m4s").is_empty());
    let paths = cluster.origin.all_hits().len();
    assert_eq!(paths, 2, "{:?}", cluster.origin.all_hits());
}
