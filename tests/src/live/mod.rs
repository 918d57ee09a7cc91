//! A live ladder for the bench: an origin that makes it by the clock, and viewers that behave like
//! hls.js.
//!
//! Both sides compute from the wall clock which segments and parts exist, so they need not talk to
//! each other, and the time at which a part became available is known to its viewer.

mod origin;
mod viewers;

pub use origin::serve;
pub use viewers::{Audience, Kind, watch};

use std::time::{SystemTime, UNIX_EPOCH};

pub const SEGMENT_MS: u64 = 2_000;
pub const PARTS_OF_SEGMENT: u64 = 4;
pub const PART_MS: u64 = SEGMENT_MS / PARTS_OF_SEGMENT;
/// Segments that a playlist lists.
pub const WINDOW: u64 = 6;
/// Bytes of a part, by rendition: 128 to 768 kbit/s. The bench is about requests, not throughput.
pub const PART_BYTES: [u64; 6] = [8_000, 16_000, 24_000, 32_000, 40_000, 48_000];

/// A part, counted since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartNumber(pub u64);

impl PartNumber {
    #[must_use]
    pub fn of(segment: u64, part: u64) -> PartNumber {
        PartNumber(segment * PARTS_OF_SEGMENT + part)
    }

    /// The last one that is complete at this time.
    #[must_use]
    pub fn at(now_ms: f64) -> PartNumber {
        PartNumber((now_ms / PART_MS as f64) as u64 - 1)
    }

    #[must_use]
    pub fn next(self) -> PartNumber {
        PartNumber(self.0 + 1)
    }

    #[must_use]
    pub fn segment(self) -> u64 {
        self.0 / PARTS_OF_SEGMENT
    }

    #[must_use]
    pub fn part(self) -> u64 {
        self.0 % PARTS_OF_SEGMENT
    }

    /// When it is complete.
    #[must_use]
    pub fn available_ms(self) -> f64 {
        ((self.0 + 1) * PART_MS) as f64
    }
}

/// The last segment that is complete at this time.
#[must_use]
pub fn last_segment(now_ms: f64) -> u64 {
    (now_ms / SEGMENT_MS as f64) as u64 - 1
}

/// Milliseconds since the epoch, with their fractions.
#[must_use]
pub fn now_ms() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

/// A playlist of segments, and of parts if `parts`, that ends with this part.
#[must_use]
pub fn playlist(last: PartNumber, parts: bool) -> String {
    use std::fmt::Write as _;
    let (open, first) = (last.next().segment(), last.next().segment() - WINDOW);
    let mut text = format!(
        "#EXTM3U\n#EXT-X-VERSION:9\n#EXT-X-TARGETDURATION:{}\n#EXT-X-MEDIA-SEQUENCE:{first}\n",
        SEGMENT_MS / 1_000
    );
    let part_line = |text: &mut String, part: PartNumber| {
        let (segment, number, seconds) = (part.segment(), part.part(), PART_MS as f64 / 1e3);
        let _ = writeln!(
            text,
            "#EXT-X-PART:DURATION={seconds},URI=\"{segment}.{number}.m4s\""
        );
    };
    if parts {
        let seconds = PART_MS as f64 / 1e3;
        let _ = writeln!(
            text,
            "#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK={}\n\
             #EXT-X-PART-INF:PART-TARGET={seconds}",
            3.0 * seconds
        );
    }
    for segment in first..open {
        if parts && segment + 2 >= open {
            for part in 0..PARTS_OF_SEGMENT {
                part_line(&mut text, PartNumber::of(segment, part));
            }
        }
        let seconds = SEGMENT_MS as f64 / 1e3;
        let _ = writeln!(text, "#EXTINF:{seconds},\n{segment}.m4s");
    }
    if parts {
        for part in 0..last.next().part() {
            part_line(&mut text, PartNumber::of(open, part));
        }
        let hint = last.next();
        let _ = writeln!(
            text,
            "#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"{}.{}.m4s\"",
            hint.segment(),
            hint.part()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_playlist_ends_with_the_last_part_and_hints_at_the_next() {
        let last = PartNumber::of(1_000, 1);
        let text = playlist(last, true);
        assert!(text.contains("#EXT-X-MEDIA-SEQUENCE:994\n"));
        assert!(text.contains("\n999.m4s\n") && !text.contains("\n1000.m4s\n"));
        assert!(text.contains("URI=\"1000.1.m4s\"\n#EXT-X-PRELOAD-HINT"));
        assert!(text.ends_with("URI=\"1000.2.m4s\"\n"));
        let whole = playlist(PartNumber::of(1_000, 3), false);
        assert!(whole.ends_with("#EXTINF:2,\n1000.m4s\n"));
    }

    #[test]
    fn a_part_is_available_when_it_is_complete() {
        let part = PartNumber::of(1_000, 2);
        assert_eq!(PartNumber::at(part.available_ms()), part);
        assert!(PartNumber::at(part.available_ms() - 1.0) < part);
        assert_eq!(last_segment(PartNumber::of(7, 3).available_ms()), 7);
        assert_eq!(last_segment(PartNumber::of(7, 2).available_ms()), 6);
    }
}
