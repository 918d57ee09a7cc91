//! Players are steered to edges, at the coordinator's HTTP and at any edge, by which edges hold the
//! object, and never in circles.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::{Cluster, MIB, Object, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

/// Where an object is said to be.
#[track_caller]
fn steered(address: SocketAddr, target: &str) -> String {
    let answer = Call::get(&format!("/steer{target}"))
        .send(address)
        .expect(307);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    answer.header("location").unwrap().to_owned()
}

#[test]
fn players_are_steered_to_who_holds_the_object() {
    let mut cluster = Cluster::with_edges(2);
    let size = 6 * MIB;
    for (name, edge) in [("/a", 0), ("/b", 1)] {
        let target = cluster.put(name, Object::generated(1, size));
        cluster.edges[edge].get(&target).expect(200);
        let edge = cluster.edges[edge].name.clone();
        cluster.wait_recorded_on(name, &edge, &[(0, size)]);
    }
    let everywhere = [
        cluster.coordinator.http,
        cluster.edges[0].http,
        cluster.edges[1].http,
    ];
    let urls: Vec<String> = cluster.edges.iter().map(|edge| edge.url()).collect();
    for address in everywhere {
        for (object, url) in [("/media/a", &urls[0]), ("/media/b", &urls[1])] {
            let own = format!("{object}?cc-key=k&cc-signature=a%2Fb&CMCD=su");
            assert_eq!(steered(address, &own), format!("{url}{own}"));
            let word = format!("/cc~abc{object}");
            assert_eq!(steered(address, &word), format!("{url}{word}"));
            let manifest = Call::get(&format!("/steer.json?key={}", &object[1..]));
            let manifest = manifest.send(address).expect(200).json();
            let priority: Vec<&str> = manifest["PATHWAY-PRIORITY"]
                .as_array()
                .unwrap()
                .iter()
                .map(|name| name.as_str().unwrap())
                .collect();
            let best = if *url == urls[0] { "edge-a" } else { "edge-b" };
            assert!(priority.len() == 2 && priority[0] == best, "{manifest}");
            let hosts = manifest["PATHWAY-CLONES"].to_string();
            assert!(
                urls.iter().all(|url| hosts.contains(&url[7..])),
                "{manifest}"
            );
        }
        // In circles, out of a source, to a source that is not there.
        for target in [
            "/steer/steer/media/a",
            "/steer/media/../../a",
            "/steer/_peer/v1/x",
            "/steer/v1/x",
        ] {
            let answer = Call::get(target).send(address);
            assert!(
                (400..500).contains(&answer.status),
                "{target}: {}",
                answer.status
            );
        }
    }
    let unknown = Call::get("/steer/unknown/a").send(cluster.coordinator.http);
    assert_eq!(unknown.status, 404);
    let taken = ["source", "add", "steer", "http://127.0.0.1:1/"];
    assert!(!cluster.coordinator.cli(&taken).status.success());

    // An edge that drains is left out, whatever it holds.
    assert!(
        cluster
            .coordinator
            .cli(&["edge", "drain", "edge-a"])
            .status
            .success()
    );
    for address in everywhere {
        eventually("players go elsewhere", PATIENCE, || {
            let to = steered(address, "/media/a");
            to.starts_with(&urls[1]).then_some(())
        });
    }
    // Without a coordinator an edge has only itself to name.
    cluster.coordinator.terminate();
    eventually("the edge steers to itself", PATIENCE, || {
        let to = steered(cluster.edges[0].http, "/media/b");
        (to == format!("{}/media/b", urls[0])).then_some(())
    });
}
