//! Objects that change at their origin: no body mixes two versions, and nobody is served the old
//! one after an invalidation.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use chunkcache_tests::http::{Call, Response};
use chunkcache_tests::origin::Times;
use chunkcache_tests::{CHUNK, Cluster, Fault, KIB, MIB, Object, content, eventually};
use rustix::process::Signal;

/// Longer than the first request for a cold key fetches.
const SIZE: u64 = 32 * MIB + 5;

/// The ETag names the version of a body; every byte must be of that one.
#[track_caller]
fn assert_one_version(answer: &Response, start: u64, versions: std::ops::Range<u64>) {
    assert!(matches!(answer.status, 200 | 206), "{}", answer.status);
    let etag = answer.header("etag").unwrap();
    let seed = versions
        .into_iter()
        .find(|seed| etag == format!("\"generated-{seed}-{SIZE}\""))
        .unwrap_or_else(|| panic!("of no version: {etag}"));
    let start = if answer.status == 206 { start } else { 0 };
    let wanted = content::bytes(seed, start, start + answer.body.len() as u64);
    assert!(answer.body == wanted, "bytes that are not of {etag}");
}

#[test]
fn an_origin_that_changes_at_each_request() {
    let cluster = Cluster::start();
    let object = Object::generated(1, SIZE).fault(Fault::ChangingValidator, Times::Always);
    let target = cluster.put("/restless", object);
    for start in [0, 20 * MIB, 5 * MIB, SIZE - 10] {
        let answer = Call::get(&target)
            .range(start, SIZE)
            .timeout(Duration::from_secs(40))
            .send(cluster.edge().http);
        // Complete and of one version, cut where that version was no longer available, or refused.
        if answer.status == 503 {
            assert!(answer.header("retry-after").is_some());
            assert!(answer.header("cache-status").unwrap().contains("changed"));
            continue;
        }
        assert_eq!(answer.status, 206);
        assert!(answer.header("etag").unwrap().starts_with("\"change-"));
        assert_eq!(
            answer.complete,
            answer.body.len() as u64 == SIZE - start,
            "a short body never ends cleanly"
        );
    }
}

/// The key is known and fresh, the chunk is missing, and the origin has another version: nothing
/// was sent yet, so the request gets the new version and not an error.
#[test]
fn a_change_found_before_the_first_byte_is_not_told() {
    let cluster = Cluster::start();
    let old = Object::generated(10, SIZE).header("Cache-Control", "max-age=3600");
    let target = cluster.put("/replaced", old);
    let address = cluster.edge().http;
    let head = Call::get(&target).range(0, 10).send(address).expect(206);
    assert_one_version(&head, 0, 10..11);
    cluster.wait_recorded("/replaced", &[(0, CHUNK)]);
    cluster.put("/replaced", Object::generated(11, SIZE));
    let start = 24 * MIB;
    let later = Call::get(&target)
        .range(start, start + MIB)
        .send(address)
        .expect(206);
    assert_one_version(&later, start, 11..12);
    // A player insists on the version it began with; a 200 shows that it is gone.
    let resumed = Call::get(&target)
        .range(start, start + MIB)
        .header("If-Range", head.header("etag").unwrap())
        .send(address)
        .expect(200);
    assert_one_version(&resumed, 0, 11..12);
}

#[test]
fn readers_while_the_object_changes() {
    let cluster = Cluster::with_edges(2);
    let version = |seed| Object::generated(seed, SIZE).header("Cache-Control", "max-age=0");
    let target = cluster.put("/busy", version(20));
    let versions = 20..28;
    std::thread::scope(|scope| {
        for edge in &cluster.edges {
            for reader in 0..3u64 {
                let (target, versions) = (&target, versions.clone());
                scope.spawn(move || {
                    for turn in 0..8u64 {
                        let start = (reader * 7 + turn * 5) * MIB % SIZE;
                        let answer = Call::get(target)
                            .header("Range", &format!("bytes={start}-"))
                            .send(edge.http);
                        if answer.status == 503 {
                            continue;
                        }
                        assert_one_version(&answer, start, versions.clone());
                        let all = answer.body.len() as u64 == SIZE - start;
                        assert_eq!(answer.complete, all);
                    }
                });
            }
        }
        for seed in versions.clone().skip(1) {
            // Each version is requested before the next one replaces it.
            let asked = cluster.origin.hits("/busy").len();
            cluster.put("/busy", version(seed));
            eventually("the origin is asked", Duration::from_secs(20), || {
                (cluster.origin.hits("/busy").len() > asked + 3).then_some(())
            });
        }
    });
    for edge in &cluster.edges {
        let last = Call::get(&target).send(edge.http).expect(200);
        assert_one_version(&last, 0, 27..28);
    }
}

#[test]
fn invalidate_holds_on_every_edge_before_it_answers() {
    let cluster = Cluster::with_edges(2);
    let version = |seed| Object::generated(seed, SIZE).header("Cache-Control", "max-age=3600");
    let target = cluster.put("/withdrawn", version(30));
    let part = |edge: &chunkcache_tests::Edge| {
        let answer = Call::get(&target).range(0, 10 * KIB).send(edge.http);
        answer.expect(206)
    };
    for seed in 30..34 {
        for edge in &cluster.edges {
            assert_one_version(&part(edge), 0, seed..seed + 1);
        }
        cluster.put("/withdrawn", version(seed + 1));
        for edge in &cluster.edges {
            // Fresh, so still the old one.
            assert_one_version(&part(edge), 0, seed..seed + 1);
        }
        let done = cluster
            .coordinator
            .json(&["entry", "invalidate", "media/withdrawn"]);
        let confirmed = done["confirmed_edges"].as_array().unwrap().len();
        assert_eq!(
            (confirmed, &done["unconfirmed_edges"]),
            (2, &serde_json::json!([]))
        );
        for edge in &cluster.edges {
            assert_one_version(&part(edge), 0, seed + 1..seed + 2);
        }
    }
}

#[test]
fn an_edge_that_does_not_confirm_is_named() {
    let mut cluster = Cluster::with_edges(2);
    let object = |seed| Object::generated(seed, SIZE).header("Cache-Control", "max-age=3600");
    let target = cluster.put("/held", object(40));
    for edge in &cluster.edges {
        Call::get(&target).range(0, 10).send(edge.http).expect(206);
    }
    cluster.put("/held", object(41));
    cluster.edges[1].process().signal(Signal::STOP);
    let done = cluster
        .coordinator
        .json(&["entry", "invalidate", "media/held"]);
    assert_eq!(done["confirmed_edges"], serde_json::json!(["edge-a"]));
    assert_eq!(done["unconfirmed_edges"], serde_json::json!(["edge-b"]));
    cluster.edges[1].process().signal(Signal::CONT);
    // It learns of the invalidation when it can.
    eventually("edge-b knows", Duration::from_secs(20), || {
        let answer = Call::get(&target).range(0, 10).send(cluster.edges[1].http);
        (answer.body == content::bytes(41, 0, 10)).then_some(())
    });
}

/// The edges are revalidating the old version when it is invalidated: an answer from before must
/// not count after it.
#[test]
fn an_invalidation_overtakes_questions_under_way() {
    let cluster = Cluster::with_edges(2);
    let version =
        |seed, cache_control| Object::generated(seed, SIZE).header("Cache-Control", cache_control);
    let target = cluster.put("/overtaken", version(60, "max-age=0"));
    let part = |edge: &chunkcache_tests::Edge| {
        let answer = Call::get(&target).range(0, 10 * KIB).send(edge.http);
        answer.expect(206)
    };
    for edge in &cluster.edges {
        assert_one_version(&part(edge), 0, 60..61);
    }
    let slow = version(60, "max-age=3600").latency(Duration::from_secs(1));
    cluster.put("/overtaken", slow);
    let asked = cluster.origin.hits("/overtaken").len();
    std::thread::scope(|scope| {
        for edge in &cluster.edges {
            scope.spawn(|| assert_one_version(&part(edge), 0, 60..62));
        }
        eventually("the origin is asked", Duration::from_secs(20), || {
            (cluster.origin.hits("/overtaken").len() > asked).then_some(())
        });
        cluster.put("/overtaken", version(61, "max-age=3600"));
        let done = cluster
            .coordinator
            .json(&["entry", "invalidate", "media/overtaken"]);
        assert_eq!(done["unconfirmed_edges"], serde_json::json!([]));
    });
    for edge in &cluster.edges {
        assert_one_version(&part(edge), 0, 61..62);
    }
}

#[test]
fn an_edge_that_was_away_learns_of_an_invalidation() {
    let mut cluster = Cluster::with_edges(2);
    let object = |seed| Object::generated(seed, SIZE).header("Cache-Control", "max-age=3600");
    let target = cluster.put("/away", object(70));
    for edge in &cluster.edges {
        Call::get(&target).range(0, 10).send(edge.http).expect(206);
    }
    cluster.wait_recorded_on("/away", "edge-b", &[(0, CHUNK)]);
    cluster.edges[1].terminate();
    cluster.put("/away", object(71));
    let done = cluster
        .coordinator
        .json(&["entry", "invalidate", "media/away"]);
    assert_eq!(done["confirmed_edges"], serde_json::json!(["edge-a"]));
    assert_eq!(done["unconfirmed_edges"], serde_json::json!(["edge-b"]));
    cluster.edges[1].start();
    for edge in cluster.edges.iter().rev() {
        let answer = Call::get(&target).range(0, 10).send(edge.http).expect(206);
        assert_one_version(&answer, 0, 71..72);
    }
}

/// The rest of a running body: stored chunks of the old entry may be sent, and nothing else comes
/// after them.
#[test]
fn a_running_body_ends_on_its_own_version() {
    let cluster = Cluster::start();
    let object = |seed| Object::generated(seed, SIZE).header("Cache-Control", "max-age=3600");
    let target = cluster.put("/running", object(50).paced(4 * MIB));
    let address = cluster.edge().http;
    let mut running = Call::get(&target).open(address).unwrap();
    let first = running.take(100_000).unwrap();
    cluster.put("/running", object(51));
    let done = cluster
        .coordinator
        .cli(&["entry", "invalidate", "media/running"]);
    assert!(done.status.success(), "{done:?}");
    let fresh = Call::get(&target).send(address).expect(200);
    assert_one_version(&fresh, 0, 51..52);
    let rest = running.finish();
    let old = content::bytes(50, 0, SIZE);
    assert!(old.starts_with(&first) && old[first.len()..].starts_with(&rest.body));
    assert_eq!(rest.complete, first.len() + rest.body.len() == old.len());
}
