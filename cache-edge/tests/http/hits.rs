//! The hit path: right bytes, by sendfile, for every alignment and many connections.

use cache_edge::server::sent_bytes::ByteSource;

use crate::{
    client::Connection,
    objects::{CHUNK, Edge, bytes_of},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_alignment_on_many_connections_goes_by_sendfile() {
    const SIZE: u64 = 40 * CHUNK + 4321;
    const CONNECTIONS: u64 = 48;
    const REQUESTS: u64 = 12;
    let edge = Edge::start().await;
    edge.warm("a", SIZE);
    let want = std::sync::Arc::new(bytes_of(0..SIZE));
    let tasks: Vec<_> = (0..CONNECTIONS)
        .map(|seed| {
            let want = std::sync::Arc::clone(&want);
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
                let mut bytes = 0;
                for turn in 0..REQUESTS {
                    let range = match turn % 4 {
                        0 => {
                            let chunk = random(40);
                            chunk * CHUNK..(chunk + 1) * CHUNK
                        }
                        1 => {
                            let start = random(SIZE);
                            start..(start + 1 + random(16 << 10)).min(SIZE)
                        }
                        2 => {
                            let start = random(SIZE - 1);
                            start..start + 1
                        }
                        _ => {
                            let start = random(SIZE);
                            start..(start + 1 + random(SIZE)).min(SIZE)
                        }
                    };
                    let line = format!("Range: bytes={}-{}", range.start, range.end - 1);
                    let answer = connection.ask("GET", "/films/a", &[&line]).await;
                    assert_eq!(answer.header("cache-status"), "edge-1; hit");
                    assert!(
                        answer.body == want[range.start as usize..range.end as usize],
                        "{line}"
                    );
                    bytes += answer.body.len() as u64;
                }
                bytes
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.unwrap();
    }
    edge.until("all was counted", |metrics| {
        metrics.sendfile_bytes() >= total
    })
    .await;
    assert_eq!(
        edge.metrics.sendfile_bytes(),
        total,
        "each byte of each body, and nothing twice"
    );
    assert_eq!(edge.metrics.sent_bytes(ByteSource::Hit), total);
}

#[tokio::test]
async fn a_reader_slower_than_the_socket_gets_every_byte() {
    let edge = Edge::start().await;
    edge.warm("a", 300 * CHUNK);
    let mut connection = Connection::open(edge.address).await;
    // The socket buffers hold some hundred KiB of these 19 MiB, so sendfile stops short again and
    // again.
    let answer = connection
        .ask("GET", "/films/a", &["Range: bytes=3-"])
        .await;
    assert!(answer.body == bytes_of(3..300 * CHUNK));
}

#[tokio::test]
async fn bytes_that_could_not_be_stored_stand_between_those_that_were() {
    let edge = Edge::start().await;
    let object = edge.cold("a", 3 * CHUNK);
    object.land(0);
    object.land_unstored(1);
    object.land(2);
    let mut connection = Connection::open(edge.address).await;
    let answer = connection
        .ask("GET", "/films/a", &["Range: bytes=1-"])
        .await;
    assert!(answer.body == bytes_of(1..3 * CHUNK));
    edge.until("all was counted", |metrics| {
        metrics.sendfile_bytes() >= 2 * CHUNK - 1
    })
    .await;
    assert_eq!(edge.metrics.sent_bytes(ByteSource::Origin), CHUNK);
}
