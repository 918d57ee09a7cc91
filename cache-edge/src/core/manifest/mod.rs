//! Manifests (HLS playlists and DASH MPDs), and the order of the objects that they name.
//!
//! Manifests are untrusted. Reading one is bounded, and references to other sources are ignored.
//! A manifest has no effect except to name objects.

mod dash;
pub mod hls;
mod numbering;
pub mod selection;

use std::time::Duration;

use http_rules::{
    cmcd::OpenRange,
    path::{self, Target},
};

pub use numbering::Numbering;

/// Longer manifests are not read.
pub const MAX_TEXT_BYTES: usize = 1 << 20;
/// Limit of listed segments.
const MAX_SEGMENTS: usize = 10_000;
/// Limit of the memory of a manifest: its names, and a constant for each segment.
const MAX_BYTES: usize = 2 << 20;
const SEGMENT_BYTES: usize = 160;
/// Longer durations are ignored.
const MAX_SEGMENT_SECONDS: f64 = 600.0;
/// Segments to fetch ahead of the requested one.
const NEXT_SEGMENTS: usize = 3;

/// An object, or a range of one. Initialization sections have no duration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub path: String,
    pub query: String,
    pub range: Option<OpenRange>,
    pub duration: Duration,
}

impl Segment {
    /// In memory, beside itself.
    fn bytes(&self) -> usize {
        self.path.len() + self.query.len()
    }

    /// Whether both belong to the same object.
    #[must_use]
    pub fn is_beside(&self, other: &Self) -> bool {
        (&self.path, &self.query) == (&other.path, &other.query)
    }
}

/// The objects of one rendition, in the order of play.
#[derive(Debug, PartialEq, Eq)]
pub enum Track {
    /// Initialization sections come before the segments that need them.
    Listed(Vec<Segment>),
    Numbered(Numbering),
    /// A single object.
    Whole(Segment),
}

/// A manifest's description of a track.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendition {
    /// Tracks of one set have the same content in different qualities.
    pub set: usize,
    pub is_video: bool,
    pub bits_per_second: u64,
    /// Names that an operator may use: its id, its resolution, its language.
    pub names: Vec<String>,
    /// Its start, from the beginning of the title.
    pub start: Duration,
}

impl Rendition {
    /// In memory, beside itself.
    fn bytes(&self) -> usize {
        let names = self.names.iter().map(String::len).sum::<usize>();
        names + self.names.len() * size_of::<String>()
    }
}

/// An HLS media playlist, or an MPD.
#[derive(Debug, PartialEq, Eq)]
pub struct Manifest {
    pub source: String,
    pub tracks: Vec<(Rendition, Track)>,
    /// Size in memory.
    pub bytes: usize,
}

impl Manifest {
    /// `asked_for`: the path of the request for the manifest. `None`: the text is no manifest, or
    /// names no object of its source.
    #[must_use]
    pub fn parse(text: &str, asked_for: &str) -> Option<Self> {
        let Ok(Target::Key { source, .. }) = path::parse(asked_for, None) else {
            return None;
        };
        if text.len() > MAX_TEXT_BYTES {
            return None;
        }
        let manifest = if is_hls(text) {
            hls::parse(text, asked_for, source)
        } else {
            dash::parse(text, asked_for, source)
        };
        (!manifest.tracks.is_empty()).then_some(manifest)
    }

    /// The objects after a position in a track, each with the time until a player requests it.
    #[must_use]
    pub fn next(&self, track: usize, position: u64) -> Vec<(Segment, Duration)> {
        match self.tracks.get(track) {
            Some((_, Track::Listed(segments))) => next_listed(segments, position),
            Some((_, Track::Numbered(numbering))) => numbering.next(position),
            Some((_, Track::Whole(_))) | None => Vec::new(),
        }
    }

    /// One that names nothing.
    #[must_use]
    pub fn new(source: String) -> Self {
        Self {
            source,
            tracks: Vec::new(),
            bytes: 0,
        }
    }
}

fn is_hls(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').starts_with("#EXTM3U")
}

fn next_listed(segments: &[Segment], position: u64) -> Vec<(Segment, Duration)> {
    let position = usize::try_from(position).unwrap_or(usize::MAX);
    let asked_for = segments.get(position);
    let mut due = asked_for.map_or(Duration::ZERO, |it| it.duration);
    let mut left = NEXT_SEGMENTS;
    let rest = segments.get(position.saturating_add(1)..);
    let next = rest.unwrap_or_default().iter().map_while(|segment| {
        let at = due;
        due += segment.duration;
        if !segment.duration.is_zero() {
            left = left.checked_sub(1)?;
        }
        (left > 0 || !segment.duration.is_zero()).then(|| (segment.clone(), at))
    });
    next.collect()
}

/// The position of the segment that contains byte `start` of an object. `first`: the position of
/// the first segment of the run of segments in that object.
#[must_use]
pub fn position_in(segments: &[Segment], first: usize, start: u64) -> usize {
    let rest = segments.get(first..).unwrap_or_default();
    let run = rest.iter().take_while(|it| it.is_beside(&rest[0]));
    let starts = |it: &Segment| it.range.map_or(0, |(first, _)| first);
    let before = run.take_while(|it| starts(it) <= start).count();
    first + before.saturating_sub(1)
}

/// Counts and resolves the references of a manifest.
struct Names<'a> {
    source: &'a str,
    /// Number of references, including those to other sources.
    read: usize,
    bytes: usize,
}

impl<'a> Names<'a> {
    fn new(source: &'a str) -> Self {
        Self {
            source,
            read: 0,
            bytes: 0,
        }
    }

    /// Counts an element with `bytes` of names. False: it exceeds a limit.
    fn count(&mut self, bytes: usize) -> bool {
        self.read += 1;
        self.bytes += bytes + SEGMENT_BYTES;
        self.read <= MAX_SEGMENTS && self.bytes <= MAX_BYTES
    }

    /// The path and query of a reference to an object of the source.
    fn resolve(&self, base: &str, reference: &str) -> Option<(String, String)> {
        match path::resolve_reference(base, reference)? {
            Target::Key {
                source,
                path,
                query,
            } if source == self.source => Some((path, query)),
            _ => None,
        }
    }
}

/// The duration of a segment. One second if the value is out of bounds.
fn duration_of(seconds: f64) -> Duration {
    let is_usual = seconds > 0.0 && seconds <= MAX_SEGMENT_SECONDS;
    Duration::from_secs_f64(if is_usual { seconds } else { 1.0 })
}

fn open_range(offset: u64, length: u64) -> Option<OpenRange> {
    let last = offset.checked_add(length.checked_sub(1)?)?;
    Some((offset, Some(last)))
}
