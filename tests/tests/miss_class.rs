//! Why a request was not a hit: `detail` of `Cache-Status`, which is in the access log too.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::{Cluster, ClusterOptions, MIB, Object, eventually};

#[test]
fn a_miss_tells_its_class() {
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        edge_arguments: vec![
            "--max-size=48MiB",
            "--background-fill=false",
            "--lookahead=1",
        ],
        ..ClusterOptions::default()
    });
    let address = cluster.edge().http;
    let class_of = |target: &str, start: u64, end: u64| {
        let answer = Call::get(target)
            .range(start, end)
            .send(address)
            .expect(206);
        let said = answer.header("cache-status").unwrap().to_owned();
        let (_, detail) = said.split_once("detail=\"").unwrap_or(("", "none\""));
        detail.trim_end_matches('"').to_owned()
    };
    let film = Object::generated(90, 100 * MIB).header("Cache-Control", "max-age=3600");
    let target = cluster.put("/classes", film);
    assert_eq!(class_of(&target, 0, 10), "never-here");
    eventually("its chunk is here", Duration::from_secs(20), || {
        (class_of(&target, 0, 10) == "none").then_some(())
    });
    assert_eq!(class_of(&target, 60 * MIB, 60 * MIB + 10), "not-yet-filled");
    // All of it does not fit.
    for start in (0..100).step_by(2) {
        let start = start * MIB;
        let end = start + MIB;
        Call::get(&target)
            .range(start, end)
            .send(address)
            .expect(206);
    }
    eventually("something was evicted", Duration::from_secs(20), || {
        let chunks = (0..50).map(|chunk| chunk * 2 * MIB);
        let classes = chunks.map(|start| class_of(&target, start, start + 10));
        classes
            .into_iter()
            .any(|class| class == "evicted")
            .then_some(())
    });
    let short = Object::generated(91, 1000).header("Cache-Control", "max-age=0");
    let target = cluster.put("/expired", short);
    class_of(&target, 0, 10);
    assert_eq!(class_of(&target, 0, 10), "expired");
    cluster.put("/expired", Object::generated(92, 1000));
    assert_eq!(class_of(&target, 0, 10), "other-version");
}
