//! Limits of requests: none may reach an address that is not a registered source's, put a header
//! into one to an origin, or learn more than an answer. And the one thing that is passed on
//! intentionally: a trace.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::origin::Times;
use chunkcache_tests::{Cluster, ClusterOptions, Fault, KIB, Object, Origin, content};

/// Sends raw bytes, and returns everything that comes back until the connection ends.
fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is an end as well.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn no_form_of_a_target_leaves_its_source() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    let elsewhere = Origin::start();
    elsewhere.put("/secret", Object::generated(1, 10));
    cluster.origin.put("/outside", Object::generated(2, 10));
    cluster
        .origin
        .put("/inside/a%20b", Object::generated(3, 10));
    let url = format!("{}/inside", cluster.origin.url());
    let added = cluster.coordinator.cli(&["source", "add", "inside", &url]);
    assert!(added.status.success());
    let other = elsewhere.address();
    let targets = [
        "/inside/../outside".to_owned(),
        "/inside/x/../../outside".into(),
        "/inside/%2e%2e/outside".into(),
        "/inside/%2E%2e/outside".into(),
        "/inside/.%2e/outside".into(),
        "/inside/%252e%252e/outside".into(),
        "/inside/..%2foutside".into(),
        "/inside/..%5coutside".into(),
        "/inside/..\\outside".into(),
        "/inside/..;/outside".into(),
        "/inside/..;x=y/outside".into(),
        "/inside/..%3B/outside".into(),
        "/inside/%00/../../outside".into(),
        "/inside/%c0%ae%c0%ae/outside".into(),
        "/inside/%0d%0aHost:%20evil/x".into(),
        "/inside/x?a=%0d%0aHost:%20evil".into(),
        "/inside/x%23/../../outside".into(),
        "//inside/../outside".into(),
        "/../outside".into(),
        "/%2e%2e/outside".into(),
        format!("//{other}/secret"),
        format!("/http://{other}/secret"),
        format!("/inside/http://{other}/secret"),
        format!("/inside//{other}/secret"),
        format!("/inside/@{other}/secret"),
        format!("http://{other}/secret"),
        format!("http://{other}/inside/../secret"),
        format!("https://{other}/secret"),
        format!("ftp://{other}/secret"),
        "file:///etc/passwd".into(),
        "/v1/entries/../../outside".into(),
        "/_peer/../outside".into(),
        "*".into(),
        other.to_string(),
        "/inside/x#/../../outside".into(),
    ];
    for target in &targets {
        for version in ["1.1", "1.0"] {
            let request = format!(
                "GET {target} HTTP/{version}\r\nHost: {other}\r\nConnection: close\r\n\r\n"
            );
            let answer = raw(address, &request);
            assert!(
                answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"),
                "{target}: {answer}"
            );
        }
    }
    assert!(
        elsewhere.all_hits().is_empty(),
        "{:?}",
        elsewhere.all_hits()
    );
    for hit in cluster.origin.all_hits() {
        // Odd names are names below the source, and nothing else.
        assert!(hit.target.starts_with("/inside/"), "{hit:?}");
        assert!(
            !hit.target.contains("/..;"),
            "a server may remove the parameter: {hit:?}"
        );
        assert!(
            hit.header("host") == Some(cluster.origin.address().to_string().as_str()),
            "{hit:?}"
        );
    }
    assert!(cluster.origin.hits("/outside").is_empty());
    // The same name in another spelling is the same object.
    for target in [
        "/inside/a%20b",
        "/%69nside/%61%20b",
        "/inside/x/../a%20b",
        "/inside/./a%20b",
    ] {
        let answer = Call::get(target).send(address).expect(200);
        assert_eq!(answer.body, content::bytes(3, 0, 10));
    }
    assert_eq!(cluster.origin.hits("/inside/a%20b").len(), 1);
}

#[test]
fn a_head_that_is_not_one_head_is_refused() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    cluster.put("/x", Object::generated(1, 10));
    cluster.put("/smuggled", Object::generated(2, 10));
    for head in [
        "GET /media/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a:b\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a:65536\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: [::1\r\n\r\n",
        "GET /media/x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: user@a\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET /media/x HTTP/1.1\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\tc\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a\r\nX-A: b\rX-B: c\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a\r\nX\0A: b\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "GET /media/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: nonsense\r\n\r\n",
        "GET /media/x y HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET  /media/x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /media/x HTTP/9.9\r\nHost: a\r\n\r\n",
        "G\u{e9}T /media/x HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let answer = raw(address, head);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{head:?}: {answer}"
        );
    }
    // A body is never taken for a request.
    let inner = "GET /media/smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = format!("Content-Length: {}\r\n", inner.len());
    for (framing, body) in [
        (length.as_str(), inner.to_owned()),
        ("Transfer-Encoding: chunked\r\n", inner.to_owned()),
        ("Transfer-Encoding: chunked\r\n", format!("0\n\n{inner}")),
        ("Transfer-Encoding: chunked\r\n", format!("-1\r\n{inner}")),
    ] {
        let request =
            format!("GET /media/x HTTP/1.1\r\nHost: a\r\n{framing}Connection: close\r\n\r\n{body}");
        raw(address, &request);
    }
    // Two framings: whichever another server uses, nothing follows on this connection.
    for framings in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ] {
        let head = format!("GET /media/x HTTP/1.1\r\nHost: a\r\n{framings}\r\n");
        let answer = raw(address, &format!("{head}0\r\n\r\n{inner}"));
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{answer}");
    }
    assert!(cluster.origin.hits("/smuggled").is_empty());
    Call::get("/media/x").send(address).expect(200);
}

/// One frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a GET: indexed method and scheme, literal path and authority (RFC 7541, 6).
fn get_head(path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap();
    [&[0x82, 0x86, 0x04, length], path.as_bytes(), b"\x01\x01a"].concat()
}

/// Sends the frames until the server closes, and returns its GOAWAY's error code, if it sent one.
fn http2_until_cut(address: SocketAddr, frames: impl Iterator<Item = Vec<u8>>) -> Option<u32> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut stream = TcpStream::connect(address).unwrap();
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).unwrap();
    stream.set_write_timeout(patience).unwrap();
    let begin = [PREFACE, &frame(4, 0, 0, &[])].concat();
    stream.write_all(&begin).unwrap();
    let cut = frames
        .map(|bytes| stream.write_all(&bytes))
        .any(|sent| sent.is_err());
    assert!(cut, "the server took all of it");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let mut rest = &answer[..];
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        let payload = rest.get(9..9 + length)?;
        if rest[3] == 7 {
            return Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        rest = &rest[9 + length..];
    }
    None
}

#[test]
fn http2_floods_are_cut() {
    const ENHANCE_YOUR_CALM: u32 = 11;
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    let target = cluster.put("/x", Object::generated(1, 10));
    Call::get(&target).send(address).expect(200);
    // Rapid reset: each stream costs its sender nothing. For a warm object, and for cold ones.
    for cold in [false, true] {
        let streams = (0..200_000u32).map(|number| {
            let path = if cold {
                format!("/media/cold-{number}")
            } else {
                target.clone()
            };
            let stream = number * 2 + 1;
            let reset = frame(3, 0, stream, &8u32.to_be_bytes());
            [frame(1, 5, stream, &get_head(&path)), reset].concat()
        });
        // The connection's reset may overtake its last message.
        let said = http2_until_cut(address, streams);
        assert!(matches!(said, None | Some(ENHANCE_YOUR_CALM)), "{said:?}");
    }
    let questions = cluster.origin.all_hits().len();
    assert!(questions < 500, "{questions} questions to the origin");
    // A head that never ends.
    let literal = [b"\x00\x03x-a\x7f\x01", &[b'b'; 128][..]].concat();
    let endless = std::iter::once(frame(1, 1, 1, &get_head(&target)))
        .chain((0..200_000).map(|_| frame(9, 0, 1, &literal)));
    let said = http2_until_cut(address, endless);
    assert!(matches!(said, None | Some(ENHANCE_YOUR_CALM)), "{said:?}");
    Call::get(&target).send(address).expect(200);
}

/// Only what the source allows reaches its origin.
#[test]
fn client_headers_are_an_allow_list() {
    let cluster = Cluster::start();
    cluster.add_source_with("listed", &["--forward-header=X-Token"]);
    let address = cluster.edge().http;
    cluster.put("/h", Object::generated(1, 10));
    let ask = |target: &str| {
        let names = [
            "Authorization",
            "Cookie",
            "Forwarded",
            "X-Forwarded-For",
            "X-Token",
            "Via",
            "Proxy-Authorization",
            "Expect",
            "Accept-Encoding",
            "Referer",
            "Origin",
            "User-Agent",
            "TE",
            "Upgrade",
            "Proxy-Connection",
            "X-Real-IP",
        ];
        let call = names.iter().fold(Call::get(target), |call, name| {
            call.header(name, "value-of-client")
        });
        call.send(address)
    };
    ask("/media/h").expect(200);
    ask("/listed/h").expect(200);
    let hits = cluster.origin.hits("/h");
    let passed: Vec<Vec<&str>> = hits
        .iter()
        .map(|hit| {
            let of_client = hit
                .headers
                .iter()
                .filter(|(_, value)| value.contains("value-of-client"));
            of_client.map(|(name, _)| name.as_str()).collect()
        })
        .collect();
    assert_eq!(passed.len(), 2, "{hits:?}");
    assert!(passed[0].is_empty(), "{passed:?}");
    assert!(
        passed[1].len() == 1 && passed[1][0].eq_ignore_ascii_case("x-token"),
        "{passed:?}"
    );
}

#[test]
fn redirects_reach_nothing_beside_the_source() {
    let cluster = Cluster::start();
    let elsewhere = Origin::start();
    elsewhere.put("/x", Object::generated(1, 10));
    let port = elsewhere.address().port();
    let own = cluster.origin.address().port();
    let redirecting =
        |to: &str| Object::generated(2, 10).fault(Fault::Redirect(to.to_owned()), Times::Always);
    for (number, to) in [
        format!("http://127.0.0.1:{port}/x"),
        format!("http://localhost:{port}/x"),
        format!("http://localhost:{own}/target"),
        format!("http://[::1]:{port}/x"),
        format!("//127.0.0.1:{port}/x"),
        format!("http://user@127.0.0.1:{own}/target"),
        format!("https://127.0.0.1:{own}/target"),
        "http://169.254.169.254/latest/meta-data/".into(),
        "file:///etc/passwd".into(),
        "gopher://127.0.0.1/".into(),
        "/loop".into(),
        String::new(),
    ]
    .into_iter()
    .enumerate()
    {
        cluster.put("/target", Object::generated(3, 10));
        cluster.put("/loop", redirecting("/loop"));
        let target = cluster.put(&format!("/r{number}"), redirecting(&to));
        let answer = Call::get(&target).send(cluster.edge().http);
        let (status, why) = match to.as_str() {
            "/loop" | "" => (502, "bad-origin"),
            // The same place with TLS, where there is no TLS.
            to if to.starts_with("https:") => (504, "origin-unreachable"),
            _ => (302, "redirect"),
        };
        assert_eq!(answer.status, status, "{to}: {}", answer.text());
        let told = answer.header("cache-status").unwrap();
        assert!(told.contains(why), "{to}: {told}");
        assert!(!answer.text().contains("127.0.0.1"), "{}", answer.text());
    }
    assert!(elsewhere.all_hits().is_empty());
    assert!(cluster.origin.hits("/target").is_empty());
    assert!(
        cluster.origin.hits("/loop").len() <= 12,
        "a loop is bounded"
    );
}

/// Encoded slashes and dots: a server may decode them before it resolves a path.
#[test]
fn no_form_of_a_redirect_leaves_its_source() {
    let cluster = Cluster::start();
    let address = cluster.edge().http;
    let own = cluster.origin.address();
    let url = format!("{}/inside", cluster.origin.url());
    let added = cluster.coordinator.cli(&["source", "add", "inside", &url]);
    assert!(added.status.success());
    let redirecting =
        |to: &str| Object::generated(2, 10).fault(Fault::Redirect(to.to_owned()), Times::Always);
    let ask = |number: usize, to: &str| {
        let name = format!("from-{number}");
        cluster
            .origin
            .put(&format!("/inside/{name}"), redirecting(to));
        Call::get(&format!("/inside/{name}")).send(address)
    };
    let leaving = [
        "/outside".to_owned(),
        "../outside".into(),
        "/inside/../outside".into(),
        "/inside/x/../../outside".into(),
        "/inside/%2e%2e/outside".into(),
        "/inside/%2E./outside".into(),
        "/inside/.%2e/outside".into(),
        "..%2foutside".into(),
        "/inside/..%2Foutside".into(),
        "/inside/%2e%2e%2foutside".into(),
        "/inside/x%2f..%2f..%2foutside".into(),
        "/inside/x%2F%2E%2E%2F%2E%2E%2Foutside".into(),
        "/inside/x/..%2f..%2foutside".into(),
        "/inside/..%5coutside".into(),
        "/inside/..%5Coutside".into(),
        "..\\outside".into(),
        "/inside%2foutside".into(),
        "/inside%2f..%2foutside".into(),
        "/inside%2e%2e/outside".into(),
        "/inside/%00/../../outside".into(),
        format!("http://{own}/inside/..%2foutside"),
        format!("//{own}/inside/%2e%2e/outside"),
        format!("http:\\\\{own}\\outside"),
        format!("http://{own}%2finside/x"),
        "?x=/../outside&to=http://169.254.169.254/".into(),
    ];
    for (number, to) in leaving.iter().enumerate() {
        let answer = ask(number, to);
        // No URL; and the last leads to itself. All others are passed to the client.
        let status = if to.contains("%2finside/x") || to.starts_with('?') {
            502
        } else {
            302
        };
        assert_eq!(answer.status, status, "{to}: {}", answer.text());
    }
    // Names below the source, however odd; nothing decodes them on the way.
    for (number, path) in [
        "/inside/a%2Fb",
        "/inside/a%2fb%2f..c",
        "/inside/%252e%252e%252foutside",
        "/inside/...",
        "/inside/%c0%ae%c0%ae/outside",
    ]
    .into_iter()
    .enumerate()
    {
        cluster.origin.put(path, Object::generated(3, 10));
        let answer = ask(100 + number, path).expect(200);
        assert_eq!(answer.body, content::bytes(3, 0, 10), "{path}");
        assert_eq!(cluster.origin.hits(path).len(), 1, "{path}");
    }
    for hit in cluster.origin.all_hits() {
        let path = hit.target.split('?').next().unwrap();
        let decoded = path.to_lowercase().replace("%2f", "/");
        let decoded = decoded.replace("%2e", ".").replace("%5c", "/");
        assert!(hit.target.starts_with("/inside/"), "{hit:?}");
        assert!(!decoded.split('/').any(|part| part == ".."), "{hit:?}");
        assert_eq!(hit.header("host"), Some(own.to_string().as_str()));
    }
}

#[test]
fn a_trace_goes_on_to_the_origin() {
    let cluster = Cluster::start();
    let target = cluster.put("/traced", Object::generated(1, 10));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let call = Call::get(&target).header("traceparent", &parent);
    call.send(cluster.edge().http).expect(200);
    let hits = cluster.origin.hits("/traced");
    let sent = hits[0].header("traceparent").unwrap();
    assert!(sent.contains(trace) && sent != parent, "{sent}");
    let target = cluster.put("/untraced", Object::generated(1, 10));
    Call::get(&target).send(cluster.edge().http).expect(200);
    assert!(
        cluster.origin.hits("/untraced")[0]
            .header("traceparent")
            .is_none()
    );
}

#[test]
fn cors_limits_and_signatures_are_options() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "k1 0123456789abcdef0123\n").unwrap();
    let keys_option: &'static str =
        format!("--signed-url-keys-file={}", keys.path().display()).leak();
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("access.log");
    let log_option: &'static str = format!("--access-log=json:{}", log.display()).leak();
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 1,
        edge_arguments: vec![
            "--background-fill=false",
            "--cors-allow-origin=https://player.example",
            log_option,
            "--max-connections-per-client=3",
            "--request-rate=1000",
            "--idle-timeout=1s",
            "--request-timeout=1s",
            keys_option,
        ],
        ..ClusterOptions::default()
    });
    let address = cluster.edge().http;
    let target = cluster.put("/s", Object::generated(1, 10 * KIB));
    let refused = Call::get(&target).send(address);
    assert_eq!(refused.status, 403);
    // Made with the key above over ["chunk cache signed URL 1", "k1", "/media/s", "", "4102444800",
    // ""], each field after its length as 8 bytes: see docs/http.md.
    let signed = format!(
        "{target}?cc-expires=4102444800&cc-key=k1\
         &cc-signature=R_vXoYf9uVu1ensbCZKjyxu9rt8Ire27c8pcckc3PIY"
    );
    let answer = Call::get(&signed)
        .header("Origin", "https://player.example")
        .send(address)
        .expect(200);
    assert_eq!(answer.body, content::bytes(1, 0, 10 * KIB));
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://player.example")
    );
    assert_eq!(
        cluster.origin.hits("/s")[0].target,
        "/s",
        "the signature is no part of the object's name"
    );
    assert_eq!(
        answer.header("access-control-allow-credentials"),
        Some("true")
    );
    let line = chunkcache_tests::eventually("a line is logged", Duration::from_secs(10), || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(
            !text.contains("R_vXoYf9"),
            "the signature is logged: {text}"
        );
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines
            .into_iter()
            .find(|line: &serde_json::Value| line["status"] == 200)
    });
    for (field, value) in [
        ("source", serde_json::Value::from("media")),
        ("client", "127.0.0.1".into()),
        ("bytes", (10 * KIB).into()),
        ("complete", true.into()),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    let other = Call::get(&signed)
        .header("Origin", "https://other.example")
        .send(address);
    assert_eq!(other.header("access-control-allow-origin"), None);
    assert_eq!(other.header("vary"), Some("Origin"));

    // A silent one is closed, and frees its place.
    let patience = Duration::from_secs(20);
    let told = chunkcache_tests::eventually("the fourth is one too many", patience, || {
        let silent: Vec<TcpStream> = (0..3)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let fourth = raw(address, "");
        // On a busy machine the three may be closed before it comes.
        fourth
            .starts_with("HTTP/1.1 503")
            .then_some((silent, fourth))
    });
    let (mut silent, fourth) = told;
    assert!(fourth.contains("Retry-After"), "{fourth}");
    for stream in &mut silent {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        // To the end of the connection, with or without a last message.
        let ended = stream.read_to_end(&mut Vec::new());
        assert!(!ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    }
    chunkcache_tests::eventually("a place is free", Duration::from_secs(10), || {
        let answer = Call::get(&signed).open(address).ok()?;
        (answer.status == 200).then_some(())
    });
}
