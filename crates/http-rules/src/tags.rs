//! Tags that origins give their objects, by which they are purged together: `Surrogate-Key`
//! (separated by spaces), `Cache-Tag` (by commas) and `Cache-Groups` (RFC 9875: a list of strings).

use http::HeaderMap;

/// The fields that hold tags, in lower case.
pub const FIELDS: [&str; 3] = ["surrogate-key", "cache-tag", "cache-groups"];
/// Maximum number of tags of one object; further ones are left out.
pub const MAX_TAGS: usize = 256;
/// A longer tag is left out.
pub const MAX_TAG_BYTES: usize = 1024;

/// All tags of an answer, each once, in order.
#[must_use]
pub fn of(headers: &HeaderMap) -> Vec<String> {
    let mut tags: Vec<String> = written(headers).map(str::to_owned).collect();
    tags.sort_unstable();
    tags.dedup();
    tags
}

/// Whether the answer has the tag.
#[must_use]
pub fn has(headers: &HeaderMap, tag: &str) -> bool {
    written(headers).any(|written| written == tag)
}

fn written(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = |name: &'static str| {
        let values = headers.get_all(name).iter();
        values.filter_map(|value| std::str::from_utf8(value.as_bytes()).ok())
    };
    let keys = values(FIELDS[0]).flat_map(str::split_whitespace);
    let tags = values(FIELDS[1]).flat_map(|value| value.split(',').map(str::trim));
    let groups = values(FIELDS[2]).flat_map(strings);
    keys.chain(tags)
        .chain(groups)
        .filter(|tag| !tag.is_empty() && tag.len() <= MAX_TAG_BYTES)
        .filter(|tag| !tag.contains(char::is_control))
        .take(MAX_TAGS)
}

/// The strings of a structured list (RFC 9651, 3.1). Strings with an escape are left out, because
/// they cannot be compared without decoding.
fn strings(list: &str) -> impl Iterator<Item = &str> {
    let quoted = list.split('"').skip(1).step_by(2);
    quoted.filter(|string| !string.contains('\\'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn each_field_has_its_own_way_to_write_them() {
        let answer = headers(&[
            ("surrogate-key", "show-7  season-1"),
            ("surrogate-key", "all"),
            ("cache-tag", "a b, c ,,all"),
            ("cache-groups", "\"g, 1\", \"g2\";x=1, \"e\\\"s\""),
        ]);
        assert_eq!(
            of(&answer),
            ["a b", "all", "c", "g, 1", "g2", "season-1", "show-7"]
        );
        assert!(has(&answer, "season-1") && has(&answer, "g, 1"));
        assert!(!has(&answer, "season") && !has(&answer, ""));
        assert!(of(&headers(&[])).is_empty());
    }

    #[test]
    fn they_are_bounded() {
        let many: Vec<String> = (0..1_000).map(|number| format!("t{number}")).collect();
        assert_eq!(
            of(&headers(&[("surrogate-key", &many.join(" "))])).len(),
            MAX_TAGS
        );
        let long = "x".repeat(MAX_TAG_BYTES + 1);
        assert!(of(&headers(&[("cache-tag", &long)])).is_empty());
    }
}
