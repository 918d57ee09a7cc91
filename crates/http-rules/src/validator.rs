//! The validator of an object: what tells one version of it from another.

/// The validator of an object, in clear: its strong ETag with the quotes, else
/// `<Last-Modified>/<size>`, else none. A weak ETag promises the same
/// meaning, not the same bytes, so it can not guard ranges (RFC 9110, 8.8.1); but where two
/// differ so do the objects, so it stands beside the date: `<Last-Modified>/<size>/W/"…"`.
#[must_use]
pub fn validator(
    etag: Option<&str>,
    last_modified: Option<&str>,
    size_bytes: u64,
) -> Option<String> {
    let date = last_modified.filter(|date| !date.is_empty());
    match (etag, date) {
        (Some(etag), _) if is_strong(etag) => Some(etag.to_owned()),
        (Some(weak), Some(date)) if weak.starts_with("W/") => {
            Some(format!("{date}/{size_bytes}/{weak}"))
        }
        (_, Some(date)) => Some(format!("{date}/{size_bytes}")),
        (_, None) => None,
    }
}

/// A strong entity tag: quoted, not prefixed by `W/`.
#[must_use]
pub fn is_strong(etag: &str) -> bool {
    etag.len() >= 2 && etag.starts_with('"') && etag.ends_with('"')
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
            validator(Some("bare"), Some("Mon"), 5).as_deref(),
            Some("Mon/5")
        );
    }
}
