//! Answers of an edge: the rules of RFC 9110 and of `docs/http.md`, cold and warm.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use chunkcache_tests::http::{Call, Response};
use chunkcache_tests::origin::Times;
use chunkcache_tests::{CHUNK, Cluster, Fault, KIB, MIB, Object, content};

#[track_caller]
fn assert_problem(answer: &Response, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let content_type = answer.header("content-type").unwrap_or_default();
    assert!(
        content_type.starts_with("application/problem+json"),
        "{content_type}"
    );
    let problem = answer.json();
    assert!(
        problem["title"].is_string() || problem["detail"].is_string(),
        "{problem}"
    );
}

/// Sends raw bytes, and returns the first bytes that come back.
fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut buffer = vec![0; 4096];
    let count = stream.read(&mut buffer).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

#[test]
fn ranges_in_all_forms_cold_and_warm() {
    let cluster = Cluster::start();
    let size = 5 * MIB + 1234;
    let target = cluster.put("/r.mp4", Object::generated(21, size));
    let address = cluster.edge().http;
    for pass in ["cold", "warm"] {
        for (range, start, end) in [
            ("bytes=0-0".to_owned(), 0, 1),
            (
                format!("bytes={}-{}", CHUNK - 5, CHUNK + 4),
                CHUNK - 5,
                CHUNK + 5,
            ),
            (format!("bytes={}-", 4 * MIB), 4 * MIB, size),
            ("bytes=-100".to_owned(), size - 100, size),
            (format!("bytes=-{}", size + 5), 0, size),
            (
                format!("bytes={}-{}", size - 10, size + 1000),
                size - 10,
                size,
            ),
            (format!("bytes={}-", size - 1), size - 1, size),
        ] {
            let answer = Call::get(&target)
                .header("Range", &range)
                .send(address)
                .expect(206);
            assert_eq!(
                answer.body,
                content::bytes(21, start, end),
                "{pass} {range}"
            );
            let content_range = format!("bytes {start}-{}/{size}", end - 1);
            assert_eq!(answer.header("content-range"), Some(content_range.as_str()));
            assert_eq!(
                answer.header("content-length"),
                Some((end - start).to_string().as_str())
            );
        }
        for range in [
            format!("bytes={size}-"),
            format!("bytes={}-{}", size + 5, size + 9),
            "bytes=-0".to_owned(),
        ] {
            let answer = Call::get(&target).header("Range", &range).send(address);
            assert_eq!(answer.status, 416, "{range}");
            assert_eq!(
                answer.header("content-range"),
                Some(format!("bytes */{size}").as_str())
            );
        }
        for range in ["items=0-5", "bytes=5-1", "bytes=a-b", "bytes=", "nonsense"] {
            let answer = Call::get(&target)
                .header("Range", range)
                .send(address)
                .expect(200);
            assert_eq!(answer.body.len() as u64, size, "{range}");
        }
    }
}

#[test]
fn several_ranges_are_multipart() {
    let cluster = Cluster::start();
    let target = cluster.put("/m.mp4", Object::generated(22, 5 * MIB));
    let answer = Call::get(&target)
        .header("Range", "bytes=10-19,4000000-4000009")
        .send(cluster.edge().http)
        .expect(206);
    let content_type = answer.header("content-type").unwrap().to_owned();
    let boundary = content_type
        .split("boundary=")
        .nth(1)
        .unwrap()
        .trim_matches('"');
    assert!(
        content_type.starts_with("multipart/byteranges"),
        "{content_type}"
    );
    for (start, end) in [(10, 20), (4_000_000, 4_000_010)] {
        let wanted = content::bytes(22, start, end);
        assert!(answer.body.windows(10).any(|ten| ten == wanted));
        let line = format!("bytes {start}-{}/{}", end - 1, 5 * MIB);
        assert!(answer.text().contains(&line), "{line}");
    }
    assert!(answer.text().contains(&format!("--{boundary}--")));
}

#[test]
fn headers_of_an_object() {
    let cluster = Cluster::start();
    let target = cluster.put(
        "/h.mp4",
        Object::generated(23, 3 * MIB).header("Cache-Control", "max-age=600"),
    );
    let address = cluster.edge().http;
    let cold = Call::get(&target).send(address).expect(200);
    let status = cold.header("cache-status").unwrap();
    assert!(
        status.contains("edge-a") && status.contains("fwd=miss"),
        "{status}"
    );
    cluster.wait_recorded("/h.mp4", &[(0, 3 * MIB)]);
    let warm = Call::get(&target).send(address).expect(200);
    let status = warm.header("cache-status").unwrap();
    assert!(
        status.contains("edge-a") && status.contains("hit"),
        "{status}"
    );
    for answer in [&cold, &warm] {
        assert_eq!(answer.header("accept-ranges"), Some("bytes"));
        assert_eq!(answer.header("etag"), Some("\"generated-23-3145728\""));
        assert_eq!(
            answer.header("last-modified"),
            Some("Sun, 06 Nov 1994 08:49:37 GMT")
        );
        assert_eq!(answer.header("content-type"), Some("video/mp4"));
        assert_eq!(answer.header("content-length"), Some("3145728"));
    }
    assert!(
        warm.header("age")
            .is_some_and(|age| age.parse::<u64>().is_ok())
    );
    let head = Call::head(&target).send(address).expect(200);
    assert_eq!(head.header("content-length"), Some("3145728"));
    assert!(head.body.is_empty());
}

#[test]
fn head_of_a_cold_object_tells_its_size() {
    let cluster = Cluster::start();
    let target = cluster.put("/head.mp4", Object::generated(24, 7 * MIB));
    let head = Call::head(&target).send(cluster.edge().http).expect(200);
    assert_eq!(head.header("content-length"), Some("7340032"));
    assert_eq!(head.header("etag"), Some("\"generated-24-7340032\""));
}

#[test]
fn conditional_requests() {
    let cluster = Cluster::start();
    let target = cluster.put("/c.mp4", Object::generated(25, MIB));
    let address = cluster.edge().http;
    let etag = "\"generated-25-1048576\"";
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let earlier = "Sat, 05 Nov 1994 08:49:37 GMT";
    for (header, value, status) in [
        ("If-None-Match", etag, 304),
        ("If-None-Match", "*", 304),
        ("If-None-Match", "W/\"generated-25-1048576\"", 304),
        ("If-None-Match", "\"other\"", 200),
        ("If-Match", etag, 200),
        ("If-Match", "\"other\"", 412),
        ("If-Modified-Since", date, 304),
        ("If-Modified-Since", earlier, 200),
        ("If-Unmodified-Since", date, 200),
        ("If-Unmodified-Since", earlier, 412),
    ] {
        let answer = Call::get(&target).header(header, value).send(address);
        assert_eq!(answer.status, status, "{header}: {value}");
    }
    for (validator, status) in [(etag, 206), (date, 206), ("\"other\"", 200), (earlier, 200)] {
        let answer = Call::get(&target)
            .range(0, 10)
            .header("If-Range", validator)
            .send(address);
        assert_eq!(answer.status, status, "If-Range: {validator}");
    }
}

#[test]
fn what_is_not_registered_is_not_fetched() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    cluster.put("/secret", Object::generated(1, 10));
    let unknown_source = Call::get("/elsewhere/x").send(address);
    assert_eq!(unknown_source.status, 404);
    assert!(!unknown_source.text().is_empty());
    assert_eq!(Call::get("/").send(address).status, 404);
    let unknown_path = Call::get("/media/no-such-file").send(address);
    assert_eq!(unknown_path.status, 404);
    assert_eq!(
        Call::get("/v1/entries/00000000-0000-8000-8000-000000000000")
            .send(address)
            .status,
        404
    );
    // An absolute-form target and a Host of another server still name this edge, never another
    // host.
    let absolute = raw(
        address,
        "GET http://192.0.2.1/x HTTP/1.1\r\nHost: 192.0.2.1\r\nConnection: close\r\n\r\n",
    );
    assert!(absolute.starts_with("HTTP/1.1 4"), "{absolute}");
    assert!(
        raw(address, "CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 4")
    );
    let post = Call::new("POST", "/media/secret")
        .header("Content-Length", "0")
        .send(address);
    assert_eq!(post.status, 405);
    let unexpected: Vec<_> = cluster
        .origin
        .all_hits()
        .into_iter()
        .filter(|hit| hit.target != "/no-such-file")
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

#[test]
fn a_path_never_leaves_its_source() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    cluster.origin.put("/inside/ok", Object::generated(1, 10));
    cluster.origin.put("/outside", Object::generated(2, 10));
    let url = format!("{}/inside", cluster.origin.url());
    assert!(
        cluster
            .coordinator
            .cli(&["source", "add", "inside", &url])
            .status
            .success()
    );
    assert_eq!(Call::get("/inside/ok").send(address).status, 200);
    for target in [
        "/inside/../outside",
        "/inside/%2e%2e/outside",
        "/inside/..%2foutside",
        "/inside/%2E%2E%2Foutside",
        "/inside/./../outside",
        "/inside//../../outside",
        "/inside/..\\outside",
    ] {
        let answer = Call::get(target).send(address);
        assert!(
            (400..500).contains(&answer.status),
            "{target}: {}",
            answer.status
        );
    }
    assert_eq!(cluster.origin.hits("/outside").len(), 0);
}

#[test]
fn malformed_requests_are_refused() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    cluster.put("/x", Object::generated(1, 10));
    assert!(raw(address, "GET /media/x HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert!(raw(address, "GARBAGE\r\n\r\n").starts_with("HTTP/1.1 400"));
    let long = format!(
        "GET /media/{} HTTP/1.1\r\nHost: a\r\n\r\n",
        "a".repeat(200_000)
    );
    let answer = raw(address, &long);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
    Call::get("/media/x").send(address).expect(200);
}

#[test]
fn credentials_stay_at_the_edge() {
    let cluster = Cluster::start();
    let target = cluster.put("/auth", Object::generated(1, 100));
    Call::get(&target)
        .header("Authorization", "Bearer s3cret")
        .header("Cookie", "a=b")
        .send(cluster.edge().http)
        .expect(200);
    let hits = cluster.origin.hits("/auth");
    assert!(!hits.is_empty());
    for hit in hits {
        assert!(
            hit.header("authorization").is_none() && hit.header("cookie").is_none(),
            "{hit:?}"
        );
    }
}

#[test]
fn what_may_not_be_kept_is_passed_through() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    let size = 300 * KIB;
    let cases = [
        (
            "/no-store",
            Object::generated(31, size).header("Cache-Control", "no-store"),
        ),
        (
            "/private",
            Object::generated(31, size).header("Cache-Control", "private"),
        ),
        (
            "/no-validator",
            Object::generated(31, size).etag(None).last_modified(None),
        ),
        (
            "/no-length",
            // The length of a chunked 206 follows from its Content-Range.
            Object::generated(31, size)
                .fault(Fault::Chunked, Times::Always)
                .fault(Fault::IgnoreRange, Times::Always),
        ),
    ];
    for (path, object) in cases {
        let target = cluster.put(path, object);
        for _ in 0..2 {
            let answer = Call::get(&target).send(address).expect(200);
            assert_eq!(answer.body, content::bytes(31, 0, size), "{path}");
            let status = answer.header("cache-status").unwrap_or_default().to_owned();
            assert!(
                !status.contains("hit"),
                "{path}: {:?} after {:?}",
                answer.headers,
                cluster.origin.hits(path)
            );
        }
        assert!(cluster.recorded(path, "edge-a").is_empty(), "{path}");
    }
}

#[test]
fn redirects_stay_inside_the_source() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    cluster.put("/real", Object::generated(32, 1000));
    let within = cluster.put(
        "/within",
        Object::generated(0, 1).fault(Fault::Redirect("/real".into()), Times::Always),
    );
    assert_eq!(
        Call::get(&within).send(address).expect(200).body,
        content::bytes(32, 0, 1000)
    );
    let elsewhere = chunkcache_tests::Origin::start();
    elsewhere.put("/real", Object::generated(33, 1000));
    let to = format!("{}/real", elsewhere.url());
    let outside = cluster.put(
        "/outside",
        Object::generated(0, 1).fault(Fault::Redirect(to), Times::Always),
    );
    let handed = Call::get(&outside).send(address).expect(302);
    assert!(handed.header("location").unwrap().ends_with("/real"));
    let why = handed.header("cache-status").unwrap();
    assert!(why.contains("redirect"), "{why}");
    assert_eq!(elsewhere.all_hits().len(), 0);
}

#[test]
fn not_found_is_remembered_for_seconds_only() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    assert_eq!(Call::get("/media/late").send(address).status, 404);
    assert_eq!(Call::get("/media/late").send(address).status, 404);
    assert_eq!(cluster.origin.hits("/late").len(), 1);
    cluster.put("/late", Object::generated(34, 100));
    chunkcache_tests::eventually("the object is seen", Duration::from_secs(15), || {
        (Call::get("/media/late").send(address).status == 200).then_some(())
    });
}

#[test]
fn an_origin_that_is_down_is_a_problem_soon() {
    let mut cluster = Cluster::start();
    let target = cluster.put("/down", Object::generated(35, MIB));
    cluster.origin.stop();
    let began = Instant::now();
    let answer = Call::get(&target).send(cluster.edge().http);
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    assert!((500..600).contains(&answer.status));
    assert_problem(&answer, answer.status);
    cluster.origin.start_again();
    chunkcache_tests::eventually("the origin is asked again", Duration::from_secs(20), || {
        (Call::get(&target).send(cluster.edge().http).status == 200).then_some(())
    });
}
