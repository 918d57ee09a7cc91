//! Load figures of the coordinator; all of them at full size: `tests/bench/coordinator`. Sizes come
//! from the environment (`LOAD_ROWS`, `LOAD_SECONDS`, `LOAD_CHUNKS`, `LOAD_SESSION_CHUNKS`,
//! `LOAD_SESSIONS`); with `LOAD_DIRECTORY` PostgreSQL keeps its files there for the next run; with
//! `LOAD_FSYNC` it syncs. As plain tests they run in a small form, so that they keep working.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api_support;
mod load;
mod support;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use api_support::{
    coordinator,
    fake_edge::{FakeEdge, Inventory, entry},
};
use cache_coordinator::db::{
    EdgeId,
    writer::{StoreChunks, WriterConfig},
};
use chunkcache_proto::{ByteRange, Geometry, checksum::InventoryDigest, v1};
use load::{
    figure, inventory,
    process::Process,
    report, resident_bytes, size,
    table::{self, EDGES, ENTRY_CHUNKS, Large},
};
use support::{CHUNK, leader, postgres::client, sums};
use tokio::task::JoinSet;
use v1::{
    GetStatusRequest, session_request::Message as Request, session_response::Message as Response,
};

#[tokio::test(flavor = "multi_thread")]
async fn completions_digests_and_range_questions() {
    const REPORT: u32 = 16;
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
    let mut answers = VecDeque::new();
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
    report("small_has_range", "has-byte-range over 33 chunks", times);
}

/// Filled in pieces of `LOAD_FILL_SECONDS`; as a plain test, all at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_table() {
    let patience = match size("LOAD_FILL_SECONDS", 0) {
        0 => None,
        seconds => Some(Duration::from_secs(seconds.into())),
    };
    let Some(large) = table::fill(patience).await else {
        println!("not filled yet");
        return;
    };
    let client = client(&large.url).await;
    let sizes = client.query(
        "SELECT relname::text, pg_relation_size(oid) AS bytes FROM pg_class
         WHERE relname LIKE 'cache_chunks%' AND relkind IN ('r', 'i') ORDER BY 1",
        &[],
    );
    let mut bytes = 0;
    for row in sizes.await.unwrap() {
        let (name, size): (String, i64) = (row.get(0), row.get(1));
        println!("{name}: {:.2} GB", size as f64 / 1e9);
        bytes += size;
    }
    figure("rows", large.rows as f64);
    figure("row_bytes", bytes as f64 / large.rows as f64);
    println!("filled: {} rows", large.rows);
}

/// Queries a random position, on one edge and on all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn range_questions_on_a_large_table() {
    let large = table::large().await;
    let database = support::database(&large.url);
    let entries = large.entries;
    let geometry = Geometry::new(u64::from(ENTRY_CHUNKS) * CHUNK, CHUNK as u32).unwrap();
    for (what, one_edge) in [("one_edge", true), ("all_edges", false)] {
        for chunks in [1, 33] {
            let mut times = Vec::new();
            for number in 0..size("LOAD_QUESTIONS", 4_000) {
                let entry = number.wrapping_mul(2_654_435_761) % entries + 1;
                let first = number.wrapping_mul(40_503) % (ENTRY_CHUNKS - 40);
                let start = u64::from(first) * CHUNK + 17;
                let range = ByteRange::new(start, start + (chunks - 1) * CHUNK + 4_000);
                let id = Large::entry(entry);
                let began = Instant::now();
                let missing = if one_edge {
                    let edges = [Large::holder(entry)];
                    database.missing(id, geometry, range, &edges, 1_000).await
                } else {
                    database.missing_anywhere(id, geometry, range, 1_000).await
                };
                times.push(began.elapsed());
                assert!(missing.unwrap().is_empty());
            }
            // The first queries wait for pages from the disk; those are counted as well.
            report(
                &format!("has_range_{what}_{chunks}"),
                &format!("has-byte-range over {chunks} chunks, {what}"),
                times,
            );
        }
    }
}

/// For `LOAD_SECONDS`, from a thousand edges, each with its own entry, as fast as they are
/// committed; or `LOAD_PACE` a second. The rate of each second is printed: a mean hides the effect
/// of a checkpoint or a vacuum.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_into_a_large_table() {
    const REPORT: u32 = 16;
    let large = table::large().await;
    let one = support::coordinator(&large.url, "http://one", WriterConfig::default()).await;
    one.leads().await;
    // New entries in each run.
    let known = client(&large.url)
        .await
        .query_one("SELECT count(*) FROM cache_entries", &[])
        .await;
    let first_new = u32::try_from(known.unwrap().get::<_, i64>(0)).unwrap() + 1;
    let mut entries = Vec::new();
    for number in first_new..first_new + EDGES {
        let made = one
            .entry(number.into(), &format!("new-{number}"), 10_000_000)
            .await;
        entries.push(made.id);
    }
    let span = Duration::from_secs(size("LOAD_SECONDS", 1).into());
    let pace = size("LOAD_PACE", 0);
    let began = Instant::now();
    let (mut sent, mut committed, mut reports) = (0_u64, 0_u64, 0_u32);
    let mut seconds: Vec<u64> = Vec::new();
    let mut answers = VecDeque::new();
    let mut slowest = Duration::ZERO;
    while began.elapsed() < span {
        if pace > 0 && sent as f64 > began.elapsed().as_secs_f64() * f64::from(pace) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        }
        let edge = reports % EDGES;
        let first = reports / EDGES * REPORT;
        let store = StoreChunks {
            edge: EdgeId::try_from(edge + 1).unwrap(),
            epoch: 1,
            entry: entries[edge as usize],
            chunks: sums(first..first + REPORT),
        };
        answers.push_back((Instant::now(), one.writer.enqueue(store).await.unwrap()));
        reports += 1;
        sent += u64::from(REPORT);
        // One report of each edge is awaited.
        while answers.len() > EDGES as usize {
            let (asked, answer) = answers.pop_front().unwrap();
            answer.await.unwrap();
            slowest = slowest.max(asked.elapsed());
            committed += u64::from(REPORT);
            let second = began.elapsed().as_secs() as usize;
            seconds.resize(seconds.len().max(second + 1), 0);
            seconds[second] += u64::from(REPORT);
        }
    }
    let took = began.elapsed();
    for (_, answer) in answers {
        answer.await.unwrap();
    }
    let rate = committed as f64 / took.as_secs_f64();
    println!("{committed} completions in {took:?}: {rate:.0} a second, slowest answer {slowest:?}");
    println!("each second: {seconds:?}");
    // The last second is incomplete.
    seconds.truncate(took.as_secs() as usize);
    seconds.sort_unstable();
    if let (Some(worst), Some(median)) = (seconds.first(), seconds.get(seconds.len() / 2)) {
        println!("the worst second {worst}, the median one {median}");
        figure("completions_worst_second", *worst as f64);
    }
    figure("completions_per_second", rate);
    figure("completions_span_seconds", took.as_secs_f64());
    figure(
        "completions_slowest_answer_ms",
        slowest.as_secs_f64() * 1_000.0,
    );
}

/// For an edge whose rows are scattered over a large table, in a real session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconciliation_in_a_large_table() {
    let large = table::large().await;
    let entries = table::wide_entries(large.entries);
    let process = Process::start(&large.url).await;
    let mut digest = InventoryDigest::default();
    (0..ENTRY_CHUNKS).for_each(|index| digest.add(table::checksum(index)));
    for what in ["first", "again"] {
        let mut edge = FakeEdge::hello_at(process.edge().await, table::WIDE).await;
        let began = Instant::now();
        let numbers: Vec<u32> = (1..=entries).collect();
        for page in numbers.chunks(1_024) {
            let digests = page.iter().map(|number| v1::InventoryDigest {
                entry_id: Large::entry(*number).to_string(),
                chunk_count: digest.chunk_count,
                checksum_xor: digest.checksum_xor,
            });
            edge.say(Request::InventoryDigests(v1::InventoryDigests {
                digests: digests.collect(),
            }))
            .await;
        }
        edge.complete().await;
        let differ = edge.expect(|message| match message {
            Response::InventoryRequest(request) => Some(request.entry_ids),
            _ => None,
        });
        assert!(differ.await.is_empty(), "the rows are what was presented");
        edge.complete().await;
        edge.expect(|message| matches!(message, Response::Ready(_)).then_some(()))
            .await;
        let took = began.elapsed();
        println!(
            "reconciliation of {} chunks by digests, {what}: {took:?}",
            entries * ENTRY_CHUNKS
        );
        figure(
            &format!("reconciliation_{what}_ms"),
            took.as_secs_f64() * 1_000.0,
        );
    }
}

/// In a real session: all of it in full, then digests alone, then one entry that differs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconciliation_of_an_edge() {
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

/// None of its entries is in the table, and `LOAD_NEW_ENTRIES` new ones a second come meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inventory_of_many_entries() {
    let count = size("LOAD_ENTRIES", 5_000);
    let pace = size("LOAD_NEW_ENTRIES", 200);
    let server = support::postgres::Server::shared();
    let url = server.create_database().await;
    let process = Process::start(&url).await;
    let source = v1::Source {
        name: "films".into(),
        base_url: "http://origin.test".into(),
        background_fill: Some(false),
        ..Default::default()
    };
    let put = v1::PutSourceRequest {
        source: Some(source),
        ..v1::PutSourceRequest::default()
    };
    process.cache().await.put_source(put).await.unwrap();
    let seen = inventory::reconcile(process.edge().await, count, pace).await;
    let (ready, rate) = (seen.ready, f64::from(count) / seen.ready.as_secs_f64());
    let resident = resident_bytes(process.pid()) >> 20;
    println!(
        "an inventory of {count} entries: ready after {ready:?}, {rate:.0} entries a second; {} \
         new ones meanwhile, {} of them committed by then; {resident} MiB resident",
        seen.new, seen.new_at_ready
    );
    figure("inventory_entries", f64::from(count));
    figure("inventory_ready_seconds", ready.as_secs_f64());
    figure("inventory_new_entries", seen.new as f64);
    figure("inventory_resident_mib", resident as f64);
    assert!(seen.longest_page <= 1_024, "a page is bounded");
    let rows = client(&url).await;
    let rows = rows
        .query_one("SELECT count(*) FROM cache_chunks", &[])
        .await;
    let expected = i64::from(count) + seen.new.cast_signed();
    assert_eq!(rows.unwrap().get::<_, i64>(0), expected);
}

/// Edges played by hand, and a coordinator in a process of its own: its memory is what its sessions
/// take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions() {
    const REPORT: u32 = 16;
    let sessions = size("LOAD_SESSIONS", 20);
    let large = table::large().await;
    // No other edges exist, whatever an earlier run left.
    let client = client(&large.url).await;
    client
        .batch_execute("UPDATE edges SET state = 'lost'")
        .await
        .unwrap();
    let process = std::sync::Arc::new(Process::start(&large.url).await);
    let source = v1::Source {
        name: "films".into(),
        base_url: "http://origin.test".into(),
        background_fill: Some(false),
        ..Default::default()
    };
    let put = v1::PutSourceRequest {
        validate_only: false,
        check: false,
        source: Some(source),
    };
    process.cache().await.put_source(put).await.unwrap();
    // New in each run.
    let tag = format!("\"{}\"", uuid::Uuid::new_v4());
    let film = entry("films", "http://origin.test", "film.mp4", 10_000_000, &tag);
    let before = resident_bytes(process.pid());
    let began = Instant::now();
    let mut joining = JoinSet::new();
    let mut edges = Vec::new();
    for number in 0..sessions {
        let process = std::sync::Arc::clone(&process);
        joining.spawn(async move {
            FakeEdge::join_at(process.edge().await, &format!("edge-{number}")).await
        });
        // Like a cluster that comes back: many at once, but not all.
        while joining.len() >= 64 {
            edges.push(joining.join_next().await.unwrap().unwrap());
        }
    }
    edges.extend(joining.join_all().await);
    let took = began.elapsed();
    let held = resident_bytes(process.pid()).saturating_sub(before);
    let each = held / 1024 / u64::from(sessions);
    println!("{sessions} sessions ready in {took:?}, {each} KiB each in the coordinator");
    figure("sessions", f64::from(sessions));
    figure("sessions_ready_seconds", took.as_secs_f64());
    figure("session_idle_kib", each as f64);
    let span = Duration::from_secs(size("LOAD_SECONDS", 1).into());
    let began = Instant::now();
    let mut reporting = JoinSet::new();
    for mut edge in edges {
        let film = film.clone();
        reporting.spawn(async move {
            edge.observe(&film).await;
            let mut reports = 0_u32;
            while began.elapsed() < span {
                let first = reports * REPORT;
                let indexes: Vec<u32> = (first..first + REPORT).collect();
                reports += 1;
                edge.store(reports.into(), &film.id, &indexes).await;
            }
            (edge, reports)
        });
    }
    let edges = reporting.join_all().await;
    let chunks: u32 = edges.iter().map(|(_, reports)| reports * REPORT).sum();
    let rate = f64::from(chunks) / began.elapsed().as_secs_f64();
    println!(
        "{chunks} completions over {} sessions, each waiting for the commit of its last {REPORT}: \
         {rate:.0} a second",
        edges.len()
    );
    figure("session_completions_per_second", rate);
    let held = resident_bytes(process.pid()).saturating_sub(before);
    let each = held / 1024 / u64::from(sessions);
    println!("{each} KiB each after it");
    figure("session_kib", each as f64);
    let status = process.cache().await.get_status(GetStatusRequest {}).await;
    assert_eq!(status.unwrap().into_inner().edges_active, sessions);
}
