//! The resource use and traffic of each source: in `source show`, `source list`, the dashboard's
//! data and the metrics.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::{CHUNK, Cluster, Object, Origin, eventually};
use serde_json::{Value, json};

const SIZE: u64 = 2 * CHUNK;
const WAIT: Duration = Duration::from_secs(20);

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let list = list.as_array().unwrap();
    list.iter().find(|it| it["name"] == name).unwrap()
}

#[test]
fn two_sources_one_with_a_dead_mirror() {
    let cluster = Cluster::start();
    let (mut gone, mirror) = (Origin::start(), Origin::start());
    gone.stop();
    let (dead, alive) = (gone.url(), mirror.url());
    for arguments in [
        ["source", "add", "mirrored", &dead, &alive],
        ["source", "set", "media", "--quota", "1GiB"],
    ] {
        assert!(cluster.coordinator.cli(&arguments).status.success());
    }
    let edge = cluster.edge();
    let film = cluster.put("/film.mp4", Object::generated(1, SIZE));
    Call::get(&film).send(edge.http).expect(200);
    Call::get(&film).send(edge.http).expect(200);
    for number in 0..4 {
        let path = format!("/{number}.mp4");
        mirror.put(&path, Object::generated(2, 1000));
        let target = format!("/mirrored{path}");
        Call::get(&target).send(edge.http).expect(200);
    }

    let show = |name: &str| cluster.coordinator.json(&["source", "show", name]);
    let mirrored = eventually("the edge reports its sources", WAIT, || {
        let of = show("mirrored")["uses"][0].clone();
        (of["bytes_sent"] == 4_000 && of["origins_down"] == 1).then_some(of)
    });
    assert_eq!(mirrored["name"], edge.name);
    assert_eq!(mirrored["bytes_origin"], 4_000);
    let address = |url: &str| url.trim_start_matches("http://").to_owned();
    let [first, second] = [&mirrored["origins"][0], &mirrored["origins"][1]];
    assert_eq!(first["name"], address(&dead));
    assert!(first["down_ms"].is_u64(), "{first}");
    let error = first["last_error"].as_str().unwrap();
    assert!(error.contains("can not be reached"), "{error}");
    assert!(second["first_byte_ms"].as_f64() > Some(0.0), "{second}");
    let healthy = json!({
        "name": address(&alive), "down_ms": null, "first_byte_ms": second["first_byte_ms"],
        "last_error": "", "last_error_ms": null,
    });
    assert_eq!(*second, healthy);

    let media = &show("media")["uses"][0];
    assert_eq!(media["bytes_sent"], 2 * SIZE);
    assert_eq!(media["bytes_origin"], SIZE);
    let hit = media["bytes_hit"].as_u64().unwrap();
    assert!((SIZE..=2 * SIZE).contains(&hit), "{hit}");
    assert_eq!(media["quota_bytes"], 1_u64 << 30);
    assert!(media["bytes_used"].as_u64().unwrap() >= SIZE);
    assert_eq!(media["origin_errors"], 0);
    assert_eq!(media["origins_down"], 0);

    let list = cluster.coordinator.json(&["source", "list"]);
    assert_eq!(named(&list, "mirrored")["use"]["origins_down"], 1);
    assert_eq!(named(&list, "media")["use"]["bytes_hit"], hit);
    let shown = cluster.coordinator.cli(&["source", "show", "mirrored"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("down for"), "{shown}");

    let overview = Call::get("/api/v1/overview").send(cluster.coordinator.http);
    let overview: Value = serde_json::from_slice(&overview.expect(200).body).unwrap();
    assert_eq!(named(&overview["sources"], "media")["hit"], hit);
    let down = &named(&overview["sources"], "mirrored")["down"];
    assert_eq!(down.as_array().unwrap().len(), 1);
    assert_eq!(down[0]["edge"], edge.name);

    let history = eventually("the last day is kept", WAIT, || {
        let day = Call::get("/api/v1/history/sources").send(cluster.coordinator.http);
        let day: Value = serde_json::from_slice(&day.expect(200).body).unwrap();
        let all = day["sources"].as_array().unwrap();
        let has_all = all.len() == 2 && all[0]["total"]["hit"] == hit;
        has_all.then_some(day)
    });
    let media = named(&history["sources"], "media");
    assert_eq!(media["total"]["sent"], 2 * SIZE);
    assert_eq!(media["total"]["origin"], SIZE);
    let steps = history["t"].as_array().unwrap().len();
    assert_eq!(media["sent"].as_array().unwrap().len(), steps);

    let metrics = Call::get("/metrics").send(edge.admin).text();
    let line = format!("cache_edge_source_sent_bytes_total{{source=\"media\",from=\"hit\"}} {hit}");
    assert!(metrics.lines().any(|it| it == line), "{line}\n{metrics}");
}
