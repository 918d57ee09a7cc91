//! The harness itself: an origin that lies only when told to, and a PostgreSQL that recovers.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use chunkcache_tests::cluster::directory;
use chunkcache_tests::http::Call;
use chunkcache_tests::origin::Times;
use chunkcache_tests::postgres::Durability;
use chunkcache_tests::{Fault, KIB, MIB, Object, Origin, Postgres, content};

#[test]
fn the_origin_serves_ranges_by_the_book() {
    let origin = Origin::start();
    origin.put("/a", Object::generated(1, MIB));
    let address = origin.address();
    let whole = Call::get("/a").send(address).expect(200);
    assert_eq!(content::sha256_of(&whole.body), content::sha256(1, MIB));

    let middle = Call::get("/a").range(1000, 2001).send(address).expect(206);
    assert_eq!(middle.body, content::bytes(1, 1000, 2001));
    assert_eq!(
        middle.header("content-range"),
        Some("bytes 1000-2000/1048576")
    );
    let tail = Call::get("/a")
        .header("Range", "bytes=-10")
        .send(address)
        .expect(206);
    assert_eq!(tail.body, content::bytes(1, MIB - 10, MIB));
    let past = Call::get("/a")
        .header("Range", "bytes=1048576-")
        .send(address)
        .expect(416);
    assert_eq!(past.header("content-range"), Some("bytes */1048576"));

    let etag = whole.header("etag").unwrap();
    let same = Call::get("/a").header("If-None-Match", etag).send(address);
    assert_eq!(same.status, 304);
    let other = Call::get("/a")
        .range(0, 5)
        .header("If-Range", "\"x\"")
        .send(address);
    assert_eq!(other.status, 200);
    let head = Call::head("/a").send(address).expect(200);
    assert_eq!(head.header("content-length"), Some("1048576"));
    assert_eq!(Call::get("/b").send(address).status, 404);
    assert_eq!(origin.body_bytes("/a"), 2 * MIB + 1001 + 10);
    assert_eq!(origin.hits("/a").len(), 7);
}

#[test]
fn the_origin_misbehaves_as_told() {
    let origin = Origin::start();
    let address = origin.address();
    let object = || Object::generated(2, 100 * KIB);
    let with = |fault| {
        origin.put("/f", object().fault(fault, Times::Always));
        Call::get("/f").range(0, 50 * KIB).open(address)
    };
    let died = with(Fault::DieAfter(1000)).unwrap().finish();
    assert!(!died.complete && died.body.len() <= 1000);
    let early = with(Fault::EndEarly(7)).unwrap().finish();
    assert!(!early.complete && early.body.len() as u64 == 50 * KIB - 7);
    assert_eq!(
        with(Fault::IgnoreRange)
            .unwrap()
            .finish()
            .expect(200)
            .body
            .len() as u64,
        100 * KIB
    );
    let shifted = with(Fault::ShiftContentRange(5))
        .unwrap()
        .finish()
        .expect(206);
    assert_eq!(
        shifted.header("content-range"),
        Some("bytes 5-51204/102400")
    );
    let shorter = with(Fault::ShorterRange(10)).unwrap().finish().expect(206);
    assert_eq!(shorter.body.len() as u64, 50 * KIB - 10);
    let chunked = with(Fault::Chunked).unwrap().finish().expect(206);
    assert_eq!(chunked.body, content::bytes(2, 0, 50 * KIB));
    assert_ne!(
        with(Fault::ChangingValidator)
            .unwrap()
            .header("etag")
            .unwrap()
            .to_owned(),
        {
            let again = Call::get("/f").send(address);
            again.header("etag").unwrap().to_owned()
        }
    );
    assert!(with(Fault::Hangup).is_err());
    assert!(with(Fault::Garbage).is_err());

    let busy = Fault::Status(503, vec![("Retry-After".into(), "1".into())]);
    origin.put("/once", object().fault(busy, Times::Next(1)));
    assert_eq!(Call::get("/once").send(address).status, 503);
    assert_eq!(Call::get("/once").send(address).status, 200);

    let mut stalled = with(Fault::StallAfter(10)).unwrap();
    assert_eq!(stalled.take(10).unwrap(), content::bytes(2, 0, 10));
}

#[test]
fn the_origin_keeps_its_pace_and_goes_down() {
    let mut origin = Origin::start();
    let address = origin.address();
    origin.put("/p", Object::generated(3, 50 * KIB).paced(100 * KIB));
    let began = Instant::now();
    Call::get("/p").send(address).expect(200);
    let took = began.elapsed();
    assert!(
        took > Duration::from_millis(400) && took < Duration::from_secs(5),
        "{took:?}"
    );
    origin.stop();
    assert!(Call::get("/p").open(address).is_err());
    origin.start_again();
    Call::head("/p").send(address).expect(200);
}

#[test]
fn postgresql_comes_back_with_what_was_committed() {
    let directory = directory();
    let mut postgres = Postgres::start(directory.path(), Durability::Full);
    postgres.query("CREATE TABLE t (n int)");
    postgres.query("INSERT INTO t VALUES (41), (42)");
    postgres.crash();
    assert!(postgres.try_query("SELECT 1").is_err());
    postgres.start_again();
    assert_eq!(postgres.number("SELECT max(n) FROM t"), 42);
    postgres.stop();
    postgres.start_again();
    assert_eq!(
        postgres.query("SELECT n, NULL FROM t ORDER BY n"),
        [["41", ""], ["42", ""]]
    );
}
