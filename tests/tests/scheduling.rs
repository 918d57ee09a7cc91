//! The cluster's fetches, their times and reasons, from the origin's log and the tables.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::time::{Duration, Instant};

use chunkcache_tests::http::Call;
use chunkcache_tests::origin::Times;
use chunkcache_tests::{CHUNK, Cluster, ClusterOptions, Fault, MIB, Object, content, eventually};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(20);
/// At 4 MiB/s, the bytes an origin sends while a fetch is being stopped.
const ON_THE_WIRE: u64 = 256 << 10;

/// A sparse file of zeros with this head.
fn sparse(head: &[u8], size: u64) -> Object {
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(head).unwrap();
    Object::file(file).unwrap().etag(Some("\"sparse\""))
}

/// `ftyp`, then `mdat` up to `index`, where the `moov` would be.
fn mp4_head(index: u64) -> Vec<u8> {
    let mut head = b"\0\0\0\x18ftypisom\0\0\0\0isomiso2".to_vec();
    head.extend(b"\0\0\0\x01mdat");
    head.extend((index - 24).to_be_bytes());
    head
}

/// A segment whose SeekHead names Cues at `index`.
fn matroska_head(index: u64, size: u64) -> Vec<u8> {
    let mut head = b"\x1A\x45\xDF\xA3\x84\x42\x86\x81\x01".to_vec();
    let segment = head.len() as u64 + 12;
    head.extend(b"\x18\x53\x80\x67\x01");
    head.extend(&(size - segment).to_be_bytes()[1..]);
    let position = index - segment;
    let mut seek = b"\x53\xAB\x84\x1C\x53\xBB\x6B\x53\xAC\x88".to_vec();
    seek.extend(position.to_be_bytes());
    head.extend(b"\x11\x4D\x9B\x74");
    head.push(0x80 | (seek.len() as u8 + 3));
    head.extend(b"\x4D\xBB");
    head.push(0x80 | seek.len() as u8);
    head.extend(seek);
    head
}

#[test]
fn an_index_at_the_end_is_fetched_before_it_is_asked_for() {
    let cluster = Cluster::start();
    let size = 96 * MIB;
    let index = size - 3 * MIB;
    for (path, head) in [
        ("/moov.mp4", mp4_head(index)),
        ("/cues.mkv", matroska_head(index, size)),
    ] {
        let target = cluster.put(path, sparse(&head, size).paced(2 * MIB));
        let mut reply = Call::get(&target).open(cluster.edge().http).unwrap();
        assert_eq!(reply.status, 200);
        reply.take(64 << 10).unwrap();
        eventually("the index is recorded", SOON, || {
            let ranges = cluster.recorded(path, "edge-a");
            ranges
                .iter()
                .any(|(start, end)| *start <= index && *end == size)
                .then_some(())
        });
        let hits = cluster.origin.hits(path);
        let tail = hits.iter().position(|hit| {
            hit.range_start()
                .is_some_and(|start| start >= index - CHUNK)
        });
        assert!(tail.is_some(), "{path}: not asked for by itself");
        assert!(
            cluster.origin.body_bytes(path) < size / 2,
            "{path}: all of it came, not its index"
        );
    }
}

#[test]
fn background_fill_completes_what_was_begun_where_it_is_wanted() {
    let mut cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        ..ClusterOptions::default()
    });
    let url = cluster.origin.url();
    let add = ["source", "add", "quiet", &url, "--background-fill=false"];
    assert!(cluster.coordinator.cli(&add).status.success());
    let size = 24 * MIB + 7;
    let object = Object::generated(171, size).header("Cache-Control", "max-age=3600");
    let target = cluster.put("/begun.mp4", object.clone().paced(4 * MIB));
    cluster.put("/left.mp4", object.clone());
    let first = |target: &str, cluster: &Cluster| {
        let call = Call::get(target).range(0, 1);
        call.send(cluster.edge().http).expect(206);
    };
    first(&target, &cluster);
    first("/quiet/left.mp4", &cluster);
    eventually("the fill is under way", SOON, || {
        (cluster.recorded_bytes("/begun.mp4", "edge-a") >= 3 * CHUNK).then_some(())
    });
    // No new request: the fill follows from the stored chunks.
    cluster.edge_mut().kill();
    cluster.coordinator.kill();
    cluster.origin.put("/begun.mp4", object);
    cluster.coordinator.start();
    cluster.edge_mut().start();
    cluster.wait_recorded("/begun.mp4", &[(0, size)]);
    assert_eq!(cluster.recorded("/left.mp4", "edge-a"), [(0, CHUNK)]);
}

/// When the fill is turned on again, it begins without a viewer.
#[test]
fn a_source_that_is_filled_again_has_what_was_begun_completed() {
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        ..ClusterOptions::default()
    });
    let fill = |on: &str| cluster.add_source_with("media", &[&format!("--background-fill={on}")]);
    fill("false");
    let size = 12 * MIB + 7;
    let object = Object::generated(173, size).header("Cache-Control", "max-age=3600");
    let paths = ["/one.mp4", "/two.mp4"];
    for path in paths {
        let target = cluster.put(path, object.clone());
        let call = Call::get(&target).range(0, 1);
        call.send(cluster.edge().http).expect(206);
        cluster.wait_recorded(path, &[(0, CHUNK)]);
    }
    fill("true");
    for path in paths {
        cluster.wait_recorded(path, &[(0, size)]);
    }
}

#[test]
fn a_precache_job_survives_a_restart_of_everything() {
    let mut cluster = Cluster::with_edges(2);
    let size = 48 * MIB;
    let object = Object::generated(172, size).header("Cache-Control", "max-age=3600");
    cluster.put("/job.mp4", object.clone().paced(3 * MIB));
    let start = [
        "precache",
        "media/job.mp4",
        "--edge",
        "edge-b",
        "--first",
        "40MiB",
    ];
    let id = cluster.coordinator.json(&start)["id"].clone();
    let job = |cluster: &Cluster| {
        let jobs = cluster.coordinator.json(&["precache", "list", "--all"]);
        let jobs = jobs.as_array().unwrap().clone();
        jobs.into_iter().find(|job| job["id"] == id).unwrap()
    };
    let mut done = 0;
    eventually("progress with a rate and an end", SOON, || {
        let job = job(&cluster);
        let now = job["bytes_done"].as_u64().unwrap();
        assert!(now >= done, "progress went back: {done} to {now}");
        done = now;
        assert_eq!(job["bytes_total"], 40 * MIB);
        let known = job["rate"].as_u64()? > 0 && job["eta_seconds"].as_u64().is_some();
        (known && now >= 4 * CHUNK).then_some(())
    });
    cluster.restart();
    let after = job(&cluster);
    assert_eq!(after["state"], "running", "{after}");
    assert!(after["bytes_done"].as_u64().unwrap() >= done);
    cluster.origin.put("/job.mp4", object);
    eventually("the job ends", SOON, || {
        let job = job(&cluster);
        let now = job["bytes_done"].as_u64().unwrap();
        assert!(now >= done, "progress went back: {done} to {now}");
        done = now;
        (job["state"] == "done").then_some(())
    });
    assert_eq!(cluster.recorded("/job.mp4", "edge-b"), [(0, 40 * MIB)]);
    assert_eq!(cluster.recorded("/job.mp4", "edge-a"), []);
    // At most three fetches of a chunk each were running when everything stopped.
    let sent = cluster.origin.body_bytes("/job.mp4");
    assert!(
        sent <= 40 * MIB + 4 * CHUNK,
        "{sent} bytes for {}",
        40 * MIB
    );
}

#[test]
fn a_job_is_not_fetched_again_when_the_coordinator_is_taken_over() {
    let mut cluster = Cluster::with_edges(1);
    let size = 64 * MIB;
    let object = Object::generated(194, size).header("Cache-Control", "max-age=3600");
    cluster.put("/kept.mp4", object.paced(4 * MIB));
    let start = ["precache", "media/kept.mp4", "--edge", "edge-a"];
    cluster.coordinator.json(&start);
    for part in 1..=3 {
        eventually("the job goes on", SOON, || {
            let done = cluster.recorded_bytes("/kept.mp4", "edge-a");
            (done >= part * 12 * MIB).then_some(())
        });
        cluster.coordinator.kill();
        cluster.coordinator.start();
    }
    cluster.wait_recorded("/kept.mp4", &[(0, size)]);
    let sent = cluster.origin.body_bytes("/kept.mp4");
    assert!(sent <= size + CHUNK, "{sent} bytes for {size}");
}

#[test]
fn a_job_ends_when_its_edge_was_removed() {
    let mut cluster = Cluster::with_edges(2);
    cluster.put("/gone.mp4", Object::generated(195, 64 * MIB).paced(MIB));
    let start = ["precache", "media/gone.mp4", "--edge", "edge-b"];
    cluster.coordinator.json(&start);
    cluster.edges[1].kill();
    let forget = ["edge", "forget", "edge-b", "--force"];
    assert!(cluster.coordinator.cli(&forget).status.success());
    let error = eventually("the job ends", SOON, || {
        let jobs = cluster.coordinator.json(&["precache", "list", "--all"]);
        let job = jobs.as_array().unwrap()[0].clone();
        (job["state"] == "failed").then(|| job["error"].as_str().unwrap().to_owned())
    });
    assert!(error.contains("edge-b was removed"), "{error}");
}

#[test]
fn an_entry_opens_where_it_is_held_and_not_where_it_drains() {
    let mut cluster = Cluster::with_edges(2);
    let target = cluster.put("/held.mp4", Object::generated(173, 8 * MIB));
    Call::get(&target).send(cluster.edges[1].http).expect(200);
    cluster.wait_recorded_on("/held.mp4", "edge-b", &[(0, 8 * MIB)]);
    let open = || {
        let opened = cluster
            .coordinator
            .json(&["entry", "open", "media/held.mp4"]);
        opened["edge"].as_str().unwrap().to_owned()
    };
    for _ in 0..3 {
        assert_eq!(open(), "edge-b", "who holds it");
    }
    let drain = |undo: &[&str]| {
        let arguments = [&["edge", "drain", "edge-b"], undo].concat();
        assert!(cluster.coordinator.cli(&arguments).status.success());
    };
    // Otherwise edge-b's chunks would be handed over to it, and it would hold them too from then
    // on.
    cluster.edges[0].process().signal(Signal::STOP);
    drain(&[]);
    assert_eq!(open(), "edge-a", "the holder drains");
    drain(&["--undo"]);
    assert_eq!(open(), "edge-b");
}

#[test]
fn what_is_passed_through_is_within_the_rate_of_its_source() {
    let cluster = Cluster::with_edges(2);
    let rate = 4 * MIB;
    let limit = format!("--max-rate={rate}");
    cluster.add_source_with("media", &[&limit]);
    let size = 6 * MIB;
    let object = Object::generated(190, size).etag(None).last_modified(None);
    let target = cluster.put("/passed.mp4", object);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let target = &target;
        for edge in &cluster.edges {
            scope.spawn(move || {
                let reply = Call::get(target).send(edge.http).expect(200);
                assert!(reply.body == content::bytes(190, 0, size));
            });
        }
    });
    // Both edges together have the source's rate. Each may take more at once: what its limiter
    // saved during a pause, which is 250 ms or 512 KiB, and the last read, which nobody waits for
    // (some hundred KiB). With the whole rate for each edge it would take half as long as this.
    let paced = 2 * (size - MIB);
    let least = paced as f64 / rate as f64;
    let passed = began.elapsed().as_secs_f64();
    assert!(passed >= least, "{passed} s, at least {least}");
}

#[test]
fn the_rate_of_a_source_holds_over_all_edges() {
    // Clients that read nothing have earned no lookahead: one of this length keeps the link busy.
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 2,
        edge_arguments: vec!["--background-fill=false", "--lookahead=10"],
        ..ClusterOptions::default()
    });
    let url = cluster.origin.url();
    let rate = 12 * MIB;
    let limit = format!("--max-rate={rate}");
    let set = [
        "source",
        "add",
        "media",
        &url,
        "--max-connections=4",
        &limit,
    ];
    assert!(cluster.coordinator.cli(&set).status.success());
    let size = 64 * MIB;
    let targets: Vec<_> = (0..3)
        .map(|n| {
            cluster.put(
                &format!("/limited-{n}.mp4"),
                Object::generated(180 + n, size).paced(6 * MIB),
            )
        })
        .collect();
    let sent = || -> u64 {
        (0..3)
            .map(|n| cluster.origin.body_bytes(&format!("/limited-{n}.mp4")))
            .sum()
    };
    // The first request for a key is sent whatever else is running, because a player waits to
    // begin.
    for target in &targets {
        for edge in &cluster.edges {
            Call::get(target).range(0, 1).send(edge.http).expect(206);
        }
    }
    let mut replies = Vec::new();
    for (n, target) in targets.iter().enumerate() {
        for edge in &cluster.edges {
            let place = n as u64 * 8 * MIB + 5;
            let call = Call::get(target).header("Range", &format!("bytes={place}-"));
            replies.push(call.open(edge.http).unwrap());
        }
    }
    // Socket buffers fill at once, however slowly they are read, so they do not count towards the
    // pace.
    std::thread::sleep(Duration::from_secs(2));
    let began = Instant::now();
    let before = sent();
    std::thread::sleep(Duration::from_secs(4));
    let passed = sent() - before;
    let measured = passed as f64 / began.elapsed().as_secs_f64();
    assert!(
        measured <= 1.1 * rate as f64,
        "{measured} bytes per second of {rate}"
    );
    assert!(
        measured >= 0.3 * rate as f64,
        "{measured} bytes per second of {rate}"
    );
    let most = cluster.origin.most_connections();
    assert!(most <= 4, "{most} connections");
}

#[test]
fn the_connections_of_a_source_hold_over_all_edges() {
    let cluster = Cluster::with_edges(2);
    cluster.add_source_with("media", &["--max-connections=4"]);
    let objects = 3;
    let targets: Vec<_> = (0..objects)
        .map(|n| {
            let object =
                Object::generated(185 + n, 256 * MIB).header("Cache-Control", "max-age=3600");
            let target = cluster.put(&format!("/few-{n}.mp4"), object);
            for edge in &cluster.edges {
                Call::get(&target).range(0, 1).send(edge.http).expect(206);
            }
            cluster.origin.change(&format!("/few-{n}.mp4"), |it| {
                *it = it.clone().paced(8 * MIB)
            });
            target
        })
        .collect();
    // Readers that wait, seek away and come back, on both edges: fetches are begun, cancelled and
    // taken over.
    std::thread::scope(|scope| {
        for reader in 0..8u64 {
            let (targets, edge) = (&targets, &cluster.edges[reader as usize % 2]);
            scope.spawn(move || {
                let until = Instant::now() + Duration::from_secs(8);
                let mut place = reader * 7;
                while Instant::now() < until {
                    let target = &targets[(place % objects) as usize];
                    let at = place % 100 * CHUNK + 5;
                    let call = Call::get(target).header("Range", &format!("bytes={at}-"));
                    let mut reply = call.open(edge.http).unwrap();
                    reply.take(64 << 10).unwrap();
                    place += 13;
                }
            });
        }
    });
    let most = cluster.origin.most_connections();
    assert!(most <= 4, "{most} connections");
    assert!(most >= 3, "{most}: they are not used");
}

#[test]
fn an_origin_that_asks_for_rest_gets_it_from_all_edges() {
    let cluster = Cluster::with_edges(2);
    let object = Object::generated(174, 64 * MIB).header("Cache-Control", "max-age=3600");
    let busy = cluster.put("/busy.mp4", object.clone());
    let other = cluster.put("/other.mp4", object.clone());
    for edge in &cluster.edges {
        for target in [&busy, &other] {
            Call::get(target).range(0, 1).send(edge.http).expect(206);
        }
    }
    let rest = Duration::from_secs(3);
    let after = vec![("Retry-After".to_owned(), "3".to_owned())];
    let fault = Fault::Status(429, after);
    cluster.origin.change("/busy.mp4", |it| {
        *it = object.clone().fault(fault, Times::Next(1))
    });
    let count = cluster.origin.all_hits().len();
    let place = 20 * MIB;
    let read = |target: &str, edge: usize| {
        let call = Call::get(target).range(place, place + 9);
        call.send(cluster.edges[edge].http).expect(206).body
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| read(&busy, 0));
        let refused = eventually("the origin said 429", SOON, || {
            let hits = cluster.origin.all_hits();
            hits[count..]
                .iter()
                .find(|hit| hit.status == 429)
                .map(|hit| hit.at)
        });
        // The change goes through the coordinator.
        std::thread::sleep(Duration::from_millis(100));
        let second = scope.spawn(|| read(&other, 1));
        let wanted = content::bytes(174, place, place + 9);
        assert_eq!(first.join().unwrap(), wanted);
        assert_eq!(second.join().unwrap(), wanted);
        let hits = cluster.origin.all_hits();
        let early: Vec<_> = hits[count..]
            .iter()
            .filter(|hit| hit.at > refused && hit.at < refused + rest)
            .collect();
        assert!(early.is_empty(), "asked within its rest: {early:?}");
    });
}

#[test]
fn the_plan_is_whole_a_moment_after_a_coordinator_was_killed() {
    let mut cluster = Cluster::with_edges(1);
    let size = 64 * MIB;
    // Slow enough that there is always something missing ahead.
    let target = cluster.put("/playing.mp4", Object::generated(175, size).paced(MIB));
    let mut reply = Call::get(&target).open(cluster.edge().http).unwrap();
    reply.take(MIB as usize).unwrap();
    cluster.coordinator.kill();
    let longest = |reply: &mut chunkcache_tests::http::Reply, count: u64| {
        let mut longest = Duration::ZERO;
        for _ in 0..count / (64 << 10) {
            let asked = Instant::now();
            reply.take(64 << 10).unwrap();
            longest = longest.max(asked.elapsed());
        }
        longest
    };
    let stall = longest(&mut reply, 4 * MIB);
    assert!(stall < Duration::from_millis(1500), "stalled for {stall:?}");
    cluster.coordinator.start();
    eventually("the edge is in session again", SOON, || {
        let answer = Call::get("/readyz").open(cluster.edge().admin).ok()?;
        (answer.status == 200).then_some(())
    });
    let ready = Instant::now();
    eventually("the plan runs", SOON, || {
        let status = cluster.coordinator.json(&["status"]);
        (status["running_by_level"]["high"].as_u64()? > 0).then_some(())
    });
    assert!(
        ready.elapsed() < Duration::from_secs(1),
        "{:?}",
        ready.elapsed()
    );
    let first = 9 * MIB / CHUNK;
    let explained = eventually("a chunk ahead of the reader is explained", SOON, || {
        (first..first + 12).find_map(|chunk| {
            let chunk = ["--chunk", &chunk.to_string()].map(str::to_owned);
            let arguments = ["explain", "media/playing.mp4", &chunk[0], &chunk[1]];
            let told = cluster.coordinator.json(&arguments);
            told["decisions"].as_array()?.first().cloned()
        })
    });
    for field in ["name", "priority", "state", "from", "reason"] {
        assert!(
            !explained[field].as_str().unwrap().is_empty(),
            "{field}: {explained}"
        );
    }
    let stall = longest(&mut reply, 4 * MIB);
    assert!(stall < Duration::from_millis(1500), "stalled for {stall:?}");
}

#[test]
fn a_seek_stops_what_it_left_behind() {
    let cluster = Cluster::start();
    let object = Object::generated(176, 512 * MIB).paced(4 * MIB);
    let target = cluster.put("/left-behind.mp4", object);
    let from = |place: u64| {
        let call = Call::get(&target).header("Range", &format!("bytes={place}-"));
        let mut reply = call.open(cluster.edge().http).unwrap();
        reply.take(1).unwrap();
        reply
    };
    let old = from(0);
    let old_end = 200 * MIB;
    let bytes_of_old = || -> u64 {
        let hits = cluster.origin.hits("/left-behind.mp4");
        let old = hits
            .iter()
            .filter(|hit| hit.range_start().is_some_and(|it| it < old_end));
        old.map(|hit| hit.body_bytes).sum()
    };
    // First byte and bytes sent, in the order of the requests.
    let requests = || -> Vec<(Option<u64>, u64)> {
        let hits = cluster.origin.hits("/left-behind.mp4");
        let request = |hit: &chunkcache_tests::origin::Hit| (hit.range_start(), hit.body_bytes);
        hits.iter().map(request).collect()
    };
    eventually("its lookahead is under way", SOON, || {
        (bytes_of_old() > CHUNK).then_some(())
    });
    // Each running fetch has begun a chunk, or is about to with the bytes on the wire. Those may be
    // completed, after everything that the new position needs; nothing else of the old position may
    // be requested, not even briefly.
    let under_way = requests();
    let chunks = |(start, bytes): &(Option<u64>, u64)| {
        let start = start.filter(|it| *it < old_end)?;
        Some([start, (start + bytes).saturating_sub(1).max(start)])
    };
    let begun: BTreeSet<u64> = under_way
        .iter()
        .filter_map(chunks)
        .flat_map(|[_, at]| [at / CHUNK, (at + ON_THE_WIRE) / CHUNK])
        .collect();
    let at_seek = bytes_of_old();
    drop(old);
    let asked = Instant::now();
    let reply = from(300 * MIB + 11);
    let first_byte = asked.elapsed();
    assert!(first_byte < Duration::from_secs(1), "{first_byte:?}");
    let mut last = (bytes_of_old(), Instant::now());
    eventually("what was left behind is not fetched on", SOON, || {
        let now = bytes_of_old();
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(3)).then_some(())
    });
    let later: Vec<_> = requests().split_off(under_way.len());
    let wasted: Vec<_> = later
        .iter()
        .filter_map(chunks)
        .filter(|ends| ends.iter().any(|at| !begun.contains(&(at / CHUNK))))
        .collect();
    assert!(
        wasted.is_empty(),
        "asked for what nobody reads: {wasted:?}, beyond chunks {begun:?}; before {under_way:?}, \
         later {later:?}"
    );
    // There are three slots, and each fetch goes on to the end of one chunk at most: the last of
    // its run, or one of which half was there. What is sent until a fetch is stopped is less than
    // the rest of a begun chunk.
    let more = last.0 - at_seek;
    assert!(
        more <= 3 * CHUNK,
        "{more} bytes more of what nobody reads; before {under_way:?}, later {later:?}"
    );
    drop(reply);
}
