//! Origins that break and lie: the client gets the right bytes, or an honest failure; never a wrong
//! byte.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::origin::Times;
use chunkcache_tests::{CHUNK, Cluster, Fault, MIB, Object, content, eventually};

const SIZE: u64 = 9 * MIB + 77;

/// The body must be a prefix of the object, and complete if it ended cleanly.
#[track_caller]
fn read_honestly(cluster: &Cluster, target: &str, seed: u64) -> bool {
    let answer = Call::get(target)
        .timeout(Duration::from_secs(45))
        .send(cluster.edge().http);
    if answer.status != 200 {
        assert!((500..600).contains(&answer.status), "{}", answer.status);
        return false;
    }
    let expected = content::bytes(seed, 0, SIZE);
    assert!(
        expected.starts_with(&answer.body),
        "a wrong byte in {target}"
    );
    assert_eq!(answer.complete, answer.body.len() as u64 == SIZE);
    answer.complete
}

#[test]
fn passing_faults_are_healed_by_asking_again() {
    let cluster = Cluster::start();
    let busy = || Fault::Status(503, vec![("Retry-After".into(), "1".into())]);
    let limited = Fault::Status(429, vec![("Retry-After".into(), "1".into())]);
    for (seed, path, fault) in [
        (51, "/dies", Fault::DieAfter(CHUNK + MIB / 2)),
        (52, "/ends-early", Fault::EndEarly(1000)),
        (53, "/stalls", Fault::StallAfter(MIB)),
        (54, "/busy", busy()),
        (55, "/limited", limited),
        (56, "/hangs-up", Fault::Hangup),
        (57, "/shorter", Fault::ShorterRange(1000)),
    ] {
        let target = cluster.put(
            path,
            Object::generated(seed, SIZE).fault(fault, Times::Next(1)),
        );
        // A stall may outlast one request's patience; fetched bytes are kept, so another request
        // succeeds.
        eventually(
            &format!("{path} is healed"),
            Duration::from_secs(90),
            || read_honestly(&cluster, &target, seed).then_some(()),
        );
        cluster.wait_recorded(path, &[(0, SIZE)]);
    }
}

#[test]
fn an_origin_that_ignores_range_still_serves() {
    let cluster = Cluster::start();
    let ignoring = Object::generated(61, SIZE).fault(Fault::IgnoreRange, Times::Always);
    let target = cluster.put("/ignores", ignoring);
    let start = 5 * MIB + 3;
    let part = Call::get(&target)
        .range(start, start + 1000)
        .send(cluster.edge().http);
    assert!(matches!(part.status, 200 | 206));
    let expected = if part.status == 206 {
        content::bytes(61, start, start + 1000)
    } else {
        content::bytes(61, 0, SIZE)
    };
    assert!(part.complete && part.body == expected);
    assert!(read_honestly(&cluster, &target, 61));
}

#[test]
fn lies_are_never_stored() {
    let cluster = Cluster::start();
    for (seed, path, fault) in [
        (71, "/shifted", Fault::ShiftContentRange(1000)),
        (72, "/changing", Fault::ChangingValidator),
        (73, "/gzip", Fault::Gzip),
        (74, "/garbage", Fault::Garbage),
        (75, "/more", Fault::SendMore(5000)),
        (76, "/always-dies", Fault::DieAfter(MIB)),
    ] {
        let object = Object::generated(seed, SIZE).fault(fault, Times::Always);
        let target = cluster.put(path, object.clone());
        let middle = Call::get(&target)
            .range(4 * MIB, 4 * MIB + 1000)
            .timeout(Duration::from_secs(45))
            .send(cluster.edge().http);
        if middle.status == 206 && middle.complete {
            assert_eq!(
                middle.body,
                content::bytes(seed, 4 * MIB, 4 * MIB + 1000),
                "{path}"
            );
        } else if middle.status != 200 {
            assert!(
                middle.status == 206 || middle.status >= 500,
                "{path}: {}",
                middle.status
            );
        }
        // Once the origin is honest again, so is the answer, whatever was stored meanwhile.
        cluster.put(path, object.without_faults());
        eventually(&format!("{path} is whole"), Duration::from_secs(60), || {
            let whole = Call::get(&target).send(cluster.edge().http);
            let right = whole.status == 200 && whole.complete;
            assert!(
                !right || whole.body == content::bytes(seed, 0, SIZE),
                "a wrong byte in {path}"
            );
            right.then_some(())
        });
    }
}

#[test]
fn bytes_of_two_versions_are_never_mixed() {
    let cluster = Cluster::start();
    let old = Object::generated(81, 64 * MIB).paced(8 * MIB);
    let target = cluster.put("/replaced", old);
    let mut reply = Call::get(&target).open(cluster.edge().http).unwrap();
    assert_eq!(
        reply.take(MIB as usize).unwrap(),
        content::bytes(81, 0, MIB)
    );
    cluster
        .origin
        .put("/replaced", Object::generated(82, 64 * MIB));
    let rest = reply.finish();
    let expected = content::bytes(81, MIB, 64 * MIB);
    assert!(expected.starts_with(&rest.body), "bytes of another version");
    assert_eq!(rest.complete, rest.body.len() == expected.len());
    let invalidated = cluster
        .coordinator
        .cli(&["entry", "invalidate", "media/replaced"]);
    assert!(invalidated.status.success(), "{invalidated:?}");
    let new = Call::get(&target).send(cluster.edge().http).expect(200);
    assert_eq!(content::sha256_of(&new.body), content::sha256(82, 64 * MIB));
}

/// The faults occur when a body is well advanced: the reader waits, and gets every byte.
#[test]
fn a_fault_behind_a_running_body_costs_time_only() {
    let cluster = Cluster::start();
    let size = 40 * MIB + 3;
    let address = cluster.edge().http;
    let faults = [
        Fault::Status(503, Vec::new()),
        Fault::Hangup,
        Fault::EndEarly(1000),
        Fault::DieAfter(MIB / 2),
        Fault::StallAfter(MIB / 2),
    ];
    std::thread::scope(|scope| {
        for (seed, fault) in (90..).zip(faults) {
            let path = format!("/later-{seed}");
            let target = cluster.put(&path, Object::generated(seed, size).paced(16 * MIB));
            let origin = &cluster.origin;
            scope.spawn(move || {
                let mut reply = Call::get(&target).open(address).unwrap();
                let first = reply.take(MIB as usize).unwrap();
                let asked = origin.hits(&path).len();
                origin.change(&path, |object| {
                    *object = object.clone().fault(fault.clone(), Times::Next(1));
                });
                let rest = reply.finish();
                assert!(rest.complete, "{fault:?} was told to the client");
                let whole = [first, rest.body].concat();
                assert_eq!(content::sha256_of(&whole), content::sha256(seed, size));
                assert!(origin.hits(&path).len() > asked + 1, "{fault:?} was met");
            });
        }
    });
}
