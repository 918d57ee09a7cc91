//! Passed-through bodies that break off: continued if the origin proves that the rest is of the
//! same version, otherwise cut. Never a clean end of a short body, never bytes of two versions.
#![allow(clippy::unwrap_used)]

use chunkcache_tests::http::{Call, Response};
use chunkcache_tests::origin::{Hit, Times};
use chunkcache_tests::{Cluster, Fault, MIB, Object, content};

const SIZE: u64 = 9 * MIB + 77;

fn passing(seed: u64) -> Object {
    Object::generated(seed, SIZE).header("Cache-Control", "no-store")
}

/// Adds a fault for the next request that is passed through, not for the one that finds out that
/// the object must be passed through.
fn prepare(cluster: &Cluster, path: &str, object: Object, fault: Fault, times: Times) -> String {
    let target = cluster.put(path, object.clone());
    let known = Call::get(&target).range(0, 1).send(cluster.edge().http);
    assert!(matches!(known.status, 200 | 206), "{path}");
    cluster.put(path, object.fault(fault, times));
    target
}

/// The requests for it since it was prepared.
fn asked_since(cluster: &Cluster, path: &str, before: usize) -> Vec<Hit> {
    cluster.origin.hits(path).split_off(before)
}

#[track_caller]
fn assert_bypassed(answer: &Response) {
    let said = answer.header("cache-status").unwrap();
    assert!(said.contains("fwd=bypass"), "{said}");
}

#[test]
fn a_passed_body_that_breaks_once_is_gone_on_with() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    let faults = [
        ("/dies", Fault::DieAfter(3 * MIB + 5)),
        ("/dies-at-once", Fault::DieAfter(0)),
        ("/ends-early", Fault::EndEarly(1000)),
        ("/stalls", Fault::StallAfter(MIB)),
    ];
    for (seed, (path, fault)) in (11..).zip(faults) {
        let target = prepare(&cluster, path, passing(seed), fault, Times::Next(1));
        let before = cluster.origin.hits(path).len();
        let answer = Call::get(&target).send(address).expect(200);
        assert_bypassed(&answer);
        assert!(answer.body == content::bytes(seed, 0, SIZE), "{path}");
        let asked = asked_since(&cluster, path, before);
        assert_eq!(asked.len(), 2, "{path}: {asked:?}");
        let etag = format!("\"generated-{seed}-{SIZE}\"");
        assert_eq!(asked[1].header("if-range"), Some(etag.as_str()));
        let got = asked[1].range_start().unwrap();
        assert!(got <= SIZE && asked[1].body_bytes == SIZE - got, "{path}");
        assert!(cluster.recorded(path, "edge-a").is_empty());
    }
    // A part is completed by the rest of the part.
    let target = prepare(
        &cluster,
        "/part",
        passing(21),
        Fault::DieAfter(MIB),
        Times::Next(1),
    );
    let part = Call::get(&target).range(1000, 4 * MIB).send(address);
    assert!(part.expect(206).body == content::bytes(21, 1000, 4 * MIB));
    // A body of unknown length ends where the second answer ends.
    let object = passing(22).fault(Fault::Chunked, Times::Always);
    let fault = Fault::DieAfter(3 * MIB);
    let target = prepare(&cluster, "/chunked", object, fault, Times::Next(1));
    let whole = Call::get(&target).send(address).expect(200);
    assert_eq!(whole.header("content-length"), None);
    assert!(whole.body == content::bytes(22, 0, SIZE));
    // A break after enough new bytes counts as the first again. Paced: a reset drops unread bytes.
    let fault = Fault::DieAfter(MIB + MIB / 2);
    let object = passing(23).paced(8 * MIB);
    let target = prepare(&cluster, "/in-steps", object, fault, Times::Always);
    let whole = Call::get(&target).send(address).expect(200);
    assert!(whole.body == content::bytes(23, 0, SIZE));
    let metrics = Call::get("/metrics").send(cluster.edge().admin).text();
    let errors = metrics
        .lines()
        .find_map(|line| line.strip_prefix("cache_edge_origin_errors_total "));
    assert!(
        errors.unwrap().parse::<u32>().unwrap() >= 12,
        "each break is the origin's: {errors:?}"
    );
}

/// Checks that it was cut, and is a prefix of the version it began with.
#[track_caller]
fn assert_cut(answer: &Response, seed: u64) {
    assert_eq!(answer.status, 200);
    assert!(!answer.complete, "a short body ended cleanly");
    assert!((answer.body.len() as u64) < SIZE);
    assert!(
        content::bytes(seed, 0, SIZE).starts_with(&answer.body),
        "a byte of another version"
    );
}

#[test]
fn a_passed_body_of_an_object_that_changed_is_cut() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    // The rest is of another version: with a new tag, or with the old one and another size.
    let sized = |tag: &str| {
        Object::generated(32, SIZE + 5)
            .header("Cache-Control", "no-store")
            .etag(Some(tag))
    };
    let same_tag = format!("\"generated-31-{SIZE}\"");
    for (path, later) in [
        ("/replaced", passing(32)),
        ("/resized", sized(&same_tag)),
        ("/weakened", passing(32).etag(Some("W/\"x\""))),
        ("/untagged", passing(32).etag(None)),
        ("/ignores-if-range", passing(32).ignoring_conditions()),
    ] {
        let object = passing(31).paced(4 * MIB);
        let fault = Fault::DieAfter(3 * MIB);
        let target = prepare(&cluster, path, object, fault, Times::Always);
        let mut reply = Call::get(&target).open(address).unwrap();
        let first = reply.take(MIB as usize).unwrap();
        let before = cluster.origin.hits(path).len();
        cluster.put(path, later);
        let mut rest = reply.finish();
        rest.body = [first, rest.body].concat();
        assert_cut(&rest, 31);
        assert_eq!(
            asked_since(&cluster, path, before).len(),
            1,
            "{path}: it was asked once, and believed"
        );
    }
    // The object was removed meanwhile.
    let object = passing(33).paced(4 * MIB);
    let fault = Fault::DieAfter(3 * MIB);
    let target = prepare(&cluster, "/removed", object, fault, Times::Always);
    let reply = Call::get(&target).open(address).unwrap();
    cluster.origin.remove("/removed");
    assert_cut(&reply.finish(), 33);
}

#[test]
fn a_passed_body_without_proof_is_cut() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    for (path, object) in [
        ("/untagged", passing(41).etag(None)),
        ("/weak", passing(41).etag(Some("W/\"x\""))),
        (
            "/no-ranges",
            passing(41).fault(Fault::IgnoreRange, Times::Always),
        ),
        (
            "/chunked",
            passing(41).etag(None).fault(Fault::Chunked, Times::Always),
        ),
    ] {
        let fault = Fault::DieAfter(3 * MIB);
        let target = prepare(&cluster, path, object, fault, Times::Next(1));
        let before = cluster.origin.hits(path).len();
        assert_cut(&Call::get(&target).send(address), 41);
        assert_eq!(asked_since(&cluster, path, before).len(), 1, "{path}");
    }
}

#[test]
fn a_passed_body_that_breaks_again_and_again_is_cut() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    for (path, fault) in [
        ("/dies", Fault::DieAfter(1000)),
        ("/dies-at-once", Fault::DieAfter(0)),
        ("/shifts", Fault::ShiftContentRange(7)),
    ] {
        let object = match &fault {
            Fault::ShiftContentRange(_) => passing(51).fault(Fault::DieAfter(1000), Times::Always),
            _ => passing(51),
        };
        let target = prepare(&cluster, path, object, fault, Times::Always);
        let before = cluster.origin.hits(path).len();
        assert_cut(&Call::get(&target).send(address), 51);
        let asked = asked_since(&cluster, path, before).len();
        let bound = if path == "/shifts" { 2 } else { 6 };
        assert_eq!(asked, bound, "{path}: the first, and its attempts");
    }
}

/// The open connection may be read to its end; no new one is made.
#[test]
fn a_source_that_was_removed_is_not_asked_for_the_rest() {
    let cluster = Cluster::start();
    let object = passing(61).paced(4 * MIB);
    let fault = Fault::DieAfter(3 * MIB);
    let target = prepare(&cluster, "/film", object, fault, Times::Always);
    let before = cluster.origin.hits("/film").len();
    let mut reply = Call::get(&target).open(cluster.edge().http).unwrap();
    let first = reply.take(MIB as usize).unwrap();
    let removed = cluster.coordinator.cli(&["source", "remove", "media"]);
    assert!(removed.status.success(), "{removed:?}");
    let mut rest = reply.finish();
    rest.body = [first, rest.body].concat();
    assert_cut(&rest, 61);
    assert_eq!(asked_since(&cluster, "/film", before).len(), 1);
}
