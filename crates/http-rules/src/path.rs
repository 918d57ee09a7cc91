//! From a request target to the name of an object.
//!
//! The path becomes part of a URL below the source's base URL, so anything that could lead outside
//! is refused here, and equal names become equal strings (RFC 3986, 6.2.2). Where servers differ in
//! their interpretation (an encoded slash, a backslash), the answer is 400, because guessing would
//! give one cache key two objects.

use chunkcache_proto::source_name::check_source_name;
use url::Url;
use uuid::Uuid;

/// Longer targets are answered with 414; object stores limit keys to 1 KiB.
pub const MAX_TARGET_BYTES: usize = 8 << 10;

/// A parsed target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `/{source}/{path}?{query}`; path without the leading slash, query without the `?`.
    Key {
        source: String,
        path: String,
        query: String,
    },
    /// `/v1/entries/{id}`
    Entry { id: Uuid, query: String },
    /// `/_peer/…`: for the peer handler, not parsed further.
    Peer,
}

/// Why a target is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// 400
    #[error("{0}")]
    Bad(&'static str),
    /// 404
    #[error("{0}")]
    NotFound(&'static str),
    /// 414
    #[error("the request target is too long")]
    TooLong,
}

/// Reads the path and query of a target; of an absolute-form target these are the parts after the
/// authority.
pub fn parse(path: &str, query: Option<&str>) -> Result<Target, TargetError> {
    let query = query.unwrap_or("");
    if path.len() + query.len() > MAX_TARGET_BYTES {
        return Err(TargetError::TooLong);
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Err(TargetError::Bad("the request target is not a path"));
    };
    let (first, rest) = match rest.split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (rest, None),
    };
    // The first segment is decoded before it is compared, so that `%66ilms` is `films`.
    let first = normalize_segment(first)?;
    match (first.as_str(), rest) {
        ("_peer", Some(_)) => Ok(Target::Peer),
        ("v1", Some(rest)) => {
            let id = rest
                .strip_prefix("entries/")
                .and_then(|id| Uuid::try_parse(id).ok())
                .ok_or(TargetError::NotFound(
                    "under /v1/ there is only /v1/entries/{id}",
                ))?;
            Ok(Target::Entry {
                id,
                query: normalize_query(query)?,
            })
        }
        (source, Some(rest)) if check_source_name(source).is_ok() => {
            let (path, query) = normalize_name(rest, query)?;
            Ok(Target::Key {
                source: first,
                path,
                query,
            })
        }
        _ => Err(TargetError::NotFound("objects are at /{source}/{path}")),
    }
}

/// The normal form of an object's path below its source, without the leading slash, and of its
/// query, without the `?`.
pub fn normalize_name(path: &str, query: &str) -> Result<(String, String), TargetError> {
    if path.len() + query.len() > MAX_TARGET_BYTES {
        return Err(TargetError::TooLong);
    }
    let path = normalize_path(path)?;
    if path.is_empty() {
        return Err(TargetError::NotFound(
            "the path names a source, but no object in it",
        ));
    }
    Ok((path, normalize_query(query)?))
}

/// Resolves a reference against the path of a request. A reference with a scheme or an authority
/// leads to another server: `None`.
#[must_use]
pub fn resolve_reference(asked_for: &str, reference: &str) -> Option<Target> {
    let joined = join_reference(asked_for, reference)?;
    let (path, query) = match joined.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (joined.as_str(), None),
    };
    parse(path, query).ok()
}

/// The same before anything is checked or normalised: others may be resolved against it in turn.
#[must_use]
pub fn join_reference(base: &str, reference: &str) -> Option<String> {
    let reference = reference.split('#').next().unwrap_or_default();
    let end = reference.find(['/', '?']).unwrap_or(reference.len());
    if reference.starts_with("//") || reference[..end].contains(':') {
        return None;
    }
    let path = base.split('?').next().unwrap_or_default();
    Some(match reference.bytes().next() {
        None => base.to_owned(),
        Some(b'/') => reference.to_owned(),
        Some(b'?') => format!("{path}{reference}"),
        Some(_) => {
            let folder = path.rfind('/').map_or("/", |at| &path[..=at]);
            format!("{folder}{reference}")
        }
    })
}

/// Resolves an origin's reference against the URL of one of its objects, which lies at `path` below
/// `base_url`: the name of another object there, or `None`.
#[must_use]
pub fn resolve_at_origin(base_url: &Url, path: &str, reference: &str) -> Option<(String, String)> {
    let base = base_url.as_str().trim_end_matches('/');
    let object = Url::parse(&format!("{base}/{path}")).ok()?;
    let url = object.join(reference).ok()?;
    let below = below_base(&url, base_url)?;
    normalize_name(below, url.query().unwrap_or_default()).ok()
}

/// The part of `url` below `base_url`, without the leading slash; `None`: it is elsewhere. Both are
/// absolute and were parsed by the same parser, which has resolved dot segments.
#[must_use]
pub fn below_base<'a>(url: &'a Url, base_url: &Url) -> Option<&'a str> {
    let same_authority = base_url.scheme() == url.scheme()
        && base_url.host() == url.host()
        && base_url.port_or_known_default() == url.port_or_known_default();
    if !same_authority {
        return None;
    }
    let rest = url
        .path()
        .strip_prefix(base_url.path().trim_end_matches('/'))?;
    rest.strip_prefix('/')
}

/// Normalises each segment and removes dot segments (RFC 3986, 5.2.4). A segment that leads above
/// the source is an error; it is not clamped.
fn normalize_path(path: &str) -> Result<String, TargetError> {
    let mut segments: Vec<String> = Vec::new();
    let mut ends_in_dots = false;
    for raw in path.split('/') {
        let segment = normalize_segment(raw)?;
        if is_dots_with_parameters(&segment) {
            return Err(TargetError::Bad("the path contains dots with parameters"));
        }
        ends_in_dots = matches!(segment.as_str(), "." | "..");
        match segment.as_str() {
            "." => {}
            ".." => {
                if segments.pop().is_none() {
                    return Err(TargetError::Bad("the path leads out of its source"));
                }
            }
            _ => segments.push(segment),
        }
    }
    if ends_in_dots && !segments.is_empty() {
        segments.push(String::new());
    }
    Ok(segments.join("/"))
}

/// `..;x`: some servers remove the parameter, and then the dot segment. `segment` is normalised.
fn is_dots_with_parameters(segment: &str) -> bool {
    [";", "%3B"].iter().any(|separator| {
        let name = segment.split_once(separator).map(|(name, _)| name);
        matches!(name, Some("." | ".."))
    })
}

fn normalize_segment(segment: &str) -> Result<String, TargetError> {
    normalize(
        segment,
        |byte| match byte {
            b'/' | b'\\' => Err(TargetError::Bad(
                "the path contains an encoded slash or a backslash",
            )),
            0..=0x1f | 0x7f => Err(TargetError::Bad("the path contains a control character")),
            _ => Ok(is_unreserved(byte)),
        },
        is_path_char,
    )
}

/// Normalises the spelling of a query; its meaning is up to the origin. Escapes in it may encode
/// anything.
fn normalize_query(query: &str) -> Result<String, TargetError> {
    normalize(
        query,
        |byte| Ok(is_unreserved(byte)),
        |byte| is_path_char(byte) || matches!(byte, b'/' | b'?'),
    )
}

/// Decodes bytes that `decode` accepts, writes other escapes with upper-case digits, and escapes
/// bytes that must not appear literally.
fn normalize(
    text: &str,
    decode: impl Fn(u8) -> Result<bool, TargetError>,
    plain: impl Fn(u8) -> bool,
) -> Result<String, TargetError> {
    let mut out = String::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let (byte, was_encoded) = if byte == b'%' {
            let digits = (
                bytes.next().and_then(hex_value),
                bytes.next().and_then(hex_value),
            );
            let (Some(high), Some(low)) = digits else {
                return Err(TargetError::Bad(
                    "the request target contains a broken percent-encoding",
                ));
            };
            (high << 4 | low, true)
        } else {
            (byte, false)
        };
        let may_decode = decode(byte)?;
        if may_decode || (!was_encoded && plain(byte)) {
            out.push(char::from(byte));
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    Ok(out)
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// RFC 3986, 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `pchar` without escapes (RFC 3986, 3.3).
fn is_path_char(byte: u8) -> bool {
    is_unreserved(byte) || matches!(byte, b'!' | b'$' | b'&'..=b',' | b';' | b'=' | b':' | b'@')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(path: &str) -> Result<String, TargetError> {
        match parse(path, None)? {
            Target::Key {
                source,
                path,
                query,
            } => Ok(format!("{source}|{path}|{query}")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn dots_with_parameters_are_no_name() {
        for path in [
            "..;/x",
            ".;/x",
            "a/..;b=c/x",
            "a/..%3b/x",
            "%2e%2e;",
            "..;x;y",
        ] {
            let answer = key(&format!("/films/{path}"));
            assert!(matches!(answer, Err(TargetError::Bad(_))), "{path}");
        }
        assert!(key("/films/a;b=../..;c=d").is_err());
        assert_eq!(key("/films/a;v=1/...;x").unwrap(), "films|a;v=1/...;x|");
    }

    #[test]
    fn plain_names() {
        assert_eq!(key("/films/a/b.mp4").unwrap(), "films|a/b.mp4|");
        assert_eq!(
            parse("/films/a", Some("x=1&y=%7e%2f")).unwrap(),
            Target::Key {
                source: "films".into(),
                path: "a".into(),
                query: "x=1&y=~%2F".into()
            }
        );
    }

    #[test]
    fn entries_and_peers() {
        let id = Uuid::from_u128(7);
        assert_eq!(
            parse(&format!("/v1/entries/{id}"), None).unwrap(),
            Target::Entry {
                id,
                query: String::new()
            }
        );
        assert_eq!(parse("/_peer/v1/entries/x", None).unwrap(), Target::Peer);
        for path in [
            "/v1/entries/7",
            "/v1/entries",
            "/v1/",
            "/v1/sources/x",
            "/v1/entries/../films/a",
        ] {
            assert!(
                matches!(parse(path, None), Err(TargetError::NotFound(_))),
                "{path}"
            );
        }
    }

    #[test]
    fn equal_names_become_equal_strings() {
        let want = key("/films/a~b/%C3%A9").unwrap();
        for spelling in [
            "/films/a%7Eb/%c3%a9",
            "/%66ilms/%61~b/é",
            "/films/./a~b/%C3%A9",
            "/films/x/%2E%2e/a~b/%C3%A9",
        ] {
            assert_eq!(key(spelling).unwrap(), want, "{spelling}");
        }
        assert_ne!(
            key("/films/a%3Bb").unwrap(),
            key("/films/a;b").unwrap(),
            "reserved characters are data when encoded"
        );
    }

    #[test]
    fn double_slashes_are_part_of_the_name() {
        assert_eq!(key("/films//a//b").unwrap(), "films|/a//b|");
        assert!(key("//films/a").is_err());
    }

    #[test]
    fn what_leads_out_is_refused() {
        for path in [
            "/films/..",
            "/films/../x",
            "/films/a/../../x",
            "/films/%2e%2e/x",
            "/films/.%2E/x",
            "/films/..%2fx",
            "/films/..%5cx",
            "/films/..\\x",
            "/films/a%2Fb",
            "/films/a%00",
            "/films/a%0d%0aHost:x",
            "/films/a%7f",
            "/films/%",
            "/films/%2",
            "/films/%zz",
        ] {
            assert!(
                matches!(key(path), Err(TargetError::Bad(_))),
                "{path}: {:?}",
                key(path)
            );
        }
        for path in [
            "/",
            "/films",
            "/films/",
            "/films/.",
            "/Films/a",
            "/../etc",
            "/_x/a",
            "/./films/a",
        ] {
            assert!(
                matches!(key(path), Err(TargetError::NotFound(_))),
                "{path}: {:?}",
                key(path)
            );
        }
        assert!(key("*").is_err());
        assert_eq!(
            parse(&format!("/films/{}", "a".repeat(9000)), None),
            Err(TargetError::TooLong)
        );
    }

    #[test]
    fn an_origins_references_stay_below_its_base() {
        let at = |base: &str, reference: &str| {
            let base = Url::parse(base).unwrap();
            let name = resolve_at_origin(&base, "v/1.ts", reference);
            name.map(|(path, query)| format!("{path}?{query}"))
        };
        let at_library = |reference| at("http://origin.example/library/", reference);
        for (reference, name) in [
            ("2.ts", "v/2.ts?"),
            ("2.ts?a=%7e#here", "v/2.ts?a=~"),
            ("../w/%32.ts", "w/2.ts?"),
            ("/library/w/2.ts", "w/2.ts?"),
            ("http://origin.example/library/2.ts", "2.ts?"),
            ("//ORIGIN.example:80/library/2.ts", "2.ts?"),
            ("?x", "v/1.ts?x"),
        ] {
            assert_eq!(at_library(reference).as_deref(), Some(name), "{reference}");
        }
        for elsewhere in [
            "/2.ts",
            "../../2.ts",
            "/library",
            "/libraryother/2.ts",
            "https://origin.example/library/2.ts",
            "http://evil.example/library/2.ts",
            "http://origin.example:8080/library/2.ts",
            "//evil.example/library/2.ts",
            "javascript:alert(1)",
            "a%2fb",
            "http://[",
        ] {
            assert_eq!(at_library(elsewhere), None, "{elsewhere}");
        }
        assert_eq!(at("s3://bucket/films", "2.ts").as_deref(), Some("v/2.ts?"));
    }

    /// However odd the target, the origin URL stays under the source's base.
    fn stays_under_base(path: &str, query: Option<&str>) {
        let Ok(Target::Key { path, query, .. }) = parse(path, query) else {
            return;
        };
        for base in ["http://origin.example", "https://origin.example/library/v2"] {
            let joined = if query.is_empty() {
                format!("{base}/{path}")
            } else {
                format!("{base}/{path}?{query}")
            };
            let url = Url::parse(&joined).unwrap();
            let base = Url::parse(base).unwrap();
            assert_eq!(url.authority(), base.authority(), "{joined}");
            assert_eq!(url.scheme(), base.scheme(), "{joined}");
            let prefix = format!("{}/", base.path().trim_end_matches('/'));
            assert!(url.path().starts_with(&prefix), "{joined} is {url}");
            assert_eq!(url.fragment(), None, "{joined}");
            assert!(
                !joined.bytes().any(|b| b <= b' ' || b >= 0x7f),
                "{joined:?}"
            );
            // No parser normalises it further, so no two parsers can disagree.
            assert_eq!(url.path(), format!("{prefix}{path}"));
        }
        // Normalising is idempotent.
        let again = parse(&format!("/s/{path}"), Some(&query)).unwrap();
        assert_eq!(
            again,
            Target::Key {
                source: "s".into(),
                path,
                query
            }
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn odd_paths_stay_under_the_base(
            rest in "([a-z.%2eEfF5cC0\\\\/@:?#é ]|%2e|%2E|%2f|\\.\\.|//|%25){0,24}",
            query in "[ -~]{0,12}",
        ) {
            stays_under_base(&format!("/s/{rest}"), Some(&query));
        }

        #[test]
        fn arbitrary_text_never_panics(path: String, query: Option<String>) {
            stays_under_base(&path, query.as_deref());
            stays_under_base(&format!("/s/{path}"), query.as_deref());
        }
    }
}
