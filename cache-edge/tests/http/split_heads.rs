//! Boundaries between requests: heads in pieces, back to back, and during a response that the
//! client has not read yet.

use std::time::Duration;

use cache_edge::server::metrics::Abort;
use tokio::{io::AsyncReadExt, net::TcpSocket};

use crate::{
    client::{Connection, request},
    objects::{CHUNK, Edge, byte_at, bytes_of},
};

/// Larger than the sockets' buffers.
const LARGE_CHUNK: u64 = 8 << 20;

fn range_request(first: u64, last: u64) -> String {
    request(
        "GET",
        "/films/a",
        &[&format!("Range: bytes={first}-{last}")],
    )
}

/// Three requests as one stream of bytes, cut in two at every position.
#[tokio::test]
async fn pipelined_heads_cut_at_every_byte() {
    let edge = Edge::start().await;
    edge.warm("a", 2 * CHUNK);
    let (first, second) = (range_request(3, 9), range_request(CHUNK - 2, CHUNK + 1));
    let gone = request("GET", "/films/gone", &[]);
    let sent = [first, second, gone].concat();
    let mut connection = Connection::open(edge.address).await;
    connection.stream.set_nodelay(true).unwrap();
    for cut in 1..sent.len() {
        connection.send(&sent[..cut]).await;
        // The server reads the first part on its own.
        tokio::time::sleep(Duration::from_millis(1)).await;
        connection.send(&sent[cut..]).await;
        assert!(
            connection.answer(false).await.body == bytes_of(3..10),
            "{cut}"
        );
        let across = CHUNK - 2..CHUNK + 2;
        assert!(
            connection.answer(false).await.body == bytes_of(across),
            "{cut}"
        );
        assert_eq!(connection.answer(false).await.status, 404, "{cut}");
    }
}

/// A connection on which the edge sends 8 MiB to a client that reads nothing.
async fn stuck(edge: &Edge) -> Connection {
    edge.cold_in_chunks("a", LARGE_CHUNK, LARGE_CHUNK)
        .land_all();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let stream = socket.connect(edge.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut connection = Connection::over(stream);
    connection.send(&range_request(1, LARGE_CHUNK - 1)).await;
    edge.until("it is under way", |metrics| {
        metrics.requests_active() == 1 && metrics.sendfile_bytes() > 0
    })
    .await;
    connection
}

/// The next head arrives in two parts: one during a response that waits for the client, the other
/// when that response has been read.
#[tokio::test]
async fn a_head_that_begins_amid_a_response_and_ends_after_it() {
    let edge = Edge::start().await;
    let next = range_request(1000, 1999);
    for cut in [1, 14, next.len() - 3, next.len() - 1] {
        let mut connection = stuck(&edge).await;
        let (begin, end) = next.split_at(cut);
        connection.send(begin).await;
        assert!(connection.answer(false).await.body == bytes_of(1..LARGE_CHUNK));
        connection.send(end).await;
        let answer = connection.answer(false).await;
        assert_eq!(answer.status, 206, "cut at {cut}");
        assert_eq!(
            answer.header("content-range"),
            format!("bytes 1000-1999/{LARGE_CHUNK}")
        );
        assert!(answer.body == bytes_of(1000..2000), "cut at {cut}");
        connection.send(&range_request(5, 8)).await;
        assert!(connection.answer(false).await.body == bytes_of(5..9));
    }
}

#[tokio::test]
async fn whole_heads_amid_a_response_are_answered_after_it() {
    let edge = Edge::start().await;
    let mut connection = stuck(&edge).await;
    connection.send(&range_request(9, 11)).await;
    connection.send(&request("GET", "/films/gone", &[])).await;
    assert!(connection.answer(false).await.body == bytes_of(1..LARGE_CHUNK));
    assert!(connection.answer(false).await.body == bytes_of(9..12));
    assert_eq!(connection.answer(false).await.status, 404);
    edge.until("all were counted", |metrics| metrics.requests_active() == 0)
        .await;
    assert_eq!(edge.metrics.aborted(Abort::ClientLeft), 0);
}

#[tokio::test]
async fn draining_lets_a_body_finish_that_waits_for_its_client() {
    let edge = Edge::start().await;
    let mut connection = stuck(&edge).await;
    edge.shutdown.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(connection.answer(false).await.body == bytes_of(1..LARGE_CHUNK));
    assert!(connection.is_closed().await);
    edge.serving.await.unwrap().unwrap();
    assert_eq!(edge.metrics.aborted(Abort::ClientLeft), 0);
}

#[tokio::test]
async fn the_drain_grace_cuts_a_body_that_waits_for_its_client() {
    let edge = Edge::start_with(|settings| settings.drain_grace = Duration::from_millis(50)).await;
    let mut connection = stuck(&edge).await;
    edge.shutdown.cancel();
    edge.serving.await.unwrap().unwrap();
    assert_eq!(connection.head().await.unwrap().status, 206);
    let mut body = connection.take_buffered();
    let _ = connection.stream.read_to_end(&mut body).await;
    assert!((body.len() as u64) < LARGE_CHUNK - 1, "never ended cleanly");
    assert!((1..).zip(&body).all(|(at, byte)| byte_at(at) == *byte));
}
