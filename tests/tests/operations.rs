//! Operators' tasks besides starting and stopping: import, drain, sign.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::process::Process;
use chunkcache_tests::services::program;
use chunkcache_tests::{CHUNK, Cluster, KIB, MIB, Object, content, eventually};
use serde_json::Value;

const WAIT: Duration = Duration::from_secs(30);
const SIZE: u64 = 3 * CHUNK + 12_345;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn import(cluster: &Cluster, from: &Path, more: &[&str]) -> Output {
    let edge = cluster.edge();
    Command::new(program("cache-edge"))
        .args(["import", "--source=media", "--from"])
        .arg(from)
        .arg(format!("--name={}", edge.name))
        .arg(format!("--data-dir={}", edge.data.display()))
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn whole_files_of_another_cache_are_adopted_after_a_check() {
    let mut cluster = Cluster::start();
    let whole = cluster.directory.path().join("whole");
    let put = |path: &str, bytes: &[u8]| {
        let file = whole.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    };
    let right = content::bytes(31, 0, SIZE);
    let mut wrong = right.clone();
    // One byte escapes the samples, but not a full comparison.
    wrong[CHUNK as usize + 7] ^= 1;
    for (path, bytes) in [
        ("films/a b.mp4", &right[..]),
        ("films/one-byte.mp4", &wrong),
        ("short.mp4", &right[..1000]),
        ("gone.mp4", &right),
        ("zeros.mp4", &vec![0; SIZE as usize]),
    ] {
        put(path, bytes);
    }
    for path in [
        "/films/a%20b.mp4",
        "/films/one-byte.mp4",
        "/short.mp4",
        "/zeros.mp4",
    ] {
        cluster.put(path, Object::generated(31, SIZE));
    }

    let running = import(&cluster, &whole, &[]);
    assert!(
        !running.status.success() && text(&running).contains("in use"),
        "{}",
        text(&running)
    );
    assert_eq!(cluster.edge_mut().terminate().code(), Some(0));

    let output = import(&cluster, &whole, &["--check=whole", "--output=json"]);
    let all: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
    assert_eq!(output.status.code(), Some(1), "some were left out: {all}");
    let of = |name: &str| {
        let items = all.as_array().unwrap().iter();
        let found = items
            .filter(|it| it["name"] == format!("media/{name}"))
            .collect::<Vec<_>>();
        assert_eq!(found.len(), 1, "{name} in {all}");
        found[0].clone()
    };
    assert_eq!(of("films/a%20b.mp4")["imported"], true);
    for (name, reason) in [
        (
            "films/one-byte.mp4",
            format!("differs from the origin's object at byte {}", CHUNK + 7),
        ),
        (
            "short.mp4",
            format!("it has 1000 bytes, and the origin's object {SIZE}"),
        ),
        ("gone.mp4", "the origin answers 404".to_owned()),
        (
            "zeros.mp4",
            "differs from the origin's object at byte 0".to_owned(),
        ),
    ] {
        let item = of(name);
        assert!(
            item["imported"] == false && item["reason"].as_str().unwrap().contains(&reason),
            "{item}"
        );
    }

    // Served completely, recorded completely, and without a byte from the origin.
    let before = cluster.origin.body_bytes("/films/a%20b.mp4");
    cluster.edge_mut().start();
    cluster.wait_recorded("films/a%20b.mp4", &[(0, SIZE)]);
    let answer = cluster.edge().get("/media/films/a%20b.mp4").expect(200);
    assert!(answer.body == right);
    assert!(
        answer.header("cache-status").unwrap().contains("hit"),
        "{:?}",
        answer.headers
    );
    assert_eq!(cluster.origin.body_bytes("/films/a%20b.mp4"), before);
    // Differing files come from the origin.
    let answer = cluster.edge().get("/media/films/one-byte.mp4").expect(200);
    assert!(answer.body == right);
}

#[test]
fn samples_cost_little_and_find_another_version() {
    let mut cluster = Cluster::start();
    let whole = cluster.directory.path().join("whole");
    fs::create_dir_all(&whole).unwrap();
    let size = 16 * MIB;
    fs::write(whole.join("same.mp4"), content::bytes(41, 0, size)).unwrap();
    fs::write(whole.join("other.mp4"), content::bytes(42, 0, size)).unwrap();
    cluster.put("/same.mp4", Object::generated(41, size));
    cluster.put("/other.mp4", Object::generated(41, size));
    assert_eq!(cluster.edge_mut().terminate().code(), Some(0));
    let output = import(&cluster, &whole, &[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("media/same.mp4  imported, {size} bytes")),
        "{said}"
    );
    assert!(
        said.contains("media/other.mp4  left out: it differs"),
        "{said}"
    );
    let asked = cluster.origin.body_bytes("/same.mp4");
    assert!(asked <= 16 * 64 * KIB + 1, "{asked} bytes");
    // A second import finds it present.
    assert!(text(&import(&cluster, &whole, &[])).contains("media/same.mp4  imported"));
    cluster.edge_mut().start();
    cluster.wait_recorded("same.mp4", &[(0, size)]);
    assert_eq!(cluster.recorded("other.mp4", "edge-a"), []);
}

#[test]
fn a_drain_is_followed_to_the_last_request() {
    let cluster = Cluster::start();
    let film = cluster.put("/film.mp4", Object::generated(51, 64 * MIB));
    // All of it is present: the body misses nothing, and still runs.
    cluster.edge().get(&film).expect(200);
    cluster.wait_recorded("film.mp4", &[(0, 64 * MIB)]);
    let mut playing = Call::get(&film).open(cluster.edge().http).unwrap();
    playing.take(1000).unwrap();
    let endpoint = format!("--endpoint=http://{}", cluster.coordinator.grpc);
    let mut command = Command::new(program("cache-coordinator"));
    command.args([
        "edge",
        "drain",
        "edge-a",
        "--follow",
        "--output=json",
        &endpoint,
    ]);
    let mut draining = Process::spawn(
        "drain",
        &command,
        &cluster.directory.path().join("drain.log"),
    );
    eventually("it tells of the running request", WAIT, || {
        draining
            .output()
            .contains("0 of 1 requests ended")
            .then_some(())
    });
    assert!(draining.is_running());
    drop(playing);
    assert_eq!(draining.wait_for_exit(WAIT).code(), Some(0));
    let said = draining.output();
    let json = said
        .lines()
        .filter(|line| !line.contains("requests ended"))
        .collect::<String>();
    let edge: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(
        (edge["state"].as_str(), edge["requests_active"].as_u64()),
        (Some("draining"), Some(0))
    );
}

#[test]
fn urls_are_signed_and_only_those_are_answered() {
    let mut cluster = Cluster::start();
    let keys = cluster.directory.path().join("keys");
    fs::write(&keys, "k1 a-secret-of-32-characters-000000\n").unwrap();
    assert_eq!(cluster.edge_mut().terminate().code(), Some(0));
    let option = format!("--signed-url-keys-file={}", keys.display());
    cluster.edge_mut().arguments.push(option);
    cluster.edge_mut().start();
    let film = cluster.put("/film.mp4", Object::generated(61, MIB));
    let sign = |more: &[&str]| {
        let output = Command::new(program("cache-edge"))
            .args(["sign", "--key=k1", "--keys-file"])
            .arg(&keys)
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let get = |target: &str| cluster.edge().get(target);
    get(&sign(&[&film])).expect(200);
    get(&sign(&[&film, "--client=127.0.0.0/8"])).expect(200);
    get(&sign(&[&film, "--client=192.0.2.1"])).expect(403);
    get(&film).expect(403);
    get(&sign(&[&film]).replace("film.mp4", "other.mp4")).expect(403);
    get(&sign(&[&film, "--expires-in=0s"])).expect(403);
    // Signed twice, it is still one object.
    assert_eq!(cluster.origin.body_bytes("/film.mp4"), MIB);
}

/// The rollout of the migration plan, and back: each mode takes effect before the command returns.
#[test]
fn modes_of_a_source_are_switched_while_it_plays() {
    let cluster = Cluster::start();
    cluster.put("/film.mp4", Object::generated(71, 2 * MIB));
    let expected = content::bytes(71, 0, 2 * MIB);
    let switch = |mode: &str| {
        let answer = cluster
            .coordinator
            .json(&["source", "set-mode", "media", mode]);
        assert_eq!(
            (answer["mode"].as_str(), &answer["unconfirmed_edges"]),
            (Some(mode), &serde_json::json!([]))
        );
    };
    let play = || {
        let answer = cluster.edge().get("/media/film.mp4").expect(200);
        assert!(answer.body == expected);
        let status = answer.header("cache-status").unwrap().to_owned();
        // The origin counts a piece after it was sent, which may be after it was received.
        let sent = eventually("the origin counted all", Duration::from_secs(5), || {
            let sent = cluster.origin.body_bytes("/film.mp4");
            (sent > 0 && sent.is_multiple_of(2 * MIB)).then_some(sent)
        });
        (status, sent / (2 * MIB))
    };
    switch("passthrough");
    let (status, fetched) = play();
    assert!(status.contains("fwd=bypass") && fetched == 1, "{status}");
    assert_eq!(
        cluster.recorded("film.mp4", "edge-a"),
        [],
        "nothing is stored"
    );

    switch("record");
    let (status, _) = play();
    assert!(!status.contains("hit"), "{status}");
    cluster.wait_recorded("film.mp4", &[(0, 2 * MIB)]);
    let (_, before) = play();
    let (status, after) = play();
    assert!(
        after > before && !status.contains("hit"),
        "answered by the origin still: {status}"
    );
    let metrics = Call::get("/metrics")
        .send(cluster.edge().admin)
        .expect(200)
        .text();
    assert!(
        metrics.contains("cache_edge_record_mismatches_total 0"),
        "{metrics}"
    );
    let compared = metrics
        .lines()
        .find(|line| line.starts_with("cache_edge_record_compared_bytes_total"));
    assert!(
        compared.is_some_and(|line| !line.ends_with(" 0")),
        "{compared:?}"
    );

    switch("serve");
    let (status, served) = play();
    assert!(status.contains("hit") && served == after, "{status}");

    // And back, in any phase.
    switch("passthrough");
    let (status, again) = play();
    assert!(
        status.contains("fwd=bypass") && again == served + 1,
        "{status}"
    );
}

/// Chunks played on a draining edge reach the next edge before their players do: none of them is
/// requested from the origin again.
#[test]
fn a_drained_edge_hands_over_what_is_played_there() {
    let cluster = Cluster::with_edges(2);
    let size = 16 * MIB;
    let film = cluster.put("/film.mp4", Object::generated(52, size));
    cluster.edges[0].get(&film).expect(200);
    cluster.wait_recorded_on("film.mp4", "edge-a", &[(0, size)]);
    assert_eq!(cluster.recorded("film.mp4", "edge-b"), []);
    let before = cluster.origin.hits("/film.mp4").len();
    let drain = cluster
        .coordinator
        .cli(&["edge", "drain", "edge-a", "--follow"]);
    assert!(drain.status.success(), "{}", text(&drain));
    cluster.wait_recorded_on("film.mp4", "edge-b", &[(0, size)]);
    let served = cluster.edges[1].get(&film).expect(200);
    assert!(served.body == content::bytes(52, 0, size));
    assert_eq!(cluster.origin.hits("/film.mp4").len(), before);
}

/// The coordinator that started the drain is gone before another edge can fetch its chunks.
#[test]
fn a_hand_over_goes_on_after_a_restart_of_the_coordinator() {
    let mut cluster = Cluster::with_edges(2);
    let size = 16 * MIB;
    let film = cluster.put("/film.mp4", Object::generated(53, size));
    cluster.edges[0].get(&film).expect(200);
    cluster.wait_recorded_on("film.mp4", "edge-a", &[(0, size)]);
    let before = cluster.origin.hits("/film.mp4").len();
    cluster.edges[1].kill();
    let drain = cluster.coordinator.cli(&["edge", "drain", "edge-a"]);
    assert!(drain.status.success(), "{}", text(&drain));
    cluster.coordinator.kill();
    cluster.coordinator.start();
    cluster.edges[1].start();
    cluster.wait_recorded_on("film.mp4", "edge-b", &[(0, size)]);
    assert_eq!(cluster.origin.hits("/film.mp4").len(), before);
}
