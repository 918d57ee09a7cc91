//! Origins that misbehave: no client gets a wrong byte.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use support::{Act, MIB, Origin, TestEdge, content, request};

const SIZE: u64 = 5 * MIB + 5;

async fn pair() -> (tempfile::TempDir, Arc<Origin>, TestEdge) {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(SIZE).await;
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;
    (directory, origin, edge)
}

/// Retried behind the held request: the player notices only the delay.
#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_asked_again() {
    for act in [
        Act::Status(503, vec![]),
        Act::Status(429, vec!["Retry-After: 1".into()]),
        Act::CutAfter(100_000),
        Act::CutAfter(0),
        Act::StallAfter(100_000, Duration::from_secs(2)),
        Act::Raw(vec![]),
        Act::Raw(b"HTTP/1.1 206".to_vec()),
    ] {
        let (_directory, origin, edge) = pair().await;
        let first = act.clone();
        origin.script(move |nth, _| if nth == 0 { first.clone() } else { Act::Serve });
        let answer = edge.get("/films/a", None).await;
        assert_eq!(answer.status, 200, "{act:?}");
        answer.assert_bytes(200, &content(1, 0..SIZE));
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_without_ranges_is_streamed_once() {
    let (_directory, origin, edge) = pair().await;
    origin.script(|_, _| Act::Whole);
    let tail = edge.get("/films/a", Some("bytes=4000000-4000099")).await;
    tail.assert_bytes(206, &content(1, 4_000_000..4_000_100));
    edge.get("/films/a", None)
        .await
        .assert_bytes(200, &content(1, 0..SIZE));
    assert_eq!(origin.sent(), SIZE);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_content_range_is_refused() {
    for wrong in [
        format!("bytes 1-9/{SIZE}"),
        "bytes 0-9/5".into(),
        "nonsense".into(),
        String::new(),
    ] {
        let (_directory, origin, edge) = pair().await;
        origin.script(move |_, _| Act::ContentRange(wrong.clone()));
        let answer = edge.get("/films/a", Some("bytes=0-9")).await;
        assert_eq!(
            answer.status,
            502,
            "{}",
            String::from_utf8_lossy(&answer.body)
        );
        assert_eq!(answer.header("content-type"), "application/problem+json");
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_stored_is_handed_through() {
    let lines = |extra: &[&str]| {
        extra
            .iter()
            .map(|line| (*line).to_owned())
            .collect::<Vec<_>>()
    };
    for act in [
        Act::With(lines(&["ETag: \"v1\"", "Cache-Control: no-store"])),
        Act::With(lines(&["ETag: \"v1\"", "Cache-Control: private"])),
        Act::With(lines(&["ETag: \"v1\"", "Content-Encoding: gzip"])),
        Act::With(lines(&["ETag: \"v1\"", "Vary: *"])),
        Act::With(lines(&["Content-Type: text/plain"])),
        Act::With(lines(&["ETag: W/\"weak\""])),
    ] {
        let (_directory, origin, edge) = pair().await;
        let act_of = act.clone();
        origin.script(move |_, _| act_of.clone());
        let answer = edge.get("/films/a", None).await;
        assert_eq!(answer.status, 200, "{act:?}");
        answer.assert_bytes(200, &content(1, 0..SIZE));
        assert!(
            answer.header("cache-status").contains("fwd=bypass"),
            "{}",
            answer.header("cache-status")
        );
        assert_eq!(edge.edge.store.bytes_used(), 0, "{act:?}");
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_modified_alone_is_a_validator() {
    let (_directory, origin, edge) = pair().await;
    origin.script(|_, _| Act::With(vec!["Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT".into()]));
    edge.get("/films/a", None)
        .await
        .assert_bytes(200, &content(1, 0..SIZE));
    edge.get("/films/a", None)
        .await
        .assert_bytes(200, &content(1, 0..SIZE));
    assert_eq!(origin.sent(), SIZE);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_object_never_mixes() {
    let (_directory, origin, edge) = pair().await;
    // A whole chunk: a few bytes, which are passed on from memory, need not be stored once their
    // reader has left.
    const CHUNK: u64 = 2 << 20;
    edge.get("/films/a", Some("bytes=0-2097151"))
        .await
        .assert_bytes(206, &content(1, 0..CHUNK));
    origin.version.store(2, Ordering::SeqCst);
    // The binding is fresh, but the old version is gone: neither completed nor mixed.
    let rest = edge.get("/films/a", None).await;
    assert!(
        rest.aborted || rest.status >= 500,
        "{} {}",
        rest.status,
        rest.body.len()
    );
    assert_eq!(
        rest.body[..],
        content(1, 0..rest.body.len() as u64)[..],
        "only bytes of the old version"
    );
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revalidation_moves_no_body_and_a_change_makes_a_new_entry() {
    let (_directory, origin, edge) = pair().await;
    let versioned = |version: u64| {
        vec![
            format!("ETag: \"v{version}\""),
            "Cache-Control: max-age=0".into(),
        ]
    };
    origin.script(move |_, _| Act::With(versioned(1)));
    edge.get("/films/a", None)
        .await
        .assert_bytes(200, &content(1, 0..SIZE));
    let sent = origin.sent();
    let again = edge.get("/films/a", None).await;
    again.assert_bytes(200, &content(1, 0..SIZE));
    assert_eq!(origin.sent(), sent);
    assert!(
        again.header("cache-status").contains("fwd-status=304"),
        "{}",
        again.header("cache-status")
    );
    origin.version.store(2, Ordering::SeqCst);
    origin.script(move |_, _| Act::With(versioned(2)));
    let new = edge.get("/films/a", None).await;
    new.assert_bytes(200, &content(2, 0..SIZE));
    assert_eq!(new.header("etag"), "\"v2\"");
    // Unreachable does not mean deleted.
    origin.script(|_, _| Act::Raw(vec![]));
    let stale = edge.get("/films/a", None).await;
    stale.assert_bytes(200, &content(2, 0..SIZE));
    assert!(
        stale.header("cache-status").contains("stale"),
        "{}",
        stale.header("cache-status")
    );
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_objects_are_remembered_for_seconds() {
    let (_directory, origin, edge) = pair().await;
    origin.script(|_, _| Act::Status(404, vec![]));
    for _ in 0..5 {
        assert_eq!(edge.get("/films/none", None).await.status, 404);
    }
    assert_eq!(origin.requests(), 1);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gone_in_the_middle_ends_the_body_short() {
    for status in [404, 410, 403] {
        let (_directory, origin, edge) = pair().await;
        origin.script(move |nth, _| {
            if nth == 0 {
                Act::CutAfter(1_000_000)
            } else {
                Act::Status(status, vec![])
            }
        });
        let answer = edge.get("/films/a", None).await;
        assert_eq!(answer.status, 200);
        assert!(answer.aborted, "{status}");
        assert!(answer.body[..] == content(1, 0..answer.body.len() as u64)[..]);
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_stay_inside_the_source() {
    let (_directory, origin, edge) = pair().await;
    origin.script(|_, seen| {
        let to = |location: &str| Act::Status(302, vec![format!("Location: {location}")]);
        match seen.path.as_str() {
            "/library/moved" => to("/library/here"),
            "/library/out" => to("/elsewhere/x"),
            "/library/far" => to("http://169.254.169.254/latest"),
            "/library/loop" => to("/library/loop"),
            _ => Act::Serve,
        }
    });
    edge.get("/films/moved", Some("bytes=0-9"))
        .await
        .assert_bytes(206, &content(1, 0..10));
    for path in ["/films/out", "/films/far"] {
        assert_eq!(edge.get(path, None).await.status, 302, "{path}");
    }
    assert_eq!(edge.get("/films/loop", None).await.status, 502);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_object_of_a_dead_origin_is_a_problem_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(1).await;
    let edge = TestEdge::start_with(directory.path(), Some(&origin), |_, source| {
        source.base_url = "http://127.0.0.1:9/library".into();
    })
    .await;
    let begun = Instant::now();
    let answer = edge.get("/films/a", None).await;
    assert!(
        answer.status == 504 || answer.status == 502,
        "{}",
        answer.status
    );
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert!(begun.elapsed() < Duration::from_secs(15));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_headers_are_an_allow_list() {
    let (_directory, origin, edge) = pair().await;
    let secret = [
        ("Authorization", "Bearer x"),
        ("Cookie", "a=b"),
        ("X-Custom", "y"),
        ("X-Forwarded-For", "1.2.3.4"),
    ];
    request(edge.address, "GET", "/films/a", Some("bytes=0-9"), &secret)
        .await
        .assert_bytes(206, &content(1, 0..10));
    for seen in origin.seen.lock().iter() {
        for name in ["authorization", "cookie", "x-custom", "x-forwarded-for"] {
            assert_eq!(seen.header(name), None);
        }
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_changes_at_each_request_never_mixes() {
    let (_directory, origin, edge) = pair().await;
    let changing = origin.clone();
    origin.script(move |_, _| {
        // The answer is of the old version; the next request meets another.
        changing.version.fetch_add(1, Ordering::SeqCst);
        Act::Serve
    });
    for _ in 0..6 {
        let answer = edge.get("/films/a", Some("bytes=0-")).await;
        if answer.status == 206 {
            let version: u64 = answer.header("etag").trim_matches('"')[1..]
                .parse()
                .unwrap();
            assert!(answer.body[..] == content(version, 0..answer.body.len() as u64)[..]);
        }
    }
    edge.stop().await;
}
