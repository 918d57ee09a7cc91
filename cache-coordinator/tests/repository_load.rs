//! Load figures of the repository: `cargo test --release -p cache-coordinator --test repository_load -- --nocapture`.
//! As a plain test it runs in a small form, so that it keeps working.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::{Duration, Instant};

use cache_coordinator::repository::writer::StoreChunks;
use chunkcache_proto::ByteRange;
use support::{CHUNK, leader, postgres::client, sums};

/// Chunks reported; `LOAD_CHUNKS` makes it more.
fn chunks() -> u32 {
    std::env::var("LOAD_CHUNKS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_digests_and_range_questions() {
    const REPORT: u32 = 16;
    const ENTRY_CHUNKS: u32 = 50_000;
    let (_server, url, one) = leader().await;
    one.source("films").await;
    let total = chunks();
    let edge = one.edge("a", 1).await.edge;
    let mut entries = Vec::new();
    for number in 0..total.div_ceil(ENTRY_CHUNKS) {
        entries.push(
            one.entry(
                u128::from(number) + 1,
                &format!("{number}"),
                u64::from(ENTRY_CHUNKS),
            )
            .await,
        );
    }

    let began = Instant::now();
    let mut answers = std::collections::VecDeque::new();
    for first in (0..total).step_by(REPORT as usize) {
        let entry = entries[(first / ENTRY_CHUNKS) as usize].id;
        let first = first % ENTRY_CHUNKS;
        let store = StoreChunks {
            edge: edge.id,
            epoch: edge.epoch,
            entry,
            chunks: sums(first..first + REPORT),
        };
        answers.push_back(one.writer.enqueue(store).await.unwrap());
        while answers.len() > 2_000 {
            answers.pop_front().unwrap().await.unwrap();
        }
    }
    for answer in answers {
        answer.await.unwrap();
    }
    let took = began.elapsed();
    println!(
        "{total} completions in reports of {REPORT}: {:.0} a second",
        f64::from(total) / took.as_secs_f64()
    );

    client(&url)
        .await
        .batch_execute("VACUUM ANALYZE cache_chunks")
        .await
        .unwrap();
    let began = Instant::now();
    let digests = one.database.digests(edge.id).await.unwrap();
    println!(
        "digests of {total} chunks in {} entries: {:?}",
        digests.len(),
        began.elapsed()
    );
    assert_eq!(
        digests
            .values()
            .map(|digest| digest.chunk_count)
            .sum::<u64>(),
        u64::from(total)
    );

    let mut times: Vec<Duration> = Vec::new();
    for number in 0..2_000_u64 {
        let start = number * 7_919 % (u64::from(total.min(ENTRY_CHUNKS)) - 40) * CHUNK + 17;
        let range = ByteRange::new(start, start + 32 * CHUNK);
        let began = Instant::now();
        let missing = one
            .database
            .missing(entries[0].id, entries[0].geometry, range, &[edge.id], 1_000)
            .await
            .unwrap();
        times.push(began.elapsed());
        assert!(missing.is_empty());
    }
    times.sort();
    println!(
        "has-byte-range over 33 chunks: median {:?}, p99 {:?}",
        times[1_000], times[1_980]
    );
}
