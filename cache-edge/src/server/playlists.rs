//! Playlists that were served here, so that a request for a segment tells what comes next.
//!
//! Bounded in bytes, in all and of one source; the least recently used go first.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use parking_lot::RwLock;

use super::limits::Share;
use crate::{
    core::playlist::{MAX_TEXT_BYTES, Playlist},
    resolve::ports::{PassBody, ReadError},
};

const MAX_PLAYLISTS: usize = 1_024;
const MAX_BYTES: usize = 16 << 20;
const MAX_SOURCE_BYTES: usize = MAX_BYTES / 2;
/// A playlist of which no segment is asked for is forgotten when another one comes.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// Whether it may be a playlist, by its type or its name.
pub(super) fn is_playlist(path: &str, content_type: Option<&str>) -> bool {
    let mut words = content_type.unwrap_or_default().as_bytes().windows(7);
    let end = path.len().saturating_sub(5);
    words.any(|word| word.eq_ignore_ascii_case(b"mpegurl"))
        || path.as_bytes()[end..].eq_ignore_ascii_case(b".m3u8")
}

pub(super) struct Playlists {
    hasher: RandomState,
    begun: Instant,
    count: AtomicUsize,
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By the hash of the path that it was asked for at.
    known: HashMap<u64, Arc<KnownPlaylist>>,
    /// By the hash of a segment's name.
    places: HashMap<u64, Place>,
}

struct KnownPlaylist {
    playlist: Playlist,
    /// The hash of its text, or its entry.
    version: u64,
    /// Milliseconds since the beginning.
    used: AtomicU64,
}

#[derive(Clone)]
struct Place {
    of: Arc<KnownPlaylist>,
    /// The position of the first segment of a run that is one object.
    first: usize,
}

impl Default for Playlists {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            begun: Instant::now(),
            count: AtomicUsize::new(0),
            inner: RwLock::default(),
        }
    }
}

impl Playlists {
    /// Without a lock: most edges have none.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    pub fn version(&self, of: impl std::hash::Hash) -> u64 {
        self.hasher.hash_one(of)
    }

    /// Whether this version is known, or was found to be no media playlist.
    pub fn knows(&self, asked_for: &str, version: u64) -> bool {
        let id = self.hasher.hash_one(asked_for);
        let inner = self.inner.read();
        inner
            .known
            .get(&id)
            .is_some_and(|known| known.version == version)
    }

    /// In place of an older version.
    pub fn insert(&self, asked_for: &str, version: u64, playlist: Playlist) {
        let id = self.hasher.hash_one(asked_for);
        let now = self.now_ms();
        let known = Arc::new(KnownPlaylist {
            playlist,
            version,
            used: AtomicU64::new(now),
        });
        let mut inner = self.inner.write();
        self.remove(&mut inner, id);
        self.make_space(&mut inner, &known.playlist, now);
        let (source, segments) = (&known.playlist.source, &known.playlist.segments);
        for (position, segment) in segments.iter().enumerate() {
            let before = position
                .checked_sub(1)
                .and_then(|before| segments.get(before));
            if before.is_some_and(|before| before.is_beside(segment)) {
                continue;
            }
            let name = self.name(source, &segment.path, &segment.query);
            let place = inner.places.get(&name);
            // A segment that is played twice has its first place.
            if !place.is_some_and(|place| Arc::ptr_eq(&place.of, &known)) {
                let of = Arc::clone(&known);
                let first = position;
                inner.places.insert(name, Place { of, first });
            }
        }
        inner.known.insert(id, known);
        self.count.store(inner.known.len(), Ordering::Relaxed);
    }

    /// Calls `with` with the playlist and the position of what a request asks for, from byte
    /// `start` on.
    pub fn find<T>(
        &self,
        (source, path, query): (&str, &str, &str),
        start: u64,
        with: impl FnOnce(&Playlist, usize) -> T,
    ) -> Option<T> {
        let place = self
            .inner
            .read()
            .places
            .get(&self.name(source, path, query))
            .cloned()?;
        let playlist = &place.of.playlist;
        let segment = playlist.segments.get(place.first)?;
        if playlist.source != source || segment.path != path || segment.query != query {
            return None;
        }
        place.of.used.store(self.now_ms(), Ordering::Relaxed);
        Some(with(playlist, playlist.position(place.first, start)))
    }

    fn name(&self, source: &str, path: &str, query: &str) -> u64 {
        self.hasher.hash_one((source, path, query))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn make_space(&self, inner: &mut Inner, new: &Playlist, now: u64) {
        let kept_ms = u64::try_from(KEPT_FOR.as_millis()).unwrap_or(u64::MAX);
        let used = |it: &KnownPlaylist| it.used.load(Ordering::Relaxed);
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
                let of = inner.known.values().map(|it| &it.playlist);
                let of = of.filter(|it| source.is_none_or(|source| it.source == source));
                of.map(|it| it.bytes).sum::<usize>() + new.bytes
            };
            let source = if bytes(Some(&new.source)) > MAX_SOURCE_BYTES {
                Some(new.source.as_str())
            } else if bytes(None) > MAX_BYTES || inner.known.len() >= MAX_PLAYLISTS {
                None
            } else {
                return;
            };
            let of = inner.known.iter();
            let of = of.filter(|(_, it)| source.is_none_or(|name| it.playlist.source == name));
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
        let playlist = &known.playlist;
        for segment in &playlist.segments {
            let name = self.name(&playlist.source, &segment.path, &segment.query);
            let place = inner.places.get(&name);
            if place.is_some_and(|place| Arc::ptr_eq(&place.of, &known)) {
                inner.places.remove(&name);
            }
        }
        self.count.store(inner.known.len(), Ordering::Relaxed);
    }
}

/// Whether the body is the text of a whole object.
pub(super) fn is_readable(headers: &HeaderMap) -> bool {
    let is_plain = |value: &header::HeaderValue| value.as_bytes() == b"identity";
    headers.get(header::CONTENT_ENCODING).is_none_or(is_plain)
}

/// A body that is passed on, and read besides.
pub(super) struct ReadBody<F> {
    body: PassBody,
    /// None: it is too long.
    text: Option<Vec<u8>>,
    /// Called once, at a clean end.
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

    fn playlist(asked_for: &str, segments: std::ops::Range<u32>) -> Playlist {
        let lines: String = segments.map(|n| format!("#EXTINF:2,\n{n}.ts\n")).collect();
        Playlist::parse(&format!("#EXTM3U\n{lines}"), asked_for).unwrap()
    }

    #[test]
    fn a_newer_version_replaces_the_older() {
        let playlists = Playlists::default();
        let path = "/live/a/index.m3u8";
        let position = |n: u32| {
            let path = format!("a/{n}.ts");
            playlists.find(("live", &path, ""), 0, |_, position| position)
        };
        assert!(playlists.is_empty());
        playlists.insert(path, 1, playlist(path, 10..14));
        assert_eq!((position(10), position(13)), (Some(0), Some(3)));
        playlists.insert(path, 2, playlist(path, 12..16));
        assert_eq!(
            (position(10), position(13), position(15)),
            (None, Some(1), Some(3))
        );
        assert!(playlists.knows(path, 2) && !playlists.knows(path, 1));
        assert_eq!(playlists.inner.read().places.len(), 4);
    }

    #[test]
    fn a_source_with_many_displaces_its_own() {
        let playlists = Playlists::default();
        let first = "/small/a/index.m3u8";
        playlists.insert(first, 1, playlist(first, 0..3));
        for number in 0..8 {
            let path = format!("/large/{number}/index.m3u8");
            playlists.insert(&path, 1, playlist(&path, 0..9_000));
        }
        assert!(playlists.knows(first, 1));
        let inner = playlists.inner.read();
        let bytes: usize = inner.known.values().map(|it| it.playlist.bytes).sum();
        assert!(
            bytes <= MAX_BYTES && inner.known.len() < 8,
            "{}",
            inner.known.len()
        );
    }
}
