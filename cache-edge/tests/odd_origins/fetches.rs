//! Fetches that are stopped, paused, or raised, and peers' answers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cache_edge::{
    fetch::{
        Assignment,
        handle::{FetchHandle, StopMode},
        run::{Fetcher, OpenAnswer, RunEnd},
    },
    upstream::{peer, peer_blocks},
};
use chunk_store::EntryFile;
use chunkcache_proto::{
    ByteRange, FetchId, Level,
    checksum::{BLOCK_BYTES, chunk_checksum},
};
use http::{HeaderName, HeaderValue};
use tokio::sync::Notify;

use super::support::{Act, MIB, Origin, TestEdge, content, request};
use super::{SIZE, asked, key, pair};

/// The file of an object that is known, without any of its chunks.
async fn known(edge: &TestEdge) -> Arc<EntryFile> {
    let head = request(edge.address, "HEAD", "/films/a", None, &[]).await;
    assert_eq!(head.status, 200);
    let bound = edge.edge.objects.parts().bindings.get(&key("a")).unwrap();
    edge.edge.store.entry(&bound.id).unwrap()
}

/// To fetch one chunk from the origin.
fn order(id: impl Into<FetchId>, file: &Arc<EntryFile>, chunk: u32, level: Level) -> Assignment {
    Assignment {
        id: id.into(),
        file: file.clone(),
        first_chunk: chunk,
        chunk_count: 1,
        level,
        deadline_in_ms: 0,
        start_at: 0,
        peer: None,
        reader: 0,
    }
}

/// The answer that this fetch would read.
async fn opened(fetcher: &Fetcher, order: &Assignment) -> OpenAnswer {
    let incoming = fetcher.incoming.of(&order.file);
    let opened = fetcher.open(&order.file, &incoming, order.run(), order.class());
    opened.await.unwrap()
}

/// Makes the origin hold the answer to a request for the first chunk.
fn hold_first_chunk(origin: &Origin) -> Arc<Notify> {
    let gate = Arc::new(Notify::new());
    let held = gate.clone();
    origin.script(move |_, seen| match seen.range {
        Some((0, _)) => Act::Held(held.clone()),
        _ => Act::Serve,
    });
    gate
}

async fn within_seconds(done: impl Future<Output = ()>) {
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, done).await.unwrap();
}

/// A peer's answer: the range in blocks, optionally with a wrong third one.
fn blocks(range: ByteRange, is_wrong: bool) -> Act {
    let bytes = content(1, range.start..range.end);
    let mut body = Vec::new();
    for (nth, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
        let start = range.start + nth as u64 * BLOCK_BYTES;
        let hash = chunk_checksum(start, block);
        let of = ByteRange::new(start, start + block.len() as u64);
        body.extend_from_slice(&peer_blocks::block_header(of, hash));
        body.extend_from_slice(block);
        if is_wrong && nth == 2 {
            *body.last_mut().unwrap() ^= 1;
        }
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        peer_blocks::CONTENT_TYPE,
        body.len()
    );
    Act::Raw([head.into_bytes(), body].concat())
}

/// The origin sends what it was asked for, also to a fetch that gave its slot away meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_fetch_is_resumed_with_the_answer_it_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(SIZE).await;
    let edge = TestEdge::start_with(directory.path(), Some(&origin), |options, _| {
        options.max_downloads = 1;
    })
    .await;
    let file = known(&edge).await;
    let (paused, others) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let gates = (paused.clone(), others.clone());
    origin.script(move |_, seen| match seen.range {
        Some((0, _)) => Act::Held(gates.0.clone()),
        _ => Act::Held(gates.1.clone()),
    });
    let before = origin.requests();
    // One slot, one for CRITICAL: the second of those takes the first fetch's.
    for (id, level) in [
        (1_u64, Level::High),
        (2, Level::Critical),
        (3, Level::Critical),
    ] {
        let chunk = u32::try_from(id).unwrap() - 1;
        edge.edge.downloads.submit(order(id, &file, chunk, level));
        asked(&origin, before + id as usize).await;
    }
    paused.notify_one();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let done = async {
        while !(0..3).all(|chunk| file.is_present(chunk)) {
            others.notify_one();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within_seconds(done).await;
    assert_eq!(
        origin.requests(),
        before + 3,
        "each chunk was asked for once"
    );
}

/// The same for a fetch that is cancelled: its chunk is completed from the answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_fetchs_chunk_is_completed_from_the_answer_it_waited_for() {
    let (_directory, origin, edge) = pair().await;
    let file = known(&edge).await;
    let gate = hold_first_chunk(&origin);
    let before = origin.requests();
    edge.edge.downloads.submit(Assignment {
        start_at: MIB,
        ..order(1_u64, &file, 0, Level::Critical)
    });
    asked(&origin, before + 2).await;
    edge.edge.downloads.cancel(1.into(), false);
    gate.notify_one();
    let done = async {
        while !file.is_present(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within_seconds(done).await;
    assert_eq!(
        origin.requests(),
        before + 2,
        "each half was asked for once"
    );
}

/// A fetch that is stopped amid its last bytes is finished, and not reported as cancelled: the
/// coordinator would have another edge ask the origin for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_stopped_at_its_end_is_finished() {
    let (_directory, _origin, edge) = pair().await;
    let file = known(&edge).await;
    let fetcher = edge.edge.downloads.fetcher();
    let order = order(1_u64, &file, 0, Level::High);
    let handle = FetchHandle::new(0, 0, |_| {});
    let opened = opened(fetcher, &order).await;
    handle.stop(StopMode::AtChunkEnd);
    let end = fetcher.run(&order, &handle, Some(opened)).await;
    assert!(matches!(end, RunEnd::Finished), "{end:?}");
}

/// An origin may close a connection that a paused fetch does not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_answer_that_is_cut_is_no_failure_of_its_origin() {
    let (_directory, origin, edge) = pair().await;
    let file = known(&edge).await;
    let before = origin.requests();
    origin.script(|_, seen| match seen.range {
        Some((0, _)) => Act::CutAfter(100_000),
        _ => Act::Serve,
    });
    let fetcher = edge.edge.downloads.fetcher();
    let order = order(1_u64, &file, 0, Level::High);
    let handle = FetchHandle::new(0, 0, |_| {});
    let opened = opened(fetcher, &order).await;
    handle.stop(StopMode::Preempted);
    let end = fetcher.run(&order, &handle, Some(opened)).await;
    let RunEnd::Paused(Some(rest)) = end else {
        panic!("{end:?}");
    };
    let handle = FetchHandle::new(0, 0, |_| {});
    let end = fetcher.run(&order, &handle, Some(*rest)).await;
    assert!(matches!(end, RunEnd::Finished), "{end:?}");
    assert_eq!(origin.requests(), before + 2, "the rest was asked for once");
    assert_eq!(fetcher.counters.origin_errors.get(), 0);
}

/// A chunk that an edge completes in the background is raised to the level at which another edge
/// requests it. Meanwhile that edge learns that its bytes are awaited.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_fetch_is_raised_for_a_peer_that_waits() {
    let (_directory, origin, edge) = pair().await;
    edge.edge.peer_keys.replace(vec![b"key".to_vec()]);
    let file = known(&edge).await;
    let gate = Arc::new(Notify::new());
    let held = gate.clone();
    origin.script(move |_, _| Act::Held(held.clone()));
    let before = origin.requests();
    let downloads = &edge.edge.downloads;
    downloads.submit(order(1_u64, &file, 0, Level::Critical));
    downloads.submit(order(downloads.local_id(), &file, 1, Level::Medium));
    asked(&origin, before + 1).await;
    let range = ByteRange::new(2 * MIB, 4 * MIB);
    let ask = |level| {
        let keys = &edge.edge.peer_keys;
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let mut fields = keys
            .request_headers(&file.id(), range, now.as_secs())
            .unwrap();
        fields.insert(peer::PRIORITY, peer::urgency(level));
        let (address, path) = (edge.address, peer::path(&file.id()));
        tokio::spawn(async move {
            let text = |(name, value): (&HeaderName, &HeaderValue)| {
                (name.to_string(), value.to_str().unwrap().to_owned())
            };
            let fields: Vec<_> = fields.iter().map(text).collect();
            let fields: Vec<_> = fields
                .iter()
                .map(|(n, v)| (n.as_str(), v.as_str()))
                .collect();
            request(address, "GET", &path, None, &fields).await
        })
    };
    let _lower = ask(Level::Low);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        origin.requests(),
        before + 1,
        "MEDIUM gives way to CRITICAL"
    );
    let waiting = ask(Level::High);
    within_seconds(asked(&origin, before + 2)).await;
    // Longer than a silent peer is waited for.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    gate.notify_waiters();
    let answer = waiting.await.unwrap();
    assert_eq!(answer.status, 200);
    let awaited = peer_blocks::empty_block();
    let told = answer.body.chunks(awaited.len());
    let told = told.take_while(|block| *block == &awaited[..]).count();
    assert!(told >= 3, "told {told} times");
    let mut decoder = peer_blocks::BlockDecoder::new(range);
    decoder.push(&answer.body);
    let mut bytes = Vec::new();
    while let Some(piece) = decoder.next_bytes().unwrap() {
        bytes.extend_from_slice(&piece);
    }
    assert!(bytes == content(1, range.start..range.end));
}

/// The rest of a chunk of which a peer sent a part is left to a later fetch: the peer has it.
#[tokio::test(flavor = "multi_thread")]
async fn no_origin_completes_what_a_peer_began() {
    let (_directory, origin, edge) = pair().await;
    edge.edge.peer_keys.replace(vec![b"key".to_vec()]);
    let file = known(&edge).await;
    let peer = Origin::start(SIZE).await;
    let Act::Raw(mut half) = blocks(ByteRange::new(0, 2 * MIB), false) else {
        unreachable!()
    };
    half.truncate(half.len() / 2);
    peer.script(move |_, _| Act::RawThenHang(half.clone()));
    let before = origin.requests();
    let downloads = &edge.edge.downloads;
    downloads.submit(Assignment {
        peer: Some(format!("http://{}", peer.address)),
        ..order(1_u64, &file, 0, Level::High)
    });
    let incoming = downloads.fetcher().incoming.of(&file);
    within_seconds(async {
        while !incoming.has(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    downloads.cancel(1.into(), false);
    // A completion would be ordered, and begun, at once.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(downloads.counts(), (0, 0));
    assert_eq!(origin.requests(), before);
    assert!(!file.is_present(0));
}

/// Only those of a peer's bytes are used that have the hash they were sent with; the peer learns of
/// others.
#[tokio::test(flavor = "multi_thread")]
async fn a_peers_block_that_does_not_have_its_hash_is_not_taken() {
    for (case, kept) in [("right", true), ("wrong", false)] {
        let (_directory, origin, edge) = pair().await;
        edge.edge.peer_keys.replace(vec![b"key".to_vec()]);
        let peer = Origin::start(SIZE).await;
        // Made before it is needed: the edge waits for a peer's first byte for a second only.
        let sent = blocks(ByteRange::new(0, 4 * MIB), case == "wrong");
        peer.script(move |_, seen| match seen.method.as_str() {
            "HEAD" => Act::Status(200, vec![]),
            _ => sent.clone(),
        });
        let file = known(&edge).await;
        let origin_asked = origin.requests();
        edge.edge.downloads.submit(Assignment {
            chunk_count: 2,
            peer: Some(format!("http://{}", peer.address)),
            ..order(77_u64, &file, 0, Level::Critical)
        });
        asked(&peer, 1).await;
        let settled = Instant::now() + Duration::from_secs(10);
        while edge.edge.downloads.under_way(77.into()).is_some() && Instant::now() < settled {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(file.is_present(0) && file.is_present(1), kept, "{case}");
        let incoming = edge.edge.downloads.fetcher().incoming.of(&file);
        let held = |block: u64| incoming.has(block * BLOCK_BYTES);
        assert!(held(0) && held(1), "{case}: what was right is kept");
        assert_eq!(held(2) || held(3), kept, "{case}: what was not is not");
        let is_told = peer
            .seen
            .lock()
            .iter()
            .any(|seen| seen.header("x-chunk-mismatch").is_some());
        assert_eq!(is_told, case == "wrong", "{case}");
        assert_eq!(
            origin.requests(),
            origin_asked,
            "the coordinator's order ends there: {case}"
        );
        // In every case the right bytes are served.
        edge.get("/films/a", None)
            .await
            .assert_bytes(200, &content(1, 0..SIZE));
        edge.stop().await;
    }
}
