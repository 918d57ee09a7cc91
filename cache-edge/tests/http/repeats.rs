//! Requests that are their connection's last one but for the range, which hyper does not see.

use std::{ops::Range, time::Duration};

use cache_edge::http::{Cors, metrics::Abort};
use tokio::{io::AsyncReadExt, net::TcpSocket};

use crate::{
    client::{Answer, Connection, get, request},
    objects::{CHUNK, Edge, TestObject, byte_at, bytes_of},
};

/// Larger than what sockets hold.
const LARGE_CHUNK: u64 = 8 << 20;

fn ask_for(range: &Range<u64>) -> String {
    let line = format!("Range: bytes={}-{}", range.start, range.end - 1);
    request("GET", "/films/a", &[&line])
}

async fn ask(connection: &mut Connection, range: &Range<u64>) -> Answer {
    connection.send(&ask_for(range)).await;
    connection.answer(false).await
}

/// An edge with an object that stands and is all here.
async fn warm(size: u64) -> (Edge, TestObject) {
    let edge = Edge::start().await;
    let object = edge.warm("a", size);
    object.set_stands(true);
    (edge, object)
}

/// A connection whose next request is a repetition. The first one finds the object, the second one
/// is what is repeated.
async fn settled(edge: &Edge) -> Connection {
    let mut connection = Connection::open(edge.address).await;
    for _ in 0..2 {
        assert_eq!(ask(&mut connection, &(0..1)).await.status, 206);
    }
    connection
}

#[tokio::test]
async fn the_answer_is_the_one_that_hyper_gives() {
    let (edge, _object) = warm(3 * CHUNK).await;
    let mut connection = settled(&edge).await;
    for range in [
        0..1,
        5..6,
        7..CHUNK,
        CHUNK..2 * CHUNK,
        2 * CHUNK + 9..3 * CHUNK,
    ] {
        let before = edge.metrics.repeated();
        let answer = ask(&mut connection, &range).await;
        assert_eq!(edge.metrics.repeated(), before + 1, "{range:?}");
        let line = format!("Range: bytes={}-{}", range.start, range.end - 1);
        let mut other = get(edge.address, "/films/a", &[&line]).await;
        // The second may have turned between the two.
        let date = answer.header("date").to_owned();
        assert!(httpdate_like(&date), "{date:?}");
        other.headers.insert("date".to_owned(), date);
        assert_eq!(answer.headers, other.headers);
        assert!(answer.body == bytes_of(range));
    }
    assert_eq!(edge.metrics.repeated(), 5, "none on the other connections");
}

fn httpdate_like(date: &str) -> bool {
    date.len() == "Sat, 29 Oct 1994 19:43:31 GMT".len() && date.ends_with(" GMT")
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
    assert_eq!(edge.metrics.repeated(), 1);
    let answer = ask(&mut connection, &(CHUNK + 100..CHUNK + 101)).await;
    assert_eq!(answer.status, 416);
    assert_eq!(edge.metrics.repeated(), 1);
}

#[tokio::test]
async fn others_between_repetitions_are_answered_as_ever() {
    let (edge, _object) = warm(3 * CHUNK).await;
    edge.warm("b", 100);
    let mut connection = settled(&edge).await;
    assert!(ask(&mut connection, &(3..9)).await.body == bytes_of(3..9));
    assert_eq!(edge.metrics.repeated(), 1);
    let across = CHUNK - 5..CHUNK + 5;
    assert!(ask(&mut connection, &across).await.body == bytes_of(across));
    assert_eq!(edge.metrics.repeated(), 2);
    let three = CHUNK - 5..2 * CHUNK + 5;
    assert!(
        ask(&mut connection, &three).await.body == bytes_of(three),
        "three chunks"
    );
    assert_eq!(edge.metrics.repeated(), 2);
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
    assert_eq!(edge.metrics.repeated(), 2);
    for range in [1..3, 4..7, 8..CHUNK] {
        assert!(ask(&mut connection, &range).await.body == bytes_of(range));
    }
    assert_eq!(
        edge.metrics.repeated(),
        4,
        "the object is known: from the second on"
    );
}

#[tokio::test]
async fn an_object_that_no_longer_stands_is_resolved_again() {
    let (edge, object) = warm(CHUNK).await;
    let mut connection = settled(&edge).await;
    object.set_stands(false);
    for _ in 0..3 {
        assert!(ask(&mut connection, &(0..9)).await.body == bytes_of(0..9));
    }
    assert_eq!(edge.metrics.repeated(), 0);
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
    assert_eq!(edge.metrics.repeated(), 0);
}

/// Requests that arrive together, or in pieces, are hyper's from there on.
#[tokio::test]
async fn several_at_once_and_one_in_pieces() {
    let (edge, _object) = warm(3 * CHUNK).await;
    let mut connection = settled(&edge).await;
    let ranges = [0..10, 20..CHUNK, CHUNK..2 * CHUNK];
    connection
        .send(&ranges.each_ref().map(ask_for).concat())
        .await;
    for range in ranges {
        assert!(connection.answer(false).await.body == bytes_of(range));
    }
    let mut connection = settled(&edge).await;
    let whole = ask_for(&(1000..2000));
    let (first, rest) = whole.split_at(30);
    connection.send(first).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    connection.send(rest).await;
    assert!(connection.answer(false).await.body == bytes_of(1000..2000));
    assert!(ask(&mut connection, &(5..9)).await.body == bytes_of(5..9));
    assert_eq!(edge.metrics.repeated(), 0);
}

/// Another request behind a body that has to wait for the client is answered after it.
#[tokio::test]
async fn a_slow_reader_gets_every_byte_and_then_the_next_answer() {
    let edge = Edge::start().await;
    let object = edge.cold_in_chunks("a", 2 * LARGE_CHUNK, LARGE_CHUNK);
    object.set_stands(true);
    object.land_all();
    let mut connection = settled(&edge).await;
    let range = 3..LARGE_CHUNK;
    connection.send(&ask_for(&range)).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(edge.metrics.repeated(), 1);
    assert_eq!(edge.metrics.requests_active(), 1);
    connection.send(&ask_for(&(9..12))).await;
    connection.send(&request("GET", "/films/gone", &[])).await;
    assert!(connection.answer(false).await.body == bytes_of(range));
    assert!(connection.answer(false).await.body == bytes_of(9..12));
    assert_eq!(connection.answer(false).await.status, 404);
    edge.until("all were counted", |metrics| metrics.requests_active() == 0)
        .await;
    assert_eq!(edge.metrics.aborted(Abort::ClientLeft), 0);
}

/// An edge that sends the 8 MiB of a repetition to a client that takes nothing.
async fn stuck(edge: &Edge) -> Connection {
    let object = edge.cold_in_chunks("a", LARGE_CHUNK, LARGE_CHUNK);
    object.set_stands(true);
    object.land_all();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let stream = socket.connect(edge.address).await.unwrap();
    let mut connection = Connection::over(stream);
    for _ in 0..2 {
        assert_eq!(ask(&mut connection, &(0..1)).await.status, 206);
    }
    connection.send(&ask_for(&(1..LARGE_CHUNK))).await;
    edge.until("it is under way", |metrics| {
        metrics.repeated() == 1 && metrics.requests_active() == 1
    })
    .await;
    connection
}

#[tokio::test]
async fn draining_lets_it_finish() {
    let edge = Edge::start().await;
    let mut connection = stuck(&edge).await;
    edge.shutdown.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let answer = connection.answer(false).await;
    assert!(answer.body == bytes_of(1..LARGE_CHUNK));
    assert!(connection.is_closed().await);
    edge.serving.await.unwrap().unwrap();
    assert_eq!(edge.metrics.aborted(Abort::ClientLeft), 0);
}

#[tokio::test]
async fn the_drain_grace_cuts_it() {
    let edge = Edge::start_with(|settings| settings.drain_grace = Duration::from_millis(50)).await;
    let mut connection = stuck(&edge).await;
    edge.shutdown.cancel();
    edge.serving.await.unwrap().unwrap();
    let head = connection.head().await.unwrap();
    assert_eq!(head.status, 206);
    let mut body = connection.take_buffered();
    let _ = connection.stream.read_to_end(&mut body).await;
    assert!((body.len() as u64) < LARGE_CHUNK - 1, "never ended cleanly");
    assert!((1..).zip(&body).all(|(at, byte)| byte_at(at) == *byte));
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_in_the_end() {
    let edge =
        Edge::start_with(|settings| settings.timeouts.no_progress = Duration::from_millis(300))
            .await;
    let mut connection = stuck(&edge).await;
    edge.until("the connection was cut", |metrics| {
        metrics.aborted(Abort::ClientLeft) == 1
    })
    .await;
    assert!(connection.answer(false).await.cut);
}

#[tokio::test]
async fn a_client_that_leaves_frees_it() {
    let edge = Edge::start().await;
    drop(stuck(&edge).await);
    edge.until("the request ended", |metrics| {
        metrics.aborted(Abort::ClientLeft) == 1 && metrics.requests_active() == 0
    })
    .await;
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_after_its_time() {
    let edge = Edge::start_with(|settings| {
        settings.timeouts.keep_alive = Duration::from_millis(150);
    })
    .await;
    edge.warm("a", CHUNK).set_stands(true);
    let mut connection = settled(&edge).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(80)).await;
        assert_eq!(ask(&mut connection, &(0..9)).await.status, 206);
    }
    assert_eq!(edge.metrics.repeated(), 4, "a repetition keeps it open");
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn limits_hold() {
    let edge = Edge::start_with(|settings| {
        settings.limits.request_rate = Some(cache_edge::http::RequestRate {
            per_second: 0.001,
            burst: 4.0,
        });
    })
    .await;
    edge.warm("a", CHUNK).set_stands(true);
    let mut connection = settled(&edge).await;
    for _ in 0..2 {
        assert_eq!(ask(&mut connection, &(0..9)).await.status, 206);
    }
    assert_eq!(edge.metrics.repeated(), 2);
    assert_eq!(ask(&mut connection, &(0..9)).await.status, 429);
}

#[tokio::test]
async fn an_origin_is_allowed_each_time() {
    let edge = Edge::start_with(|settings| {
        settings.cors = Cors::Origins(vec!["https://a.example".to_owned()]);
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
    assert!(edge.metrics.repeated() >= 3);
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
    // Comes and goes meanwhile.
    for turn in 0..20 {
        object.set_stands(turn % 4 != 0);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    object.set_stands(true);
    for task in tasks {
        task.await.unwrap();
    }
    assert!(edge.metrics.repeated() > 500, "{}", edge.metrics.repeated());
    edge.until("all have ended", |metrics| metrics.requests_active() == 0)
        .await;
    assert_eq!(edge.metrics.aborted(Abort::ClientLeft), 0);
}
