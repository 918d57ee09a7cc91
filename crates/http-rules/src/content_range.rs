//! `Content-Range` as an origin sends it (RFC 9110, 14.4).

use chunkcache_proto::ByteRange;

/// The parsed field. Half-open, unlike on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentRange {
    /// `bytes first-last/size`, or `/*` if the size is unknown.
    Satisfied { range: ByteRange, size: Option<u64> },
    /// `bytes */size`, of a 416.
    Unsatisfied { size: u64 },
}

/// `None` for everything that is not exactly one of the two forms: a sender that cannot write this
/// field correctly is not trusted.
#[must_use]
pub fn parse(value: &str) -> Option<ContentRange> {
    let (unit, rest) = value.trim().split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, size) = rest.trim().split_once('/')?;
    let size = match size {
        "*" => None,
        digits => Some(number(digits)?),
    };
    if range == "*" {
        return Some(ContentRange::Unsatisfied { size: size? });
    }
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    if last < first || size.is_some_and(|size| last >= size) {
        return None;
    }
    Some(ContentRange::Satisfied {
        range: ByteRange::new(first, last.checked_add(1)?),
        size,
    })
}

/// Parses digits only; `u64::from_str` would accept a sign.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms() {
        let satisfied = |start, end, size| {
            Some(ContentRange::Satisfied {
                range: ByteRange::new(start, end),
                size,
            })
        };
        assert_eq!(parse("bytes 0-9/100"), satisfied(0, 10, Some(100)));
        assert_eq!(parse("Bytes 5-5/*"), satisfied(5, 6, None));
        assert_eq!(
            parse("bytes */7"),
            Some(ContentRange::Unsatisfied { size: 7 })
        );
        for bad in [
            "",
            "bytes",
            "bytes 0-9",
            "bytes 9-0/100",
            "bytes 0-100/100",
            "bytes +1-2/9",
            "items 0-1/2",
            "bytes */*",
            "bytes 0-18446744073709551615/*",
            "bytes 99999999999999999999-1/2",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_taken_without_panic(text in ".{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_is_read(
            first in 0u64..1 << 50,
            len in 1u64..1 << 40,
            after in 0u64..1 << 40,
        ) {
            let end = first + len;
            let text = format!("bytes {}-{}/{}", first, end - 1, end + after);
            prop_assert_eq!(
                parse(&text),
                Some(ContentRange::Satisfied { range: ByteRange::new(first, end),
                    size: Some(end + after) })
            );
        }
    }
}
