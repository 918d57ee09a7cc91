//! What an origin's answer to `Range: bytes=0-0` says of an object. Pure.
//!
//! The rules are the edges' (RFC 9110, 14.4; RFC 9111, 3 and 4.2): an entry made here is one an
//! edge would have made.

use std::time::{Duration, UNIX_EPOCH};

use chunkcache_proto::{EntryIdentity, Geometry, identity, v1};
use http::{HeaderMap, StatusCode, header};

/// Where the origin gives no lifetime and the source no default.
const DEFAULT_TTL_SECONDS: u32 = 60;

/// An object that can be cached.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// With its id derived.
    pub entry: v1::Entry,
    /// For how long its key may be answered without asking again.
    pub freshness: v1::Freshness,
}

/// Why there is no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 404 or 410.
    #[error("the origin answered {0}")]
    Absent(u16),
    /// The object is there but is not for a shared cache, or can not be cached in parts.
    #[error("the object can not be cached: {0}")]
    Uncacheable(&'static str),
    /// Anything else; may pass.
    #[error("{0}")]
    Failed(String),
}

/// Reads the answer.
pub fn read(
    status: StatusCode,
    headers: &HeaderMap,
    source: &v1::Source,
    key: &v1::Key,
    chunk_size: u32,
    now_ms: i64,
) -> Result<Found, Refusal> {
    let size = size(status, headers)?;
    let cache_control = joined(headers, header::CACHE_CONTROL);
    let directives = Directives::read(&cache_control);
    if directives.has("no-store") || directives.has("private") {
        return Err(Refusal::Uncacheable("the origin forbids storing it"));
    }
    let vary: Vec<String> = joined(headers, header::VARY)
        .split(',')
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect();
    if vary.iter().any(|name| name == "*") {
        return Err(Refusal::Uncacheable("the origin varies on everything"));
    }
    if text(headers, header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(Refusal::Uncacheable(
            "the origin encodes it although asked not to",
        ));
    }
    let etag = text(headers, header::ETAG);
    let last_modified = text(headers, header::LAST_MODIFIED);
    let validator = identity::validator(etag, last_modified, size)
        .ok_or(Refusal::Uncacheable("the origin gives no validator"))?;
    Geometry::new(size, chunk_size).map_err(|_| Refusal::Uncacheable("it is too large"))?;
    let id = EntryIdentity {
        source: &key.source,
        base_url: &source.base_url,
        path: &key.path,
        query: &key.query,
        variant: &key.variant,
        validator: &validator,
        size_bytes: size,
        chunk_size_bytes: chunk_size,
    }
    .id();
    let initial_age_seconds = text(headers, header::AGE)
        .and_then(|age| age.parse().ok())
        .unwrap_or(0);
    let lifetime = lifetime_seconds(headers, &directives, source);
    let remaining = i64::from(lifetime.saturating_sub(initial_age_seconds));
    Ok(Found {
        entry: v1::Entry {
            id: id.to_string(),
            key: Some(key.clone()),
            size,
            chunk_size,
            validator,
            etag: etag.unwrap_or_default().to_owned(),
            last_modified: last_modified.unwrap_or_default().to_owned(),
            content_type: text(headers, header::CONTENT_TYPE)
                .unwrap_or_default()
                .to_owned(),
            created_at_ms: now_ms,
            pinned: false,
        },
        freshness: v1::Freshness {
            validated_at_ms: now_ms,
            fresh_until_ms: now_ms.saturating_add(remaining * 1000),
            initial_age_seconds,
            cache_control,
            vary,
        },
    })
}

/// Of the whole object.
fn size(status: StatusCode, headers: &HeaderMap) -> Result<u64, Refusal> {
    match status {
        StatusCode::PARTIAL_CONTENT => text(headers, header::CONTENT_RANGE)
            .and_then(|range| range.strip_prefix("bytes 0-0/"))
            .and_then(|size| size.parse().ok())
            .ok_or(Refusal::Uncacheable("the origin does not tell its length")),
        // The origin ignores Range, or the object is empty: its length is the whole.
        StatusCode::OK => text(headers, header::CONTENT_LENGTH)
            .and_then(|length| length.parse().ok())
            .ok_or(Refusal::Uncacheable("the origin does not tell its length")),
        StatusCode::RANGE_NOT_SATISFIABLE
            if text(headers, header::CONTENT_RANGE) == Some("bytes */0") =>
        {
            Ok(0)
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => Err(Refusal::Absent(status.as_u16())),
        other => Err(Refusal::Failed(format!("it answered {other}"))),
    }
}

fn lifetime_seconds(headers: &HeaderMap, directives: &Directives<'_>, source: &v1::Source) -> u32 {
    let policy = source.freshness.unwrap_or_default();
    if let Some(ttl) = policy.override_ttl_seconds {
        return ttl;
    }
    if directives.has("no-cache") {
        return 0;
    }
    let said = directives
        .seconds("s-maxage")
        .or_else(|| directives.seconds("max-age"));
    said.or_else(|| expires_in_seconds(headers))
        .or(policy.default_ttl_seconds)
        .unwrap_or(DEFAULT_TTL_SECONDS)
}

/// `Expires` less `Date`; an unreadable `Expires` is in the past (RFC 9111, 5.3).
fn expires_in_seconds(headers: &HeaderMap) -> Option<u32> {
    let expires = text(headers, header::EXPIRES)?;
    let date = text(headers, header::DATE).and_then(http_date)?;
    let lifetime = http_date(expires).map_or(0, |expires| expires.saturating_sub(date));
    Some(u32::try_from(lifetime).unwrap_or(u32::MAX))
}

fn http_date(date: &str) -> Option<u64> {
    let time = httpdate::parse_http_date(date).ok()?;
    time.duration_since(UNIX_EPOCH)
        .ok()
        .as_ref()
        .map(Duration::as_secs)
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::trim)
}

fn joined(headers: &HeaderMap, name: header::HeaderName) -> String {
    let values: Vec<&str> = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    values.join(", ")
}

/// Of `Cache-Control`, names lower case.
struct Directives<'a>(Vec<(String, Option<&'a str>)>);

impl<'a> Directives<'a> {
    fn read(cache_control: &'a str) -> Self {
        let directives = cache_control.split(',').map(|directive| {
            let (name, value) = directive
                .split_once('=')
                .map_or((directive, None), |(name, value)| {
                    (name, Some(value.trim().trim_matches('"')))
                });
            (name.trim().to_ascii_lowercase(), value)
        });
        Self(directives.collect())
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    fn seconds(&self, name: &str) -> Option<u32> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        // An unreadable lifetime is no lifetime (RFC 9111, 4.2.1).
        Some(value.and_then(|v| v.parse().ok()).unwrap_or(0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn answer(status: u16, headers: &[(&'static str, &'static str)]) -> Result<Found, Refusal> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                (
                    header::HeaderName::from_static(name),
                    value.parse().unwrap(),
                )
            })
            .collect();
        let source = v1::Source {
            name: "films".into(),
            base_url: "http://origin".into(),
            ..Default::default()
        };
        let key = v1::Key {
            source: "films".into(),
            path: "a".into(),
            ..Default::default()
        };
        let status = StatusCode::from_u16(status).unwrap();
        read(status, &headers, &source, &key, 2 << 20, NOW)
    }

    #[test]
    fn a_partial_answer_tells_size_validator_and_lifetime() {
        let found = answer(
            206,
            &[
                ("content-range", "bytes 0-0/1000"),
                ("etag", "\"x\""),
                ("cache-control", "max-age=100, s-maxage=50"),
                ("age", "10"),
            ],
        )
        .unwrap();
        assert_eq!(
            (found.entry.size, found.entry.validator.as_str()),
            (1000, "\"x\"")
        );
        assert_eq!(found.freshness.fresh_until_ms, NOW + 40_000);
    }

    #[test]
    fn an_origin_without_ranges_tells_its_length() {
        let found = answer(
            200,
            &[
                ("content-length", "5"),
                ("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT"),
                ("date", "Mon, 01 Jan 2024 00:00:10 GMT"),
                ("expires", "Mon, 01 Jan 2024 00:01:00 GMT"),
            ],
        )
        .unwrap();
        assert_eq!(found.entry.validator, "Mon, 01 Jan 2024 00:00:00 GMT/5");
        assert_eq!(found.freshness.fresh_until_ms, NOW + 50_000);
    }

    #[test]
    fn refusals() {
        assert_eq!(answer(404, &[]), Err(Refusal::Absent(404)));
        assert!(matches!(answer(503, &[]), Err(Refusal::Failed(_))));
        assert!(matches!(answer(302, &[]), Err(Refusal::Failed(_))));
        for headers in [
            &[("content-range", "bytes 0-0/9")][..],
            &[("content-range", "bytes 0-0/*"), ("etag", "\"x\"")],
            &[("content-range", "bytes 0-0/9"), ("etag", "W/\"x\"")],
            &[
                ("content-range", "bytes 0-0/9"),
                ("etag", "\"x\""),
                ("cache-control", "Private"),
            ],
            &[
                ("content-range", "bytes 0-0/9"),
                ("etag", "\"x\""),
                ("vary", "*"),
            ],
        ] {
            assert!(
                matches!(answer(206, headers), Err(Refusal::Uncacheable(_))),
                "{headers:?}"
            );
        }
    }

    #[test]
    fn an_empty_object_has_an_entry() {
        let found = answer(416, &[("content-range", "bytes */0"), ("etag", "\"x\"")]).unwrap();
        assert_eq!(found.entry.size, 0);
    }
}
