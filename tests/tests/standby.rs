//! Two coordinators over one PostgreSQL: one leads, the other takes over.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use chunkcache_tests::{Cluster, Coordinator, Edge, MIB, Object, content, eventually};

/// Until a coordinator accepts a write.
fn accepts_writes(cluster: &Cluster, coordinator: &Coordinator, name: &str) -> bool {
    let url = cluster.origin.url();
    coordinator
        .cli(&["source", "add", name, &url])
        .status
        .success()
}

#[test]
fn a_standby_takes_over_within_seconds_and_playback_goes_on() {
    let mut cluster = Cluster::start_with(chunkcache_tests::ClusterOptions::default());
    let directory = cluster.directory.path().to_owned();
    let mut standby = Coordinator::prepare("standby", &directory, &cluster.postgres.url(), &[]);
    standby.spawn();
    let both = format!(
        "http://{},http://{}",
        cluster.coordinator.grpc, standby.grpc
    );
    let mut edge = Edge::prepare("edge-a", &directory, &both, &["--background-fill=false"]);
    edge.start();
    let size = 40 * MIB;
    let target = cluster.put("/film.mp4", Object::generated(151, size).paced(5 * MIB));
    let mut reply = chunkcache_tests::http::Call::get(&target)
        .open(edge.http)
        .unwrap();
    let first = reply.take(MIB as usize).unwrap();

    cluster.coordinator.kill();
    let lost = Instant::now();
    eventually("the standby leads", Duration::from_secs(10), || {
        accepts_writes(&cluster, &standby, "more").then_some(())
    });
    let took = lost.elapsed();
    assert!(took < Duration::from_secs(6), "takeover after {took:?}");

    let rest = reply.finish();
    assert!(rest.complete, "playback ended with the leader");
    let body = [first, rest.body].concat();
    assert_eq!(content::sha256_of(&body), content::sha256(151, size));
    cluster.wait_recorded_on("/film.mp4", "edge-a", &[(0, size)]);
    edge.kill();
    assert_eq!(standby.terminate().code(), Some(0));
}
