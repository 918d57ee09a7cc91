//! Full disks: fetching onto them comes to an end.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use chunkcache_tests::http::Call;
use chunkcache_tests::{CHUNK, Cluster, ClusterOptions, MIB, Object, content, eventually};

/// As much as the kernel may take of a body that nobody reads, at most.
const SOCKET: u64 = 4 * MIB;
const ROOM: u64 = 64 * MIB;
const SOON: Duration = Duration::from_secs(30);
/// An eviction, and the fetch for which it makes space, take less than this.
const REST: Duration = Duration::from_secs(3);

fn small(fill: bool) -> Cluster {
    let mut edge_arguments = vec!["--max-size=64MiB"];
    if !fill {
        edge_arguments.push("--background-fill=false");
    }
    Cluster::start_with(ClusterOptions {
        edges: 1,
        edge_arguments,
        ..ClusterOptions::default()
    })
}

/// Waits until the origin sends nothing for a while; returns what it sent by then.
fn at_rest(cluster: &Cluster, paths: &[&str]) -> u64 {
    let sent = || paths.iter().map(|it| cluster.origin.body_bytes(it)).sum();
    let mut since = (sent(), Instant::now());
    eventually("the origin is left in peace", SOON, || {
        let now: u64 = sent();
        if now != since.0 {
            since = (now, Instant::now());
        }
        (since.1.elapsed() > REST).then_some(now)
    })
}

#[test]
fn a_fill_ends_where_the_disk_does_and_goes_on_when_there_is_room() {
    let cluster = small(true);
    let size = 48 * MIB;
    for (path, seed) in [("/one.mp4", 191), ("/two.mp4", 192)] {
        let object = Object::generated(seed, size).header("Cache-Control", "max-age=3600");
        let target = cluster.put(path, object);
        Call::get(&target)
            .range(0, 1)
            .send(cluster.edge().http)
            .expect(206);
    }
    let sent = at_rest(&cluster, &["/one.mp4", "/two.mp4"]);
    // Each of the begun requests may have been cut; nothing was fetched only to be evicted.
    let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
    let came = "cache_edge_source_origin_bytes_total{source=\"media\"} ";
    let came = metrics.lines().find_map(|line| line.strip_prefix(came));
    let came: u64 = came.unwrap().parse().unwrap();
    assert!(came <= ROOM + 2 * CHUNK, "{came} bytes for {ROOM}");
    // What waited in their sockets, the origin has sent, too: it is more on a slow machine.
    assert!(
        sent <= ROOM + 2 * (CHUNK + SOCKET),
        "{sent} bytes for {ROOM}"
    );
    assert!(sent >= ROOM / 2, "{sent}: it ended long before the disk");
    let held = |path| cluster.recorded_bytes(path, "edge-a");
    let (less, more) = if held("/one.mp4") < held("/two.mp4") {
        ("/one.mp4", "/two.mp4")
    } else {
        ("/two.mp4", "/one.mp4")
    };
    assert!(held(less) < size);
    let more = format!("media{more}");
    let purge = ["entry", "invalidate", &more, "--purge"];
    assert!(cluster.coordinator.cli(&purge).status.success());
    cluster.wait_recorded(less, &[(0, size)]);
}

#[test]
fn a_job_for_which_there_is_no_room_says_so_and_waits() {
    let cluster = small(false);
    cluster.put("/large.mp4", Object::generated(193, 160 * MIB));
    let start = ["precache", "media/large.mp4", "--edge", "edge-a"];
    let id = cluster.coordinator.json(&start)["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let job = || {
        let jobs = cluster.coordinator.json(&["precache", "list", "--all"]);
        jobs.as_array().unwrap()[0].clone()
    };
    let waiting = eventually("the job says that there is no room", SOON, || {
        let waiting = job()["waiting"].as_str().unwrap().to_owned();
        (!waiting.is_empty()).then_some(waiting)
    });
    assert!(waiting.contains("edge-a has no room"), "{waiting}");
    let sent = at_rest(&cluster, &["/large.mp4"]);
    // At most this much was assigned when the first eviction was reported: three runs of eight
    // chunks, and as many queued.
    assert!(sent <= ROOM + 48 * CHUNK, "{sent} bytes for {ROOM}");
    let job = job();
    assert_eq!(job["state"], "running", "{job}");
    let done = job["bytes_done"].as_u64().unwrap();
    assert!(done > ROOM / 2 && done <= ROOM, "{job}");
    let cancel = ["precache", "cancel", &id];
    assert!(cluster.coordinator.cli(&cancel).status.success());
}

#[test]
fn a_source_stays_below_its_quota_and_others_keep_theirs() {
    const FILMS: u64 = 4;
    let cluster = Cluster::start();
    cluster.add_source_with("films", &["--quota=24MiB"]);
    cluster.add_source("others");
    let address = cluster.edge().http;
    let film = |number: u64| format!("/film-{number}");
    for number in 0..FILMS {
        cluster.put(
            &film(number),
            Object::generated(300 + number, 8 * MIB).header("Cache-Control", "max-age=3600"),
        );
    }
    cluster.put(
        "/other",
        Object::generated(299, 12 * MIB).header("Cache-Control", "max-age=3600"),
    );
    let play = |target: &str, seed: u64, size: u64| {
        let answer = Call::get(target).send(address).expect(200);
        assert!(answer.body == content::bytes(seed, 0, size), "{target}");
    };
    play("/others/other", 299, 12 * MIB);
    let rows = |source: &str| {
        let sql = format!(
            "SELECT coalesce(sum(c.end_byte - c.start_byte), 0) FROM cache_chunks c
             JOIN cache_entries e ON e.id = c.entry_id WHERE e.source = '{source}'"
        );
        cluster.postgres.number(&sql) as u64
    };
    let play_all = || {
        for number in 0..FILMS {
            play(&format!("/films{}", film(number)), 300 + number, 8 * MIB);
            assert!(rows("films") <= 24 * MIB, "{}", rows("films"));
        }
    };
    play_all();
    play_all();
    assert!(
        rows("films") >= 8 * MIB,
        "{}: it caches less than it may",
        rows("films")
    );
    eventually("the other source is stored", SOON, || {
        (rows("others") == 12 * MIB).then_some(())
    });
    // The fill does not endlessly fetch what is evicted.
    let paths: Vec<String> = (0..FILMS).map(film).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    at_rest(&cluster, &paths);
    let set = |quota: &str| {
        let set = ["source", "set", "films", quota];
        assert!(cluster.coordinator.cli(&set).status.success());
    };
    set("--quota=6MiB");
    eventually("a smaller quota holds", SOON, || {
        (rows("films") <= 6 * MIB).then_some(())
    });
    set("--quota=0");
    for number in 0..FILMS {
        play(&format!("/films{}", film(number)), 300 + number, 8 * MIB);
    }
    let all = FILMS * 8 * MIB;
    eventually("there is none any more", SOON, || {
        (rows("films") == all).then_some(())
    });
    assert_eq!(rows("others"), 12 * MIB);
}

#[test]
fn an_edge_that_can_store_nothing_does_not_say_it_does_and_reads_a_title() {
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        // Less than any object.
        edge_arguments: vec!["--max-size=16", "--background-fill=false"],
        ..ClusterOptions::default()
    });
    let size = 3 * MIB;
    let film = cluster.put("/film.mp4", Object::generated(194, size));
    for _ in 0..2 {
        let answer = Call::get(&film).send(cluster.edge().http).expect(200);
        let status = answer.header("Cache-Status").unwrap().to_owned();
        assert!(
            status.contains("fwd=miss") && !status.contains("stored"),
            "{status}"
        );
        assert!(answer.body == content::bytes(194, 0, size));
    }
    let playlist = "#EXTM3U\n#EXTINF:4,\n1.ts\n#EXT-X-ENDLIST\n";
    cluster.put("/t/index.m3u8", Object::text(playlist).unwrap());
    cluster.put("/t/1.ts", Object::generated(195, MIB));
    let jobs = cluster
        .coordinator
        .json(&["precache", "media/t/index.m3u8", "--manifest"]);
    assert_eq!(jobs.as_array().unwrap().len(), 2, "{jobs}");
}
