//! Reports about other caches and players, tried on this edge: connections, and origins without
//! ranges.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering;

use support::{Act, Origin, TestEdge, content, request};

/// An origin that gives an unused connection up says 408, which a request that is on its way takes
/// for its answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_of_a_connection_is_no_answer() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(10).await;
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;
    let lines = |status: &str| {
        let head = format!("HTTP/1.1 {status}\r\nCache-Control: no-store\r\nConnection: close");
        Act::Raw(format!("{head}\r\nContent-Length: 2\r\n\r\nok").into_bytes())
    };
    origin.script(move |nth, _| lines(["200 OK", "408 Request Timeout"][nth % 2]));
    for _ in 0..3 {
        let answer = edge.get("/films/passed", None).await;
        answer.assert_bytes(200, b"ok");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_refuses_all_ranges_is_asked_as_its_client_asks() {
    for status in [400, 406] {
        let directory = tempfile::tempdir().unwrap();
        let origin = Origin::start(100_000).await;
        let edge = TestEdge::start(directory.path(), Some(&origin)).await;
        origin.script(move |_, seen| match seen.range {
            Some(_) => Act::Status(status, vec![]),
            None => Act::Serve,
        });
        let whole = edge.get("/films/a", None).await;
        whole.assert_bytes(200, &content(1, 0..100_000));
        assert!(whole.header("cache-status").contains("no-ranges"));
        let part = edge.get("/films/a", Some("bytes=5-9")).await;
        assert_eq!(part.status, status);
        edge.stop().await;
    }
}

/// Gateways to buckets send `ETag: ""` for each object whose tag they do not know (storj 3761,
/// `OpenList` 2773, seaweedfs 3987, minio 5567, versitygw 2218), and some servers send two tags.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_tells_no_versions_apart_joins_none() {
    const SIZE: u64 = 9 << 20;
    for tags in ["ETag: \"\"", "ETag: \"same\"\r\nETag: \"VERSION\""] {
        let directory = tempfile::tempdir().unwrap();
        let origin = Origin::start(SIZE).await;
        let edge = TestEdge::start(directory.path(), Some(&origin)).await;
        let play = |version: u64| {
            let tags = tags.replace("VERSION", &version.to_string());
            origin.version.store(version, Ordering::Relaxed);
            origin.script(move |_, _| Act::With(vec![tags.clone()]));
        };
        play(1);
        let first = edge.get("/films/a", Some("bytes=0-9")).await;
        first.assert_bytes(206, &content(1, 0..10));
        play(2);
        let second = edge.get("/films/a", None).await;
        second.assert_bytes(200, &content(2, 0..SIZE));
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_tag_confirms_no_whole_answer() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(1_000).await;
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;
    origin.script(|_, _| {
        let lines = ["ETag: \"\"", "Cache-Control: max-age=60"];
        Act::With(lines.map(String::from).to_vec())
    });
    edge.get("/films/a", None).await;
    let condition = [("If-None-Match", "\"\"")];
    let asked = request(edge.address, "GET", "/films/a", None, &condition).await;
    asked.assert_bytes(200, &content(1, 0..1_000));
    edge.stop().await;
}
