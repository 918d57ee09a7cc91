//! Odd answers of origins and peers, neither faults nor lies in themselves, and how an edge handles
//! them.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use cache_edge::fetch::Assignment;
use cache_edge::{resolve::Bound, upstream::peer_blocks};
use chunkcache_proto::{
    ByteRange, Level,
    checksum::{BLOCK_BYTES, chunk_checksum},
    v1,
};
use support::{Act, MIB, Origin, TestEdge, content, request};
use tokio::sync::Notify;

const SIZE: u64 = 5 * MIB + 5;

async fn pair() -> (tempfile::TempDir, Arc<Origin>, TestEdge) {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(SIZE).await;
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;
    (directory, origin, edge)
}

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

fn key(path: &str) -> v1::Key {
    v1::Key {
        source: "films".into(),
        path: path.into(),
        ..v1::Key::default()
    }
}

async fn asked(origin: &Origin, times: usize) {
    while origin.requests() < times {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// RFC 9112, 5.1: a space before the colon is taken away, a line that is no field is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn lines_that_bend_the_rules_are_read_or_dropped() {
    let (_directory, origin, edge) = pair().await;
    origin.script(|_, _| {
        Act::With(lines(&[
            "ETag: \"v1\"",
            "Cache-Control : max-age=600",
            "X-Spaced : kept",
            "this line has no colon",
            "Bad Name: dropped",
            "X-Folded: one\r\n two",
        ]))
    });
    for _ in 0..2 {
        let reply = edge.get("/films/a", None).await;
        reply.assert_bytes(200, &content(1, 0..SIZE));
        assert_eq!(reply.header("x-spaced"), "kept");
    }
    let asked = origin.requests();
    edge.get("/films/a", None).await;
    assert_eq!(origin.requests(), asked, "kept, with its lifetime");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_304_that_names_another_version_confirms_nothing() {
    let (_directory, origin, edge) = pair().await;
    origin.script(|_, _| Act::With(lines(&["ETag: \"v1\"", "Cache-Control: max-age=0"])));
    let first = edge.get("/films/a", None).await;
    first.assert_bytes(200, &content(1, 0..SIZE));
    origin.version.store(2, Ordering::SeqCst);
    origin.script(|_, seen| match seen.header("if-none-match") {
        Some(_) => Act::Status(304, lines(&["ETag: \"v2\""])),
        None => Act::With(lines(&["ETag: \"v2\""])),
    });
    let second = edge.get("/films/a", None).await;
    second.assert_bytes(200, &content(2, 0..SIZE));
    assert_eq!(second.header("etag"), "\"v2\"");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn weak_tags_that_differ_are_two_objects() {
    let (_directory, origin, edge) = pair().await;
    let weak = |version: u64| {
        Act::With(vec![
            format!("ETag: W/\"v{version}\""),
            "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT".into(),
            "Cache-Control: max-age=0".into(),
        ])
    };
    origin.script(move |_, _| weak(1));
    edge.get("/films/a", None)
        .await
        .assert_bytes(200, &content(1, 0..SIZE));
    let again = edge.get("/films/a", None).await;
    assert!(again.header("cache-status").contains("fwd-status=304"));
    origin.version.store(2, Ordering::SeqCst);
    origin.script(move |_, _| weak(2));
    edge.get("/films/a", None)
        .await
        .assert_bytes(200, &content(2, 0..SIZE));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_coding_makes_the_length_void() {
    let (_directory, origin, edge) = pair().await;
    let both = "HTTP/1.1 200 X\r\nETag: \"v1\"\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\n0\r\n\r\n";
    origin.script(|_, _| Act::Raw(both.into()));
    let answer = edge.get("/films/a", None).await;
    answer.assert_bytes(200, b"hello");
    assert_eq!(answer.header("content-length"), "");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_nobody_asked_for_are_refused() {
    for (status, extra) in [(206, "Content-Range: bytes 0-4/*\r\n"), (304, "")] {
        let (_directory, origin, edge) = pair().await;
        let act =
            format!("HTTP/1.1 {status} X\r\nETag: \"v1\"\r\n{extra}Content-Length: 5\r\n\r\nhello");
        origin.script(move |nth, _| match nth {
            // So that it is passed through from then on.
            0 => Act::Chunked,
            _ => Act::Raw(act.clone().into()),
        });
        edge.get("/films/a", None).await;
        let answer = edge.get("/films/a", None).await;
        assert_eq!(answer.status, 502, "{status}");
        assert_eq!(answer.header("content-type"), "application/problem+json");
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_as_what_they_are() {
    let (_directory, origin, edge) = pair().await;
    origin.script(|_, seen| {
        let challenge = lines(&["WWW-Authenticate: Basic realm=\"films\""]);
        match seen.path.as_str() {
            "/library/private" => Act::Status(401, challenge),
            "/library/proxied" => Act::Status(407, vec![]),
            _ => Act::Status(403, vec![]),
        }
    });
    let private = edge.get("/films/private", None).await;
    assert_eq!(private.status, 401);
    assert_eq!(private.header("www-authenticate"), "Basic realm=\"films\"");
    assert_eq!(edge.get("/films/proxied", None).await.status, 502);
    let refused = edge.get("/films/refused", None).await;
    assert_eq!(refused.status, 403);
    let text = String::from_utf8_lossy(&refused.body).into_owned();
    assert!(text.contains("refuses"), "{text}");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_if_cached_does_not_pass_through() {
    let (_directory, origin, edge) = pair().await;
    origin.script(|_, _| Act::With(lines(&["ETag: \"v1\"", "Cache-Control: no-store"])));
    edge.get("/films/a", Some("bytes=0-9")).await;
    let asked = origin.requests();
    let only = [("Cache-Control", "only-if-cached")];
    let answer = request(edge.address, "GET", "/films/a", None, &only).await;
    assert_eq!((answer.status, origin.requests()), (504, asked));
    edge.stop().await;
}

/// Each request meets another version: one answer brings one version, and the player gets it.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_changes_at_each_request_is_handed_through() {
    let (_directory, origin, edge) = pair().await;
    let changing = origin.clone();
    origin.script(move |_, _| {
        changing.version.fetch_add(1, Ordering::SeqCst);
        Act::Serve
    });
    for range in ["bytes=0-", "bytes=4000000-", "bytes=100-200"] {
        let answer = edge.get("/films/a", Some(range)).await;
        assert_eq!(answer.status, 206);
        let version = answer.header("etag").trim_matches('"')[1..]
            .parse()
            .unwrap();
        let (start, end) = match range {
            "bytes=0-" => (0, SIZE),
            "bytes=4000000-" => (4_000_000, SIZE),
            _ => (100, 201),
        };
        let whole = content(version, start..end);
        assert!(whole.starts_with(&answer.body), "{range}");
        assert_eq!(answer.aborted, answer.body.len() < whole.len(), "{range}");
    }
    edge.stop().await;
}

/// In the first request for a key, in the one that confirms it, and in one that is passed through.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_hangs_or_refuses_once_costs_time_only() {
    let acts = [
        Act::Hang,
        Act::Status(503, vec![]),
        Act::Status(500, vec![]),
        Act::Raw(vec![]),
        Act::Raw(b"HTTP/1.1 200".to_vec()),
    ];
    let mut cases = tokio::task::JoinSet::new();
    for act in acts {
        cases.spawn(fails_once("cold", "max-age=60", act.clone()));
        cases.spawn(fails_once(
            "stale",
            "max-age=0, must-revalidate",
            act.clone(),
        ));
        cases.spawn(fails_once("passing", "no-store", act));
    }
    cases.join_all().await;
}

async fn fails_once(case: &'static str, cache_control: &'static str, act: Act) {
    let (_directory, origin, edge) = pair().await;
    let honest = move || {
        Act::With(vec![
            "ETag: \"v1\"".into(),
            format!("Cache-Control: {cache_control}"),
        ])
    };
    origin.script(move |_, _| honest());
    if case != "cold" {
        edge.get("/films/a", None).await;
    }
    let fault = act.clone();
    origin.script(move |nth, _| if nth == 0 { fault.clone() } else { honest() });
    let begun = Instant::now();
    let answer = edge.get("/films/a", None).await;
    assert_eq!(answer.status, 200, "{case} {act:?}");
    answer.assert_bytes(200, &content(1, 0..SIZE));
    assert!(begun.elapsed() < Duration::from_secs(9), "{case} {act:?}");
    edge.stop().await;
}

/// The answer whose body stops is the one that described the object.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_body_that_stops_is_gone_on_with() {
    let forever = Duration::from_secs(3600);
    let mut cases = tokio::task::JoinSet::new();
    for act in [
        Act::StallAfter(0, forever),
        Act::StallAfter(100_000, forever),
        Act::StallAfter(3 * MIB, forever),
        Act::CutAfter(0),
        Act::CutAfter(3 * MIB),
    ] {
        cases.spawn(async move {
            let directory = tempfile::tempdir().unwrap();
            let origin = Origin::start(SIZE).await;
            // As by default: longer than an origin may be silent.
            let edge = TestEdge::start_with(directory.path(), Some(&origin), |options, _| {
                options.chunk_wait_timeout = Duration::from_secs(30);
            })
            .await;
            let first = act.clone();
            origin.script(move |nth, _| if nth == 0 { first.clone() } else { Act::Serve });
            let begun = Instant::now();
            let answer = edge.get("/films/a", None).await;
            answer.assert_bytes(200, &content(1, 0..SIZE));
            assert!(begun.elapsed() < Duration::from_secs(15), "{act:?}");
            edge.stop().await;
        });
    }
    cases.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_always_hangs_is_a_problem_within_15_seconds() {
    let (_directory, origin, edge) = pair().await;
    origin.script(|_, _| Act::Hang);
    let begun = Instant::now();
    let answer = edge.get("/films/a", None).await;
    assert_eq!(answer.status, 504);
    assert!(begun.elapsed() < Duration::from_secs(15));
    edge.stop().await;
}

/// The origin was reached, and did something wrong, which is different from silence. Once it
/// answers, so does the edge.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_is_a_bad_gateway() {
    let mut cases = tokio::task::JoinSet::new();
    for raw in [
        &b""[..],
        b"\x16\x03\x01 this is not HTTP\r\n\r\n",
        b"HTTP/1.1 200",
        b"HTTP/3.0 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    ] {
        cases.spawn(async move {
            let (_directory, origin, edge) = pair().await;
            origin.script(move |_, _| Act::Raw(raw.to_vec()));
            let text = String::from_utf8_lossy(raw);
            let answer = edge.get("/films/a", None).await;
            assert_eq!(answer.status, 502, "{text:?}");
            assert_eq!(answer.header("content-type"), "application/problem+json");
            let said = answer.header("cache-status");
            assert!(said.contains("bad-origin"), "{text:?}: {said}");
            assert_eq!(edge.edge.store.bytes_used(), 0);
            origin.script(|_, _| Act::Serve);
            let mended = edge.get("/films/a", None).await;
            mended.assert_bytes(200, &content(1, 0..SIZE));
            edge.stop().await;
        });
    }
    cases.join_all().await;
}

/// An answer from before an invalidation does not count after it.
#[tokio::test(flavor = "multi_thread")]
async fn an_invalidation_overtakes_a_question_under_way() {
    for phase in ["cold", "stale"] {
        let (_directory, origin, edge) = pair().await;
        let bindings = edge.edge.objects.parts().bindings.clone();
        if phase == "stale" {
            origin.script(|_, _| Act::With(lines(&["ETag: \"v1\"", "Cache-Control: max-age=0"])));
            edge.get("/films/a", None).await;
        }
        let gate = Arc::new(Notify::new());
        let held = gate.clone();
        let before = origin.requests();
        origin.script(move |nth, _| match nth {
            0 => Act::Held(held.clone()),
            _ => Act::Serve,
        });
        let address = edge.address;
        let waiting =
            tokio::spawn(async move { request(address, "GET", "/films/a", None, &[]).await });
        asked(&origin, before + 1).await;
        origin.version.store(2, Ordering::SeqCst);
        let entries: Vec<_> = bindings
            .get(&key("a"))
            .iter()
            .map(|it: &Arc<Bound>| it.id)
            .collect();
        bindings.invalidate(&[key("a")], &entries);
        gate.notify_one();
        waiting
            .await
            .unwrap()
            .assert_bytes(200, &content(2, 0..SIZE));
        let bound = bindings.get(&key("a")).unwrap();
        assert_eq!(bound.entry.etag, "\"v2\"", "{phase}");
        edge.get("/films/a", None)
            .await
            .assert_bytes(200, &content(2, 0..SIZE));
        edge.stop().await;
    }
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
    let head = request(edge.address, "HEAD", "/films/a", None, &[]).await;
    assert_eq!(head.status, 200);
    let bound = edge.edge.objects.parts().bindings.get(&key("a")).unwrap();
    let file = edge.edge.store.entry(&bound.id).unwrap();
    let (paused, others) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let gates = (paused.clone(), others.clone());
    origin.script(move |_, seen| match seen.range {
        Some((0, _)) => Act::Held(gates.0.clone()),
        _ => Act::Held(gates.1.clone()),
    });
    let before = origin.requests();
    // One slot, one for CRITICAL: the second of those takes the first fetch's.
    for (id, level) in [(1, Level::High), (2, Level::Critical), (3, Level::Critical)] {
        edge.edge.downloads.submit(Assignment {
            id,
            file: file.clone(),
            first_chunk: u32::try_from(id).unwrap() - 1,
            chunk_count: 1,
            level,
            deadline_in_ms: 0,
            start_at: 0,
            peer: None,
            reader: 0,
        });
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
    tokio::time::timeout(Duration::from_secs(10), done)
        .await
        .unwrap();
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
    let head = request(edge.address, "HEAD", "/films/a", None, &[]).await;
    assert_eq!(head.status, 200);
    let bound = edge.edge.objects.parts().bindings.get(&key("a")).unwrap();
    let file = edge.edge.store.entry(&bound.id).unwrap();
    let gate = Arc::new(Notify::new());
    let held = gate.clone();
    origin.script(move |_, seen| match seen.range {
        Some((0, _)) => Act::Held(held.clone()),
        _ => Act::Serve,
    });
    let before = origin.requests();
    edge.edge.downloads.submit(Assignment {
        id: 1,
        file: file.clone(),
        first_chunk: 0,
        chunk_count: 1,
        level: Level::Critical,
        deadline_in_ms: 0,
        start_at: MIB,
        peer: None,
        reader: 0,
    });
    asked(&origin, before + 2).await;
    edge.edge.downloads.cancel(1, false);
    gate.notify_one();
    let done = async {
        while !file.is_present(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), done)
        .await
        .unwrap();
    assert_eq!(
        origin.requests(),
        before + 2,
        "each half was asked for once"
    );
}

/// Of what an edge completes in the background, what another edge waits for goes first.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_fetch_is_raised_for_a_peer() {
    let (_directory, origin, edge) = pair().await;
    let head = request(edge.address, "HEAD", "/films/a", None, &[]).await;
    assert_eq!(head.status, 200);
    let bound = edge.edge.objects.parts().bindings.get(&key("a")).unwrap();
    let file = edge.edge.store.entry(&bound.id).unwrap();
    let gate = Arc::new(Notify::new());
    let held = gate.clone();
    origin.script(move |_, seen| match seen.range {
        Some((0, _)) => Act::Held(held.clone()),
        _ => Act::Serve,
    });
    let before = origin.requests();
    let downloads = &edge.edge.downloads;
    let local = downloads.local_id();
    for (id, level) in [(1, Level::Critical), (local, Level::Low)] {
        let chunk = u32::from(id == local);
        downloads.submit(Assignment {
            id,
            file: file.clone(),
            first_chunk: chunk,
            chunk_count: 1,
            level,
            deadline_in_ms: 0,
            start_at: 0,
            peer: None,
            reader: 0,
        });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(origin.requests(), before + 1, "LOW gives way to CRITICAL");
    downloads.raise_for_peer(file.id(), 1, 2 * MIB, Level::High);
    asked(&origin, before + 2).await;
    gate.notify_one();
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
        // Makes the entry known, without any of its chunks.
        let head = request(edge.address, "HEAD", "/films/a", None, &[]).await;
        assert_eq!(head.status, 200);
        let id = edge
            .edge
            .objects
            .parts()
            .bindings
            .get(&key("a"))
            .unwrap()
            .id;
        let file = edge.edge.store.entry(&id).unwrap();
        let origin_asked = origin.requests();
        edge.edge.downloads.submit(Assignment {
            id: 77,
            file: file.clone(),
            first_chunk: 0,
            chunk_count: 2,
            level: Level::Critical,
            deadline_in_ms: 0,
            start_at: 0,
            peer: Some(format!("http://{}", peer.address)),
            reader: 0,
        });
        asked(&peer, 1).await;
        let settled = Instant::now() + Duration::from_secs(10);
        while edge.edge.downloads.under_way(77).is_some() && Instant::now() < settled {
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
