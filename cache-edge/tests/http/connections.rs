//! How connections begin, last and end.

use std::time::Duration;

use cache_edge::{resolve::ports::ReadError, server::metrics::Abort};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    client::{Connection, get, request},
    objects::{CHUNK, Edge, bytes_of},
};

#[tokio::test]
async fn keep_alive_and_pipelining() {
    let edge = Edge::start().await;
    edge.warm("a", 3 * CHUNK);
    let mut connection = Connection::open(edge.address).await;
    let ranges = [0..10, 100..CHUNK + 7, 2 * CHUNK..3 * CHUNK, 5..6];
    let mut sent = String::new();
    for range in &ranges {
        let line = format!("Range: bytes={}-{}", range.start, range.end - 1);
        sent += &request("GET", "/films/a", &[&line]);
    }
    sent += &request("HEAD", "/films/a", &[]);
    sent += &request("GET", "/films/gone", &[]);
    connection.send(&sent).await;
    for range in ranges {
        assert!(connection.answer(false).await.body == bytes_of(range));
    }
    assert_eq!(connection.answer(true).await.status, 200);
    assert_eq!(connection.answer(false).await.status, 404);
    assert_eq!(
        connection
            .ask("GET", "/films/a", &["Connection: close"])
            .await
            .status,
        200
    );
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn a_request_is_held_and_its_bytes_are_sent_as_they_land() {
    let edge = Edge::start().await;
    let object = edge.cold("a", 3 * CHUNK);
    let mut connection = Connection::open(edge.address).await;
    connection.send(&request("GET", "/films/a", &[])).await;
    object.land(0);
    let head = connection.head().await.unwrap();
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, (3 * CHUNK).to_string().as_str())
    );
    let mut body = vec![0; 3 * CHUNK as usize];
    let (first, rest) = body.split_at_mut(CHUNK as usize);
    // The head may have been read together with some of the body.
    let had = connection.take_buffered();
    first[..had.len()].copy_from_slice(&had);
    connection
        .stream
        .read_exact(&mut first[had.len()..])
        .await
        .unwrap();
    object.land(2);
    object.land(1);
    connection.stream.read_exact(rest).await.unwrap();
    assert!(body == bytes_of(0..3 * CHUNK));
}

#[tokio::test]
async fn no_first_byte_is_a_status() {
    let edge = Edge::start().await;
    let object = edge.cold("a", 3 * CHUNK);
    let timed_out = ReadError::TimedOut {
        chunk: 0,
        waited: Duration::from_secs(30),
        detail: "origin stalls".to_owned(),
    };
    object.fail_at(0, timed_out);
    let answer = get(edge.address, "/films/a", &[]).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "5"));
    object.fail_at(0, ReadError::Origin("status 500".to_owned()));
    assert_eq!(
        get(edge.address, "/films/a", &["Range: bytes=0-1,5-6"])
            .await
            .status,
        502
    );
}

#[tokio::test]
async fn a_body_that_can_not_be_completed_is_cut_and_never_ended_cleanly() {
    let edge = Edge::start().await;
    let object = edge.cold("a", 3 * CHUNK);
    object.land(0);
    object.fail_at(1, ReadError::Changed);
    let answer = get(edge.address, "/films/a", &[]).await;
    assert_eq!(answer.status, 200);
    assert!(answer.cut);
    assert!(answer.body == bytes_of(0..CHUNK), "what was sent is right");
    assert_eq!(edge.metrics.aborted(Abort::Changed), 1);
}

#[tokio::test]
async fn draining_lets_a_running_body_finish() {
    let edge = Edge::start().await;
    let object = edge.cold("a", 2 * CHUNK);
    object.land(0);
    let mut idle = Connection::open(edge.address).await;
    assert_eq!(idle.ask("GET", "/films/gone", &[]).await.status, 404);
    let mut running = Connection::open(edge.address).await;
    running.send(&request("GET", "/films/a", &[])).await;
    let head = running.head().await.unwrap();
    assert_eq!(head.status, 200);
    edge.shutdown.cancel();
    assert!(
        idle.is_closed().await,
        "an idle connection is closed at once"
    );
    object.land(1);
    let mut body = running.take_buffered();
    running.stream.read_to_end(&mut body).await.unwrap();
    assert!(body == bytes_of(0..2 * CHUNK));
    edge.serving.await.unwrap().unwrap();
    assert!(
        TcpStream::connect(edge.address).await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn the_drain_grace_ends() {
    let edge = Edge::start_with(|settings| settings.drain_grace = Duration::from_millis(50)).await;
    edge.cold("a", 2 * CHUNK).land(0);
    let mut running = Connection::open(edge.address).await;
    running.send(&request("GET", "/films/a", &[])).await;
    running.head().await.unwrap();
    edge.shutdown.cancel();
    edge.serving.await.unwrap().unwrap();
    let mut body = running.take_buffered();
    let _ = running.stream.read_to_end(&mut body).await;
    assert!(body == bytes_of(0..CHUNK));
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_request() {
    let edge = Edge::start().await;
    edge.cold("a", 2 * CHUNK).land(0);
    let mut connection = Connection::open(edge.address).await;
    connection.send(&request("GET", "/films/a", &[])).await;
    connection.head().await.unwrap();
    drop(connection);
    edge.until("the request ended", |metrics| {
        metrics.aborted(Abort::ClientLeft) == 1
    })
    .await;
}

#[tokio::test]
async fn two_hundred_connections_of_one_client_and_no_more_than_the_limit() {
    let edge = Edge::start_with(|settings| settings.limits.connections_per_client = 200).await;
    edge.warm("a", 10);
    let mut connections = Vec::new();
    for _ in 0..200 {
        let mut connection = Connection::open(edge.address).await;
        assert_eq!(connection.ask("GET", "/films/a", &[]).await.status, 200);
        connections.push(connection);
    }
    // Also one that has sent its request by then can read why. Blocking, so that it is sent before
    // the server accepts.
    let mut refused = std::net::TcpStream::connect(edge.address).unwrap();
    std::io::Write::write_all(&mut refused, request("GET", "/films/a", &[]).as_bytes()).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut refused, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    drop(refused);
    drop(connections);
    let again = async {
        // Connections are freed as the server sees them end.
        while Connection::open(edge.address)
            .await
            .try_ask("/films/a")
            .await
            != Some(200)
        {}
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .unwrap();
}

#[tokio::test]
async fn slow_senders_are_cut() {
    let edge = Edge::start_with(|settings| {
        settings.timeouts.request_head = Duration::from_millis(100);
        settings.timeouts.keep_alive = Duration::from_millis(100);
    })
    .await;
    edge.warm("a", 10);
    let mut silent = Connection::open(edge.address).await;
    assert!(silent.is_closed().await, "sends nothing");
    let mut slow = Connection::open(edge.address).await;
    slow.send("GET /films/a HTTP/1.1\r\nHost:").await;
    let _ = slow.head().await;
    assert!(slow.is_closed().await, "sends half a head");
    let mut idle = Connection::open(edge.address).await;
    assert_eq!(idle.ask("GET", "/films/a", &[]).await.status, 200);
    assert!(idle.is_closed().await, "asks nothing more");
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut_in_the_end() {
    let edge =
        Edge::start_with(|settings| settings.timeouts.no_progress = Duration::from_millis(200))
            .await;
    edge.warm("a", 512 * CHUNK);
    let mut connection = Connection::open(edge.address).await;
    connection.send(&request("GET", "/films/a", &[])).await;
    edge.until("the connection was cut", |metrics| {
        metrics.aborted(Abort::ClientLeft) == 1
    })
    .await;
    assert!(connection.answer(false).await.cut);
}

#[tokio::test]
async fn heads_are_bounded() {
    let edge = Edge::start().await;
    edge.warm("a", 10);
    let long = format!("X-Long: {}", "a".repeat(100 << 10));
    assert_eq!(get(edge.address, "/films/a", &[&long]).await.status, 431);
    let many: Vec<String> = (0..200).map(|n| format!("X-{n}: a")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(get(edge.address, "/films/a", &many).await.status, 431);
    let target = format!("/films/{}", "a".repeat(9 << 10));
    assert_eq!(get(edge.address, &target, &[]).await.status, 414);
}

#[tokio::test]
async fn request_bodies_are_not_taken() {
    let edge = Edge::start().await;
    edge.warm("a", 10);
    let mut connection = Connection::open(edge.address).await;
    let answer = connection
        .ask("POST", "/films/a", &["Content-Length: 1000000000"])
        .await;
    assert_eq!(answer.status, 405);
    let flood = [b'x'; 64 << 10];
    let closed = async { while connection.stream.write_all(&flood).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), closed)
        .await
        .expect("the connection is closed");
}

#[tokio::test]
async fn a_passed_body_that_ends_short_is_cut() {
    let edge = Edge::start().await;
    let answer = get(edge.address, "/films/pass-short", &[]).await;
    assert!(answer.cut);
    assert_eq!(answer.body, b"0123456789");
}

#[tokio::test]
async fn a_chunked_body_has_its_last_chunk_only_if_it_is_whole() {
    let edge = Edge::start().await;
    for (path, whole) in [
        ("/films/pass-chunked", true),
        ("/films/pass-chunked-short", false),
    ] {
        let mut connection = Connection::open(edge.address).await;
        connection
            .send(&request("GET", path, &["Connection: close"]))
            .await;
        let head = connection.head().await.unwrap();
        assert_eq!(head.header("transfer-encoding"), "chunked");
        let mut body = connection.take_buffered();
        let _ = connection.stream.read_to_end(&mut body).await;
        assert_eq!(body.ends_with(b"0\r\n\r\n"), whole, "{path}");
    }
}
