//! Measures the instructions of a hit: one connection that requests ranges of a cached object over
//! and over.
//!
//! Run by `tests/bench/guard` under callgrind, twice with different numbers of requests: the
//! difference is the requests alone. The client runs on the main thread, the hit path on the
//! serving threads.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use support::{Origin, TestEdge};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Small, so that filling the cache is little beside the requests.
const SIZE: u64 = 512 << 10;

fn main() {
    // `cargo test --benches` and `cargo bench` pass their own arguments: then a few requests show
    // that it runs.
    let mut arguments = std::env::args().skip(1);
    let mut number = |name: &str, default: u64| match (arguments.next(), arguments.next()) {
        (Some(given), Some(value)) if given == name => value.parse().unwrap(),
        _ => default,
    };
    let (requests, length) = (number("--requests", 3), number("--bytes", 16 << 10));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(hits(requests, length));
}

async fn hits(requests: u64, length: u64) {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(SIZE).await;
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;
    let whole = edge.get("/films/a.mp4", None).await;
    whole.assert_bytes(200, &support::content(1, 0..SIZE));

    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answer = vec![0; 64 << 10];
    for number in 0..requests {
        let start = (number * 81_920) % (SIZE - length);
        let request = format!(
            "GET /films/a.mp4 HTTP/1.1\r\nHost: edge\r\nUser-Agent: guard/1\r\nAccept: */*\r\n\
             Range: bytes={start}-{}\r\n\r\n",
            start + length - 1
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut filled = 0;
        let head = loop {
            filled += stream.read(&mut answer[filled..]).await.unwrap();
            if let Some(end) = answer[..filled].windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
        };
        assert!(answer.starts_with(b"HTTP/1.1 206"));
        let mut left = length as usize - (filled - head);
        while left > 0 {
            let wanted = left.min(answer.len());
            left -= stream.read(&mut answer[..wanted]).await.unwrap();
        }
    }
    drop(stream);
    edge.stop().await;
}
