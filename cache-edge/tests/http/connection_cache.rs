//! Repeated requests for an object on one connection: the connection cache answers them as a
//! look-up would.

use std::{ops::Range, time::Duration};

use cache_edge::server::{AllowedOrigins, metrics::Abort};

use crate::{
    client::{Answer, Connection, get, request},
    objects::{CHUNK, Edge, TestObject, bytes_of},
};

fn ask_for(range: &Range<u64>) -> String {
    let line = format!("Range: bytes={}-{}", range.start, range.end - 1);
    request("GET", "/films/a", &[&line])
}

async fn ask(connection: &mut Connection, range: &Range<u64>) -> Answer {
    connection.send(&ask_for(range)).await;
    connection.answer(false).await
}

/// An edge with an object whose binding is valid and whose bytes are all present.
async fn warm(size: u64) -> (Edge, TestObject) {
    let edge = Edge::start().await;
    let object = edge.warm("a", size);
    object.set_stands(true);
    (edge, object)
}

/// A connection whose next request is answered from its cache.
async fn settled(edge: &Edge) -> Connection {
    let mut connection = Connection::open(edge.address).await;
    assert_eq!(ask(&mut connection, &(0..1)).await.status, 206);
    connection
}

#[tokio::test]
async fn the_answer_is_that_of_a_look_up() {
    let (edge, _object) = warm(3 * CHUNK).await;
    let mut connection = settled(&edge).await;
    for range in [
        0..1,
        5..6,
        7..CHUNK,
        CHUNK..2 * CHUNK,
        2 * CHUNK + 9..3 * CHUNK,
    ] {
        let answer = ask(&mut connection, &range).await;
        let line = format!("Range: bytes={}-{}", range.start, range.end - 1);
        let mut other = get(edge.address, "/films/a", &[&line]).await;
        // The clock's second may have changed between the two.
        let date = answer.header("date").to_owned();
        other.headers.insert("date".to_owned(), date);
        assert_eq!(answer.headers, other.headers);
        assert!(answer.body == bytes_of(range));
    }
}

#[tokio::test]
async fn what_is_past_the_end_is_left_out() {
    let (edge, _object) = warm(CHUNK + 100).await;
    let mut connection = settled(&edge).await;
    let answer = ask(&mut connection, &(CHUNK + 50..CHUNK + 5000)).await;
    assert_eq!(
        answer.header("content-range"),
        format!("bytes {}-{}/{}", CHUNK + 50, CHUNK + 99, CHUNK + 100)
    );
    assert!(answer.body == bytes_of(CHUNK + 50..CHUNK + 100));
    let answer = ask(&mut connection, &(CHUNK + 100..CHUNK + 101)).await;
    assert_eq!(answer.status, 416);
}

#[tokio::test]
async fn other_requests_between_are_answered_as_ever() {
    let (edge, _object) = warm(3 * CHUNK).await;
    edge.warm("b", 100);
    let mut connection = settled(&edge).await;
    assert!(ask(&mut connection, &(3..9)).await.body == bytes_of(3..9));
    let across = CHUNK - 5..CHUNK + 5;
    assert!(ask(&mut connection, &across).await.body == bytes_of(across));
    let three = CHUNK - 5..2 * CHUNK + 5;
    assert!(
        ask(&mut connection, &three).await.body == bytes_of(three),
        "three chunks"
    );
    assert_eq!(
        connection
            .ask("GET", "/films/b", &["Range: bytes=0-9"])
            .await
            .header("content-range"),
        "bytes 0-9/100"
    );
    assert_eq!(connection.ask("GET", "/films/gone", &[]).await.status, 404);
    let answer = connection
        .ask(
            "GET",
            "/films/a",
            &["Range: bytes=0-9", "If-None-Match: \"v1\""],
        )
        .await;
    assert_eq!(answer.status, 304);
    let answer = connection
        .ask(
            "GET",
            "/films/a",
            &["Range: bytes=0-9", "If-None-Match: \"v1\""],
        )
        .await;
    assert_eq!(answer.status, 304, "a condition is looked at each time");
    assert_eq!(
        connection
            .ask("HEAD", "/films/a", &["Range: bytes=0-9"])
            .await
            .status,
        206
    );
    for range in [1..3, 4..7, 8..CHUNK] {
        assert!(ask(&mut connection, &range).await.body == bytes_of(range));
    }
}

#[tokio::test]
async fn an_object_whose_binding_ended_is_resolved_again() {
    let (edge, object) = warm(CHUNK).await;
    let mut connection = settled(&edge).await;
    object.set_stands(false);
    for _ in 0..3 {
        assert!(ask(&mut connection, &(0..9)).await.body == bytes_of(0..9));
    }
}

#[tokio::test]
async fn bytes_that_are_missing_are_waited_for() {
    let edge = Edge::start().await;
    let object = edge.cold("a", 2 * CHUNK);
    object.set_stands(true);
    object.land(0);
    let mut connection = settled(&edge).await;
    connection.send(&ask_for(&(CHUNK..CHUNK + 9))).await;
    let nothing = tokio::time::timeout(Duration::from_millis(50), connection.stream.readable());
    assert!(nothing.await.is_err());
    object.land(1);
    assert!(connection.answer(false).await.body == bytes_of(CHUNK..CHUNK + 9));
}

#[tokio::test]
async fn limits_hold() {
    let edge = Edge::start_with(|settings| {
        settings.limits.request_rate = Some(service_kit::token_bucket::Rate {
            per_second: 0.001,
            burst: 4.0,
        });
    })
    .await;
    edge.warm("a", CHUNK).set_stands(true);
    let mut connection = settled(&edge).await;
    for _ in 0..3 {
        assert_eq!(ask(&mut connection, &(0..9)).await.status, 206);
    }
    assert_eq!(ask(&mut connection, &(0..9)).await.status, 429);
}

#[tokio::test]
async fn an_origin_is_allowed_each_time() {
    let edge = Edge::start_with(|settings| {
        settings.cors.origins = AllowedOrigins::Listed(vec!["https://a.example".to_owned()]);
    })
    .await;
    edge.warm("a", CHUNK).set_stands(true);
    let mut connection = Connection::open(edge.address).await;
    for (origin, allowed) in [("https://a.example", true), ("https://b.example", false)] {
        for _ in 0..4 {
            let answer = connection
                .ask(
                    "GET",
                    "/films/a",
                    &["Range: bytes=0-9", &format!("Origin: {origin}")],
                )
                .await;
            let header = answer.header("access-control-allow-origin");
            assert_eq!(header == origin, allowed, "{header:?}");
            assert_eq!(answer.header("vary"), "Origin");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_byte_on_many_connections() {
    const SIZE: u64 = 20 * CHUNK + 4321;
    let (edge, object) = warm(SIZE).await;
    let tasks = (0..32u64).map(|seed| {
        let address = edge.address;
        tokio::spawn(async move {
            let mut connection = Connection::open(address).await;
            let mut state = seed + 1;
            let mut random = |bound: u64| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % bound
            };
            for _ in 0..60 {
                let start = random(SIZE);
                let end = (start + 1 + random(16 << 10)).min(SIZE);
                let answer = ask(&mut connection, &(start..end)).await;
                assert!(answer.body == bytes_of(start..end), "{start}-{end}");
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    // The cache entry comes and goes meanwhile.
    for turn in 0..20 {
        object.set_stands(turn % 4 != 0);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    object.set_stands(true);
    for task in tasks {
        task.await.unwrap();
    }
    edge.until("all have ended", |metrics| metrics.requests_active() == 0)
        .await;
    assert_eq!(edge.metrics.aborted(Abort::ClientLeft), 0);
}
