//! An edge without a coordinator, end to end over sockets: cold read, hit, restart, many readers,
//! no space.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use cache_edge::core::consumption::PlayerReport;

use chunkcache_proto::ByteRange;
use support::{Act, MIB, Origin, TestEdge, content, request};

#[tokio::test(flavor = "multi_thread")]
async fn cold_then_hit_then_restart() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(9 * MIB + 77).await;
    let size = 9 * MIB + 77;
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;

    let middle = edge
        .get("/films/a.mp4", Some("bytes=3000000-3000999"))
        .await;
    middle.assert_bytes(206, &content(1, 3_000_000..3_001_000));
    assert_eq!(
        middle.header("content-range"),
        format!("bytes 3000000-3000999/{size}")
    );
    assert!(
        middle.header("cache-status").contains("fwd=miss"),
        "{}",
        middle.header("cache-status")
    );

    let whole = edge.get("/films/a.mp4", None).await;
    whole.assert_bytes(200, &content(1, 0..size));
    assert_eq!(whole.header("etag"), "\"v1\"");
    assert_eq!(
        origin.sent(),
        size,
        "each byte once: {:?}",
        origin.seen.lock()
    );

    let hit = edge.get("/films/a.mp4", Some("bytes=0-")).await;
    hit.assert_bytes(206, &content(1, 0..size));
    assert!(
        hit.header("cache-status").contains("; hit"),
        "{}",
        hit.header("cache-status")
    );
    assert_eq!(origin.sent(), size);

    edge.stop().await;
    // Sources, bindings and chunks are known again without a request to anyone.
    let edge = TestEdge::start(directory.path(), None).await;
    let again = edge.get("/films/a.mp4", Some("bytes=-500")).await;
    again.assert_bytes(206, &content(1, size - 500..size));
    assert_eq!(origin.sent(), size);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_one_fetch() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(16 * MIB).await;
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;
    let expected = std::sync::Arc::new(content(1, 0..16 * MIB));
    let readers: Vec<_> = (0..50)
        .map(|_| {
            let (address, expected) = (edge.address, expected.clone());
            tokio::spawn(async move {
                request(address, "GET", "/films/a.mp4", None, &[])
                    .await
                    .assert_bytes(200, &expected)
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    let asked: Vec<_> = origin.seen.lock().iter().map(|seen| seen.range).collect();
    assert_eq!(origin.sent(), 16 * MIB, "asked for {asked:?}");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_sent_as_they_land() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(64 * MIB).await;
    origin.script(|_, _| Act::Paced(256 << 10));
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;
    let begun = Instant::now();
    // The middle of a chunk; the origin would need four seconds to send the part before it.
    let first = edge
        .get("/films/a.mp4", Some("bytes=41000000-41000099"))
        .await;
    first.assert_bytes(206, &content(1, 41_000_000..41_000_100));
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    edge.stop().await;
}

/// A reader whose byte has landed is woken, and may not have run yet: until then it counts as
/// waiting.
#[tokio::test(flavor = "multi_thread")]
async fn what_landed_is_not_fetched_for_a_reader_that_has_not_seen_it() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(64 * MIB).await;
    origin.script(|_, _| Act::StallAfter(MIB, Duration::from_secs(5)));
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;
    let first = format!("bytes=0-{}", MIB - 1);
    let first = edge.get("/films/a.mp4", Some(&first)).await;
    first.assert_bytes(206, &content(1, 0..MIB));
    let (file, demand) = (edge.edge.store.entries().remove(0), &edge.edge.demand);
    let incoming = edge.edge.incoming().of(&file);
    assert!(!file.is_present(0), "the rest of the chunk is held back");
    assert!(incoming.has(0) && incoming.has(MIB - 1));
    assert!(!incoming.has(MIB + MIB / 2) && !incoming.has(33 * MIB));

    let fetches_of = |chunk| {
        let orders = edge.edge.downloads.local_orders();
        orders.iter().filter(|it| it.first_chunk == chunk).count()
    };
    let before = fetches_of(0);
    let wait_at = |position| {
        let reader = demand.open(
            &file,
            ByteRange::new(position, position + 100),
            PlayerReport::default(),
        );
        demand.wait_at(&reader, position);
        reader
    };
    let _unaware = wait_at(100);
    // Nothing else brings these. By the second the planner has looked at all readers from before
    // the first.
    for chunk in [16, 28] {
        let _waiting = wait_at(u64::from(chunk) * 2 * MIB);
        while fetches_of(chunk) == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(fetches_of(0), before);
    edge.stop().await;
}

/// Partial chunks that were given up are freed within a moment.
async fn nothing_stays(edge: &TestEdge) {
    let until = Instant::now() + Duration::from_secs(10);
    while edge.edge.store.bytes_used() > 0 {
        assert!(Instant::now() < until, "what was given up counts still");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_space_bytes_pass_by_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(7 * MIB).await;
    let edge = TestEdge::start_with(directory.path(), Some(&origin), |options, _| {
        options.max_bytes = Some(MIB)
    })
    .await;
    let whole = edge.get("/films/a.mp4", None).await;
    whole.assert_bytes(200, &content(1, 0..7 * MIB));
    nothing_stays(&edge).await;
    edge.stop().await;
}

/// The first bytes are sent before their file is created, and so is the rest if it cannot be
/// created.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_can_not_be_made_costs_a_viewer_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let entries = directory.path().join("entries");
    std::fs::create_dir(&entries).unwrap();
    for prefix in 0..=u8::MAX {
        // In place of the directory.
        std::fs::write(entries.join(format!("{prefix:02x}")), b"").unwrap();
    }
    let origin = Origin::start(5 * MIB).await;
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;
    for range in [3_000_000..3_500_000, 0..5 * MIB] {
        let asked = format!("bytes={}-{}", range.start, range.end - 1);
        let read = edge.get("/films/a.mp4", Some(&asked)).await;
        read.assert_bytes(206, &content(1, range));
    }
    nothing_stays(&edge).await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_registered_sources_and_only_below_their_base() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(10).await;
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;
    for path in [
        "/other/a.mp4",
        "/films/../secret",
        "/films/%2e%2e/secret",
        "/",
        "/v1/entries/x",
    ] {
        let answer = edge.get(path, None).await;
        assert!(
            (400..500).contains(&answer.status),
            "{path}: {}",
            answer.status
        );
    }
    assert_eq!(origin.requests(), 0);
    edge.get("/films/small", None)
        .await
        .assert_bytes(200, &content(1, 0..10));
    assert_eq!(origin.seen.lock()[0].path, "/library/small");
    assert_eq!(
        origin.seen.lock()[0].header("accept-encoding"),
        Some("identity")
    );
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn head_and_empty_objects() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(5 * MIB).await;
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;
    let head = request(edge.address, "HEAD", "/films/a", None, &[]).await;
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, "5242880")
    );
    assert!(origin.sent() <= 1);
    origin.size.store(0, std::sync::atomic::Ordering::SeqCst);
    edge.get("/films/empty", None).await.assert_bytes(200, &[]);
    edge.stop().await;
}
