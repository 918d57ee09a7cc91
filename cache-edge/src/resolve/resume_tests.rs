#![allow(clippy::unwrap_used)]

use super::*;

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn whole() -> HeaderMap {
    headers(&[
        ("etag", "\"v1\""),
        ("accept-ranges", "bytes"),
        ("content-length", "1000"),
    ])
}

fn of(status: u16, headers: &HeaderMap) -> Option<AnnouncedVersion> {
    AnnouncedVersion::of(StatusCode::from_u16(status).unwrap(), headers)
}

fn asked(announced: &AnnouncedVersion, received: u64) -> (String, HeaderMap) {
    let mut asked = headers(&[
        ("range", "bytes=0-"),
        ("if-none-match", "\"v0\""),
        ("x-a", "b"),
    ]);
    announced.ask_for_rest(received, &mut asked).unwrap();
    let range = asked.get(header::RANGE).unwrap().to_str().unwrap();
    (range.to_owned(), asked)
}

#[test]
fn only_what_can_be_proved_is_gone_on_with() {
    assert!(of(200, &whole()).is_some());
    for (name, value) in [
        ("etag", "W/\"v1\""),
        ("etag", "v1"),
        ("accept-ranges", "none"),
    ] {
        let mut other = whole();
        other.insert(name, HeaderValue::from_static(value));
        assert_eq!(of(200, &other), None, "{name}: {value}");
    }
    for name in ["etag", "accept-ranges"] {
        let mut other = whole();
        other.remove(name);
        assert_eq!(of(200, &other), None, "without {name}");
    }
    for status in [203, 404, 500] {
        assert_eq!(of(status, &whole()), None, "{status}");
    }
    // A 206 shows that its origin supports ranges; a multipart answer cannot be resumed.
    let part = |range: &str| {
        headers(&[
            ("etag", "\"v1\""),
            ("content-range", range),
            ("content-length", "10"),
        ])
    };
    assert!(of(206, &part("bytes 5-14/1000")).is_some());
    assert!(of(206, &part("bytes 5-14/*")).is_some());
    assert_eq!(of(206, &part("bytes 5-15/1000")), None);
    assert_eq!(of(206, &whole()), None);
}

#[test]
fn the_rest_is_asked_for_under_the_same_validator() {
    let (range, sent) = asked(&of(200, &whole()).unwrap(), 7);
    assert_eq!(range, "bytes=7-");
    assert_eq!(sent.get("if-range").unwrap(), "\"v1\"");
    assert!(sent.get("if-none-match").is_none());
    assert_eq!(sent.get("x-a").unwrap(), "b");
    let mut unknown = whole();
    unknown.remove("content-length");
    assert_eq!(asked(&of(200, &unknown).unwrap(), 7).0, "bytes=7-");
    let part = headers(&[("etag", "\"v1\""), ("content-range", "bytes 5-14/1000")]);
    assert_eq!(asked(&of(206, &part).unwrap(), 3).0, "bytes=8-14");
}

#[test]
fn nothing_but_the_rest_of_the_same_version_is_taken() {
    let announced = of(200, &whole()).unwrap();
    let rest = headers(&[
        ("etag", "\"v1\""),
        ("content-range", "bytes 7-999/1000"),
        ("content-length", "993"),
    ]);
    let check = |status: u16, headers: &HeaderMap| {
        let status = StatusCode::from_u16(status).unwrap();
        announced.gone_on_with(7, status, headers)
    };
    assert_eq!(check(206, &rest).unwrap(), announced);
    for (name, value) in [
        ("etag", "\"v2\""),
        ("etag", "W/\"v1\""),
        ("content-range", "bytes 8-999/1000"),
        ("content-range", "bytes 7-998/1000"),
        ("content-range", "bytes 7-999/1001"),
        ("content-range", "bytes 7-999"),
        ("content-length", "992"),
        ("content-encoding", "gzip"),
    ] {
        let mut other = rest.clone();
        other.insert(name, HeaderValue::from_str(value).unwrap());
        let error = check(206, &other).unwrap_err();
        assert!(!error.is_transient(), "{name}: {value}: {error}");
    }
    for name in ["etag", "content-range"] {
        let mut other = rest.clone();
        other.remove(name);
        assert!(!check(206, &other).unwrap_err().is_transient(), "{name}");
    }
    for status in [200, 304, 404, 410, 412, 416] {
        assert!(
            !check(status, &rest).unwrap_err().is_transient(),
            "{status}"
        );
    }
    for status in [429, 500, 503] {
        assert!(check(status, &rest).unwrap_err().is_transient(), "{status}");
    }
}

/// The first answer did not say where its body ends, so the second one must.
#[test]
fn an_end_that_was_not_known_is_known_from_the_rest() {
    let mut unknown = whole();
    unknown.remove("content-length");
    let announced = of(200, &unknown).unwrap();
    assert_eq!(announced.length(), None);
    let rest = |range: &str| {
        let rest = headers(&[("etag", "\"v1\""), ("content-range", range)]);
        announced.gone_on_with(7, StatusCode::PARTIAL_CONTENT, &rest)
    };
    assert_eq!(rest("bytes 7-99/100").unwrap().length(), Some(100));
    assert!(rest("bytes 7-98/100").is_err());
    assert!(rest("bytes 7-99/*").is_err());
}
