//! The meaning of requests: ranges, conditions, names, methods, errors.

use std::time::{SystemTime, UNIX_EPOCH};

use cache_edge::{
    core::signed_url::{Grant, Signer},
    server::{AllowedOrigins, SigningKeys, sent_bytes::ByteSource},
};

use crate::{
    client::{Connection, get},
    objects::{CHUNK, DATE, ETAG, Edge, bytes_of},
};

const SIZE: u64 = 3 * CHUNK + 1000;

#[tokio::test]
async fn the_whole_object_with_all_its_headers() {
    let edge = Edge::start().await;
    edge.warm("a", SIZE);
    let answer = get(edge.address, "/films/a", &[]).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == bytes_of(0..SIZE));
    assert_eq!(answer.header("content-length"), SIZE.to_string());
    assert_eq!(answer.header("accept-ranges"), "bytes");
    assert_eq!(answer.header("etag"), ETAG);
    assert_eq!(answer.header("last-modified"), DATE);
    assert_eq!(answer.header("content-type"), "video/mp4");
    assert_eq!(answer.header("age"), "7");
    assert_eq!(answer.header("cache-status"), "edge-1; hit");
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert!(answer.headers.contains_key("date"));
}

#[tokio::test]
async fn single_ranges() {
    let edge = Edge::start().await;
    edge.warm("a", SIZE);
    let mut connection = Connection::open(edge.address).await;
    let last = SIZE - 1;
    let cases = [
        ("0-".to_owned(), 0..SIZE),
        ("0-0".to_owned(), 0..1),
        (format!("{last}-{last}"), last..SIZE),
        (format!("{last}-"), last..SIZE),
        ("-1".to_owned(), last..SIZE),
        (format!("-{}", SIZE * 2), 0..SIZE),
        (format!("{}-{}", CHUNK - 1, CHUNK), CHUNK - 1..CHUNK + 1),
        (format!("{}-{}", CHUNK, 2 * CHUNK - 1), CHUNK..2 * CHUNK),
        (format!("5-{}", u64::MAX), 5..SIZE),
    ];
    for (asked, want) in cases {
        let answer = connection
            .ask("GET", "/films/a", &[&format!("Range: bytes={asked}")])
            .await;
        assert_eq!(answer.status, 206, "{asked}");
        let content_range = format!("bytes {}-{}/{SIZE}", want.start, want.end - 1);
        assert_eq!(answer.header("content-range"), content_range, "{asked}");
        assert!(answer.body == bytes_of(want), "{asked}");
    }
}

#[tokio::test]
async fn ranges_that_are_ignored_or_not_satisfiable() {
    let edge = Edge::start().await;
    edge.warm("a", SIZE);
    edge.warm("empty", 0);
    let mut connection = Connection::open(edge.address).await;
    for ignored in ["bytes=5-4", "bytes=x", "lines=0-4", "bytes"] {
        let answer = connection
            .ask("GET", "/films/a", &[&format!("Range: {ignored}")])
            .await;
        assert_eq!(
            (answer.status, answer.body.len() as u64),
            (200, SIZE),
            "{ignored}"
        );
    }
    for beyond in [
        format!("bytes={SIZE}-"),
        "bytes=-0".to_owned(),
        format!("bytes={}-", "9".repeat(30)),
    ] {
        let answer = connection
            .ask("GET", "/films/a", &[&format!("Range: {beyond}")])
            .await;
        assert_eq!(answer.status, 416, "{beyond}");
        assert_eq!(answer.header("content-range"), format!("bytes */{SIZE}"));
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
    let answer = connection.ask("GET", "/films/empty", &[]).await;
    assert_eq!((answer.status, answer.header("content-length")), (200, "0"));
    let answer = connection
        .ask("GET", "/films/empty", &["Range: bytes=0-"])
        .await;
    assert_eq!(
        (answer.status, answer.header("content-range")),
        (416, "bytes */0")
    );
}

#[tokio::test]
async fn several_ranges_are_a_multipart_body() {
    let edge = Edge::start().await;
    edge.warm("a", SIZE);
    let answer = get(
        edge.address,
        "/films/a",
        &["Range: bytes=70000-140000, 0-9, -5"],
    )
    .await;
    assert_eq!(answer.status, 206);
    assert!(!answer.headers.contains_key("content-range"));
    let boundary = answer
        .header("content-type")
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let mut want = Vec::new();
    for (index, range) in [70_000..140_001, 0..10, SIZE - 5..SIZE]
        .into_iter()
        .enumerate()
    {
        let lead = if index == 0 { "" } else { "\r\n" };
        let (first, last) = (range.start, range.end - 1);
        want.extend_from_slice(
            format!(
                "{lead}--{boundary}\r\nContent-Type: video/mp4\r\n\
             Content-Range: bytes {first}-{last}/{SIZE}\r\n\r\n"
            )
            .as_bytes(),
        );
        want.extend(bytes_of(range));
    }
    want.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert!(answer.body == want);
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let edge = Edge::start().await;
    edge.warm("a", SIZE);
    let mut connection = Connection::open(edge.address).await;
    for (path, headers) in [
        ("/films/a", vec![]),
        ("/films/a", vec!["Range: bytes=5-9"]),
        ("/films/a", vec!["Range: bytes=9999999-"]),
        ("/films/a", vec!["If-None-Match: \"v1\""]),
        ("/films/gone", vec![]),
        ("/films", vec![]),
    ] {
        let mut head = connection.ask("HEAD", path, &headers).await;
        let mut get = connection.ask("GET", path, &headers).await;
        for answer in [&mut head, &mut get] {
            answer.headers.remove("date");
        }
        assert_eq!(
            (head.status, &head.headers),
            (get.status, &get.headers),
            "{path} {headers:?}"
        );
    }
}

#[tokio::test]
async fn conditions() {
    let edge = Edge::start().await;
    edge.warm("a", SIZE);
    let mut connection = Connection::open(edge.address).await;
    let range = "Range: bytes=0-9";
    let since = format!("If-Modified-Since: {DATE}");
    let cases: [(&[&str], u16); 8] = [
        (&["If-None-Match: W/\"v1\""], 304),
        (&[&since], 304),
        (&["If-None-Match: \"v2\"", &since], 200),
        (&["If-Match: \"v2\""], 412),
        (&["If-Match: \"v1\"", range], 206),
        (&["If-Range: \"v1\"", range], 206),
        (&["If-Range: \"v2\"", range], 200),
        (&["If-Range: W/\"v1\"", range], 200),
    ];
    for (headers, status) in cases {
        let answer = connection.ask("GET", "/films/a", headers).await;
        assert_eq!(answer.status, status, "{headers:?}");
        assert_eq!(answer.header("etag"), ETAG, "{headers:?}");
    }
}

#[tokio::test]
async fn cache_status_tells_what_is_missing() {
    let edge = Edge::start().await;
    let object = edge.cold("a", 4 * CHUNK);
    object.land(0);
    let mut connection = Connection::open(edge.address).await;
    let mut status = async |range: &str| {
        let answer = connection
            .ask("HEAD", "/films/a", &[&format!("Range: bytes={range}")])
            .await;
        answer.header("cache-status").to_owned()
    };
    assert_eq!(status("0-9").await, "edge-1; hit");
    assert_eq!(status("0-").await, "edge-1; fwd=partial; stored");
    assert_eq!(status("-9").await, "edge-1; fwd=miss; stored");
}

#[tokio::test]
async fn names_that_name_nothing() {
    let edge = Edge::start().await;
    for (path, status) in [
        ("/", 404),
        ("/films", 404),
        ("/unknown/x", 404),
        ("/films/gone", 404),
        ("/v1/entries/00000000-0000-0000-0000-000000000007", 404),
        ("/films/../../etc/passwd", 400),
        ("/films/%2e%2e/x", 400),
        ("/films/..%2fx", 400),
        ("/films/a%00", 400),
    ] {
        // One each: a 400 ends its connection.
        let mut connection = Connection::open(edge.address).await;
        let answer = connection.ask("GET", path, &[]).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(
            answer.header("content-type"),
            "application/problem+json",
            "{path}"
        );
        let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(problem["status"], status, "{path}");
        assert!(problem["detail"].is_string(), "{path}");
    }
}

#[tokio::test]
async fn an_absolute_target_is_a_path_of_this_server() {
    let edge = Edge::start().await;
    edge.warm("a", 100);
    let answer = get(edge.address, "http://169.254.169.254/films/a", &[]).await;
    assert_eq!((answer.status, answer.body), (200, bytes_of(0..100)));
}

#[tokio::test]
async fn hosts() {
    let edge = Edge::start().await;
    edge.warm("a", 10);
    for (head, status) in [
        ("GET /films/a HTTP/1.1\r\n\r\n", 400),
        ("GET /films/a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET /films/a HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
        ("GET /films/a HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET /films/a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 200),
        ("GET /films/a HTTP/1.0\r\n\r\n", 200),
    ] {
        let mut connection = Connection::open(edge.address).await;
        connection.send(head).await;
        assert_eq!(connection.answer(false).await.status, status, "{head:?}");
    }
}

#[tokio::test]
async fn methods() {
    let edge = Edge::start().await;
    edge.warm("a", 10);
    let answer = Connection::open(edge.address)
        .await
        .ask("DELETE", "/films/a", &[])
        .await;
    assert_eq!(
        (answer.status, answer.header("allow")),
        (405, "GET, HEAD, OPTIONS")
    );
    let preflight = [
        "Origin: https://player.example",
        "Access-Control-Request-Method: GET",
        "Access-Control-Request-Headers: range,cmcd-session",
    ];
    let answer = Connection::open(edge.address)
        .await
        .ask("OPTIONS", "/films/a", &preflight)
        .await;
    assert_eq!(answer.status, 204);
    assert_eq!(
        answer.header("access-control-allow-headers"),
        "range, cmcd-session"
    );
    assert_eq!(answer.header("access-control-allow-origin"), "*");
}

#[tokio::test]
async fn cors_can_be_narrowed() {
    let edge = Edge::start_with(|settings| {
        settings.cors.origins = AllowedOrigins::Listed(vec!["https://a.example".to_owned()])
    })
    .await;
    edge.warm("a", 10);
    let answer = get(edge.address, "/films/a", &["Origin: https://a.example"]).await;
    assert_eq!(
        answer.header("access-control-allow-origin"),
        "https://a.example"
    );
    let answer = get(edge.address, "/films/a", &["Origin: https://b.example"]).await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn an_origin_that_is_down_or_busy() {
    let edge = Edge::start().await;
    let answer = get(edge.address, "/films/down", &[]).await;
    assert_eq!(answer.status, 504);
    let answer = get(edge.address, "/films/busy", &[]).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "7"));
}

#[tokio::test]
async fn signed_urls() {
    let signer = Signer::new([("k".to_owned(), b"secret".to_vec())]);
    let edge = Edge::start_with(|settings| {
        settings.signed_urls = Some(SigningKeys::fixed(signer.clone()))
    })
    .await;
    edge.warm("a", 10);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let sign = |expires, client| {
        let grant = Grant {
            key_id: "k",
            expires_unix_seconds: expires,
            pattern: None,
            client,
        };
        format!("/films/a?{}", signer.sign("/films/a", "", &grant).unwrap())
    };
    assert_eq!(get(edge.address, "/films/a", &[]).await.status, 403);
    assert_eq!(
        get(edge.address, &sign(now + 60, None), &[]).await.status,
        200
    );
    assert_eq!(
        get(edge.address, &sign(now + 60, Some("127.0.0.0/8")), &[])
            .await
            .status,
        200
    );
    assert_eq!(
        get(edge.address, &sign(now + 60, Some("192.0.2.1")), &[])
            .await
            .status,
        403
    );
    assert_eq!(
        get(edge.address, &sign(now - 1, None), &[]).await.status,
        403
    );
}

#[tokio::test]
async fn a_client_that_asks_too_often() {
    let rate = service_kit::token_bucket::Rate {
        per_second: 0.001,
        burst: 2.0,
    };
    let edge = Edge::start_with(|settings| settings.limits.request_rate = Some(rate)).await;
    edge.warm("a", 10);
    let mut connection = Connection::open(edge.address).await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(connection.ask("GET", "/films/a", &[]).await.status);
    }
    assert_eq!(statuses, [200, 200, 429]);
}

#[tokio::test]
async fn what_is_passed_through_is_named_so() {
    let edge = Edge::start().await;
    let mut connection = Connection::open(edge.address).await;
    let answer = connection.ask("GET", "/films/pass", &[]).await;
    assert_eq!(
        (answer.status, answer.body.as_slice()),
        (200, &b"0123456789"[..])
    );
    let status = "edge-1; fwd=bypass; fwd-status=200; detail=\"no validator\"";
    assert_eq!(answer.header("cache-status"), status);
    let head = connection.ask("HEAD", "/films/pass", &[]).await;
    assert_eq!((head.status, head.header("content-length")), (200, "10"));
    edge.until("the bytes were counted", |metrics| {
        metrics.sent_bytes(ByteSource::Bypass) == 10
    })
    .await;
}

#[tokio::test]
async fn a_peer_is_answered_by_the_peer_handler() {
    let edge = Edge::start().await;
    let mut connection = Connection::open(edge.address).await;
    let answer = connection.ask("GET", "/_peer/v1/entries/x", &[]).await;
    assert_eq!(
        (answer.status, answer.body.as_slice()),
        (200, &b"/_peer/v1/entries/x"[..])
    );
}
