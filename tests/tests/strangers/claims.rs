//! An origin's claims cost nothing: memory, time and the store grow with what is stored.

use std::time::{Duration, Instant};

use chunkcache_tests::http::Call;
use chunkcache_tests::{Cluster, MIB, Object, content};

/// As many bytes as a 32-bit number of chunks of 2 MiB allows.
const PETABYTES: u64 = 8_000_000_000_000_000;
/// One byte more than a file on ext4 can have.
const TOO_LONG: u64 = (16 << 40) + 1;

#[test]
fn an_object_that_claims_petabytes_costs_nothing() {
    let mut cluster = Cluster::start();
    let small = cluster.put("/small.mp4", Object::generated(910, MIB));
    cluster.edge().get(&small).expect(200);
    let before = cluster.edge_mut().process().resident_anonymous_bytes();
    let begun = Instant::now();
    for nth in 0..4 {
        let target = cluster.put(&format!("/huge-{nth}"), Object::generated(nth, PETABYTES));
        let answer = Call::head(&target).send(cluster.edge().http).expect(200);
        assert_eq!(answer.header("content-length"), Some("8000000000000000"));
    }
    let took = begun.elapsed();
    let grown = cluster
        .edge_mut()
        .process()
        .resident_anonymous_bytes()
        .saturating_sub(before);
    println!("4 HEADs of 8 PB: {took:?}, {} KiB", grown >> 10);
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(grown < 16 * MIB, "{} MiB", grown / MIB);
}

#[test]
fn a_length_no_file_has_is_that_objects_problem_alone() {
    let cluster = Cluster::start();
    let long = cluster.put("/long", Object::generated(911, TOO_LONG));
    for start in [0, TOO_LONG - 100] {
        let part = Call::get(&long)
            .range(start, start + 100)
            .timeout(Duration::from_secs(20))
            .send(cluster.edge().http)
            .expect(206);
        assert_eq!(part.body, content::bytes(911, start, start + 100));
    }
    let other = cluster.put("/other.mp4", Object::generated(912, MIB));
    cluster.edge().get(&other).expect(200);
    cluster.wait_recorded("/other.mp4", &[(0, MIB)]);
    let ready = Call::get("/readyz").send(cluster.edge().admin);
    assert_eq!(ready.status, 200, "{}", ready.text());
}
