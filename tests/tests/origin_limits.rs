//! The limit of a source's connections holds for all that edges ask, also for what nobody can plan.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::{Cluster, Edge, Object, content};

const LIMIT: usize = 4;
const SIZE: u64 = 200 << 10;
const LATENCY: Duration = Duration::from_millis(30);

fn limited(edges: usize) -> Cluster {
    let cluster = Cluster::with_edges(edges);
    cluster.add_source_with("media", &[&format!("--max-connections={LIMIT}")]);
    cluster
}

/// Cold keys, objects that are passed through and objects to be revalidated, of this many each, asked of every edge at once.
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
    // What an edge has open is counted from its session on.
    cluster.edges.iter_mut().for_each(Edge::wait_ready);
    storm(&cluster, "after", 5);
    let most = cluster.origin.most_connections();
    assert!(most <= LIMIT, "{most} connections");
}
