//! What users of other caches reported, tried on an edge: answers that are legal but rare, or wrong
//! in a way that servers are known to be.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, atomic::Ordering};

use support::{Act, Answer, MIB, Origin, TestEdge, content, request};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const SIZE: u64 = 9 * MIB + 5;

/// The source passes `X-Lang` on.
async fn pair() -> (tempfile::TempDir, Arc<Origin>, TestEdge) {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(SIZE).await;
    let edge = TestEdge::start_with(directory.path(), Some(&origin), |_, source| {
        source.forward_headers = vec!["x-lang".into()];
    })
    .await;
    (directory, origin, edge)
}

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

fn raw(status: &str, head: &[&str], body: &str) -> Act {
    let head: String = head.iter().map(|line| format!("{line}\r\n")).collect();
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\n{head}Content-Length: {length}\r\n\r\n{body}");
    Act::Raw(text.into_bytes())
}

/// The answer's body is what the origin saw of `X-Lang`: its lines, joined.
fn echo(seen: &support::Seen, more: &[&str]) -> Act {
    let values = seen.headers.iter().filter(|(name, _)| name == "x-lang");
    let values: Vec<&str> = values.map(|(_, value)| value.as_str()).collect();
    let told = values.join("|");
    let etag = format!("ETag: \"{told}\"");
    let head = [&["Vary: X-Lang", "Cache-Control: max-age=60"], more].concat();
    match more.contains(&"ETag") {
        true => raw("200 OK", &[&head[..2], &[&etag]].concat(), &told),
        false => raw("200 OK", &head, &told),
    }
}

async fn get_with(edge: &TestEdge, path: &str, headers: &[(&str, &str)]) -> Answer {
    request(edge.address, "GET", path, None, headers).await
}

/// A client that sends two lines, or bytes beyond ASCII, gets its own answer, and so do others
/// (rusty-http-cache-semantics 29).
#[tokio::test(flavor = "multi_thread")]
async fn all_of_a_field_that_an_origin_gets_selects() {
    for kind in ["ETag", "Kept-As: a whole"] {
        let (_directory, origin, edge) = pair().await;
        origin.script(move |_, seen| echo(seen, &[kind]));
        let requests: [&[(&str, &str)]; 5] = [
            &[],
            &[("X-Lang", "de"), ("X-Lang", "evil")],
            &[("X-Lang", "de")],
            &[("X-Lang", "\u{e9}")],
            &[("X-Lang", "\u{ea}")],
        ];
        for round in 0..2 {
            for (headers, told) in requests.iter().zip(["", "de, evil", "de", "é", "ê"]) {
                let answer = get_with(&edge, "/films/a", headers).await;
                let body = String::from_utf8_lossy(&answer.body);
                assert_eq!(body, told, "{kind} {round} {headers:?}");
            }
        }
        assert!(origin.requests() <= 2 * requests.len(), "they are kept");
        edge.stop().await;
    }
}

/// A refusal that varies is one for the clients with these headers (nuxt 36121).
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_varies_is_not_for_all() {
    let (_directory, origin, edge) = pair().await;
    origin.script(|_, seen| match seen.header("x-lang") {
        Some("de") => Act::Status(404, lines(&["Vary: X-Lang", "Cache-Control: max-age=60"])),
        Some("fr") => Act::Status(404, lines(&["Vary: *", "Cache-Control: max-age=60"])),
        _ => Act::With(lines(&[
            "ETag: \"v1\"",
            "Vary: X-Lang",
            "Cache-Control: max-age=60",
        ])),
    });
    let fr = get_with(&edge, "/films/a", &[("X-Lang", "fr")]).await;
    let de = get_with(&edge, "/films/a", &[("X-Lang", "de")]).await;
    assert_eq!((fr.status, de.status), (404, 404));
    let plain = edge.get("/films/a", Some("bytes=0-9")).await;
    plain.assert_bytes(206, &content(1, 0..10));
    let asked = origin.requests();
    let de = get_with(&edge, "/films/a", &[("X-Lang", "de")]).await;
    assert_eq!(
        (de.status, origin.requests()),
        (404, asked),
        "remembered for its own"
    );
    edge.stop().await;
}

/// RFC 9110, 8.8.3: an entity tag may have bytes beyond ASCII. Ignored, two versions with one date
/// would be one.
#[tokio::test(flavor = "multi_thread")]
async fn tags_beyond_ascii_tell_versions_apart() {
    for tag in [&b"\xc3\xa9"[..], b"\xe9"] {
        let (_directory, origin, edge) = pair().await;
        let date = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT";
        let head = move |version: u64, seen: &support::Seen| {
            let (start, end) = seen.range.unwrap_or((0, None));
            let end = end.map_or(SIZE, |end| (end + 1).min(SIZE));
            let (status, range) = match seen.range {
                Some(_) => (
                    206,
                    format!("Content-Range: bytes {start}-{}/{SIZE}\r\n", end - 1),
                ),
                None => (200, String::new()),
            };
            let text = format!("HTTP/1.1 {status} X\r\n{range}{date}\r\nETag: \"{version}");
            let length = format!("\"\r\nContent-Length: {}\r\n\r\n", end - start);
            let body = content(version, start..end);
            Act::Raw([text.as_bytes(), tag, length.as_bytes(), &body].concat())
        };
        origin.script(move |_, seen| head(1, seen));
        let first = edge.get("/films/a", Some("bytes=0-9")).await;
        first.assert_bytes(206, &content(1, 0..10));
        origin.script(move |_, seen| head(2, seen));
        let second = edge.get("/films/a", None).await;
        let is_one = [1, 2]
            .iter()
            .any(|version| second.body == content(*version, 0..SIZE));
        assert!(
            is_one || second.aborted,
            "a body of two versions ended cleanly"
        );
        edge.stop().await;
    }
}

/// Some servers send the part that was asked for as a 200, with its `Content-Range` (connect 512).
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_called_a_whole_is_not_kept_as_one() {
    for validator in ["ETag: \"v1\"", "X-No: validator"] {
        let (_directory, origin, edge) = pair().await;
        origin.script(move |_, seen| {
            let fields = [validator, "Cache-Control: max-age=60"];
            match seen.range {
                None => Act::With(lines(&fields)),
                Some((start, end)) => {
                    let end = end.map_or(SIZE, |end| end + 1).min(SIZE);
                    let range = format!("Content-Range: bytes {start}-{}/{SIZE}", end - 1);
                    let length = format!("Content-Length: {}\r\n\r\n", end - start);
                    let head = [&["HTTP/1.1 200 OK", &range], &fields[..], &[&length]].concat();
                    let body = content(1, start..end);
                    Act::Raw([head.join("\r\n").as_bytes(), &body].concat())
                }
            }
        });
        let part = edge.get("/films/a", Some("bytes=5-14")).await;
        part.assert_bytes(200, &content(1, 5..15));
        let all = edge.get("/films/a", None).await;
        all.assert_bytes(200, &content(1, 0..SIZE));
        edge.stop().await;
    }
}

/// An origin takes back by a 304 that others may have its object (squid 2400).
#[tokio::test(flavor = "multi_thread")]
async fn a_304_takes_the_permission_to_share_back() {
    for now in [
        "Cache-Control: private",
        "Cache-Control: no-store",
        "Vary: *",
    ] {
        let (_directory, origin, edge) = pair().await;
        let fields = |more: &str| lines(&["ETag: \"v1\"", more]);
        let before = fields("Cache-Control: max-age=0");
        origin.script(move |_, _| Act::With(before.clone()));
        edge.get("/films/a", None)
            .await
            .assert_bytes(200, &content(1, 0..SIZE));
        let after = fields(now);
        origin.script(move |_, _| Act::With(after.clone()));
        for _ in 0..3 {
            let asked = origin.requests();
            let answer = edge.get("/films/a", Some("bytes=0-9")).await;
            answer.assert_bytes(206, &content(1, 0..10));
            assert!(
                answer.header("cache-status").contains("fwd=bypass"),
                "{now}"
            );
            assert!(
                origin.requests() > asked,
                "{now}: each client is its origin's"
            );
        }
        edge.stop().await;
    }
}

/// Some servers refuse a condition that is met (actix-web 1887), some answer 412 where 304 belongs
/// (rs-serve 1); and of two behind one name each may have tags of its own (ATS 6691).
#[tokio::test(flavor = "multi_thread")]
async fn conditions_that_an_origin_gets_wrong_cost_a_request_and_no_body() {
    for date in [true, false] {
        let (_directory, origin, edge) = pair().await;
        let fields = match date {
            true => lines(&["Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"]),
            false => lines(&["ETag: \"v1\""]),
        };
        let fields = [fields, lines(&["Cache-Control: max-age=0"])].concat();
        origin.script(move |_, seen| {
            let has_condition = seen.headers.iter().any(|(name, _)| name.starts_with("if-"));
            match has_condition {
                true => Act::Status(412, vec![]),
                false => Act::With(fields.clone()),
            }
        });
        for _ in 0..2 {
            edge.get("/films/a", None)
                .await
                .assert_bytes(200, &content(1, 0..SIZE));
        }
        edge.stop().await;
    }
    let (_directory, origin, edge) = pair().await;
    // One behind this name answers with another tag, every second time.
    origin.script(|nth, _| {
        let tag = format!("ETag: \"of-server-{}\"", nth % 2);
        Act::With(lines(&[&tag, "Cache-Control: max-age=60"]))
    });
    // A request at a time, each two chunks.
    for start in [0, 4 * MIB, 8 * MIB] {
        let range = format!("bytes={start}-{}", start + 9);
        let answer = edge.get("/films/a", Some(&range)).await;
        answer.assert_bytes(206, &content(1, start..start + 10));
    }
    edge.stop().await;
}

/// RFC 9112, 7: what nobody asked for and nobody removes is no content.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_coding_that_was_not_asked_for_is_no_content() {
    let (_directory, origin, edge) = pair().await;
    for coding in ["gzip", "gzip, chunked", "chunked, identity", "x"] {
        origin.script(move |_, _| {
            let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n");
            Act::Raw([head.as_bytes(), b"3\r\n\x1f\x8b\x08\r\n0\r\n\r\n"].concat())
        });
        let answer = edge.get("/films/a", None).await;
        assert_eq!(answer.status, 502, "{coding}");
    }
    edge.stop().await;
}

/// RFC 9110, 15: an answer is understood by its class.
#[tokio::test(flavor = "multi_thread")]
async fn other_answers_of_success_are_handed_on() {
    let (_directory, origin, edge) = pair().await;
    for status in [201, 202, 207, 226, 299] {
        let text = format!("{status} Other");
        origin.script(move |_, _| raw(&text, &["Retry-After: 60"], "wait"));
        for _ in 0..2 {
            let path = format!("/films/{status}");
            let answer = edge.get(&path, None).await;
            answer.assert_bytes(status, b"wait");
            assert_eq!(answer.header("retry-after"), "60");
        }
    }
    edge.stop().await;
}

/// RFC 9530, 2: a digest of the content is one of this message's content.
#[tokio::test(flavor = "multi_thread")]
async fn a_digest_of_one_part_is_not_sent_with_another() {
    let (_directory, origin, edge) = pair().await;
    let fields = [
        "ETag: \"v1\"",
        "Content-Digest: sha-256=:a:",
        "Content-MD5: b",
        "X-Of: all",
    ];
    origin.script(move |_, _| Act::With(lines(&fields)));
    for range in ["bytes=0-9", "bytes=10-19"] {
        let answer = edge.get("/films/a", Some(range)).await;
        assert_eq!(answer.header("x-of"), "all");
        for name in ["content-digest", "content-md5"] {
            assert_eq!(answer.header(name), "", "{name}");
        }
    }
    edge.stop().await;
}

/// `Range` is no list: of two lines, none counts, also for what is kept as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn two_lines_of_ranges_are_none() {
    for validator in ["ETag: \"v1\"", "X-Kept: as a whole"] {
        let (_directory, origin, edge) = pair().await;
        origin.size.store(MIB, Ordering::SeqCst);
        origin.script(move |_, _| Act::With(lines(&[validator, "Cache-Control: max-age=60"])));
        for _ in 0..2 {
            let two = [("Range", "bytes=0-9"), ("Range", "bytes=20-29")];
            let answer = get_with(&edge, "/films/a", &two).await;
            answer.assert_bytes(200, &content(1, 0..MIB));
        }
        edge.stop().await;
    }
}

/// The head of an answer is bounded in lines and in bytes; more is no answer (h2o 1733).
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_long_is_no_answer() {
    let (_directory, origin, edge) = pair().await;
    for (lines, bytes, status) in [
        (120, 10, 200),
        (200, 10, 502),
        (2, 40 << 10, 200),
        (2, 99 << 10, 502),
    ] {
        let fields: Vec<String> = (0..lines)
            .map(|n| format!("X-{n}: {}", "v".repeat(bytes)))
            .collect();
        origin.script(move |_, _| Act::With(fields.clone()));
        let path = format!("/films/{lines}-{bytes}");
        let answer = edge.get(&path, Some("bytes=0-9")).await;
        assert_eq!(
            answer.status == 502,
            status == 502,
            "{path} {}",
            answer.status
        );
    }
    edge.stop().await;
}

/// RFC 9110, 7.6.1: what `Connection` names is for this edge, so the origin does not get it, and
/// it selects nothing (souin 807, pingora 734).
#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_names_as_its_connections_reaches_no_origin() {
    let (_directory, origin, edge) = pair().await;
    origin.script(|_, seen| echo(seen, &["ETag"]));
    for named in ["close, X-Lang", "x-lang"] {
        let headers = [("X-Lang", "de"), ("Connection", named)];
        let answer = get_with(&edge, "/films/a", &headers).await;
        assert_eq!(answer.body, b"", "as without the field");
    }
    let german = get_with(&edge, "/films/a", &[("X-Lang", "de")]).await;
    assert_eq!(german.body, b"de");
    edge.stop().await;
}

/// `Expires` counts from `Date`: of a stored object, both are the origin's time, and `Age` is not
/// counted twice (rusty-http-cache-semantics 35).
#[tokio::test(flavor = "multi_thread")]
async fn expires_goes_with_the_date_that_it_counts_from() {
    for validator in ["ETag: \"v1\"", "X-Kept: as a whole"] {
        let (_directory, origin, edge) = pair().await;
        origin.size.store(MIB, Ordering::SeqCst);
        let date = |seconds: u64| {
            let time = std::time::SystemTime::now() - std::time::Duration::from_secs(600);
            httpdate::fmt_http_date(time + std::time::Duration::from_secs(seconds))
        };
        let fields = [
            validator.to_owned(),
            format!("Date: {}", date(0)),
            format!("Expires: {}", date(3600)),
        ];
        origin.script(move |_, _| Act::With(fields.to_vec()));
        for _ in 0..2 {
            let answer = edge.get("/films/a", Some("bytes=0-9")).await;
            let of = |name| httpdate::parse_http_date(answer.header(name)).unwrap();
            let lifetime = of("expires").duration_since(of("date")).unwrap().as_secs();
            assert!(
                (3599..=3601).contains(&lifetime),
                "{lifetime} {:?}",
                answer.headers
            );
            let age: u64 = answer.header("age").parse().unwrap();
            assert!((600..660).contains(&age), "{age}");
        }
        edge.stop().await;
    }
}

/// An HTTP/1.0 client knows the end of a body without a length by the end of the connection, so one
/// that breaks off must not end cleanly (envoy 17186). nginx requests in HTTP/1.0 by default.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_is_a_reset_for_http_1_0() {
    let (_directory, origin, edge) = pair().await;
    for lifetime in ["no-store", "max-age=60"] {
        for is_cut in [true, false] {
            let end = if is_cut { "" } else { "0\r\n\r\n" };
            let head = format!("Cache-Control: {lifetime}\r\nTransfer-Encoding: chunked");
            let text = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n3\r\nabc\r\n{end}");
            origin.script(move |_, _| Act::Raw(text.clone().into_bytes()));
            let mut stream = TcpStream::connect(edge.address).await.unwrap();
            let path = format!("/films/{lifetime}/{is_cut}");
            let head = format!("GET {path} HTTP/1.0\r\nHost: edge\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut all = Vec::new();
            let ended = stream.read_to_end(&mut all).await;
            assert_eq!(
                ended.is_err(),
                is_cut,
                "{lifetime} {}",
                String::from_utf8_lossy(&all)
            );
            if !is_cut {
                assert!(all.ends_with(b"\r\n\r\nabc"));
            }
        }
    }
    assert_eq!(origin.version.load(Ordering::SeqCst), 1);
    edge.stop().await;
}
