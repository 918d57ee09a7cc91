//! Odd answers of origins and peers, neither faults nor lies in themselves, and how an edge handles
//! them.
#![allow(clippy::unwrap_used)]

mod support;

#[path = "odd_origins/fetches.rs"]
mod fetches;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use cache_edge::resolve::Bound;
use chunkcache_proto::v1;
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
    let both = "HTTP/1.1 200 X\r\nETag: \"v1\"\r\nContent-Length: 50\r\n\
     Transfer-Encoding: chunked\r\n\r\n\
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
            // So that it is passed through from then on: nothing says how long it is fresh.
            0 => Act::Raw("HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
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
