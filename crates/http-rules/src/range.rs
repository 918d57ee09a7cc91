//! Range requests: from a `Range` header to the bytes to send (RFC 9110, 14).
//!
//! Two steps, because the size of a cold object is known only after a request to the origin:
//! [`parse`] reads the header, [`RangeSet::resolve`] applies it to a size. An invalid header is
//! ignored and not an error (14.2): the answer is the whole object.

use chunkcache_proto::ByteRange;
use http::{HeaderMap, header};

/// With more ranges than this after coalescing, the answer is the whole object, as 14.2 allows:
/// each range is a part with its own header, and no player requests so many.
pub const MAX_RANGES: usize = 16;

/// Digits of the largest number.
const MAX_DIGITS: usize = 20;

/// `bytes `, three numbers and their separators.
const CONTENT_RANGE_BYTES: usize = 6 + 3 * MAX_DIGITS + 2;

/// A header with more specs than this is ignored.
const MAX_SPECS: usize = 128;

/// One element of a ranges-specifier, as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    /// `first-` or `first-last`; `last` is inclusive.
    From { first: u64, last: Option<u64> },
    /// `-length`: the last N bytes.
    Suffix(u64),
}

/// A valid `Range` header in `bytes`; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<RangeSpec>);

/// The answer to a range set for an object of a known size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// 200: the whole object.
    Whole,
    /// 206 with `Content-Range`.
    Single(ByteRange),
    /// 206 as `multipart/byteranges`; at least two, disjoint, in the requested order.
    Several(Vec<ByteRange>),
    /// 416 with `Content-Range: bytes */size`.
    NotSatisfiable,
}

/// Reads a `Range` header. `None`: not in `bytes`, malformed, or excessive; to be ignored.
#[must_use]
pub fn parse(header: &[u8]) -> Option<RangeSet> {
    let header = std::str::from_utf8(header).ok()?;
    let (unit, specs) = header.trim_matches(is_ows).split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut parsed = Vec::new();
    for spec in specs.split(',').map(|spec| spec.trim_matches(is_ows)) {
        // Empty list elements are ignored (RFC 9110, 5.6.1.2).
        if spec.is_empty() {
            continue;
        }
        if parsed.len() == MAX_SPECS {
            return None;
        }
        parsed.push(parse_spec(spec)?);
    }
    if parsed.is_empty() {
        None
    } else {
        Some(RangeSet(parsed))
    }
}

/// The ranges of a request. Of several lines none counts, because `Range` is no list (RFC 9110,
/// 5.3).
#[must_use]
pub fn requested(headers: &HeaderMap) -> Option<RangeSet> {
    let mut values = headers.get_all(header::RANGE).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => parse(value.as_bytes()),
        _ => None,
    }
}

impl RangeSet {
    /// The first spec as written, which is used to request a cold object.
    #[must_use]
    pub fn first(&self) -> RangeSpec {
        self.0[0]
    }

    /// Selects the bytes of an object of `size` bytes.
    #[must_use]
    pub fn resolve(&self, size: u64) -> Selection {
        // Content-Range cannot express an empty range; a suffix of an empty object is all of it.
        if size == 0
            && self
                .0
                .iter()
                .any(|spec| matches!(spec, RangeSpec::Suffix(1..)))
        {
            return Selection::Whole;
        }
        if let [spec] = self.0[..] {
            return spec
                .within(size)
                .map_or(Selection::NotSatisfiable, Selection::Single);
        }
        let mut ranges: Vec<ByteRange> = Vec::new();
        for range in self.0.iter().filter_map(|spec| spec.within(size)) {
            coalesce_into(&mut ranges, range);
        }
        match ranges.len() {
            0 => Selection::NotSatisfiable,
            1 => Selection::Single(ranges[0]),
            2..=MAX_RANGES => Selection::Several(ranges),
            _ => Selection::Whole,
        }
    }
}

impl RangeSpec {
    fn within(self, size: u64) -> Option<ByteRange> {
        let range = match self {
            Self::From { first, last } => {
                let end = last.map_or(size, |last| last.saturating_add(1).min(size));
                ByteRange::new(first, end)
            }
            Self::Suffix(length) => ByteRange::new(size.saturating_sub(length), size),
        };
        if range.is_empty() { None } else { Some(range) }
    }
}

/// `Content-Range` of a part.
#[must_use]
pub fn content_range(range: ByteRange, size: u64) -> String {
    debug_assert!(!range.is_empty() && range.end <= size);
    // Formatted by hand, because it is made for each hit, and the formatter would cost more than
    // the rest of the header.
    let mut text = String::with_capacity(CONTENT_RANGE_BYTES);
    text.push_str("bytes ");
    push_number(&mut text, range.start);
    text.push('-');
    push_number(&mut text, range.end.saturating_sub(1));
    text.push('/');
    push_number(&mut text, size);
    text
}

/// Appends a number in decimal digits.
fn push_number(text: &mut String, mut number: u64) {
    let mut digits = [0; MAX_DIGITS];
    let mut at = MAX_DIGITS;
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend(digits[at..].iter().map(|digit| char::from(*digit)));
}

/// `Content-Range` of a 416.
#[must_use]
pub fn unsatisfied_range(size: u64) -> String {
    format!("bytes */{size}")
}

fn is_ows(c: char) -> bool {
    c == ' ' || c == '\t'
}

fn parse_spec(spec: &str) -> Option<RangeSpec> {
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        return parse_position(last).map(RangeSpec::Suffix);
    }
    let first = parse_position(first)?;
    if last.is_empty() {
        return Some(RangeSpec::From { first, last: None });
    }
    let last = parse_position(last)?;
    (first <= last).then_some(RangeSpec::From {
        first,
        last: Some(last),
    })
}

/// Parses digits only. A number that is too large is past the end of every object, so it saturates.
fn parse_position(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(digits.bytes().fold(0u64, |value, digit| {
        value
            .saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    }))
}

/// Adds a range. Ranges that overlap or adjoin become one, at the position of the earliest.
fn coalesce_into(ranges: &mut Vec<ByteRange>, range: ByteRange) {
    let mut merged = range;
    let mut place = ranges.len();
    // The merged range may touch one that was examined already, so repeat until none touches.
    while let Some(index) = ranges
        .iter()
        .position(|other| other.start <= merged.end && merged.start <= other.end)
    {
        let other = ranges.remove(index);
        merged = ByteRange::new(merged.start.min(other.start), merged.end.max(other.end));
        place = place.min(index);
    }
    ranges.insert(place.min(ranges.len()), merged);
}

#[cfg(test)]
mod tests;
