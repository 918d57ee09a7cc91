//! The fields of an origin's answer that are stored with its object (RFC 9111, 3.1) and refreshed
//! by a 304 (3.2).

use chunkcache_proto::v1;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{freshness, origin_answer::joined, tags};

/// Limit for one object, names and values. Further fields are dropped.
pub const MAX_BYTES: usize = 8 << 10;

/// Fields that concern one connection or one answer, or that the cache sets itself.
const NOT_KEPT: [&str; 32] = [
    // RFC 9110, 7.6.1.
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    // These concern one client.
    "set-cookie",
    "set-cookie2",
    "www-authenticate",
    "authentication-info",
    // These concern one answer.
    "accept-ranges",
    "age",
    "alt-svc",
    "cmsd-dynamic",
    // These two are checksums of the one message, which may be a part (RFC 9530, 2; RFC 7231, B).
    "content-digest",
    "content-md5",
    "content-encoding",
    "content-length",
    "content-range",
    "date",
    "retry-after",
    "server",
    "via",
    // These are stored elsewhere.
    "cache-control",
    "content-type",
    "etag",
    "last-modified",
    "vary",
];

/// Selects the fields of a 200 or 206 to store.
#[must_use]
pub fn kept(headers: &HeaderMap) -> Vec<v1::Header> {
    let unwanted = named_by_origin(headers);
    let mut bytes = 0;
    let mut fields = Vec::new();
    // Tags first, because purging an object by its tags matters more than fields that are only
    // displayed.
    let is_tag = |name: &str| tags::FIELDS.contains(&name);
    let (tagging, others): (Vec<_>, Vec<_>) =
        headers.iter().partition(|(name, _)| is_tag(name.as_str()));
    for (name, value) in tagging.into_iter().chain(others) {
        let name = name.as_str();
        let Ok(value) = std::str::from_utf8(value.as_bytes()) else {
            continue;
        };
        if NOT_KEPT.contains(&name) || unwanted.iter().any(|it| it == name) {
            continue;
        }
        bytes += name.len() + value.len();
        if bytes > MAX_BYTES {
            break;
        }
        fields.push(v1::Header {
            name: name.to_owned(),
            value: value.to_owned(),
        });
    }
    fields
}

/// Merges the fields of a 304 into those of the object that it confirmed: a field in the 304
/// replaces the stored one of the same name.
#[must_use]
pub fn refreshed(old: &[v1::Header], not_modified: &HeaderMap) -> Vec<v1::Header> {
    let mut fields = kept(not_modified);
    let mut bytes: usize = fields.iter().map(|it| it.name.len() + it.value.len()).sum();
    for field in old {
        if not_modified.contains_key(&field.name) {
            continue;
        }
        bytes += field.name.len() + field.value.len();
        if bytes > MAX_BYTES {
            break;
        }
        fields.push(field.clone());
    }
    fields
}

/// Converts stored fields to headers. Fields from another machine are checked again.
#[must_use]
pub fn to_headers(fields: &[v1::Header]) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        if let Ok(name) = HeaderName::from_bytes(field.name.as_bytes())
            && let Ok(value) = HeaderValue::from_bytes(field.value.as_bytes())
            && !NOT_KEPT.contains(&name.as_str())
        {
            headers.append(name, value);
        }
    }
    headers
}

/// The fields of a request or an answer that are meant for others than the next hop (RFC 9110,
/// 7.6.1): without those that `Connection` names. What a client names there, no origin gets, and it
/// selects no variant.
#[must_use]
pub fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    let named = joined(headers, header::CONNECTION);
    let names = named.split(',').map(|name| name.trim().as_bytes());
    for name in names.filter_map(|name| HeaderName::from_bytes(name).ok()) {
        kept.remove(name);
    }
    kept
}

/// Names listed in `Connection`, and the arguments of `no-cache` and `private`.
fn named_by_origin(headers: &HeaderMap) -> Vec<String> {
    let connection = joined(headers, header::CONNECTION);
    let control = joined(headers, header::CACHE_CONTROL);
    let of_connection = connection
        .split(',')
        .map(|name| name.trim().to_ascii_lowercase());
    of_connection
        .chain(freshness::named_fields(&control))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn names(fields: &[v1::Header]) -> Vec<&str> {
        fields.iter().map(|field| field.name.as_str()).collect()
    }

    #[test]
    fn all_but_what_is_not_the_objects() {
        let answer = headers(&[
            ("content-disposition", "attachment; filename=\"é\""),
            ("content-language", "de"),
            ("cross-origin-resource-policy", "cross-origin"),
            ("x-amz-meta-title", "film"),
            ("surrogate-key", "a b"),
            ("link", "<a>; rel=next"),
            ("link", "<b>; rel=prev"),
            ("expires", "0"),
            ("set-cookie", "a=b"),
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("x-session", "2"),
            ("x-user", "3"),
            (
                "cache-control",
                "no-cache=\"X-Session\", private=\"x-user, other\"",
            ),
            ("content-length", "5"),
            ("etag", "\"1\""),
            ("transfer-encoding", "chunked"),
        ]);
        let fields = kept(&answer);
        assert_eq!(
            names(&fields),
            [
                "surrogate-key",
                "content-disposition",
                "content-language",
                "cross-origin-resource-policy",
                "x-amz-meta-title",
                "link",
                "link",
                "expires",
            ]
        );
        let sent = to_headers(&fields);
        assert_eq!(sent.get_all("link").iter().count(), 2);
        assert_eq!(
            sent["content-disposition"].as_bytes(),
            "attachment; filename=\"é\"".as_bytes()
        );
    }

    #[test]
    fn a_304_refreshes_what_it_says() {
        let old = kept(&headers(&[("x-a", "1"), ("x-b", "1"), ("x-b", "2")]));
        let fields = refreshed(&old, &headers(&[("x-b", "3"), ("x-c", "4")]));
        let sent = to_headers(&fields);
        assert_eq!((&sent["x-a"], &sent["x-b"], &sent["x-c"]).0, "1");
        assert_eq!(sent.get_all("x-b").iter().collect::<Vec<_>>(), ["3"]);
        assert_eq!(sent["x-c"], "4");
    }

    #[test]
    fn what_connection_names_is_for_the_next_hop() {
        let all = headers(&[
            ("connection", "close, X-Hop"),
            ("connection", "x-other, \"bad\""),
            ("x-hop", "1"),
            ("x-other", "1"),
            ("x-end", "1"),
        ]);
        let kept = end_to_end(&all);
        let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["connection", "x-end"]);
    }

    #[test]
    fn they_are_bounded() {
        let long = "x".repeat(3_000);
        let answer = headers(&[("x-a", &long), ("x-b", &long), ("x-c", &long), ("x-d", "1")]);
        assert_eq!(names(&kept(&answer)), ["x-a", "x-b"]);
        let old = kept(&headers(&[("x-c", &long)]));
        assert_eq!(names(&refreshed(&old, &answer)), ["x-a", "x-b"]);
    }

    #[test]
    fn what_another_machine_sends_is_checked() {
        let field = |name: &str, value: &str| v1::Header {
            name: name.into(),
            value: value.into(),
        };
        let sent = to_headers(&[
            field("x a", "1"),
            field("x-b", "1\r\nx-c: 2"),
            field("content-length", "7"),
            field("x-d", "1"),
        ]);
        assert_eq!(sent.len(), 1);
    }
}
