//! Load figures of the repository:
//! `LOAD_FSYNC=1 LOAD_CHUNKS=1000000 LOAD_ROWS=20000000 cargo test --release -p cache-coordinator --test repository_load -- --nocapture --test-threads=1`.
//! As a plain test it runs in a small form, so that it keeps working.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api_support;
mod support;

use std::time::{Duration, Instant};

use api_support::{
    coordinator,
    fake_edge::{FakeEdge, Inventory, entry},
};
use cache_coordinator::repository::{EdgeId, writer::StoreChunks};
use chunkcache_proto::{ByteRange, EntryId, v1::GetStatusRequest};
use support::{CHUNK, leader, postgres::client, sums};
use tokio::task::JoinSet;

/// Chunks reported (`LOAD_CHUNKS`), or rows of the large table (`LOAD_ROWS`).
fn size(variable: &str, small: u32) -> u32 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(small)
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let part = |part: usize| times[(times.len() - 1) * part / 100];
    println!(
        "{what}: median {:?}, p99 {:?}, longest {:?} of {}",
        part(50),
        part(99),
        part(100),
        times.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_digests_and_range_questions() {
    const REPORT: u32 = 16;
    const ENTRY_CHUNKS: u32 = 50_000;
    let (_server, url, one) = leader().await;
    one.source("films").await;
    let total = size("LOAD_CHUNKS", 20_000);
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
    report("has-byte-range over 33 chunks", times);
}

/// Entries of 50,000 chunks, each whole on two of 1,000 edges: the question is asked of a random place, of one edge and of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn range_questions_on_a_large_table() {
    const ENTRY_CHUNKS: u32 = 50_000;
    const COPIES: u32 = 2;
    let rows = size("LOAD_ROWS", 100_000);
    let entries = (rows / ENTRY_CHUNKS / COPIES).max(1);
    let (_server, url, one) = leader().await;
    one.source("films").await;
    let client = client(&url).await;
    let began = Instant::now();
    // Indexes afterwards: the table is what is wanted here, not how it grew.
    client
        .batch_execute(&format!(
            "INSERT INTO edges (name, url, store_id) SELECT 'e' || n, 'http://e', gen_random_uuid() FROM generate_series(1, 1000) n;
             INSERT INTO cache_entries (id, source, path, validator, size, chunk_size)
             SELECT lpad(to_hex(n), 32, '0')::uuid, 'films', 'p' || n, 'v', {ENTRY_CHUNKS} * 65536::bigint, 65536 FROM generate_series(1, {entries}) n;
             ALTER TABLE cache_chunks DROP CONSTRAINT cache_chunks_pkey, DROP CONSTRAINT cache_chunks_entry_id_fkey, DROP CONSTRAINT cache_chunks_edge_id_fkey;
             DROP INDEX cache_chunks_by_edge;
             INSERT INTO cache_chunks (entry_id, edge_id, start_byte, end_byte, checksum)
             SELECT lpad(to_hex(n), 32, '0')::uuid, (n * 7 + copy * 501) % 1000 + 1, c * 65536::bigint, (c + 1) * 65536::bigint, c * 1099511628211
             FROM generate_series(1, {entries}) n, generate_series(1, {COPIES}) copy, generate_series(0, {ENTRY_CHUNKS} - 1) c;
             SET maintenance_work_mem = '1GB';
             ALTER TABLE cache_chunks ADD PRIMARY KEY (entry_id, edge_id, start_byte);
             CREATE INDEX cache_chunks_by_edge ON cache_chunks (edge_id, entry_id);"
        ))
        .await
        .unwrap();
    client
        .batch_execute("VACUUM (ANALYZE, FREEZE) cache_chunks")
        .await
        .unwrap();
    let count = entries * COPIES * ENTRY_CHUNKS;
    println!("{count} rows made in {:?}", began.elapsed());
    let geometry = support::entry(1, "p", u64::from(ENTRY_CHUNKS)).geometry;
    for (what, one_edge) in [("of one edge", true), ("of all edges", false)] {
        for chunks in [1, 33] {
            let mut times = Vec::new();
            for number in 0..4_000_u32 {
                let entry = number.wrapping_mul(2_654_435_761) % entries + 1;
                let first = number.wrapping_mul(40_503) % (ENTRY_CHUNKS - 40);
                let start = u64::from(first) * CHUNK + 17;
                let range = ByteRange::new(start, start + (chunks - 1) * CHUNK + 4_000);
                let id = EntryId::from_u128(u128::from(entry));
                let began = Instant::now();
                let missing = if one_edge {
                    let edge = (entry * 7 + 501) % 1000 + 1;
                    let edges = [EdgeId::try_from(edge).unwrap()];
                    one.database
                        .missing(id, geometry, range, &edges, 1_000)
                        .await
                } else {
                    one.database
                        .missing_anywhere(id, geometry, range, 1_000)
                        .await
                };
                times.push(began.elapsed());
                assert!(missing.unwrap().is_empty());
            }
            // The first questions wait for pages of the disk; those are counted as well.
            report(
                &format!("has-byte-range over {chunks} chunks {what}, {count} rows"),
                times,
            );
        }
    }
}

/// Over a real session: all of it in full, then digests alone, then one entry that differs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconciliation_of_an_edge() {
    const ENTRY_CHUNKS: u32 = 50_000;
    let total = size("LOAD_SESSION_CHUNKS", 10_000);
    let coordinator = coordinator().await;
    coordinator.add_source("films", "http://origin.test").await;
    let mut inventory: Inventory = (0..total.div_ceil(ENTRY_CHUNKS))
        .map(|number| {
            let path = format!("film-{number}.mp4");
            let chunks = ENTRY_CHUNKS.min(total - number * ENTRY_CHUNKS);
            let film = entry(
                "films",
                "http://origin.test",
                &path,
                u64::from(chunks),
                "\"1\"",
            );
            (film, (0..chunks).collect())
        })
        .collect();
    for what in ["in full", "by digests", "by digests, one entry differs"] {
        if what.ends_with("differs") {
            inventory[0].1.pop();
        }
        let mut edge = FakeEdge::hello(&coordinator, "edge-1").await;
        let began = Instant::now();
        let verdicts = edge.present(&inventory).await;
        println!(
            "reconciliation of {total} chunks in {} entries {what}: {:?}",
            inventory.len(),
            began.elapsed()
        );
        assert!(verdicts.iter().all(|verdict| verdict.drop.is_empty()));
    }
    let rows = client(&coordinator.database_url).await;
    let rows = rows
        .query_one("SELECT count(*) FROM cache_chunks", &[])
        .await;
    assert_eq!(rows.unwrap().get::<_, i64>(0), i64::from(total) - 1);
    coordinator.stop().await.unwrap();
}

/// Memory is of this whole process: the coordinator and the edges played by hand, both ends of each connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions() {
    const REPORTS: u64 = 20;
    const REPORT: u32 = 16;
    let sessions = size("LOAD_SESSIONS", 20);
    let coordinator = std::sync::Arc::new(coordinator().await);
    coordinator.add_source("films", "http://origin.test").await;
    let film = entry(
        "films",
        "http://origin.test",
        "film.mp4",
        u64::from(REPORT) * REPORTS,
        "\"1\"",
    );
    let before = resident_bytes();
    let began = Instant::now();
    let mut joining = JoinSet::new();
    let mut edges = Vec::new();
    for number in 0..sessions {
        let coordinator = std::sync::Arc::clone(&coordinator);
        joining.spawn(async move { FakeEdge::join(&coordinator, &format!("edge-{number}")).await });
        // As a cluster that comes back: many at once, but not all.
        while joining.len() >= 64 {
            edges.push(joining.join_next().await.unwrap().unwrap());
        }
    }
    edges.extend(joining.join_all().await);
    let held = resident_bytes().saturating_sub(before);
    println!(
        "{sessions} sessions ready in {:?}, {} KiB each",
        began.elapsed(),
        held / 1024 / u64::from(sessions)
    );
    let began = Instant::now();
    let mut reporting = JoinSet::new();
    for mut edge in edges {
        let film = film.clone();
        reporting.spawn(async move {
            edge.observe(&film).await;
            for report in 0..REPORTS {
                let first = report as u32 * REPORT;
                let indexes: Vec<u32> = (first..first + REPORT).collect();
                edge.store(report + 1, &film.id, &indexes).await;
            }
            edge
        });
    }
    let edges = reporting.join_all().await;
    let chunks = u64::from(sessions) * REPORTS * u64::from(REPORT);
    println!(
        "{chunks} completions over {} sessions, each waiting for the commit of its last {REPORT}: {:.0} a second",
        edges.len(),
        chunks as f64 / began.elapsed().as_secs_f64()
    );
    let status = coordinator
        .cache()
        .await
        .get_status(GetStatusRequest {})
        .await;
    assert_eq!(status.unwrap().into_inner().edges_active, sessions);
    drop(edges);
    coordinator.shutdown.cancel();
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}
