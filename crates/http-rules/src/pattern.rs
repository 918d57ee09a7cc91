//! Patterns of operators: `*` matches any text, including none; everything else matches itself.

/// Whether all of `text` matches.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        // The earliest match leaves the most text for the parts after it.
        let Some(found) = rest.find(part) else {
            return false;
        };
        rest = &rest[found + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stars_match_any_text() {
        for (pattern, text) in [
            ("a", "a"),
            ("*", ""),
            ("*", "anything/at all"),
            ("utm_*", "utm_"),
            ("utm_*", "utm_source"),
            ("*.m3u8", "live/a.m3u8"),
            ("live/*/low.*", "live/a/b/low.ts"),
            ("a*a", "aa"),
            ("*ab*ab", "xabyabab"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("a", "ab"),
            ("", "a"),
            ("utm_*", "UTM_source"),
            ("*.m3u8", "a.m3u8.bak"),
            ("a*a", "a"),
            ("*ab*ab", "xabb"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    /// A slow reference implementation.
    fn slowly(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|at| slowly(rest, &text[at..])),
            Some((first, rest)) => text.first() == Some(first) && slowly(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn it_is_what_the_definition_says(pattern in "[ab*]{0,7}", text in "[ab]{0,9}") {
            prop_assert_eq!(
                matches(&pattern, &text),
                slowly(pattern.as_bytes(), text.as_bytes())
            );
        }
    }
}
