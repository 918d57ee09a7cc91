//! The validator of an object: distinguishes its versions (RFC 9110, 8.8).

use std::borrow::Cow;

/// A date is as good as a strong tag only if it is this much older than its answer (RFC 9110,
/// 8.8.2.2): an object can change twice within one second.
const DATE_RESOLUTION_MS: i64 = 1_000;

/// The validator of an object, in clear: its strong ETag with the quotes, otherwise
/// `<Last-Modified>/<size>`, otherwise none. A weak ETag promises the same meaning, not the same
/// bytes, so it cannot guard ranges (RFC 9110, 8.8.1). But different weak tags mean different
/// objects, so it is appended to the date: `<Last-Modified>/<size>/W/"…"`.
#[must_use]
pub fn validator(
    etag: Option<&str>,
    last_modified: Option<&str>,
    size_bytes: u64,
) -> Option<String> {
    let date = last_modified.filter(|date| !date.is_empty());
    match (etag.filter(|etag| !etag.is_empty()), date) {
        (Some(etag), _) if is_strong(etag) => Some(quoted(etag).into_owned()),
        (Some(other), Some(date)) => Some(format!("{date}/{size_bytes}/{other}")),
        (None, Some(date)) => Some(format!("{date}/{size_bytes}")),
        (_, None) => None,
    }
}

/// Whether `Last-Modified` distinguishes versions, in an answer with this date.
#[must_use]
pub fn is_date_strong(last_modified_ms: i64, date_ms: i64) -> bool {
    last_modified_ms.saturating_add(DATE_RESOLUTION_MS) <= date_ms
}

/// Whether an entity tag is strong: no `W/`; quoted, or a plain word if an origin omits the quotes.
#[must_use]
pub fn is_strong(etag: &str) -> bool {
    let is_quoted = etag.len() >= 2 && etag.starts_with('"') && etag.ends_with('"');
    is_quoted || (is_word(etag) && !etag.starts_with("W/"))
}

/// An entity tag as HTTP writes it: a tag without quotes gets them. Only for clients; requests to
/// the origin contain the tag as the origin sent it.
#[must_use]
pub fn quoted(etag: &str) -> Cow<'_, str> {
    let (weak, tag) = match etag.strip_prefix("W/") {
        Some(tag) => ("W/", tag),
        None => ("", etag),
    };
    if is_word(tag) {
        Cow::Owned(format!("{weak}\"{tag}\""))
    } else {
        Cow::Borrowed(etag)
    }
}

/// Whether a tag lacks the quotes it needs.
fn is_word(tag: &str) -> bool {
    !tag.is_empty()
        && tag
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_tags_do_not_validate() {
        assert_eq!(validator(Some("W/\"1\""), None, 5), None);
        assert_eq!(
            validator(Some("\"1\""), Some("x"), 5).as_deref(),
            Some("\"1\"")
        );
        assert_eq!(
            validator(Some("W/\"1\""), Some("Mon"), 5).as_deref(),
            Some("Mon/5/W/\"1\""),
            "not the same where the tags differ"
        );
        assert_eq!(validator(None, Some("Mon"), 5).as_deref(), Some("Mon/5"));
        assert_eq!(
            validator(Some(""), Some("Mon"), 5).as_deref(),
            Some("Mon/5")
        );
    }

    #[test]
    fn a_tag_without_quotes_is_a_tag() {
        let of = |etag| validator(Some(etag), Some("Mon"), 5);
        assert_eq!(of("abc").as_deref(), Some("\"abc\""));
        assert_ne!(of("abc"), of("abd"));
        assert_eq!(of("abc"), of("\"abc\""), "the same tag, once mended");
        assert_ne!(of("\"broken"), of("\"braken"), "whatever it is, it differs");
        assert_eq!(quoted("abc"), "\"abc\"");
        assert_eq!(quoted("W/abc"), "W/\"abc\"");
        for whole in ["\"abc\"", "W/\"abc\"", "", "\"", "a b"] {
            assert_eq!(quoted(whole), whole);
        }
    }

    #[test]
    fn a_date_of_this_second_tells_nothing() {
        assert!(!is_date_strong(5_000, 5_000));
        assert!(!is_date_strong(5_000, 5_999));
        assert!(is_date_strong(5_000, 6_000));
        assert!(!is_date_strong(9_000, 5_000), "in the future");
    }
}
