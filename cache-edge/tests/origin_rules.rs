//! Rules of `docs/http.md` for origins: the effect of a refusal, the strength of a validator, one
//! source's share of the edge.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use support::{Act, MIB, Origin, TestEdge, content};

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

/// Caches an object that is stale at once.
async fn stale(origin: &Origin, edge: &TestEdge, cache_control: &str) {
    let validators = lines(&["ETag: \"v1\"", &format!("Cache-Control: {cache_control}")]);
    origin.script(move |_, _| Act::With(validators.clone()));
    edge.get("/films/a", None)
        .await
        .assert_bytes(200, &content(1, 0..SIZE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_at_revalidation_is_handed_on() {
    for cache_control in ["max-age=0", "max-age=0, must-revalidate"] {
        let (_directory, origin, edge) = pair().await;
        stale(&origin, &edge, cache_control).await;
        for status in [403, 405, 401] {
            origin.script(move |_, _| {
                Act::Status(status, lines(&["WWW-Authenticate: Basic realm=\"films\""]))
            });
            let refused = edge.get("/films/a", Some("bytes=0-9")).await;
            assert_eq!(refused.status, status, "{cache_control}");
            if status == 401 {
                assert_eq!(refused.header("www-authenticate"), "Basic realm=\"films\"");
            }
        }
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_ends_the_object() {
    for status in [404, 410, 451] {
        let (_directory, origin, edge) = pair().await;
        stale(&origin, &edge, "max-age=0").await;
        origin.script(move |_, _| Act::Status(status, vec![]));
        assert_eq!(edge.get("/films/a", None).await.status, status);
        // It is gone for an origin that is down, too.
        origin.script(|_, _| Act::Status(503, vec![]));
        let asked = origin.requests();
        assert_eq!(edge.get("/films/a", None).await.status, status);
        assert_eq!(origin.requests(), asked, "remembered for seconds");
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_at_revalidation_is_not_shown() {
    let (_directory, origin, edge) = pair().await;
    stale(&origin, &edge, "max-age=0").await;
    origin.script(|_, _| Act::Status(500, vec![]));
    let answer = edge.get("/films/a", Some("bytes=0-9")).await;
    answer.assert_bytes(206, &content(1, 0..10));
    assert!(answer.header("cache-status").contains("stale-if-error"));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_empty_by_now_is_empty() {
    let (_directory, origin, edge) = pair().await;
    stale(&origin, &edge, "max-age=0").await;
    origin.size.store(0, Ordering::SeqCst);
    origin.version.store(2, Ordering::SeqCst);
    origin.script(|_, _| Act::Serve);
    edge.get("/films/a", None).await.assert_bytes(200, b"");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_origin_costs_one_wait_and_not_one_for_each_range() {
    let (_directory, origin, edge) = pair().await;
    stale(&origin, &edge, "max-age=0").await;
    origin.script(|_, _| Act::Hang);
    let begun = Instant::now();
    for number in 0..10 {
        let range = format!("bytes={number}-{}", number + 9);
        let answer = edge.get("/films/a", Some(&range)).await;
        answer.assert_bytes(206, &content(1, number..number + 10));
        assert!(answer.header("cache-status").contains("stale-if-error"));
    }
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
    // Once it answers again, it is trusted again.
    origin.script(|_, _| Act::Serve);
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = edge.get("/films/a", Some("bytes=0-9")).await;
        if !answer.header("cache-status").contains("stale-if-error") {
            break;
        }
        assert!(Instant::now() < until, "{}", answer.header("cache-status"));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_to_a_hung_origin_leave_room_for_another() {
    let (_directory, hung, edge) = pair().await;
    let other = Origin::start(SIZE).await;
    edge.set_sources(&[("films", &hung), ("shorts", &other)]);
    hung.script(|_, _| Act::Hang);
    let waiting: Vec<_> = (0..300)
        .map(|number| {
            let address = edge.address;
            tokio::spawn(async move {
                let path = format!("/films/{number}");
                support::request(address, "GET", &path, Some("bytes=0-9"), &[]).await
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = Instant::now();
    let answer = edge.get("/shorts/a", Some("bytes=0-9")).await;
    answer.assert_bytes(206, &content(1, 0..10));
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    waiting.into_iter().for_each(|task| task.abort());
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_date_of_this_second_joins_no_chunks() {
    let (_directory, origin, edge) = pair().await;
    let now = httpdate::fmt_http_date(SystemTime::now());
    let dates = vec![format!("Last-Modified: {now}"), format!("Date: {now}")];
    let fresh = dates.clone();
    origin.script(move |_, _| Act::With(fresh.clone()));
    let answer = edge.get("/films/a", Some("bytes=0-9")).await;
    answer.assert_bytes(206, &content(1, 0..10));
    assert!(
        answer.header("cache-status").contains("young-validator"),
        "{}",
        answer.header("cache-status")
    );
    // The same date and size, another content within the second: one version per body.
    origin.version.store(2, Ordering::SeqCst);
    edge.get("/films/a", None)
        .await
        .assert_bytes(200, &content(2, 0..SIZE));
    // A second later the date distinguishes versions, and the object is stored.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let later = httpdate::fmt_http_date(SystemTime::now());
    let dates = vec![format!("Last-Modified: {now}"), format!("Date: {later}")];
    origin.script(move |_, _| Act::With(dates.clone()));
    edge.get("/films/a", None)
        .await
        .assert_bytes(200, &content(2, 0..SIZE));
    let hit = edge.get("/films/a", None).await;
    assert!(
        hit.header("cache-status").contains("; hit"),
        "{:?}",
        hit.headers
    );
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_without_quotes_is_a_tag() {
    let (_directory, origin, edge) = pair().await;
    let tagged = |tag: &str| {
        let tag = format!("ETag: {tag}");
        let date = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT";
        lines(&[&tag, date, "Cache-Control: max-age=0"])
    };
    let one = tagged("one");
    origin.script(move |_, _| Act::With(one.clone()));
    let first = edge.get("/films/a", None).await;
    first.assert_bytes(200, &content(1, 0..SIZE));
    assert_eq!(first.header("etag"), "\"one\"");
    let again = edge.get("/films/a", None).await;
    assert!(again.header("cache-status").contains("fwd-status=304"));
    origin.version.store(2, Ordering::SeqCst);
    let two = tagged("two");
    origin.script(move |_, _| Act::With(two.clone()));
    edge.get("/films/a", None)
        .await
        .assert_bytes(200, &content(2, 0..SIZE));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shorter_parts_are_put_together() {
    let (_directory, origin, edge) = pair().await;
    origin.script(|_, _| Act::ShortPart(MIB));
    edge.get("/films/a", None)
        .await
        .assert_bytes(200, &content(1, 0..SIZE));
    assert_eq!(origin.sent(), SIZE, "each byte once");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_refused_is_asked_for_otherwise() {
    for status in [400, 403, 501] {
        let (_directory, origin, edge) = pair().await;
        origin.script(move |_, seen| match seen.suffix {
            Some(_) => Act::Status(status, vec![]),
            None => Act::Serve,
        });
        edge.get("/films/a", Some("bytes=-10"))
            .await
            .assert_bytes(206, &content(1, SIZE - 10..SIZE));
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn codings_that_are_none_are_none() {
    for coding in ["", "aws-chunked"] {
        let (_directory, origin, edge) = pair().await;
        let head = lines(&["ETag: \"v1\"", &format!("Content-Encoding: {coding}")]);
        origin.script(move |_, _| Act::With(head.clone()));
        edge.get("/films/a", None)
            .await
            .assert_bytes(200, &content(1, 0..SIZE));
        let hit = edge.get("/films/a", None).await;
        assert!(hit.header("cache-status").contains("; hit"), "{coding:?}");
        edge.stop().await;
    }
}

/// Chunked, or with a length; `lines` are its head.
fn raw(lines: &[&str], body: &str) -> Act {
    let head: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    Act::Raw(format!("HTTP/1.1 {head}\r\n{body}").into_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_without_a_validator_is_kept_as_a_whole() {
    let (_directory, origin, edge) = pair().await;
    let playlist = |body: &'static str| {
        let length = format!("{:x}", body.len());
        let body = format!("{length}\r\n{body}\r\n0\r\n\r\n");
        move || {
            let head = [
                "200 X",
                "Cache-Control: max-age=2",
                "Content-Type: application/vnd.apple.mpegurl",
                "X-Kept: yes",
                "Set-Cookie: a=b",
                "Transfer-Encoding: chunked",
            ];
            raw(&head, &body)
        }
    };
    let one = playlist("#EXTM3U one");
    origin.script(move |_, _| one());
    let first = edge.get("/films/live.m3u8", None).await;
    first.assert_bytes(200, b"#EXTM3U one");
    let words = first.header("cache-status");
    assert!(
        words.contains("fwd=miss") && words.contains("stored"),
        "{words}"
    );
    let asked = origin.requests();
    assert_eq!(
        asked, 1,
        "the first question's answer is the one that is kept"
    );
    let hit = edge.get("/films/live.m3u8", None).await;
    hit.assert_bytes(200, b"#EXTM3U one");
    assert!(
        hit.header("cache-status").contains("; hit"),
        "{:?}",
        hit.headers
    );
    assert_eq!(hit.header("x-kept"), "yes");
    assert_eq!(hit.header("set-cookie"), "");
    assert_eq!(hit.header("content-length"), "11");
    assert!(!hit.header("age").is_empty());
    let part = edge.get("/films/live.m3u8", Some("bytes=1-3")).await;
    part.assert_bytes(206, b"EXT");
    assert_eq!(part.header("content-range"), "bytes 1-3/11");
    let past = edge.get("/films/live.m3u8", Some("bytes=99-")).await;
    assert_eq!(
        (past.status, past.header("content-range")),
        (416, "bytes */11")
    );
    assert_eq!(origin.requests(), asked, "asked no more while it is fresh");
    let two = playlist("#EXTM3U two");
    origin.script(move |_, _| two());
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let replaced = edge.get("/films/live.m3u8", None).await;
    replaced.assert_bytes(200, b"#EXTM3U two");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_is_collapsed_and_streamed_to_all_who_wait() {
    let (_directory, origin, edge) = pair().await;
    let head = lines(&["Cache-Control: max-age=60"]);
    // More than the probe asks for.
    let size = SIZE + 2 * MIB;
    origin.size.store(size, Ordering::Relaxed);
    // The probe, then one answer for all: half of it now, the rest in a second.
    origin.script(move |nth, seen| match (nth, seen.range) {
        (0, _) | (_, Some(_)) => Act::With(head.clone()),
        _ => Act::StallAfter(MIB, Duration::from_secs(1)),
    });
    // `StallAfter` has a tag; the probe's answer has none, and decides.
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let address = edge.address;
            tokio::spawn(
                async move { support::request(address, "GET", "/films/a", None, &[]).await },
            )
        })
        .collect();
    for reader in readers {
        let answer = reader.await.unwrap();
        answer.assert_bytes(200, &content(1, 0..size));
    }
    let whole = origin
        .seen
        .lock()
        .iter()
        .filter(|it| it.range.is_none())
        .count();
    assert_eq!(whole, 1, "one answer for eight");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_all_of_it_is_not_asked_for_again() {
    let (_directory, origin, edge) = pair().await;
    let head = lines(&["Cache-Control: max-age=60"]);
    origin.script(move |_, _| Act::With(head.clone()));
    for _ in 0..2 {
        let answer = support::request(edge.address, "GET", "/films/a", None, &[]).await;
        answer.assert_bytes(200, &content(1, 0..SIZE));
        assert_eq!(answer.header("content-range"), "");
    }
    let seen = origin.seen.lock().len();
    assert_eq!(seen, 1, "the answer to the first question");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_explicit_freshness_it_passes_by() {
    let (_directory, origin, edge) = pair().await;
    for control in [
        "X-None: 1",
        "Cache-Control: no-store",
        "Cache-Control: max-age=0",
    ] {
        let path = format!("/films/{}", control.len());
        origin.script(move |_, _| raw(&["200 X", control, "Content-Length: 2"], "ok"));
        for _ in 0..3 {
            let answer = edge.get(&path, None).await;
            answer.assert_bytes(200, b"ok");
        }
        let last = edge.get(&path, None).await;
        assert!(
            last.header("cache-status").contains("fwd=bypass"),
            "{control}"
        );
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_statuses_are_kept_as_they_say() {
    let (_directory, origin, edge) = pair().await;
    for status in [203, 204, 300, 404, 405, 410, 414, 501] {
        let path = format!("/films/{status}");
        origin.script(move |_, _| Act::Status(status, lines(&["Cache-Control: max-age=60"])));
        assert_eq!(edge.get(&path, None).await.status, status);
        origin.script(|_, _| Act::Status(503, vec![]));
        let asked = origin.requests();
        assert_eq!(edge.get(&path, None).await.status, status, "{status}");
        assert_eq!(origin.requests(), asked, "{status}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_are_kept_and_refreshed_by_a_304() {
    let (_directory, origin, edge) = pair().await;
    let fields = |kept: &str| {
        lines(&[
            "ETag: \"v1\"",
            "Cache-Control: max-age=0, no-cache=\"X-User\"",
            "Content-Disposition: attachment",
            &format!("X-Amz-Meta-Title: {kept}"),
            "X-User: 7",
            "Set-Cookie: a=b",
        ])
    };
    let first = fields("one");
    origin.script(move |_, _| Act::With(first.clone()));
    edge.get("/films/a", None).await;
    let second = fields("two");
    origin.script(move |_, _| Act::With(second.clone()));
    for path in ["/films/a", "/films/a"] {
        let answer = edge.get(path, Some("bytes=0-9")).await;
        answer.assert_bytes(206, &content(1, 0..10));
        assert!(answer.header("cache-status").contains("fwd-status=304"));
        assert_eq!(answer.header("content-disposition"), "attachment");
        assert_eq!(answer.header("x-amz-meta-title"), "two");
        assert_eq!(answer.header("x-user"), "");
        assert_eq!(answer.header("set-cookie"), "");
    }
    edge.stop().await;
}
