//! Jobs that fetch in a part of the day only, or no faster than they may.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chunkcache_tests::{CHUNK, Cluster, Object, eventually};
use serde_json::Value;

const WAIT: Duration = Duration::from_secs(30);
const DAY: u64 = 24 * 60;

/// The minute of the day (UTC) after this many more, as `HH:MM`.
fn after(minutes: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let minute = (now.as_secs() / 60 + minutes) % DAY;
    format!("{:02}:{:02}", minute / 60, minute % 60)
}

fn job(cluster: &Cluster, id: &Value) -> Value {
    let jobs = cluster.coordinator.json(&["precache", "list", "--all"]);
    let mut jobs = jobs.as_array().unwrap().iter();
    jobs.find(|job| job["id"] == *id).unwrap().clone()
}

fn wait_done(cluster: &Cluster, id: &Value) {
    eventually("the job is done", WAIT, || {
        (job(cluster, id)["state"] == "done").then_some(())
    });
}

#[test]
fn a_job_fetches_within_its_window_only() {
    let mut cluster = Cluster::start();
    for name in ["later", "now", "marker"] {
        cluster.put(&format!("/{name}.mp4"), Object::generated(41, 4 * CHUNK));
    }
    // Six hours off, so that no clock of a slow machine reaches it.
    let closed = format!("--window={}-{}", after(6 * 60), after(7 * 60));
    let open = format!("--window={}-{}", after(DAY - 6 * 60), after(6 * 60));
    let precache = |arguments: &[&str]| cluster.coordinator.json(arguments);
    let later = precache(&["precache", "media/later.mp4", &closed]);
    assert_eq!(later["state"], "running");
    assert_eq!(later["window"]["time_zone"], "UTC");
    let resumes = later["resumes_at_ms"].as_i64().unwrap();
    let now = precache(&["precache", "media/now.mp4", &open]);
    assert_eq!(now["resumes_at_ms"], Value::Null);
    wait_done(&cluster, &now["id"]);

    // Of no named edge, and not done: a term begins with it before any edge is in session.
    cluster.put("/slow.mp4", Object::generated(46, 4 * CHUNK));
    let slow = ["precache", "media/slow.mp4", "--max-rate=1KiB"];
    let slow = cluster.coordinator.json(&slow);

    let check = |cluster: &Cluster| {
        let job = job(cluster, &later["id"]);
        assert_eq!(job["bytes_done"], 0);
        assert_eq!(job["resumes_at_ms"].as_i64().unwrap(), resumes);
        let waiting = job["waiting"].as_str().unwrap();
        assert!(waiting.starts_with("outside its window"), "{waiting}");
        assert!(waiting.contains("goes on at "), "{waiting}");
        let table = cluster.coordinator.cli(&["precache", "list"]);
        let table = String::from_utf8(table.stdout).unwrap();
        assert!(
            table.contains("waiting") && table.contains("from 20"),
            "{table}"
        );
        let why = cluster
            .coordinator
            .cli(&["explain", "media/later.mp4", "--chunk", "1"]);
        let why = String::from_utf8(why.stdout).unwrap();
        assert!(why.contains("outside its window"), "{why}");
        assert!(
            cluster.origin.body_bytes("/later.mp4") <= CHUNK,
            "what makes the entry"
        );
    };
    check(&cluster);
    // Its window is in the database.
    assert_eq!(cluster.coordinator.terminate().code(), Some(0));
    cluster.coordinator.start();
    cluster.edge_mut().wait_ready();
    let marker = cluster.coordinator.json(&["precache", "media/marker.mp4"]);
    wait_done(&cluster, &marker["id"]);
    check(&cluster);
    assert_eq!(job(&cluster, &slow["id"])["state"], "running");
}

#[test]
fn a_window_that_can_not_be_is_refused_by_its_field() {
    let cluster = Cluster::start();
    cluster.put("/film.mp4", Object::generated(42, CHUNK));
    for (options, code, expected) in [
        (&["--window=25:00-06:00"][..], 2, "--window"),
        (&["--window=06:00"], 2, "HH:MM-HH:MM"),
        (&["--window=06:00-06:00"], 2, "--window"),
        (&["--time-zone=Europe/Berlin"], 2, "--window"),
        (&["--max-rate=fast"], 2, "--max-rate"),
        (
            &["--window=01:00-06:00", "--time-zone=Mars/Olympus"],
            1,
            "time_zone",
        ),
    ] {
        let arguments = [&["precache", "media/film.mp4"], options].concat();
        let output = cluster.coordinator.cli(&arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{options:?}: {error}");
        assert!(error.contains(expected), "{options:?}: {error}");
    }
    let jobs = cluster.coordinator.json(&["precache", "list", "--all"]);
    assert!(jobs.as_array().unwrap().is_empty());
}

#[test]
fn a_job_fetches_no_faster_than_it_may() {
    let cluster = Cluster::start();
    cluster.put("/slow.mp4", Object::generated(43, 8 * CHUNK));
    cluster.put("/other.mp4", Object::generated(44, 16 * CHUNK));
    // A chunk to begin with; the next after half an hour.
    let start = ["precache", "media/slow.mp4", "--max-rate=1KiB"];
    let slow = cluster.coordinator.json(&start);
    assert_eq!(slow["max_rate"], 1024);
    eventually("the first chunk is there", WAIT, || {
        (job(&cluster, &slow["id"])["bytes_done"] == CHUNK).then_some(())
    });
    // A whole job runs meanwhile, so there was time for more.
    let other = cluster.coordinator.json(&["precache", "media/other.mp4"]);
    wait_done(&cluster, &other["id"]);
    let slow = job(&cluster, &slow["id"]);
    assert_eq!(
        (&slow["bytes_done"], &slow["state"]),
        (&CHUNK.into(), &"running".into())
    );

    // One that allows much is done.
    cluster.put("/fast.mp4", Object::generated(45, 8 * CHUNK));
    let fast = ["precache", "media/fast.mp4", "--max-rate=1GiB"];
    let fast = cluster.coordinator.json(&fast);
    wait_done(&cluster, &fast["id"]);
}
