//! `multipart/byteranges` (RFC 9110, 14.6).

use bytes::Bytes;
use chunkcache_proto::ByteRange;

use super::body::Part;
use http_rules::range::content_range;

/// The plan of a multipart body, and the boundary for its `Content-Type`.
pub fn plan(
    ranges: &[ByteRange],
    size: u64,
    content_type: &str,
    boundary: u128,
) -> (Vec<Part>, String) {
    // 128 random bits: the object does not contain them, and nobody can prepare one that does.
    let boundary = format!("{boundary:032x}");
    let mut parts = Vec::with_capacity(ranges.len() * 2 + 1);
    for (index, range) in ranges.iter().enumerate() {
        let lead = if index == 0 { "" } else { "\r\n" };
        let head = format!(
            "{lead}--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {}\r\n\r\n",
            content_range(*range, size)
        );
        parts.push(Part::Literal(Bytes::from(head)));
        parts.push(Part::Range(*range));
    }
    parts.push(Part::Literal(Bytes::from(format!(
        "\r\n--{boundary}--\r\n"
    ))));
    (parts, boundary)
}

/// The length of a plan's bytes.
#[must_use]
pub fn length(parts: &[Part]) -> u64 {
    parts
        .iter()
        .map(|part| match part {
            Part::Literal(bytes) => bytes.len() as u64,
            Part::Range(range) => range.len(),
        })
        .sum()
}
