//! How much is fetched ahead of readers.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::time::{Duration, Instant};

use chunkcache_tests::http::Call;
use chunkcache_tests::{CHUNK, Cluster, ClusterOptions, MIB, Object, content, eventually, heavy};

const SOON: Duration = Duration::from_secs(20);

/// Waits until the origin sends no more of the path. Returns what it sent.
fn settled(cluster: &Cluster, path: &str) -> u64 {
    let mut last = (cluster.origin.body_bytes(path), Instant::now());
    eventually("nothing more is fetched", SOON, || {
        let now = cluster.origin.body_bytes(path);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(1)).then_some(now)
    })
}

#[test]
fn who_looks_in_for_a_moment_costs_the_origin_little() {
    let cluster = Cluster::start();
    let target = cluster.put("/looked-into.mp4", Object::generated(1, 1024 * MIB));
    let mut reply = Call::get(&target)
        .header("Range", "bytes=0-")
        .open(cluster.edge().http)
        .unwrap();
    let begun = Instant::now();
    // 400 KiB at 100 KiB/s.
    for piece in 0..16 {
        let start = piece * (25 << 10);
        let bytes = reply.take(25 << 10).unwrap();
        assert!(bytes == content::bytes(1, start, start + (25 << 10)));
        let due = Duration::from_millis(250) * (piece as u32 + 1);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    drop(reply);
    let sent = settled(&cluster, "/looked-into.mp4");
    eprintln!("{} MiB for 400 KiB", sent / MIB);
    assert!(sent <= 24 * MIB, "{sent} bytes for 400 KiB");
}

#[test]
fn a_library_scanner_costs_the_origin_little_of_each_film() {
    let cluster = Cluster::start();
    let path = |film: u64| format!("/scanned-{film}.mp4");
    for film in 0..12 {
        let target = cluster.put(&path(film), Object::generated(film, 512 * MIB));
        let mut reply = Call::get(&target).open(cluster.edge().http).unwrap();
        assert!(reply.take(MIB as usize).unwrap() == content::bytes(film, 0, MIB));
    }
    let sent: Vec<u64> = (0..12).map(|film| settled(&cluster, &path(film))).collect();
    eprintln!("{sent:?}");
    assert!(sent.iter().all(|sent| *sent <= 16 * MIB), "{sent:?}");
}

#[test]
fn a_reader_that_plays_on_gets_ten_chunks_ahead_and_no_more_while_it_pauses() {
    const PLAYED: u64 = 40 * MIB;
    let cluster = Cluster::start();
    let target = cluster.put("/played.mp4", Object::generated(3, 1024 * MIB));
    let mut reply = Call::get(&target).open(cluster.edge().http).unwrap();
    assert!(reply.take(PLAYED as usize).unwrap() == content::bytes(3, 0, PLAYED));
    eventually("ten chunks ahead", SOON, || {
        let here = cluster.recorded_bytes("/played.mp4", "edge-a");
        (here >= PLAYED + 10 * CHUNK).then_some(())
    });
    let before = settled(&cluster, "/played.mp4");
    let after = settled(&cluster, "/played.mp4");
    assert_eq!(before, after, "it pauses");
    assert!(reply.take(PLAYED as usize).unwrap() == content::bytes(3, PLAYED, 2 * PLAYED));
    eventually("the lookahead goes on", SOON, || {
        let here = cluster.recorded_bytes("/played.mp4", "edge-a");
        (here >= 2 * PLAYED + 10 * CHUNK).then_some(())
    });
}

/// `ftyp`, then `mdat` up to `index`, where the `moov` would be.
fn film_with_its_index_at(index: u64, size: u64) -> Object {
    let mut head = b"\0\0\0\x18ftypisom\0\0\0\0isomiso2".to_vec();
    head.extend(b"\0\0\0\x01mdat");
    head.extend((index - 24).to_be_bytes());
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    file.write_all(&head).unwrap();
    Object::file(file).unwrap().etag(Some("\"film\""))
}

const INDEXED_FILM: u64 = 96 * MIB;
const INDEX: u64 = INDEXED_FILM - 3 * MIB;

fn expect_the_index(cluster: &Cluster, path: &str) {
    eventually("the index is recorded", SOON, || {
        let ranges = cluster.recorded(path, "edge-a");
        let is_index = |(start, end): &(u64, u64)| *start <= INDEX && *end == INDEXED_FILM;
        ranges.iter().any(is_index).then_some(())
    });
    let sent = settled(cluster, path);
    assert!(sent <= 8 * MIB, "{sent} bytes for an index");
}

/// As Apple's player and players that use MSE request it first.
#[test]
fn an_index_at_the_end_is_fetched_after_a_short_first_range() {
    let cluster = Cluster::start();
    let film = film_with_its_index_at(INDEX, INDEXED_FILM).latency(Duration::from_millis(50));
    let target = cluster.put("/short-first.mp4", film);
    let call = Call::get(&target).range(0, 65_536);
    call.send(cluster.edge().http).expect(206);
    expect_the_index(&cluster, "/short-first.mp4");
}

#[test]
fn an_index_at_the_end_is_fetched_for_a_reader_whose_bytes_are_all_here() {
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        edge_arguments: vec!["--background-fill=false"],
        ..ClusterOptions::default()
    });
    let target = cluster.put(
        "/hit-first.mp4",
        film_with_its_index_at(INDEX, INDEXED_FILM),
    );
    let here = Call::get(&target).range(100, 65_536);
    here.send(cluster.edge().http).expect(206);
    settled(&cluster, "/hit-first.mp4");
    assert_eq!(
        cluster.recorded_bytes("/hit-first.mp4", "edge-a"),
        CHUNK,
        "nothing tells a reader's first range in the middle where the index is"
    );
    let first = Call::get(&target).range(0, 65_536);
    first.send(cluster.edge().http).expect(206);
    expect_the_index(&cluster, "/hit-first.mp4");
}

/// The link of the origin is the bottleneck, and has one viewer.
#[test]
fn a_viewers_own_lookahead_leaves_the_link_to_the_chunk_it_waits_for() {
    const LINK: u64 = 5_000_000;
    let _alone = heavy();
    let cluster = Cluster::start();
    cluster.origin.set_link(Some(LINK));
    let film = Object::generated(5, 512 * MIB).latency(Duration::from_millis(20));
    let target = cluster.put("/narrow.mp4", film);
    let from = |start: u64| {
        let call = Call::get(&target).header("Range", &format!("bytes={start}-"));
        call.open(cluster.edge().http).unwrap()
    };
    let mut playing = from(0);
    let played = 24 * MIB;
    assert!(playing.take(played as usize).unwrap() == content::bytes(5, 0, played));
    let (mut took, mut others) = (Vec::new(), Vec::new());
    for seek in 1..=5 {
        let start = seek * 80 * MIB + 12_345;
        drop(playing);
        let (begun, before) = (Instant::now(), cluster.origin.body_bytes("/narrow.mp4"));
        playing = from(start);
        let bytes = playing.take(9 << 20).unwrap();
        took.push(begun.elapsed());
        others.push(cluster.origin.body_bytes("/narrow.mp4") - before - (9 << 20));
        assert!(bytes == content::bytes(5, start, start + (9 << 20)));
    }
    took.sort_unstable();
    others.sort_unstable();
    eprintln!("{took:?}, and other bytes meanwhile: {others:?}");
    // Else it shares the link with two chunks ahead, and what the last seek left.
    assert!(others[2] <= 4 * MIB / 3, "{others:?}");
}

/// Both read from an origin that is too slow for them, with and without reporting; the fuller
/// buffer waits.
#[test]
fn whose_player_has_less_in_its_buffer_is_served_first() {
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        edge_arguments: vec!["--background-fill=false", "--lookahead=10"],
        ..ClusterOptions::default()
    });
    let film = |name: &str, seed| {
        let path = format!("/{name}.mp4");
        let object = Object::generated(seed, 64 * MIB).header("Cache-Control", "max-age=3600");
        let target = cluster.put(&path, object);
        // The first request for an object is not planned.
        let call = Call::get(&target).range(0, 1);
        call.send(cluster.edge().http).expect(206);
        cluster
            .origin
            .change(&path, |it| *it = it.clone().paced(MIB));
        target
    };
    let (full, empty, silent) = (film("full", 1), film("empty", 2), film("silent", 3));
    let said = |buffer: u64| format!("bl={buffer},br=8000");
    let parameter = said(30_000).replace('=', "%3D").replace(',', "%2C");
    let play = |call: Call| {
        let call = call.header("Range", &format!("bytes={}-", 20 * MIB));
        let mut reply = call.open(cluster.edge().http).unwrap();
        assert_eq!(reply.status, 206);
        reply.take(64 << 10).unwrap();
        reply
    };
    let _replies = [
        play(Call::get(&format!("{full}?CMCD={parameter}"))),
        play(Call::get(&empty).header("CMCD-Request", &format!("{},su,bs", said(500)))),
        play(Call::get(&silent)),
    ];
    let decision = |name: &str| {
        let entry = format!("media/{name}.mp4");
        eventually("a chunk ahead is explained", SOON, || {
            let told = cluster
                .coordinator
                .json(&["explain", &entry, "--chunk", "18"]);
            told["decisions"].as_array()?.first().cloned()
        })
    };
    let told = ["full", "empty", "silent"].map(decision);
    let says = |told: &serde_json::Value, what: &str| {
        let reason = told["reason"].as_str().unwrap();
        reason.contains("lookahead of reader") && reason.contains(what)
    };
    assert!(says(&told[0], "; player's buffer "), "{told:?}");
    assert!(says(&told[1], "; player's buffer "), "{told:?}");
    assert!(!says(&told[2], "player"), "{told:?}");
    let due = told
        .each_ref()
        .map(|told| told["deadline_ms"].as_i64().unwrap());
    assert!(due[0] > due[1] + 15_000, "{told:?}");
    assert!(due[0] > due[2] + 15_000, "{told:?}");
    // The report concerns this viewer alone: it is not part of the object's name, and is not sent
    // to its origin.
    for hit in cluster.origin.all_hits() {
        assert!(!hit.target.contains('?'), "{hit:?}");
        let names = hit
            .headers
            .iter()
            .map(|(name, _)| name.to_ascii_lowercase());
        assert!(
            !names.clone().any(|name| name.starts_with("cmcd")),
            "{hit:?}"
        );
    }
    let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
    let stalls = "cache_edge_http_player_stalls_total 1\n";
    assert!(metrics.contains(stalls), "{metrics}");
}

/// A player that seeks on another connection, and leaves the one before open for a while.
#[test]
fn a_viewer_that_seeks_on_another_connection_is_one_reader_and_where_it_is_now() {
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        edge_arguments: vec!["--background-fill=false", "--lookahead=10"],
        ..ClusterOptions::default()
    });
    let target = cluster.put("/sought.mp4", Object::generated(4, 128 * MIB));
    // The first request for an object is not planned.
    let call = Call::get(&target).range(0, 1);
    call.send(cluster.edge().http).expect(206);
    let slow = |it: &mut Object| *it = it.clone().paced(MIB);
    cluster.origin.change("/sought.mp4", slow);
    let play = |from: u64| {
        let call = Call::get(&target).header("Range", &format!("bytes={from}-"));
        let call = call.header("CMCD-Session", "sid=\"one\"");
        let mut reply = call.open(cluster.edge().http).unwrap();
        reply.take(64 << 10).unwrap();
        reply
    };
    let decisions = |chunk: &str| {
        let arguments = ["explain", "media/sought.mp4", "--chunk", chunk];
        let told = cluster.coordinator.json(&arguments);
        told["decisions"].as_array().unwrap().clone()
    };
    let ahead = |chunk: &str| {
        let told = decisions(chunk);
        let reason = told.first()?["reason"].as_str()?.to_owned();
        (reason.contains("lookahead of reader") && reason.contains(", viewer ")).then_some(())
    };
    let _before = play(20 * MIB);
    eventually("a chunk is fetched ahead", SOON, || ahead("18"));
    let _now = play(60 * MIB);
    eventually("a chunk is fetched ahead there", SOON, || ahead("38"));
    eventually("nobody wants it here", SOON, || {
        decisions("18").is_empty().then_some(())
    });
    let edges = || cluster.coordinator.json(&["edge", "list"]);
    eventually("one reader", SOON, || {
        (edges()[0]["readers"] == 1).then_some(())
    });
    let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
    for line in ["cache_edge_viewers 1\n", "cache_edge_readers 2\n"] {
        assert!(metrics.contains(line), "{metrics}");
    }
}
