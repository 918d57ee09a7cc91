//! What users of other caches reported about requests of players, tried on an edge: variants,
//! conditions, live titles, and what an origin says to its own clients alone.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use chunkcache_proto::v1;

use support::{Act, Answer, MIB, Origin, TestEdge, content, request};

const SIZE: u64 = 9 * MIB + 5;

async fn pair() -> (tempfile::TempDir, Arc<Origin>, TestEdge) {
    pair_with(|_| {}).await
}

async fn pair_with(
    adjust: impl FnOnce(&mut v1::Source),
) -> (tempfile::TempDir, Arc<Origin>, TestEdge) {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(SIZE).await;
    let edge = TestEdge::start_with(directory.path(), Some(&origin), |_, source| adjust(source));
    let edge = edge.await;
    (directory, origin, edge)
}

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

async fn get_with(edge: &TestEdge, path: &str, headers: &[(&str, &str)]) -> Answer {
    request(edge.address, "GET", path, None, headers).await
}

async fn wait_until(mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let within = Duration::from_secs(10);
    tokio::time::timeout(within, waited).await.unwrap();
}

/// Many servers name a header in `Vary` only if the request has it (rs/cors 10), or one header in
/// one answer and another in the next (http-bis-issues 38). All of them select, and all are hits.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_only_some_answers_name_selects_in_all() {
    let (_directory, origin, edge) = pair_with(|source| {
        source.forward_headers = vec!["x-lang".into(), "x-two".into()];
    })
    .await;
    origin.script(|_, seen| {
        let both = [seen.header("x-lang"), seen.header("x-two")];
        let told = format!("{both:?}").replace('"', "");
        let etag = format!("ETag: \"{told}\"");
        let vary = match both {
            [Some(_), _] => "Vary: X-Lang",
            [None, Some(_)] => "Vary: X-Two",
            [None, None] => "X-Varies: not",
        };
        let head = [&etag, vary, "Cache-Control: max-age=60"].join("\r\n");
        let head = format!(
            "HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: {}",
            told.len()
        );
        Act::Raw(format!("{head}\r\n\r\n{told}").into_bytes())
    });
    let requests: [&[(&str, &str)]; 5] = [
        &[("X-Lang", "de")],
        &[("X-Two", "b")],
        &[],
        &[("X-Lang", "de"), ("X-Two", "b")],
        &[("X-Lang", "fr")],
    ];
    for round in 0..4 {
        let asked = origin.requests();
        for headers in requests {
            let answer = get_with(&edge, "/films/a", headers).await;
            let of = |name| headers.iter().find(|it| it.0 == name).map(|it| it.1);
            let told = format!("{:?}", [of("X-Lang"), of("X-Two")]).replace('"', "");
            assert_eq!(String::from_utf8_lossy(&answer.body), told, "{round}");
        }
        assert!(round < 2 || origin.requests() == asked, "round {round}");
    }
    edge.stop().await;
}

/// Some servers repeat the range of a request although it ends behind the object (koa-range 15,
/// leofs 1187).
#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_repeated_beyond_the_end_is_asked_for_by_its_bytes() {
    let (_directory, origin, edge) = pair().await;
    origin.size.store(12_338, Ordering::SeqCst);
    origin.script(|_, seen| match seen.range {
        Some((start, Some(end))) => Act::ContentRange(format!("bytes {start}-{end}/12338")),
        _ => Act::Serve,
    });
    edge.get("/films/a", None)
        .await
        .assert_bytes(200, &content(1, 0..12_338));
    let tail = edge.get("/films/a", Some("bytes=12000-99999")).await;
    tail.assert_bytes(206, &content(1, 12_000..12_338));
    edge.stop().await;
}

/// The next segment of a live title is looked for before it exists (DASH-IF-IOP 205): that says
/// nothing about the time when a player asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_there_ahead_of_its_time_is_asked_for_again() {
    let (_directory, origin, edge) = pair().await;
    let first = lines(&["ETag: \"1\"", "Link: <2.m4s>; rel=next"]);
    origin.script(move |_, seen| match seen.path.ends_with("1.m4s") {
        true => Act::With(first.clone()),
        false => Act::Status(404, lines(&["Cache-Control: max-age=60"])),
    });
    edge.get("/films/1.m4s", Some("bytes=0-9")).await;
    let asked_ahead = || {
        origin
            .seen
            .lock()
            .iter()
            .any(|it| it.path.ends_with("2.m4s"))
    };
    wait_until(asked_ahead).await;
    origin.script(|_, _| Act::Serve);
    let mut statuses = Vec::new();
    // The first request may still be answered with the answer that is on its way.
    for _ in 0..20 {
        statuses.push(edge.get("/films/2.m4s", Some("bytes=0-9")).await.status);
    }
    assert_eq!(statuses.last(), Some(&206), "{statuses:?}");
    // A client's own question is remembered.
    origin.script(|_, _| Act::Status(404, vec![]));
    edge.get("/films/3.m4s", None).await;
    let asked = origin.requests();
    assert_eq!(edge.get("/films/3.m4s", None).await.status, 404);
    assert_eq!(origin.requests(), asked);
    edge.stop().await;
}

/// `Alt-Svc` names ports of the origin's host, and this edge is another (traefik 12082).
#[tokio::test(flavor = "multi_thread")]
async fn alternatives_of_an_origin_are_none_of_this_edge() {
    let (_directory, origin, edge) = pair().await;
    for kept in [
        "ETag: \"v1\"",
        "Cache-Control: max-age=60",
        "Cache-Control: no-store",
    ] {
        let fields = lines(&[kept, "Alt-Svc: h3=\":443\""]);
        origin.script(move |_, _| Act::With(fields.clone()));
        let path = format!("/films/{}", kept.len());
        let answer = edge.get(&path, Some("bytes=0-9")).await;
        assert_eq!(
            (answer.status, answer.header("alt-svc")),
            (206, ""),
            "{kept}"
        );
    }
    edge.stop().await;
}

/// RFC 9113, 8.2.3: HTTP/2 clients split `Cookie`, and most servers read one line of it (pingora
/// 892).
#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_cookie_reach_an_origin_as_one() {
    let (_directory, origin, edge) = pair_with(|source| {
        source.forward_credentials = true;
    })
    .await;
    for (sent, got) in [
        (&[][..], &[][..]),
        (&[("Cookie", "a=1")], &["a=1"]),
        (
            &[("Cookie", "a=1"), ("Cookie", "b=2; c=3")],
            &["a=1; b=2; c=3"],
        ),
    ] {
        origin.seen.lock().clear();
        get_with(&edge, "/films/a", sent).await;
        let seen = origin.seen.lock().last().unwrap().clone();
        let cookies = seen.headers.iter().filter(|(name, _)| name == "cookie");
        let cookies: Vec<&str> = cookies.map(|(_, value)| value.as_str()).collect();
        assert_eq!(cookies, got);
    }
    edge.stop().await;
}

/// RFC 9110, 13.1.5: a date that is no strong validator resumes nothing. An object can change twice
/// in a second (bun 43571).
#[tokio::test(flavor = "multi_thread")]
async fn the_date_of_this_second_resumes_no_download() {
    for tag in ["ETag: \"v2\"", "X-Kept: as a whole"] {
        for (age, status) in [(0, 200), (60, 206)] {
            let (_directory, origin, edge) = pair().await;
            origin.size.store(MIB, Ordering::SeqCst);
            let now = SystemTime::now();
            let modified = httpdate::fmt_http_date(now - Duration::from_secs(age));
            let date = format!("Last-Modified: {modified}");
            let fields = lines(&[tag, &date, "Cache-Control: max-age=60"]);
            let is_whole = tag.starts_with('X');
            origin.script(move |_, _| match is_whole {
                false => Act::With(fields.clone()),
                true => {
                    let head = fields.join("\r\n");
                    let head = format!("HTTP/1.1 200 X\r\n{head}\r\nTransfer-Encoding: chunked");
                    Act::Raw(format!("{head}\r\n\r\n5\r\nhello\r\n0\r\n\r\n").into_bytes())
                }
            });
            edge.get("/films/a", None).await;
            let rest = [("Range", "bytes=3-"), ("If-Range", &modified)];
            let answer = get_with(&edge, "/films/a", &rest).await;
            assert_eq!(answer.status, status, "{tag} {age}");
            edge.stop().await;
        }
    }
}

/// A cache in front may store any status that says how long it lasts, and a 416 would answer
/// requests for the whole.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_object_is_stored_nowhere() {
    for kept in ["ETag: \"v1\"", "X-Kept: as a whole"] {
        let (_directory, origin, edge) = pair().await;
        origin.size.store(MIB, Ordering::SeqCst);
        let fields = lines(&[kept, "Cache-Control: max-age=60", "Content-Type: video/mp4"]);
        origin.script(move |_, _| Act::With(fields.clone()));
        edge.get("/films/a", None).await;
        for (name, value, status) in [
            ("Range", "bytes=1048576-", 416),
            ("If-Match", "\"other\"", 412),
        ] {
            let answer = get_with(&edge, "/films/a", &[(name, value)]).await;
            assert_eq!(answer.status, status, "{kept}");
            assert_eq!(answer.header("cache-control"), "no-store", "{kept}");
            assert_eq!(answer.header("content-type"), "application/problem+json");
            assert!(!answer.body.is_empty() && !answer.aborted);
            if status == 416 {
                assert_eq!(answer.header("content-range"), "bytes */1048576");
            }
        }
        edge.stop().await;
    }
}
