//! The command line: JSON shapes, exit statuses, and the effects of the commands on the cluster.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};
use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::process::Process;
use chunkcache_tests::services::program;
use chunkcache_tests::{CHUNK, Cluster, MIB, Object, content, eventually};

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[test]
fn exit_statuses() {
    let cluster = Cluster::start();
    let cli = |arguments: &[&str]| cluster.coordinator.cli(arguments);
    assert_eq!(code(&cli(&["source", "list"])), Some(0));
    assert_eq!(code(&cli(&["source", "show", "nobody"])), Some(1));
    assert_eq!(code(&cli(&["source", "remove", "nobody"])), Some(1));
    let bad_name = ["source", "add", "Bad Name", "http://127.0.0.1:1"];
    assert!(matches!(code(&cli(&bad_name)), Some(1 | 2)));
    assert_eq!(code(&cli(&["entry", "show", "media/none"])), Some(1));
    assert_eq!(code(&cli(&["entry", "nonsense"])), Some(2));
    assert_eq!(code(&cli(&["precache"])), Some(2));
    assert_eq!(code(&cli(&["edge", "drain", "nobody"])), Some(1));
    assert_eq!(code(&cli(&["--no-such-option"])), Some(2));
}

#[test]
fn shapes_of_json() {
    let cluster = Cluster::start();
    let size = 5 * MIB;
    let target = cluster.put("/show.mp4", Object::generated(111, size));
    Call::get(&target)
        .range(0, 10)
        .send(cluster.edge().http)
        .expect(206);
    cluster.edge().get(&target).expect(200);
    cluster.wait_recorded("/show.mp4", &[(0, size)]);
    let json = |arguments: &[&str]| cluster.coordinator.json(arguments);

    let sources = json(&["source", "list"]);
    assert_eq!(sources.as_array().unwrap().len(), 1);
    assert_eq!(sources[0]["name"], "media");

    let entry = json(&["entry", "show", "media/show.mp4"]);
    assert!(entry["id"].is_string());
    assert_eq!(entry["source"], "media");
    assert_eq!(
        entry["path"].as_str().unwrap().trim_start_matches('/'),
        "show.mp4"
    );
    assert_eq!(entry["size"], size);
    assert_eq!(entry["etag"], "\"generated-111-5242880\"");
    assert_eq!(entry["chunk_size"], CHUNK);
    assert_eq!(entry["pinned"], false);
    assert_eq!(entry["complete"], true);
    assert!(entry["edges"].to_string().contains("edge-a"), "{entry}");
    let by_id = json(&["entry", "show", entry["id"].as_str().unwrap()]);
    assert_eq!(by_id["path"], entry["path"]);
    assert_eq!(json(&["entry", "list"]).as_array().unwrap().len(), 1);

    let edges = json(&["edge", "list"]);
    assert_eq!(edges[0]["name"], "edge-a");
    assert_eq!(edges[0]["state"], "active");
    assert_eq!(edges[0]["url"], cluster.edge().url());
    assert_eq!(json(&["precache", "list"]).as_array().unwrap().len(), 0);
    json(&["status"]);
    json(&["explain", "media/show.mp4", "--chunk", "1"]);

    let by_entry = format!("/v1/entries/{}", entry["id"].as_str().unwrap());
    let served = cluster.edge().get(&by_entry).expect(200);
    assert_eq!(served.body, content::bytes(111, 0, size));
}

#[test]
fn global_options_stand_before_or_after_and_no_codes_are_printed() {
    let cluster = Cluster::start();
    let endpoint = format!("http://{}", cluster.coordinator.grpc);
    let program = program("cache-coordinator");
    for arguments in [
        [
            "--endpoint",
            &endpoint,
            "--output",
            "json",
            "source",
            "list",
        ],
        [
            "source",
            "list",
            "--endpoint",
            &endpoint,
            "--output",
            "json",
        ],
        [
            "source",
            "--output",
            "json",
            "list",
            "--endpoint",
            &endpoint,
        ],
    ] {
        let output = Command::new(&program).args(arguments).output().unwrap();
        assert_eq!(code(&output), Some(0), "{arguments:?}: {output:?}");
        let parsed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(parsed.is_array());
    }
    for arguments in [&["source", "list"][..], &["edge", "list"], &["status"]] {
        let output = cluster.coordinator.cli(arguments);
        let all = [output.stdout, output.stderr].concat();
        assert!(
            !all.contains(&0x1b) && !all.contains(&b'\r'),
            "{arguments:?}"
        );
    }
}

#[test]
fn precache_with_progress_makes_a_hit() {
    let cluster = Cluster::start();
    let size = 12 * MIB + 5;
    let target = cluster.put("/ahead.mp4", Object::generated(112, size));
    let output = cluster
        .coordinator
        .cli(&["precache", "media/ahead.mp4", "--follow"]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert!(!output.stdout.contains(&0x1b) && !output.stdout.contains(&b'\r'));
    cluster.wait_recorded("/ahead.mp4", &[(0, size)]);
    // One byte more than the object: the request for its size, made before the job.
    let sent = cluster.origin.body_bytes("/ahead.mp4");
    assert!(sent == size || sent == size + 1, "{sent} of {size}");
    let hit = cluster.edge().get(&target).expect(200);
    assert_eq!(content::sha256_of(&hit.body), content::sha256(112, size));
    assert!(hit.header("cache-status").unwrap().contains("hit"));
    assert_eq!(cluster.origin.body_bytes("/ahead.mp4"), sent);
}

#[test]
fn precache_of_a_range_and_its_cancellation() {
    let cluster = Cluster::start();
    cluster.put("/part.mp4", Object::generated(113, 20 * MIB));
    let part = [
        "precache",
        "media/part.mp4",
        "--range",
        "0-4194303",
        "--edge",
        "edge-a",
        "--follow",
    ];
    assert_eq!(code(&cluster.coordinator.cli(&part)), Some(0));
    cluster.wait_recorded("/part.mp4", &[(0, 2 * CHUNK)]);

    cluster.put("/slow.mp4", Object::generated(114, 64 * MIB).paced(MIB));
    let job = cluster.coordinator.json(&["precache", "media/slow.mp4"]);
    let id = job["id"].as_str().unwrap().to_owned();
    let jobs = cluster.coordinator.json(&["precache", "list"]);
    let job = jobs
        .as_array()
        .unwrap()
        .iter()
        .find(|job| job["id"] == id.as_str())
        .unwrap();
    for field in ["state", "bytes_done", "bytes_total", "rate", "eta_seconds"] {
        assert!(job.get(field).is_some(), "{field} is missing in {job}");
    }
    assert_eq!(job["bytes_total"], 64 * MIB);
    assert_eq!(
        code(&cluster.coordinator.cli(&["precache", "cancel", &id])),
        Some(0)
    );
    eventually("the origin is left alone", Duration::from_secs(20), || {
        let before = cluster.origin.body_bytes("/slow.mp4");
        std::thread::sleep(Duration::from_millis(500));
        (cluster.origin.body_bytes("/slow.mp4") == before).then_some(())
    });
    assert!(cluster.origin.body_bytes("/slow.mp4") < 32 * MIB);
}

#[test]
fn a_removed_source_is_gone_at_once() {
    let cluster = Cluster::start();
    let target = cluster.put("/gone.mp4", Object::generated(115, MIB));
    cluster.edge().get(&target).expect(200);
    assert_eq!(
        code(&cluster.coordinator.cli(&["source", "remove", "media"])),
        Some(0)
    );
    assert_eq!(cluster.edge().get(&target).status, 404);
    cluster.add_source("again");
    assert_eq!(
        cluster.edge().get("/again/gone.mp4").expect(200).body,
        content::bytes(115, 0, MIB)
    );
}

#[test]
fn an_invalidated_object_is_fetched_again() {
    let cluster = Cluster::start();
    let long = |seed| Object::generated(seed, 3 * MIB).header("Cache-Control", "max-age=3600");
    let target = cluster.put("/new.mp4", long(116));
    cluster.edge().get(&target).expect(200);
    cluster.put("/new.mp4", long(117));
    assert_eq!(
        cluster.edge().get(&target).expect(200).body,
        content::bytes(116, 0, 3 * MIB)
    );
    assert_eq!(
        code(
            &cluster
                .coordinator
                .cli(&["entry", "invalidate", "media/new.mp4"])
        ),
        Some(0)
    );
    assert_eq!(
        cluster.edge().get(&target).expect(200).body,
        content::bytes(117, 0, 3 * MIB)
    );
}

#[test]
fn pins_and_draining_are_seen() {
    let cluster = Cluster::start();
    let target = cluster.put("/pin.mp4", Object::generated(118, MIB));
    cluster.edge().get(&target).expect(200);
    cluster.wait_recorded("/pin.mp4", &[(0, MIB)]);
    for (verb, pinned) in [("pin", true), ("unpin", false)] {
        assert_eq!(
            code(&cluster.coordinator.cli(&["entry", verb, "media/pin.mp4"])),
            Some(0)
        );
        assert_eq!(
            cluster
                .coordinator
                .json(&["entry", "show", "media/pin.mp4"])["pinned"],
            pinned
        );
    }
    assert_eq!(
        code(&cluster.coordinator.cli(&["edge", "drain", "edge-a"])),
        Some(0)
    );
    eventually("the edge drains", Duration::from_secs(10), || {
        (cluster.coordinator.json(&["edge", "list"])[0]["state"] == "draining").then_some(())
    });
}

#[test]
fn watch_prints_an_object_a_line_as_it_happens() {
    let cluster = Cluster::start();
    let target = cluster.put("/watched.mp4", Object::generated(119, 4 * MIB));
    Call::head(&target).send(cluster.edge().http).expect(200);
    let endpoint = format!("--endpoint=http://{}", cluster.coordinator.grpc);
    let watching = || {
        let mut command = Command::new(program("cache-coordinator"));
        command.args(["watch", "media/watched.mp4", "--output=json", &endpoint]);
        Process::spawn(
            "watch",
            &command,
            &cluster.directory.path().join("watch.log"),
        )
    };
    eventually("the entry is known", Duration::from_secs(10), || {
        let shown = cluster
            .coordinator
            .cli(&["entry", "show", "media/watched.mp4"]);
        shown.status.success().then_some(())
    });
    let watch = watching();
    eventually("a snapshot", Duration::from_secs(10), || {
        watch.output().contains('\n').then_some(())
    });
    cluster.edge().get(&target).expect(200);
    cluster.wait_recorded("/watched.mp4", &[(0, 4 * MIB)]);
    eventually("what was stored is told", Duration::from_secs(10), || {
        let output = watch.output();
        let whole = &output[..output.rfind('\n').map_or(0, |end| end + 1)];
        let events: Vec<serde_json::Value> = whole
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect();
        assert!(events.iter().all(serde_json::Value::is_object));
        (events.len() > 1 && whole.contains("edge-a")).then_some(())
    });
}
