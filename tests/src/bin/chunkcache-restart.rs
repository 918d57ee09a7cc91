//! Measures how long an edge that holds many chunks takes to start, and the coordinator to
//! reconcile with it.
//!
//! Twenty objects are opened through a real edge; then its store is made to contain all of their
//! chunks (by the example `fill_store` of cache-edge, given by its path). Three starts follow: with
//! a table that has none of them (all are reported and recorded), with one that has all (digests
//! alone), and once more. Usage: `chunkcache-restart <fill_store> [chunks, default 1000000]`.
//! Prints Markdown.
// A wrong measurement stops at the line that is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;
use std::time::Instant;

use chunkcache_tests::cluster::{Cluster, ClusterOptions};
use chunkcache_tests::http::Call;
use chunkcache_tests::{CHUNK, MIB, Object};

const OBJECTS: u64 = 20;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let filler = arguments.next().expect("path of the example fill_store");
    let chunks: u64 = arguments
        .next()
        .map_or(1_000_000, |it| it.parse().expect("number of chunks"));
    let mut cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        edge_arguments: vec![
            "--background-fill=false",
            "--max-size=64TiB",
            "--min-free=1MiB",
        ],
        ..ClusterOptions::default()
    });
    for number in 0..OBJECTS {
        let object = Object::generated(900 + number, chunks / OBJECTS * CHUNK);
        let target = cluster.put(&format!("/large-{number}.mp4"), object);
        Call::get(&target)
            .range(0, 1)
            .send(cluster.edge().http)
            .expect(206);
    }
    cluster.edge_mut().terminate();
    let made = Command::new(&filler)
        .arg(&cluster.edge().data)
        .output()
        .expect("fill_store");
    assert!(made.status.success(), "{made:?}");
    println!(
        "| start of an edge with {chunks} chunks | serves | read by then | ready: table and disk \
         agree | resident |"
    );
    println!("|---|---|---|---|---|");
    for what in [
        "table knows none: all told and recorded",
        "table knows all: digests",
        "once more",
    ] {
        let begun = Instant::now();
        cluster.edge_mut().spawn();
        // Hits need no coordinator: it serves as soon as it listens, with the journal read.
        cluster.edge_mut().wait_live();
        let up = begun.elapsed();
        let read = read_bytes(cluster.edge_mut().process().pid());
        cluster.edge_mut().wait_ready();
        let ready = begun.elapsed();
        // The scrub has begun to find that the bytes are missing.
        let recorded = cluster.total_recorded("edge-a") / CHUNK;
        assert!(recorded > chunks / 10 * 9, "{recorded} chunks are recorded");
        let resident = cluster.edge_mut().process().resident_anonymous_bytes() / MIB;
        println!(
            "| {what} | {:.2} s | {:.1} MiB | {:.2} s | {resident} MiB |",
            up.as_secs_f64(),
            read as f64 / MIB as f64,
            ready.as_secs_f64()
        );
        cluster.edge_mut().terminate();
    }
}

/// Bytes that the process has read, from any source (`rchar`).
fn read_bytes(pid: rustix::process::Pid) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", pid.as_raw_nonzero())).unwrap();
    let line = io.lines().find(|line| line.starts_with("rchar:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
