//! A player's report about itself: Common Media Client Data (CTA-5004, versions 1 and 2).
//!
//! It comes in four request headers or in one query parameter, and is not trusted: texts are
//! bounded, values outside their bounds are ignored, and no client gets more than its share because
//! of it. It is not part of a cache key.

use std::time::Duration;

use http::HeaderMap;
use percent_encoding::percent_decode_str;

use crate::path::{self, Target};

/// First byte, and last byte if given; both inclusive.
pub type OpenRange = (u64, Option<u64>);

/// The query parameter.
pub const PARAMETER: &str = "CMCD";

/// The request fields.
pub const HEADERS: [&str; 4] = ["cmcd-request", "cmcd-object", "cmcd-status", "cmcd-session"];
/// Limit for one header or the decoded parameter. Players send some 300 bytes.
const MAX_TEXT: usize = 4096;
const MAX_KEYS: usize = 64;
/// CTA-5004 bounds `sid` and `cid` to 64 characters.
const MAX_ID: usize = 64;
const MAX_NEXT_OBJECTS: usize = 4;
const MAX_NEXT_PATH: usize = 1024;
/// Limit for buffers and deadlines: ten minutes.
const MAX_TIME_MS: u64 = 600_000;
/// 10 Gbit/s.
const MAX_KBPS: u64 = 10_000_000;
/// A player with less than this in its buffer is about to stall.
const LOW_BUFFER: Duration = Duration::from_secs(2);
/// A player with this much can wait while others go first.
const AMPLE_BUFFER: Duration = Duration::from_secs(8);

/// How urgently a player needs its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Its buffer is ample.
    Relaxed,
    Usual,
    /// It starts, seeks, or will stall unless the bytes arrive now.
    Critical,
}

/// The object a player is likely to ask for next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextObject {
    /// As sent: relative to the requested object. Empty: that object, in another range.
    pub path: String,
    /// First byte, and last byte if given; both inclusive.
    pub range: Option<OpenRange>,
}

/// The reported values that are within their bounds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cmcd {
    /// `sid`: joins the requests of one viewer.
    pub session_id: Option<String>,
    /// `bl`
    pub buffer_length: Option<Duration>,
    /// `dl`: from now until the buffer is empty, at the present playback rate.
    pub deadline: Option<Duration>,
    /// `su`
    pub is_startup: bool,
    /// `bs`: the buffer ran empty since the last request, visibly to the viewer.
    pub is_starved: bool,
    /// `br`: bit rate of the requested object.
    pub encoded_kbps: Option<u64>,
    /// `mtp`
    pub measured_kbps: Option<u64>,
    /// `rtp`: the player has no use for more.
    pub requested_max_kbps: Option<u64>,
    /// `nor` and `nrr`
    pub next_objects: Vec<NextObject>,
}

impl Cmcd {
    /// `None`: the player reports nothing.
    #[must_use]
    pub fn from_request(headers: &HeaderMap, query: Option<&str>) -> Option<Self> {
        let mut reading = Reading::default();
        for name in HEADERS {
            if let Some(text) = headers.get(name).and_then(|value| value.to_str().ok()) {
                reading.read(text);
            }
        }
        if let Some(text) = query.and_then(parameter) {
            reading.read(&text);
        }
        reading.finish()
    }

    #[must_use]
    pub fn urgency(&self) -> Urgency {
        let low = |time: Option<Duration>| time.is_some_and(|time| time < LOW_BUFFER);
        if self.is_startup || self.is_starved || low(self.deadline) || low(self.buffer_length) {
            Urgency::Critical
        } else if self
            .buffer_length
            .is_some_and(|buffer| buffer >= AMPLE_BUFFER)
        {
            Urgency::Relaxed
        } else {
            Urgency::Usual
        }
    }

    /// Time until the player stalls without the bytes; `None` if it did not report it.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        if self.is_startup || self.is_starved {
            return Some(Duration::ZERO);
        }
        self.deadline.or(self.buffer_length)
    }

    /// The next objects as normalised targets in the same source. `None` while the buffer is not
    /// ample, because the present request goes first.
    #[must_use]
    pub fn prefetch_targets(&self, asked_for: &str) -> Option<Vec<(Target, Option<OpenRange>)>> {
        if self.urgency() != Urgency::Relaxed {
            return None;
        }
        let Ok(Target::Key { source, .. }) = path::parse(asked_for, None) else {
            return None;
        };
        let targets = self.next_objects.iter().filter_map(|next| {
            let target = path::resolve_reference(asked_for, &next.path)?;
            matches!(&target, Target::Key { source: other, .. } if *other == source)
                .then_some((target, next.range))
        });
        Some(targets.collect())
    }
}

/// The decoded value of the parameter; if there are several, of the first.
fn parameter(query: &str) -> Option<String> {
    let value = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(name, value)| (name == PARAMETER).then_some(value))?;
    // Encoded text is at most three times as long.
    if value.len() > 3 * MAX_TEXT {
        return None;
    }
    let decoded = percent_decode_str(value).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// Collects keys from several texts: `nrr` belongs to `nor`, wherever it is.
#[derive(Default)]
struct Reading {
    cmcd: Cmcd,
    says_something: bool,
    next_range: Option<OpenRange>,
}

impl Reading {
    fn read(&mut self, text: &str) {
        if text.len() > MAX_TEXT {
            return;
        }
        for (key, value) in Pairs(text).take(MAX_KEYS) {
            self.says_something = true;
            self.set(key, value);
        }
    }

    fn set(&mut self, key: &str, value: Option<&str>) {
        let cmcd = &mut self.cmcd;
        let number = |max: u64| value.and_then(integer).filter(|number| *number <= max);
        let time = || number(MAX_TIME_MS).map(Duration::from_millis);
        let is_set = value.is_none_or(|value| matches!(value, "?1" | "true"));
        match key {
            "sid" => {
                cmcd.session_id = value
                    .map(text_of)
                    .filter(|id| !id.is_empty() && id.chars().count() <= MAX_ID);
            }
            "bl" => cmcd.buffer_length = time(),
            "dl" => cmcd.deadline = time(),
            "su" => cmcd.is_startup = is_set,
            "bs" => cmcd.is_starved = is_set,
            "br" => cmcd.encoded_kbps = number(MAX_KBPS),
            "mtp" => cmcd.measured_kbps = number(MAX_KBPS),
            "rtp" => cmcd.requested_max_kbps = number(MAX_KBPS).filter(|rate| *rate > 0),
            "nor" => cmcd.next_objects = value.map(next_objects).unwrap_or_default(),
            "nrr" => self.next_range = value.map(text_of).as_deref().and_then(range),
            _ => {}
        }
    }

    fn finish(mut self) -> Option<Cmcd> {
        if let Some(range) = self.next_range {
            match self.cmcd.next_objects.first_mut() {
                Some(next) => next.range = next.range.or(Some(range)),
                // Without `nor`, it is a range of the requested object.
                None => self.cmcd.next_objects.push(NextObject {
                    path: String::new(),
                    range: Some(range),
                }),
            }
        }
        self.says_something.then_some(self.cmcd)
    }
}

/// `key=value` and `key`, separated by commas that are neither quoted nor in a list.
struct Pairs<'a>(&'a str);

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a str, Option<&'a str>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.0.is_empty() {
                return None;
            }
            let end = end_of_item(self.0, ',');
            let item = self.0[..end].trim();
            self.0 = self.0.get(end + 1..).unwrap_or_default();
            if !item.is_empty() {
                return Some(match item.split_once('=') {
                    Some((key, value)) => (key.trim(), Some(value.trim())),
                    None => (item, None),
                });
            }
        }
    }
}

/// The position of the first `separator` outside quotes and parentheses. An ASCII delimiter is
/// never part of a longer UTF-8 character, so the position is a character boundary.
fn end_of_item(text: &str, separator: char) -> usize {
    let (mut quoted, mut escaped, mut depth) = (false, false, 0_u32);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if c == separator && depth == 0 => return at,
            _ => {}
        }
    }
    text.len()
}

/// An integer, or the first one of a version 2 list `(1200;v 96;a)`.
fn integer(value: &str) -> Option<u64> {
    let first = items(value).next()?;
    let digits = first.split(';').next().unwrap_or_default();
    digits.trim().parse().ok()
}

/// The items of a version 2 list, or the value itself.
fn items(value: &str) -> impl Iterator<Item = &str> {
    let inner = value
        .strip_prefix('(')
        .and_then(|value| value.strip_suffix(')'));
    let (mut rest, is_list) = (inner.unwrap_or(value), inner.is_some());
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        if rest.is_empty() {
            return None;
        }
        let end = if is_list {
            end_of_item(rest, ' ')
        } else {
            rest.len()
        };
        let (item, more) = rest.split_at(end);
        rest = more;
        Some(item)
    })
}

/// A string without its quotes and escapes; a token as it is.
fn text_of(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"') else {
        return value.to_owned();
    };
    let mut text = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => text.extend(characters.next()),
            '"' => break,
            c => text.push(c),
        }
    }
    text
}

fn next_objects(value: &str) -> Vec<NextObject> {
    items(value)
        .take(MAX_NEXT_OBJECTS)
        .filter_map(|item| {
            let end = end_of_item(item, ';');
            let decoded = text_of(&item[..end]);
            // Paths are percent-encoded inside the string (CTA-5004, table 1).
            let path = percent_decode_str(&decoded).decode_utf8().ok()?;
            let parameter = item[end..].trim_start_matches(';').trim();
            let range = parameter.strip_prefix("r=").map(text_of);
            let is_usable = path.len() <= MAX_NEXT_PATH && !path.contains(char::is_control);
            is_usable.then(|| NextObject {
                path: path.into_owned(),
                range: range.as_deref().and_then(self::range),
            })
        })
        .collect()
}

/// `0-99`, `100-`. A suffix range `-99` is ignored, because it names no bytes while the size is
/// unknown.
fn range(text: &str) -> Option<OpenRange> {
    let (first, last) = text.split_once('-')?;
    let first = first.parse().ok()?;
    match last {
        "" => Some((first, None)),
        last => {
            let last = last.parse().ok()?;
            (first <= last).then_some((first, Some(last)))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn from_query(text: &str) -> Option<Cmcd> {
        let encoded =
            percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
        let query = format!("token=a&CMCD={encoded}&x=1");
        Cmcd::from_request(&HeaderMap::new(), Some(&query))
    }

    fn ms(time: u64) -> Option<Duration> {
        Some(Duration::from_millis(time))
    }

    #[test]
    fn a_query_of_version_one() {
        let cmcd = from_query(
            "bl=21300,br=3200,bs,cid=\"a,b=\\\"c\\\"\",d=4004,mtp=25400,\
             nor=\"..%2F300kbps%2Fsegment35.m4v\",nrr=\"12323-48763\",ot=v,rtp=15000,\
             sid=\"6e2fb550-c457-11e9-bb97-0800200c9a66\",su,tb=6000",
        )
        .unwrap();
        assert_eq!(cmcd.buffer_length, ms(21_300));
        assert_eq!(
            (cmcd.encoded_kbps, cmcd.measured_kbps),
            (Some(3200), Some(25_400))
        );
        assert_eq!(cmcd.requested_max_kbps, Some(15_000));
        assert!(cmcd.is_startup && cmcd.is_starved);
        assert_eq!(
            cmcd.session_id.as_deref(),
            Some("6e2fb550-c457-11e9-bb97-0800200c9a66")
        );
        let next = NextObject {
            path: "../300kbps/segment35.m4v".to_owned(),
            range: Some((12_323, Some(48_763))),
        };
        assert_eq!(cmcd.next_objects, [next]);
    }

    #[test]
    fn headers_of_both_versions() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (
                "cmcd-request",
                "bl=(9000;v 4000;a),dl=1500,nor=(\"a.m4s\";r=\"0-99\" \"b.m4s\"),su=?0",
            ),
            ("cmcd-session", "sid=\"s\",v=2"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let cmcd = Cmcd::from_request(&headers, None).unwrap();
        assert_eq!((cmcd.buffer_length, cmcd.deadline), (ms(9000), ms(1500)));
        assert!(!cmcd.is_startup);
        let paths: Vec<_> = cmcd
            .next_objects
            .iter()
            .map(|next| next.path.as_str())
            .collect();
        assert_eq!(paths, ["a.m4s", "b.m4s"]);
        assert_eq!(cmcd.next_objects[0].range, Some((0, Some(99))));
    }

    #[test]
    fn who_says_nothing_is_no_player() {
        assert_eq!(
            Cmcd::from_request(&HeaderMap::new(), Some("a=1&cmcd=bl%3D1")),
            None
        );
        assert_eq!(Cmcd::from_request(&HeaderMap::new(), Some("CMCD=")), None);
    }

    #[test]
    fn lies_have_bounds() {
        let huge = u64::MAX;
        let cmcd = from_query(&format!("bl={huge},br={huge},rtp=0,dl=-5,mtp=1e9")).unwrap();
        assert_eq!(cmcd, Cmcd::default());
        let many: Vec<String> = (0..200).map(|n| format!("\"{n}\"")).collect();
        let cmcd = from_query(&format!("nor=({})", many.join(" "))).unwrap();
        assert_eq!(cmcd.next_objects.len(), MAX_NEXT_OBJECTS);
        let id = "i".repeat(MAX_ID + 1);
        assert_eq!(
            from_query(&format!("sid=\"{id}\"")).unwrap().session_id,
            None
        );
        assert_eq!(from_query(&format!("sid=\"{}\"", "x".repeat(5000))), None);
    }

    #[test]
    fn the_buffer_says_how_urgent_it_is() {
        for (text, urgency, left) in [
            ("su,bl=30000", Urgency::Critical, Some(0)),
            ("bs,bl=30000", Urgency::Critical, Some(0)),
            ("bl=500", Urgency::Critical, Some(500)),
            ("bl=30000,dl=900", Urgency::Critical, Some(900)),
            ("bl=4000", Urgency::Usual, Some(4000)),
            ("bl=30000", Urgency::Relaxed, Some(30_000)),
            ("br=100", Urgency::Usual, None),
        ] {
            let cmcd = from_query(text).unwrap();
            assert_eq!(cmcd.urgency(), urgency, "{text}");
            assert_eq!(cmcd.time_left(), left.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn next_objects_stay_in_their_source() {
        let targets = |text: &str| {
            let cmcd = from_query(text).unwrap();
            let targets = cmcd.prefetch_targets("/films/a/1080/5.m4s");
            let paths = targets
                .into_iter()
                .flatten()
                .map(|(target, _)| match target {
                    Target::Key { source, path, .. } => format!("{source}/{path}"),
                    _ => String::new(),
                });
            paths.collect::<Vec<_>>()
        };
        assert_eq!(targets("bl=20000,nor=\"6.m4s\""), ["films/a/1080/6.m4s"]);
        assert_eq!(
            targets("bl=20000,nor=\"..%2F720%2F6.m4s\""),
            ["films/a/720/6.m4s"]
        );
        assert_eq!(targets("bl=20000,nrr=\"0-9\""), ["films/a/1080/5.m4s"]);
        // Not while the player needs its response.
        assert!(targets("bl=1000,nor=\"6.m4s\"").is_empty());
        for elsewhere in [
            "//evil.example/x",
            "http://evil.example/x",
            "/other/x",
            "../../../other/x",
            "..%2f..%2f..%2f..%2fx",
        ] {
            let found = targets(&format!("bl=20000,nor=\"{elsewhere}\""));
            assert!(found.is_empty(), "{elsewhere}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_all_is_bounded(text in "\\PC{0,200}", asked in "/\\PC{0,40}") {
            for cmcd in [from_query(&text), Cmcd::from_request(&HeaderMap::new(), Some(&text))] {
                let cmcd = cmcd.unwrap_or_default();
                prop_assert!(cmcd.next_objects.len() <= MAX_NEXT_OBJECTS);
                prop_assert!(
                    cmcd.time_left().unwrap_or_default() <= Duration::from_millis(MAX_TIME_MS)
                );
                let _ = cmcd.prefetch_targets(&asked);
            }
        }

        #[test]
        fn near_its_grammar_nothing_panics(
            text in "((bl|nor|nrr|sid|su|br)(=[()\"\\\\0-9a-z;/. %-]{0,24})?,?){0,8}",
        ) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert("cmcd-request", value);
            }
            let from_header = Cmcd::from_request(&headers, None);
            prop_assert_eq!(&from_header, &from_query(&text));
            let _ = from_header.unwrap_or_default().prefetch_targets("/films/a/5.m4s");
        }
    }
}
