//! HLS media playlists: which segment follows which.
//!
//! A playlist comes from outside and may be anything: what is read of one is bounded, what leads
//! out of its source is left out, and the rest names objects and nothing more.

use std::time::Duration;

use http_rules::{
    cmcd::OpenRange,
    path::{self, Target},
};
use quick_m3u8::{
    HlsLine, Reader,
    config::ParsingOptionsBuilder,
    tag::{KnownTag, hls},
};

/// Longer playlists are not read.
pub const MAX_TEXT_BYTES: usize = 1 << 20;
const MAX_SEGMENTS: usize = 10_000;
/// Names, and what else a segment takes.
const MAX_BYTES: usize = 2 << 20;
const SEGMENT_BYTES: usize = 160;
/// A longer segment says nothing of when the next one is due.
const MAX_SEGMENT_SECONDS: f64 = 600.0;
/// Segments ahead of the one that a viewer asks for.
const NEXT_SEGMENTS: usize = 3;

/// An object, or a part of one, in the order of play. Initialization sections come before the
/// segments that need them, and last no time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub path: String,
    pub query: String,
    pub range: Option<OpenRange>,
    pub duration: Duration,
}

impl Segment {
    /// Whether both are of one object.
    #[must_use]
    pub fn is_beside(&self, other: &Self) -> bool {
        (&self.path, &self.query) == (&other.path, &other.query)
    }
}

/// A media playlist.
#[derive(Debug, PartialEq, Eq)]
pub struct Playlist {
    pub source: String,
    pub segments: Vec<Segment>,
    /// In memory.
    pub bytes: usize,
}

impl Playlist {
    /// `asked_for`: the path that the playlist was requested at. `None`: no media playlist, or
    /// nothing of it is in its source.
    #[must_use]
    pub fn parse(text: &str, asked_for: &str) -> Option<Self> {
        let Ok(Target::Key { source, .. }) = path::parse(asked_for, None) else {
            return None;
        };
        if text.len() > MAX_TEXT_BYTES
            || !text.trim_start_matches('\u{feff}').starts_with("#EXTM3U")
        {
            return None;
        }
        let mut reading = Reading {
            asked_for,
            playlist: Self {
                source,
                segments: Vec::new(),
                bytes: 0,
            },
            read: 0,
            last_end: None,
        };
        reading.read(text);
        let playlist = reading.playlist;
        (!playlist.segments.is_empty()).then_some(playlist)
    }

    /// The segments after this position, and how long after it each is asked for.
    pub fn next(&self, position: usize) -> impl Iterator<Item = (&Segment, Duration)> {
        let mut due = self
            .segments
            .get(position)
            .map_or(Duration::ZERO, |it| it.duration);
        let mut left = NEXT_SEGMENTS;
        let rest = self.segments.get(position + 1..).unwrap_or_default();
        rest.iter().map_while(move |segment| {
            let at = due;
            due += segment.duration;
            if !segment.duration.is_zero() {
                left = left.checked_sub(1)?;
            }
            (left > 0 || !segment.duration.is_zero()).then_some((segment, at))
        })
    }

    /// The position of the segment that a request for bytes from `start` on asks for, in the run
    /// that begins at `first` and is one object.
    #[must_use]
    pub fn position(&self, first: usize, start: u64) -> usize {
        let rest = self.segments.get(first..).unwrap_or_default();
        let run = rest.iter().take_while(|it| it.is_beside(&rest[0]));
        let starts = |it: &Segment| it.range.map_or(0, |(first, _)| first);
        let before = run.take_while(|it| starts(it) <= start).count();
        first + before.saturating_sub(1)
    }
}

struct Reading<'a> {
    asked_for: &'a str,
    playlist: Playlist,
    /// Elements, also those outside of the source.
    read: usize,
    /// Where the last byte range ended.
    last_end: Option<u64>,
}

impl Reading<'_> {
    fn read(&mut self, text: &str) {
        let options = ParsingOptionsBuilder::new()
            .with_parsing_for_inf()
            .with_parsing_for_byterange()
            .with_parsing_for_map()
            .build();
        let mut reader = Reader::from_str(text, options);
        let (mut duration, mut range) = (None, None);
        loop {
            match reader.read_line() {
                Ok(None) => return,
                Ok(Some(HlsLine::KnownTag(KnownTag::Hls(hls::Tag::Inf(inf))))) => {
                    let seconds = inf.duration();
                    let is_usual = seconds > 0.0 && seconds <= MAX_SEGMENT_SECONDS;
                    let seconds = if is_usual { seconds } else { 1.0 };
                    duration = Some(Duration::from_secs_f64(seconds));
                }
                Ok(Some(HlsLine::KnownTag(KnownTag::Hls(hls::Tag::Byterange(it))))) => {
                    range = Some((it.length(), it.offset()));
                }
                Ok(Some(HlsLine::KnownTag(KnownTag::Hls(hls::Tag::Map(map))))) => {
                    let range = map.byterange();
                    let range = range.and_then(|it| open_range(it.offset, it.length));
                    if !self.push(map.uri(), range, Duration::ZERO) {
                        return;
                    }
                }
                Ok(Some(HlsLine::Uri(uri))) => {
                    // Without a duration it is a playlist of playlists.
                    if let Some(duration) = duration.take() {
                        let range = range.take().and_then(|it| self.continued(it));
                        if !self.push(&uri, range, duration) {
                            return;
                        }
                    }
                }
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }

    /// A range without an offset begins where the last one ended (RFC 8216, 4.3.2.2).
    fn continued(&mut self, (length, offset): (u64, Option<u64>)) -> Option<OpenRange> {
        let range = open_range(offset.or(self.last_end).unwrap_or(0), length)?;
        self.last_end = range.1.map(|last| last.saturating_add(1));
        Some(range)
    }

    /// Whether there is space for more.
    fn push(&mut self, uri: &str, range: Option<OpenRange>, duration: Duration) -> bool {
        self.read += 1;
        self.playlist.bytes += self.asked_for.len() + uri.len() + SEGMENT_BYTES;
        if self.read > MAX_SEGMENTS || self.playlist.bytes > MAX_BYTES {
            return false;
        }
        if let Some(Target::Key {
            source,
            path,
            query,
        }) = path::resolve_reference(self.asked_for, uri)
            && source == self.playlist.source
        {
            self.playlist.segments.push(Segment {
                path,
                query,
                range,
                duration,
            });
        }
        true
    }
}

fn open_range(offset: u64, length: u64) -> Option<OpenRange> {
    let last = offset.checked_add(length.checked_sub(1)?)?;
    Some((offset, Some(last)))
}

#[cfg(test)]
#[path = "playlist_tests.rs"]
#[allow(clippy::unwrap_used)]
mod tests;
