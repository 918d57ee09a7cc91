//! An edge that is alone asks origins at once; from when another one is there they share what each
//! fetches.
#![allow(clippy::unwrap_used)]

use std::{thread, time::Duration};

use chunkcache_tests::{
    Cluster, ClusterOptions, Edge, MIB, Object, content, eventually,
    http::{Call, Connection},
};

const SOON: Duration = Duration::from_secs(20);
const SIZE: u64 = 3 * MIB;

fn is_sole(edge: &Edge) -> bool {
    let metrics = Call::get("/metrics").send(edge.admin).expect(200).text();
    let mut lines = metrics.lines();
    match lines.find_map(|line| line.strip_prefix("cache_edge_sole ")) {
        Some(value) => value == "1",
        None => panic!("no cache_edge_sole in {metrics}"),
    }
}

fn two_edges() -> Cluster {
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: 2,
        edge_arguments: vec!["--background-fill=false"],
        ..ClusterOptions::default()
    });
    cluster.postgres.start_again();
    cluster.coordinator.start();
    cluster.add_source("media");
    cluster.edges[0].start();
    cluster
}

#[test]
fn the_word_goes_with_who_is_there() {
    let mut cluster = two_edges();
    let wait = |cluster: &Cluster, edge: usize, sole: bool| {
        eventually("it knows whether it is alone", SOON, || {
            (is_sole(&cluster.edges[edge]) == sole).then_some(())
        });
    };
    wait(&cluster, 0, true);
    cluster.edges[1].start();
    assert!(
        !is_sole(&cluster.edges[0]),
        "taken back before another is welcomed"
    );
    assert!(!is_sole(&cluster.edges[1]));
    cluster.edges[0].kill();
    wait(&cluster, 1, true);
    cluster.edges[0].start();
    assert!(!is_sole(&cluster.edges[1]));
    // A new coordinator gives no word before it knows who is there.
    cluster.edges[1].kill();
    wait(&cluster, 0, true);
    cluster.coordinator.kill();
    wait(&cluster, 0, false);
    cluster.coordinator.start();
    wait(&cluster, 0, true);
}

/// New objects are read at the first edge, and seeks made in them, while the second one joins and
/// reads the same.
#[test]
fn nothing_comes_twice_while_another_edge_joins() {
    let mut cluster = two_edges();
    eventually("it is alone", SOON, || {
        is_sole(cluster.edge()).then_some(())
    });
    let name = |number: u64| format!("/object-{number}.mp4");
    let object =
        |number: u64| Object::generated(number, SIZE).header("Cache-Control", "max-age=3600");
    let count = 200;
    for number in 0..count {
        cluster.put(&name(number), object(number));
    }
    // To the end: of a fetch whose reader left, what the origin had sent already comes again.
    let read = |address, number: u64| {
        let target = format!("/media{}", name(number));
        let mut connection = Connection::to(address);
        for (start, end) in [(2 * MIB, SIZE), (0, SIZE)] {
            let asked = Call::get(&target).range(start, end);
            let body = connection.send(&asked).expect(206).body;
            assert!(body == content::bytes(number, start, end), "wrong bytes");
        }
    };
    let (first, second) = (cluster.edges[0].http, cluster.edges[1].http);
    cluster.edges[1].spawn();
    thread::scope(|scope| {
        scope.spawn(|| (0..count).for_each(|number| read(first, number)));
        scope.spawn(|| {
            cluster.edges[1].wait_ready();
            (0..count).rev().for_each(|number| read(second, number));
        });
    });
    for number in 0..count {
        let sent = cluster.origin.body_bytes(&name(number));
        assert_eq!(sent, SIZE, "{}: bytes the origin sent", name(number));
    }
    assert!(!is_sole(&cluster.edges[0]));
}

/// A job brings an entry, and no request its key: it is found all the same, also without the
/// origin.
#[test]
fn what_a_job_brought_is_served_without_the_origin() {
    let mut cluster = Cluster::start();
    eventually("it is alone", SOON, || {
        is_sole(cluster.edge()).then_some(())
    });
    let object = Object::generated(7, SIZE).header("Cache-Control", "max-age=3600");
    let target = cluster.put("/precached.mp4", object);
    let done = cluster
        .coordinator
        .cli(&["precache", "media/precached.mp4", "--follow"]);
    assert!(done.status.success());
    cluster.wait_recorded("/precached.mp4", &[(0, SIZE)]);
    cluster.origin.stop();
    let body = Call::get(&target)
        .send(cluster.edge().http)
        .expect(200)
        .body;
    assert!(body == content::bytes(7, 0, SIZE), "wrong bytes");
}
