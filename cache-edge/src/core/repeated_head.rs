//! Requests that are the one before but for their range.
//!
//! A player that takes a title range by range over one connection sends the same head again and
//! again. Its bytes tell that at once, without parsing them: what was decided of the head before
//! holds for it now, whatever its fields say.

use chunkcache_proto::ByteRange;

/// Of a head that is kept. Players' are some hundred bytes.
const MAX_KEPT_BYTES: usize = 2 << 10;

/// Digits of a position that can not overflow.
const MAX_DIGITS: usize = 18;

/// Fields by which a request has a body, or its connection another protocol, another end, or other
/// rules.
const OTHER_FRAMING: [&[u8]; 7] = [
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"expect",
    b"upgrade",
    b"te",
    b"trailer",
];

/// What arrived between two requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// Exactly one whole head of a request without a body; and if it asks for one closed range
    /// under no condition, what its repetitions have in common with it.
    OneHead(Option<RepeatedHead>),
    /// A part of a head, more than one, or something else that takes a parser to tell where it
    /// ends.
    Other,
}

/// A head without the two positions of its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepeatedHead {
    bytes: Box<[u8]>,
    range_at: usize,
}

impl Arrived {
    /// Strict: whatever two parsers could see differently is `Other`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::one_head(bytes).map_or(Self::Other, Self::OneHead)
    }

    fn one_head(bytes: &[u8]) -> Option<Option<RepeatedHead>> {
        let lines = bytes.strip_suffix(b"\r\n\r\n")?;
        let mut lines = lines.split(|byte| *byte == b'\n').map(Line);
        let request = lines.next()?.without_return(bytes)?;
        let (is_get, rest) = match request.strip_prefix(b"GET ") {
            Some(rest) => (true, rest),
            None => (false, request.strip_prefix(b"HEAD ")?),
        };
        let target = rest.strip_suffix(b" HTTP/1.1")?;
        if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        let mut range = None;
        let mut repeats = is_get && bytes.len() <= MAX_KEPT_BYTES;
        for line in lines {
            let line = line.without_return(bytes)?;
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
            if name.is_empty() || !name.iter().all(is_token) {
                return None;
            }
            let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
            if is(b"connection") && value.eq_ignore_ascii_case(b"keep-alive") {
                continue;
            }
            if OTHER_FRAMING.into_iter().any(is) {
                return None;
            }
            if is(b"range") {
                repeats &= range.is_none();
                range = value.strip_prefix(b"bytes=");
            }
            let is_conditional = name
                .get(..3)
                .is_some_and(|start| start.eq_ignore_ascii_case(b"if-"));
            repeats &= !is_conditional && !is(b"traceparent");
        }
        let positions = range.filter(|range| repeats && parse_positions(range).is_some());
        Some(positions.map(|positions| RepeatedHead::without(bytes, positions)))
    }
}

/// Up to a line feed.
struct Line<'a>(&'a [u8]);

impl<'a> Line<'a> {
    /// Every line but the last one, whose end was taken off, has to end in a carriage return; none
    /// has one elsewhere.
    fn without_return(self, whole: &[u8]) -> Option<&'a [u8]> {
        let last = self.0.as_ptr_range().end as usize + 4 == whole.as_ptr_range().end as usize;
        let line = if last {
            self.0
        } else {
            self.0.strip_suffix(b"\r")?
        };
        (!line.is_empty() && !line.contains(&b'\r') && !line.contains(&0)).then_some(line)
    }
}

impl RepeatedHead {
    fn without(head: &[u8], positions: &[u8]) -> Self {
        let range_at = positions.as_ptr() as usize - head.as_ptr() as usize;
        let (before, rest) = head.split_at(range_at);
        Self {
            bytes: [before, &rest[positions.len()..]].concat().into(),
            range_at,
        }
    }

    /// The range asked for, if the bytes are this head again. It is not empty; the object may be
    /// shorter.
    #[must_use]
    pub fn range_in(&self, bytes: &[u8]) -> Option<ByteRange> {
        let (before, after) = self.bytes.split_at(self.range_at);
        parse_positions(bytes.strip_prefix(before)?.strip_suffix(after)?)
    }

    /// As it was sent.
    #[must_use]
    pub fn target(&self) -> &[u8] {
        let line = self.bytes.split(|byte| *byte == b' ');
        line.into_iter().nth(1).unwrap_or_default()
    }
}

/// `500-999`.
fn parse_positions(text: &[u8]) -> Option<ByteRange> {
    let dash = text.iter().position(|byte| *byte == b'-')?;
    let (first, last) = (number(&text[..dash])?, number(&text[dash + 1..])?);
    (first <= last).then(|| ByteRange::new(first, last + 1))
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > MAX_DIGITS {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        digit
            .is_ascii_digit()
            .then(|| number * 10 + u64::from(digit - b'0'))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: &[u8] =
        b"GET /films/a.mp4?x=1 HTTP/1.1\r\nHost: edge\r\nRange: bytes=0-99\r\nAccept: */*\r\n\r\n";

    fn repeated(head: &[u8]) -> RepeatedHead {
        match Arrived::of(head) {
            Arrived::OneHead(Some(head)) => head,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_same_head_with_another_range() {
        let head = repeated(FIRST);
        assert_eq!(head.target(), b"/films/a.mp4?x=1");
        assert_eq!(head.range_in(FIRST), Some(ByteRange::new(0, 100)));
        let next = b"GET /films/a.mp4?x=1 HTTP/1.1\r\nHost: edge\r\nRange: bytes=2097152-4194303\r\nAccept: */*\r\n\r\n";
        assert_eq!(
            head.range_in(next),
            Some(ByteRange::new(2_097_152, 4_194_304))
        );
    }

    #[test]
    fn all_else_is_another_head() {
        let head = repeated(FIRST);
        let text = std::str::from_utf8(FIRST).unwrap();
        for (from, to) in [
            ("a.mp4", "b.mp4"),
            ("edge", "Edge"),
            ("0-99", "0-"),
            ("0-99", "-99"),
            ("0-99", "99-0"),
            ("0-99", "0-99,200-299"),
            ("0-99", "0-99\r\nIf-Range: \"a\""),
            ("0-99", "0 -99"),
            ("0-99", "0-1000000000000000000"),
            ("*/*\r\n", "*/*\r\nX: y\r\n"),
        ] {
            let other = text.replace(from, to);
            assert_ne!(other, text);
            assert_eq!(head.range_in(other.as_bytes()), None, "{other}");
        }
        assert_eq!(head.range_in(&FIRST[..FIRST.len() - 1]), None);
        assert_eq!(head.range_in(&[FIRST, FIRST].concat()), None);
    }

    #[test]
    fn one_head_that_does_not_repeat() {
        for head in [
            "GET /a HTTP/1.1\r\nHost: e\r\n\r\n",
            "HEAD /a HTTP/1.1\r\nHost: e\r\nRange: bytes=0-9\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: e\r\nRange: bytes=0-\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: e\r\nRange: bytes=0-9\r\nRange: bytes=0-9\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: e\r\nRange: bytes=0-9\r\nIf-Range: \"x\"\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: e\r\nRange: bytes=0-9\r\nTraceparent: 00-1-2-01\r\n\r\n",
        ] {
            assert_eq!(
                Arrived::of(head.as_bytes()),
                Arrived::OneHead(None),
                "{head}"
            );
        }
        let kept_alive = "GET /a HTTP/1.1\r\nConnection: keep-alive\r\nRange: bytes=0-9\r\n\r\n";
        repeated(kept_alive.as_bytes());
    }

    #[test]
    fn what_takes_a_parser_is_other() {
        for bytes in [
            "",
            "\r\n\r\n",
            "G",
            "GET /a HTTP/1.1\r\nHost: e\r\n",
            "GET /a HTTP/1.1\nHost: e\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: e\n\nGET /b HTTP/1.1\r\n\r\n",
            "GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: e\r\n folded\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost : e\r\n\r\n",
            "GET /a HTTP/1.1\r\nX: a\rb\r\n\r\n",
            "GET /a HTTP/1.0\r\nHost: e\r\n\r\n",
            "GET  HTTP/1.1\r\nHost: e\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: e\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: e\r\n\r\n",
            "GET /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            "GET /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
            "GET /a HTTP/1.1\r\nConnection: close\r\n\r\n",
            "GET /a HTTP/1.1\r\nConnection: keep-alive, upgrade\r\n\r\n",
            "GET /a HTTP/1.1\r\nUpgrade: h2c\r\n\r\n",
            "GET /a HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            assert_eq!(Arrived::of(bytes.as_bytes()), Arrived::Other, "{bytes:?}");
        }
    }

    #[test]
    fn a_long_head_is_not_kept() {
        let long = format!(
            "GET /a HTTP/1.1\r\nRange: bytes=0-9\r\nCookie: {}\r\n\r\n",
            "c".repeat(MAX_KEPT_BYTES)
        );
        assert_eq!(Arrived::of(long.as_bytes()), Arrived::OneHead(None));
    }

    proptest! {
        /// Whatever it is taken for, the parser behind ends it at the same byte and sees the same
        /// range in it.
        #[test]
        fn agrees_with_the_parser(
            lines in proptest::collection::vec("(Host: e|Range: bytes=[0-9]{0,3}-[0-9]{0,3}|[A-Za-z:\\- \t\r\n]{0,12})", 0..4),
            end in "(\r\n\r\n|\n\n|\r\n|)"
        ) {
            let text = format!("GET /a HTTP/1.1\r\n{}{end}", lines.join("\r\n"));
            if let Arrived::OneHead(repeated) = Arrived::of(text.as_bytes()) {
                let (parsed, rest) = text.split_at(text.find("\r\n\r\n").unwrap() + 4);
                prop_assert_eq!(rest, "");
                prop_assert!(!parsed.replace("\r\n", "").contains(['\r', '\n']));
                if let Some(head) = repeated {
                    let range = head.range_in(text.as_bytes()).unwrap();
                    let expected = format!("Range: bytes={}-{}", range.start, range.end - 1);
                    let same = |line: &&str| line.starts_with("Range:");
                    let given = parsed.lines().find(same).unwrap();
                    let numbers = |line: &str| line.split(['=', '-']).skip(1).map(|n| n.trim().parse::<u64>().unwrap()).collect::<Vec<_>>();
                    prop_assert_eq!(numbers(given), numbers(&expected));
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(first: Vec<u8>, second: Vec<u8>) {
            if let Arrived::OneHead(Some(head)) = Arrived::of(&first) {
                let _ = head.range_in(&second);
            }
            let _ = repeated(FIRST).range_in(&second);
        }
    }
}
