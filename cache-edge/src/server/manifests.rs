//! Manifests that this edge served, so that a request for a segment predicts the next ones.
//!
//! The bytes are bounded, in total and per source. The least recently used are removed first.

use std::{
    borrow::Cow,
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_rules::path::{self, Target};
use parking_lot::RwLock;

use super::limits::Share;
use crate::{
    core::manifest::{MAX_TEXT_BYTES, Manifest, Segment, Track, position_in},
    resolve::ports::{PassBody, ReadError},
};

const MAX_MANIFESTS: usize = 1_024;
const MAX_BYTES: usize = 16 << 20;
const MAX_SOURCE_BYTES: usize = MAX_BYTES / 2;
/// A manifest without requests for its segments in this time is removed when another is inserted.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// Limit of numbers in a name that are tried as the segment's number.
const MAX_NUMBERS: usize = 16;

/// Whether the object may be a manifest, by its type or its name.
pub(super) fn is_manifest(path: &str, content_type: Option<&str>) -> bool {
    let content_type = content_type.unwrap_or_default().as_bytes();
    let has = |word: &[u8]| {
        let mut parts = content_type.windows(word.len());
        parts.any(|part| part.eq_ignore_ascii_case(word))
    };
    let ends = |end: &[u8]| {
        let start = path.len().saturating_sub(end.len());
        path.as_bytes()[start..].eq_ignore_ascii_case(end)
    };
    has(b"mpegurl") || has(b"dash+xml") || ends(b".m3u8") || ends(b".mpd")
}

/// The one spelling of a path that names an object of a source: however it is spelt, a manifest is
/// read once.
pub(super) fn asked_for(path: &str) -> Option<String> {
    match path::parse(path, None) {
        Ok(Target::Key { source, path, .. }) => Some(format!("/{source}/{path}")),
        _ => None,
    }
}

pub(super) struct Manifests {
    hasher: RandomState,
    begun: Instant,
    count: AtomicUsize,
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By the hash of the manifest's path.
    known: HashMap<u64, Arc<KnownManifest>>,
    /// By the hash of a segment's name.
    places: HashMap<u64, SegmentPosition>,
    /// By the hash of the text before and after a segment's number.
    patterns: HashMap<u64, SegmentPosition>,
}

struct KnownManifest {
    manifest: Manifest,
    /// Hash of its text or its entry.
    version: u64,
    /// Time of the last use, in milliseconds since `begun`.
    used: AtomicU64,
}

#[derive(Clone)]
struct SegmentPosition {
    of: Arc<KnownManifest>,
    track: usize,
    /// The position of the first segment of a run in one object.
    first: usize,
}

impl Default for Manifests {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            begun: Instant::now(),
            count: AtomicUsize::new(0),
            inner: RwLock::default(),
        }
    }
}

impl Manifests {
    /// Takes no lock, because most edges have no manifests.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    pub fn version(&self, of: impl std::hash::Hash) -> u64 {
        self.hasher.hash_one(of)
    }

    /// Whether this version is known, or was found to be no manifest of media.
    pub fn knows(&self, asked_for: &str, version: u64) -> bool {
        let id = self.hasher.hash_one(asked_for);
        let inner = self.inner.read();
        inner
            .known
            .get(&id)
            .is_some_and(|known| known.version == version)
    }

    /// Reads a version's text. A text that is no manifest of media is stored as one without tracks,
    /// so that it is not read again.
    pub fn read(&self, asked_for: &str, version: u64, text: &[u8]) {
        let text = std::str::from_utf8(text).ok();
        let manifest = text.and_then(|text| Manifest::parse(text, asked_for));
        let manifest = manifest.unwrap_or_else(|| Manifest::new(String::new()));
        tracing::debug!(asked_for, tracks = manifest.tracks.len(), "a manifest");
        self.insert(asked_for, version, manifest);
    }

    /// Replaces an older version.
    fn insert(&self, asked_for: &str, version: u64, manifest: Manifest) {
        let id = self.hasher.hash_one(asked_for);
        let now = self.now_ms();
        let known = Arc::new(KnownManifest {
            manifest,
            version,
            used: AtomicU64::new(now),
        });
        let mut inner = self.inner.write();
        self.remove(&mut inner, id);
        self.make_space(&mut inner, &known.manifest, now);
        let Inner {
            places, patterns, ..
        } = &mut *inner;
        // For a segment that is listed twice, the first position counts.
        let place = |places: &mut HashMap<u64, SegmentPosition>, name, track, first| {
            let place = places.get(&name);
            if !place.is_some_and(|place| Arc::ptr_eq(&place.of, &known)) {
                let of = Arc::clone(&known);
                places.insert(name, SegmentPosition { of, track, first });
            }
        };
        for (number, (_, track)) in known.manifest.tracks.iter().enumerate() {
            for (first, name) in self.names(&known.manifest.source, track) {
                place(places, name, number, first);
            }
            if let Some(pattern) = self.pattern(&known.manifest.source, track) {
                place(patterns, pattern, number, 0);
            }
        }
        inner.known.insert(id, known);
        self.count.store(inner.known.len(), Ordering::Relaxed);
    }

    /// The objects after the requested one, whose bytes from `start` on were requested, each with
    /// the time until a player requests it.
    pub fn next(&self, name: (&str, &str, &str), start: u64) -> Option<Vec<(Segment, Duration)>> {
        let (of, track, position) = self
            .find_listed(name, start)
            .or_else(|| self.find_numbered(name))?;
        of.used.store(self.now_ms(), Ordering::Relaxed);
        Some(of.manifest.next(track, position))
    }

    fn find_listed(
        &self,
        (source, path, query): (&str, &str, &str),
        start: u64,
    ) -> Option<(Arc<KnownManifest>, usize, u64)> {
        let name = self.name(source, path, query);
        let place = self.inner.read().places.get(&name).cloned()?;
        let manifest = &place.of.manifest;
        let (_, Track::Listed(segments)) = manifest.tracks.get(place.track)? else {
            return None;
        };
        let segment = segments.get(place.first)?;
        if manifest.source != source || segment.path != path || segment.query != query {
            return None;
        }
        let position = position_in(segments, place.first, start);
        Some((place.of, place.track, position as u64))
    }

    fn find_numbered(
        &self,
        (source, path, query): (&str, &str, &str),
    ) -> Option<(Arc<KnownManifest>, usize, u64)> {
        if self.inner.read().patterns.is_empty() {
            return None;
        }
        let name = match query {
            "" => Cow::Borrowed(path),
            query => Cow::Owned(format!("{path}?{query}")),
        };
        numbers_in(&name).take(MAX_NUMBERS).find_map(|digits| {
            let (before, after) = (&name[..digits.start], &name[digits.end..]);
            let pattern = self.name(source, before, after);
            let place = self.inner.read().patterns.get(&pattern).cloned()?;
            let manifest = &place.of.manifest;
            let (_, Track::Numbered(numbering)) = manifest.tracks.get(place.track)? else {
                return None;
            };
            if manifest.source != source || numbering.pattern() != Some((before, after)) {
                return None;
            }
            let position = numbering.position_of(name[digits].parse().ok()?)?;
            Some((place.of, place.track, position))
        })
    }

    /// The hashed names of a list, with the position of the first segment of each run in one
    /// object.
    fn names(&self, source: &str, track: &Track) -> Vec<(usize, u64)> {
        let Track::Listed(segments) = track else {
            return Vec::new();
        };
        let mut names = Vec::with_capacity(segments.len());
        let mut before: Option<&Segment> = None;
        for (position, segment) in segments.iter().enumerate() {
            if !before.is_some_and(|before| before.is_beside(segment)) {
                names.push((position, self.name(source, &segment.path, &segment.query)));
            }
            before = Some(segment);
        }
        names
    }

    fn pattern(&self, source: &str, track: &Track) -> Option<u64> {
        let Track::Numbered(numbering) = track else {
            return None;
        };
        let (before, after) = numbering.pattern()?;
        Some(self.name(source, before, after))
    }

    fn name(&self, source: &str, path: &str, query: &str) -> u64 {
        self.hasher.hash_one((source, path, query))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn make_space(&self, inner: &mut Inner, new: &Manifest, now: u64) {
        let kept_ms = u64::try_from(KEPT_FOR.as_millis()).unwrap_or(u64::MAX);
        let used = |it: &KnownManifest| it.used.load(Ordering::Relaxed);
        let old = inner
            .known
            .iter()
            .filter(|(_, it)| now.saturating_sub(used(it)) > kept_ms);
        let old: Vec<u64> = old.map(|(id, _)| *id).collect();
        for id in old {
            self.remove(inner, id);
        }
        loop {
            let bytes = |source: Option<&str>| -> usize {
                let of = inner.known.values().map(|it| &it.manifest);
                let of = of.filter(|it| source.is_none_or(|source| it.source == source));
                of.map(|it| it.bytes).sum::<usize>() + new.bytes
            };
            let source = if bytes(Some(&new.source)) > MAX_SOURCE_BYTES {
                Some(new.source.as_str())
            } else if bytes(None) > MAX_BYTES || inner.known.len() >= MAX_MANIFESTS {
                None
            } else {
                return;
            };
            let of = inner.known.iter();
            let of = of.filter(|(_, it)| source.is_none_or(|name| it.manifest.source == name));
            let Some(id) = of.min_by_key(|(_, it)| used(it)).map(|(id, _)| *id) else {
                return;
            };
            self.remove(inner, id);
        }
    }

    fn remove(&self, inner: &mut Inner, id: u64) {
        let Some(known) = inner.known.remove(&id) else {
            return;
        };
        let source = &known.manifest.source;
        let Inner {
            places, patterns, ..
        } = &mut *inner;
        let leave = |places: &mut HashMap<u64, SegmentPosition>, name| {
            let place = places.get(&name);
            if place.is_some_and(|place| Arc::ptr_eq(&place.of, &known)) {
                places.remove(&name);
            }
        };
        for (_, track) in &known.manifest.tracks {
            for (_, name) in self.names(source, track) {
                leave(places, name);
            }
            if let Some(pattern) = self.pattern(source, track) {
                leave(patterns, pattern);
            }
        }
        self.count.store(inner.known.len(), Ordering::Relaxed);
    }
}

/// The positions of the numbers in a name.
fn numbers_in(name: &str) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let rest = &name.as_bytes()[from..];
        let start = from + rest.iter().position(u8::is_ascii_digit)?;
        let rest = &name.as_bytes()[start..];
        let is_other = |byte: &u8| !byte.is_ascii_digit();
        from = start + rest.iter().position(is_other).unwrap_or(rest.len());
        Some(start..from)
    })
}

/// A body that is passed through and recorded at the same time.
pub(super) struct ReadBody<F> {
    body: PassBody,
    /// `None`: the body is too long.
    text: Option<Vec<u8>>,
    /// Called once, if the body ends without an error.
    ended: Option<F>,
    /// A body of a known length is not polled for its end.
    length: Option<u64>,
    _place: Share,
}

impl<F: FnOnce(Vec<u8>) + Send + Unpin + 'static> ReadBody<F> {
    pub fn wrap(body: PassBody, length: Option<u64>, place: Share, ended: F) -> PassBody {
        Box::pin(Self {
            body,
            text: Some(Vec::new()),
            ended: Some(ended),
            length,
            _place: place,
        })
    }

    fn finish(&mut self) {
        if let (Some(text), Some(ended)) = (self.text.take(), self.ended.take()) {
            ended(text);
        }
    }
}

impl<F: FnOnce(Vec<u8>) + Send + Unpin + 'static> Body for ReadBody<F> {
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        let this = self.get_mut();
        let frame = ready!(this.body.as_mut().poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(text)) = (frame.data_ref(), &mut this.text) {
                    if text.len() + data.len() > MAX_TEXT_BYTES {
                        this.text = None;
                    } else {
                        text.extend_from_slice(data);
                    }
                }
                let read = this.text.as_ref().map(|text| text.len() as u64);
                if read.is_some() && read == this.length {
                    this.finish();
                }
            }
            Some(Err(_)) => this.text = None,
            None => this.finish(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn playlist(asked_for: &str, segments: std::ops::Range<u32>) -> Manifest {
        let lines: String = segments.map(|n| format!("#EXTINF:2,\n{n}.ts\n")).collect();
        Manifest::parse(&format!("#EXTM3U\n{lines}"), asked_for).unwrap()
    }

    fn next(manifests: &Manifests, path: &str) -> Option<String> {
        let next = manifests.next(("live", path, ""), 0)?;
        let paths: Vec<String> = next.into_iter().map(|(it, _)| it.path).collect();
        Some(paths.join(" "))
    }

    #[test]
    fn a_newer_version_replaces_the_older() {
        let manifests = Manifests::default();
        let path = "/live/a/index.m3u8";
        let next = |n: u32| next(&manifests, &format!("a/{n}.ts"));
        assert!(manifests.is_empty());
        manifests.insert(path, 1, playlist(path, 10..14));
        assert_eq!(next(10).unwrap(), "a/11.ts a/12.ts a/13.ts");
        assert_eq!(next(13).unwrap(), "");
        manifests.insert(path, 2, playlist(path, 12..16));
        assert_eq!(next(10), None);
        assert_eq!(next(13).unwrap(), "a/14.ts a/15.ts");
        assert!(manifests.knows(path, 2) && !manifests.knows(path, 1));
        assert_eq!(manifests.inner.read().places.len(), 4);
    }

    #[test]
    fn what_is_none_is_read_once() {
        let manifests = Manifests::default();
        let path = "/live/a/index.m3u8";
        let master = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv.m3u8\n";
        for (version, text) in [(1, master.as_bytes()), (2, b"\xff"), (3, b"")] {
            assert!(!manifests.knows(path, version));
            manifests.read(path, version, text);
            assert!(manifests.knows(path, version));
        }
        manifests.read(path, 4, b"#EXTM3U\n#EXTINF:2,\n1.ts\n#EXTINF:2,\n2.ts\n");
        assert_eq!(next(&manifests, "a/1.ts").unwrap(), "a/2.ts");
    }

    #[test]
    fn a_path_has_one_spelling() {
        let one = asked_for("/live/a/index.m3u8");
        assert!(one.is_some());
        for path in [
            "/live/a/./index.m3u8",
            "/live/x/../a/%69ndex.m3u8",
            "/%6cive/a/index.m3u8",
        ] {
            assert_eq!(asked_for(path), one, "{path}");
        }
        for path in [
            "/v1/entries/00000000-0000-0000-0000-000000000001",
            "/live/../b.mpd",
            "x",
        ] {
            assert_eq!(asked_for(path), None, "{path}");
        }
    }

    #[test]
    fn a_segment_is_known_by_its_number() {
        let manifests = Manifests::default();
        let mpd = |start: u32| {
            let template = format!(
                "duration=\"2\" startNumber=\"{start}\" media=\"v1/s-$Number%03d$.m4s?a=1\""
            );
            let mpd = format!(
                "<MPD mediaPresentationDuration=\"PT20S\"><Period><AdaptationSet>\
                 <SegmentTemplate {template}/><Representation id=\"1\"/>\
                 </AdaptationSet></Period></MPD>"
            );
            Manifest::parse(&mpd, "/live/a/index.mpd").unwrap()
        };
        let next = |path: &str, query: &str| {
            let next = manifests.next(("live", path, query), 0)?;
            next.into_iter()
                .next()
                .map(|(it, due)| (it.path, it.query, due.as_secs()))
        };
        manifests.insert("/live/a/index.mpd", 1, mpd(1));
        let second = ("a/v1/s-002.m4s".to_owned(), "a=1".to_owned(), 2);
        assert_eq!(next("a/v1/s-001.m4s", "a=1"), Some(second));
        assert_eq!(next("a/v1/s-010.m4s", "a=1"), None, "the last one");
        for other in ["a/v1/s-000.m4s", "a/v1/s-.m4s", "a/v2/s-001.m4s"] {
            assert_eq!(next(other, "a=1"), None, "{other}");
        }
        assert_eq!(next("a/v1/s-001.m4s", "a=2"), None);
        manifests.insert("/live/a/index.mpd", 2, mpd(101));
        assert_eq!(next("a/v1/s-001.m4s", "a=1"), None);
        assert!(next("a/v1/s-101.m4s", "a=1").is_some());
        manifests.insert("/live/a/index.mpd", 3, playlist("/live/a/index.mpd", 0..1));
        assert!(manifests.inner.read().patterns.is_empty());
    }

    #[test]
    fn what_may_be_a_manifest() {
        for (path, content_type) in [
            ("/a/b.m3u8", None),
            ("/a/b.MPD", None),
            ("/a/b", Some("application/vnd.apple.mpegURL")),
            ("/a/b", Some("audio/mpegurl; charset=utf-8")),
            ("/a/b", Some("application/dash+xml")),
        ] {
            assert!(is_manifest(path, content_type), "{path} {content_type:?}");
        }
        for (path, content_type) in [
            ("", None),
            ("mpd", None),
            ("/a/b.ts", Some("video/mp2t")),
            ("/a/b.mpd.m4s", Some("video/mp4")),
        ] {
            assert!(!is_manifest(path, content_type), "{path} {content_type:?}");
        }
    }

    #[test]
    fn a_source_with_many_displaces_its_own() {
        let manifests = Manifests::default();
        let first = "/small/a/index.m3u8";
        manifests.insert(first, 1, playlist(first, 0..3));
        for number in 0..8 {
            let path = format!("/large/{number}/index.m3u8");
            manifests.insert(&path, 1, playlist(&path, 0..9_000));
        }
        assert!(manifests.knows(first, 1));
        let inner = manifests.inner.read();
        let bytes: usize = inner.known.values().map(|it| it.manifest.bytes).sum();
        assert!(
            bytes <= MAX_BYTES && inner.known.len() < 8,
            "{}",
            inner.known.len()
        );
    }
}
