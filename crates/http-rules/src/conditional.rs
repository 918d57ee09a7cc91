//! Conditional requests, in the order of precedence of RFC 9110, 13.2.2.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{
    origin_answer::epoch_ms,
    validator::{is_date_strong, quoted},
};

/// Request fields that select a part of an answer, or one without a body.
pub const SELECTING: [HeaderName; 6] = [
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
];

/// The validators of the selected representation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Validators<'a> {
    /// As in the origin's `ETag`, including `W/`; one without quotes is compared as if it had them.
    pub etag: Option<&'a str>,
    /// As in the `Last-Modified` header.
    pub last_modified: Option<&'a str>,
    /// When the origin gave or confirmed the representation, in ms since the Unix epoch.
    pub given_ms: i64,
}

/// How to handle a GET or HEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer; `ignore_range` if `If-Range` named another version.
    Proceed { ignore_range: bool },
    /// 304
    NotModified,
    /// 412
    PreconditionFailed,
}

/// Evaluates all preconditions of a GET or HEAD on an object that exists.
#[must_use]
pub fn evaluate(headers: &HeaderMap, validators: Validators<'_>) -> Verdict {
    let modified_at = validators.last_modified.and_then(parse_date);

    // Steps 1 and 2.
    if headers.contains_key(header::IF_MATCH) {
        if !any_tag(headers, &header::IF_MATCH, |tag| {
            strong_match(tag, validators.etag)
        }) {
            return Verdict::PreconditionFailed;
        }
    } else if let (Some(since), Some(modified_at)) = (
        only_date(headers, &header::IF_UNMODIFIED_SINCE),
        modified_at,
    ) && modified_at > since
    {
        return Verdict::PreconditionFailed;
    }

    // Steps 3 and 4.
    if headers.contains_key(header::IF_NONE_MATCH) {
        if any_tag(headers, &header::IF_NONE_MATCH, |tag| {
            weak_match(tag, validators.etag)
        }) {
            return Verdict::NotModified;
        }
    } else if let (Some(since), Some(modified_at)) =
        (only_date(headers, &header::IF_MODIFIED_SINCE), modified_at)
        && modified_at <= since
    {
        return Verdict::NotModified;
    }

    // Step 5.
    let ignore_range =
        headers.contains_key(header::IF_RANGE) && !if_range_holds(headers, validators);
    Verdict::Proceed { ignore_range }
}

/// RFC 9110, 13.1.5: an equal strong tag, or exactly the date of the representation, if it is a
/// strong validator: two versions of one second have the same.
fn if_range_holds(headers: &HeaderMap, validators: Validators<'_>) -> bool {
    let Some(value) = only_value(headers, &header::IF_RANGE) else {
        return false;
    };
    let Some(text) = value.to_str().ok().map(str::trim) else {
        return false;
    };
    if text.starts_with('"') || text.starts_with("W/") {
        return strong_match(text, validators.etag);
    }
    match (
        parse_date(text),
        validators.last_modified.and_then(parse_date),
    ) {
        (Some(asked), Some(is)) => asked == is && is_date_strong(epoch_ms(is), validators.given_ms),
        _ => false,
    }
}

/// RFC 9110, 8.8.3.2: equal, and neither is weak.
fn strong_match(asked: &str, is: Option<&str>) -> bool {
    is.is_some_and(|is| !asked.starts_with("W/") && !is.starts_with("W/") && asked == quoted(is))
}

/// Equal, ignoring `W/`.
fn weak_match(asked: &str, is: Option<&str>) -> bool {
    let opaque = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    is.is_some_and(|is| opaque(asked) == opaque(&quoted(is)))
}

/// `*`, or a tag of the list that `matches` accepts. Everything after a malformed tag is ignored.
fn any_tag(headers: &HeaderMap, name: &header::HeaderName, matches: impl Fn(&str) -> bool) -> bool {
    headers.get_all(name).iter().any(|value| {
        let Ok(text) = std::str::from_utf8(value.as_bytes()) else {
            return false;
        };
        text.trim() == "*" || EntityTags(text).any(&matches)
    })
}

/// Parses the entity tags of a list; a comma inside of the quotes is part of the tag.
struct EntityTags<'a>(&'a str);

impl<'a> Iterator for EntityTags<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start_matches([' ', '\t', ',']);
        let prefix = if text.starts_with("W/") { 2 } else { 0 };
        let quoted = text[prefix..].strip_prefix('"')?;
        let length = prefix + quoted.find('"')? + 2;
        self.0 = &text[length..];
        Some(&text[..length])
    }
}

/// A date field that occurs once and is valid; otherwise it is ignored (13.1.3, 13.1.4).
fn only_date(headers: &HeaderMap, name: &header::HeaderName) -> Option<SystemTime> {
    parse_date(only_value(headers, name)?.to_str().ok()?)
}

fn only_value<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

fn parse_date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim()).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAG: &str = "\"v1\"";
    const DATE: &str = "Sat, 29 Oct 1994 19:43:31 GMT";
    const EARLIER: &str = "Sat, 29 Oct 1994 19:43:30 GMT";
    const LATER: &str = "Sat, 29 Oct 1994 19:43:32 GMT";
    /// A minute after `DATE`.
    const GIVEN_MS: i64 = 783_459_871_000;
    const PROCEED: Verdict = Verdict::Proceed {
        ignore_range: false,
    };
    const WHOLE: Verdict = Verdict::Proceed { ignore_range: true };
    const BOTH: Validators<'_> = Validators {
        etag: Some(TAG),
        last_modified: Some(DATE),
        given_ms: GIVEN_MS,
    };

    fn judge(validators: Validators<'_>, fields: &[(&'static str, &str)]) -> Verdict {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        evaluate(&headers, validators)
    }

    #[test]
    fn no_condition() {
        assert_eq!(judge(BOTH, &[]), PROCEED);
    }

    #[test]
    fn if_match_compares_strongly() {
        let weak = Validators {
            etag: Some("W/\"v1\""),
            ..BOTH
        };
        assert_eq!(judge(BOTH, &[("if-match", TAG)]), PROCEED);
        assert_eq!(judge(BOTH, &[("if-match", "\"a,b\", \"v1\"")]), PROCEED);
        assert_eq!(
            judge(BOTH, &[("if-match", "\"a\""), ("if-match", TAG)]),
            PROCEED
        );
        assert_eq!(judge(BOTH, &[("if-match", "*")]), PROCEED);
        assert_eq!(
            judge(BOTH, &[("if-match", "\"v2\"")]),
            Verdict::PreconditionFailed
        );
        assert_eq!(
            judge(BOTH, &[("if-match", "W/\"v1\"")]),
            Verdict::PreconditionFailed
        );
        assert_eq!(
            judge(weak, &[("if-match", "W/\"v1\"")]),
            Verdict::PreconditionFailed
        );
        assert_eq!(
            judge(BOTH, &[("if-match", "v1")]),
            Verdict::PreconditionFailed
        );
        let untagged = Validators { etag: None, ..BOTH };
        assert_eq!(
            judge(untagged, &[("if-match", TAG)]),
            Verdict::PreconditionFailed
        );
        assert_eq!(judge(untagged, &[("if-match", "*")]), PROCEED);
    }

    #[test]
    fn if_unmodified_since() {
        assert_eq!(judge(BOTH, &[("if-unmodified-since", DATE)]), PROCEED);
        assert_eq!(
            judge(BOTH, &[("if-unmodified-since", EARLIER)]),
            Verdict::PreconditionFailed
        );
        assert_eq!(judge(BOTH, &[("if-unmodified-since", "soon")]), PROCEED);
        let undated = Validators {
            last_modified: None,
            ..BOTH
        };
        assert_eq!(judge(undated, &[("if-unmodified-since", EARLIER)]), PROCEED);
    }

    #[test]
    fn if_none_match_compares_weakly() {
        assert_eq!(judge(BOTH, &[("if-none-match", TAG)]), Verdict::NotModified);
        assert_eq!(
            judge(BOTH, &[("if-none-match", "W/\"v1\"")]),
            Verdict::NotModified
        );
        assert_eq!(judge(BOTH, &[("if-none-match", "*")]), Verdict::NotModified);
        assert_eq!(judge(BOTH, &[("if-none-match", "\"v2\"")]), PROCEED);
        assert_eq!(
            judge(BOTH, &[("if-none-match", "\"v2, \"v1")]),
            PROCEED,
            "malformed"
        );
    }

    #[test]
    fn if_modified_since() {
        assert_eq!(
            judge(BOTH, &[("if-modified-since", DATE)]),
            Verdict::NotModified
        );
        assert_eq!(
            judge(BOTH, &[("if-modified-since", LATER)]),
            Verdict::NotModified
        );
        assert_eq!(judge(BOTH, &[("if-modified-since", EARLIER)]), PROCEED);
        assert_eq!(judge(BOTH, &[("if-modified-since", "yesterday")]), PROCEED);
    }

    #[test]
    fn the_older_dates_of_http_are_read_too() {
        assert_eq!(
            judge(
                BOTH,
                &[("if-modified-since", "Saturday, 29-Oct-94 19:43:31 GMT")]
            ),
            Verdict::NotModified
        );
        assert_eq!(
            judge(BOTH, &[("if-modified-since", "Sat Oct 29 19:43:31 1994")]),
            Verdict::NotModified
        );
    }

    #[test]
    fn tags_take_precedence_over_dates() {
        assert_eq!(
            judge(BOTH, &[("if-match", TAG), ("if-unmodified-since", EARLIER)]),
            PROCEED
        );
        assert_eq!(
            judge(
                BOTH,
                &[("if-none-match", "\"v2\""), ("if-modified-since", LATER)]
            ),
            PROCEED
        );
        assert_eq!(
            judge(BOTH, &[("if-match", "\"v2\""), ("if-none-match", TAG)]),
            Verdict::PreconditionFailed,
            "If-Match comes first"
        );
        assert_eq!(
            judge(BOTH, &[("if-match", TAG), ("if-none-match", TAG)]),
            Verdict::NotModified
        );
    }

    #[test]
    fn if_range_with_tags() {
        assert_eq!(judge(BOTH, &[("if-range", TAG)]), PROCEED);
        assert_eq!(judge(BOTH, &[("if-range", "\"v2\"")]), WHOLE);
        assert_eq!(judge(BOTH, &[("if-range", "W/\"v1\"")]), WHOLE);
        assert_eq!(judge(BOTH, &[("if-range", TAG), ("if-range", TAG)]), WHOLE);
    }

    #[test]
    fn if_range_with_dates_wants_the_very_date() {
        assert_eq!(judge(BOTH, &[("if-range", DATE)]), PROCEED);
        assert_eq!(judge(BOTH, &[("if-range", EARLIER)]), WHOLE);
        assert_eq!(judge(BOTH, &[("if-range", LATER)]), WHOLE);
        assert_eq!(judge(BOTH, &[("if-range", "nonsense")]), WHOLE);
    }

    #[test]
    fn if_range_with_the_date_of_this_second_proves_nothing() {
        for (after_ms, verdict) in [(-5_000, WHOLE), (999, WHOLE), (1_000, PROCEED)] {
            let young = Validators {
                given_ms: GIVEN_MS - 60_000 + after_ms,
                ..BOTH
            };
            assert_eq!(judge(young, &[("if-range", DATE)]), verdict, "{after_ms}");
            assert_eq!(judge(young, &[("if-range", TAG)]), PROCEED, "{after_ms}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(
            name in 0usize..5,
            value in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let names = ["if-match", "if-none-match", "if-range", "if-modified-since",
                "if-unmodified-since"];
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut headers = HeaderMap::new();
                headers.append(names[name], value);
                let _ = evaluate(&headers, BOTH);
            }
        }
    }
}
