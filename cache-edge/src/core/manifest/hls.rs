//! HLS playlists (RFC 8216bis): media playlists, with LL-HLS parts, and multivariant playlists.

use std::{borrow::Cow, time::Duration};

use http_rules::cmcd::OpenRange;
use quick_m3u8::{
    HlsLine, Reader,
    config::ParsingOptionsBuilder,
    tag::{
        KnownTag,
        hls::{self, EnumeratedString, MediaType, PreloadHintType},
    },
};

use super::{
    MAX_SEGMENTS, Manifest, Names, Rendition, Segment, Track, duration_of, is_hls, open_range,
    selection::Selection,
};

/// The assumed duration of a hinted part, if no part precedes it.
const PART: Duration = Duration::from_millis(500);
/// Limit of playlists to read for one multivariant playlist.
const MAX_PLAYLISTS: usize = 64;

/// Parses a media playlist into two tracks: its segments, and its parts.
pub(super) fn parse(text: &str, asked_for: &str, source: String) -> Manifest {
    let mut reading = Reading {
        asked_for,
        names: Names::new(&source),
        segments: Vec::new(),
        parts: Vec::new(),
        parted: 0,
        last_end: None,
        last_part_end: None,
    };
    reading.read(&without_spaces(text));
    let (mut segments, mut parts) = (reading.segments, reading.parts);
    let bytes = reading.names.bytes;
    // After the last segment there are only parts.
    segments.extend_from_slice(parts.get(reading.parted..).unwrap_or_default());
    // If no part precedes the end of the last segment, the second track would only repeat them.
    if reading.parted == 0 {
        parts.clear();
    }
    let mut manifest = Manifest::new(source);
    manifest.bytes = bytes;
    let tracks = [segments, parts].into_iter();
    manifest.tracks = tracks
        .filter(|track| !track.is_empty())
        .map(|track| (Rendition::default(), Track::Listed(track)))
        .collect();
    manifest
}

struct Reading<'a> {
    asked_for: &'a str,
    names: Names<'a>,
    segments: Vec<Segment>,
    parts: Vec<Segment>,
    /// Parts before the end of the last segment.
    parted: usize,
    /// End of the last byte range.
    last_end: Option<u64>,
    last_part_end: Option<u64>,
}

impl Reading<'_> {
    fn read(&mut self, text: &str) {
        let options = ParsingOptionsBuilder::new()
            .with_parsing_for_inf()
            .with_parsing_for_byterange()
            .with_parsing_for_gap()
            .with_parsing_for_map()
            .with_parsing_for_part()
            .with_parsing_for_preload_hint()
            .build();
        let mut reader = Reader::from_str(text, options);
        let (mut duration, mut range, mut is_gap) = (None, None, false);
        loop {
            let tag = match reader.read_line() {
                Ok(None) => return,
                Ok(Some(HlsLine::KnownTag(KnownTag::Hls(tag)))) => tag,
                Ok(Some(HlsLine::Uri(uri))) => {
                    // A URI without a duration is a variant of a multivariant playlist.
                    if let Some(duration) = duration.take() {
                        let range = range.take();
                        let range = range.and_then(|it| continued(it, &mut self.last_end));
                        // The URI of a gap names nothing (RFC 8216bis, 4.4.4.7). What follows is
                        // due later by its duration.
                        if std::mem::take(&mut is_gap) {
                            lengthen(&mut self.segments, duration);
                            self.parted = self.parts.len();
                            continue;
                        }
                        let Some(segment) = self.segment(&uri, range, duration) else {
                            return;
                        };
                        self.segments.extend(segment);
                        self.parted = self.parts.len();
                    }
                    continue;
                }
                Ok(Some(_)) | Err(_) => continue,
            };
            let is_read = match tag {
                hls::Tag::Inf(inf) => {
                    duration = Some(duration_of(inf.duration()));
                    true
                }
                hls::Tag::Byterange(it) => {
                    range = Some((it.length(), it.offset()));
                    true
                }
                hls::Tag::Gap(_) => {
                    is_gap = true;
                    true
                }
                hls::Tag::Map(map) => {
                    let range = map.byterange();
                    let range = range.and_then(|it| open_range(it.offset, it.length));
                    let segment = self.segment(map.uri(), range, Duration::ZERO);
                    segment.map(|it| self.segments.extend(it)).is_some()
                }
                hls::Tag::Part(part) => {
                    let range = part.byterange().map(|it| (it.length, it.offset));
                    let range = range.and_then(|it| continued(it, &mut self.last_part_end));
                    let duration = duration_of(part.duration());
                    if part.gap() {
                        lengthen(&mut self.parts, duration);
                        true
                    } else {
                        let segment = self.segment(part.uri(), range, duration);
                        segment.map(|it| self.parts.extend(it)).is_some()
                    }
                }
                hls::Tag::PreloadHint(hint) => self.hint(&hint),
                _ => true,
            };
            if !is_read {
                return;
            }
        }
    }

    /// Adds a part that does not exist yet. Its origin answers once it does.
    fn hint(&mut self, hint: &hls::PreloadHint<'_>) -> bool {
        let duration = match hint.hint_type() {
            EnumeratedString::Known(PreloadHintType::Part) => {
                self.parts.last().map_or(PART, |part| part.duration)
            }
            _ => Duration::ZERO,
        };
        let range = match (hint.byterange_start(), hint.byterange_length()) {
            (0, None) => None,
            (start, None) => Some((start, None)),
            (start, Some(length)) => open_range(start, length),
        };
        let segment = self.segment(hint.uri(), range, duration);
        segment.map(|it| self.parts.extend(it)).is_some()
    }

    /// The segment, if it is in the source. `None`: a limit is reached.
    fn segment(
        &mut self,
        uri: &str,
        range: Option<OpenRange>,
        duration: Duration,
    ) -> Option<Option<Segment>> {
        let name = self.names.resolve(self.asked_for, uri);
        let segment = name.map(|(path, query)| Segment {
            path,
            query,
            range,
            duration,
        });
        let bytes = segment.as_ref().map_or(0, Segment::bytes);
        self.names.count(bytes).then_some(segment)
    }
}

/// The text without spaces around its lines and before durations. Playlists must not have them,
/// but some do, and players ignore them.
fn without_spaces(text: &str) -> Cow<'_, str> {
    const INF: &str = "#EXTINF:";
    let has_spaces = |line: &str| {
        let duration = line.strip_prefix(INF).unwrap_or_default();
        line.trim() != line || duration.starts_with([' ', '\t'])
    };
    if !text.lines().any(has_spaces) {
        return Cow::Borrowed(text);
    }
    let mut tidied = String::with_capacity(text.len());
    for line in text.lines().map(str::trim) {
        match line.strip_prefix(INF) {
            Some(duration) => tidied.extend([INF, duration.trim_start()]),
            None => tidied.push_str(line),
        }
        tidied.push('\n');
    }
    Cow::Owned(tidied)
}

/// Adds the duration of a gap to the segment before it; an initialization section has none.
fn lengthen(segments: &mut [Segment], gap: Duration) {
    if let Some(before) = segments.last_mut().filter(|it| !it.duration.is_zero()) {
        before.duration += gap;
    }
}

/// A range without an offset begins where the last one ended (RFC 8216, 4.3.2.2).
fn continued(
    (length, offset): (u64, Option<u64>),
    last_end: &mut Option<u64>,
) -> Option<OpenRange> {
    let range = open_range(offset.or(*last_end).unwrap_or(0), length)?;
    *last_end = range.1.map(|last| last.saturating_add(1));
    Some(range)
}

/// A variant of a multivariant playlist.
struct Variant {
    uri: String,
    rendition: Rendition,
    /// Group ids of its audio and its subtitles.
    groups: [Option<String>; 2],
}

/// References to the playlists that a selection takes from a multivariant playlist: video, and its
/// audio and subtitles. `None`: the text is no multivariant playlist. An error names the available
/// renditions.
#[must_use]
pub fn select(text: &str, selection: &Selection) -> Option<Result<Vec<String>, String>> {
    if !is_hls(text) {
        return None;
    }
    let (variants, media) = read_variants(&without_spaces(text));
    if variants.is_empty() {
        return None;
    }
    let renditions: Vec<&Rendition> = variants.iter().map(|it| &it.rendition).collect();
    let chosen = match selection.choose(&renditions) {
        Ok(chosen) => chosen,
        Err(error) => return Some(Err(error)),
    };
    let mut uris: Vec<String> = Vec::new();
    let mut add = |uri: &String| {
        if !uris.contains(uri) && uris.len() < MAX_PLAYLISTS {
            uris.push(uri.clone());
        }
    };
    let chosen: Vec<&Variant> = chosen
        .into_iter()
        .filter_map(|it| variants.get(it))
        .collect();
    for variant in &chosen {
        add(&variant.uri);
    }
    for (group, uri) in &media {
        let is_chosen = |it: &&Variant| it.groups.iter().flatten().any(|it| it == group);
        if chosen.iter().any(is_chosen) {
            add(uri);
        }
    }
    Some(Ok(uris))
}

/// Its variants, and the playlists of its groups.
fn read_variants(text: &str) -> (Vec<Variant>, Vec<(String, String)>) {
    let options = ParsingOptionsBuilder::new()
        .with_parsing_for_stream_inf()
        .with_parsing_for_media()
        .build();
    let mut reader = Reader::from_str(text, options);
    let (mut variants, mut media) = (Vec::new(), Vec::new());
    let mut described = None;
    while variants.len() + media.len() < MAX_SEGMENTS {
        match reader.read_line() {
            Ok(None) => break,
            Ok(Some(HlsLine::KnownTag(KnownTag::Hls(hls::Tag::StreamInf(inf))))) => {
                let resolution = inf.resolution().map(|it| it.to_string());
                let rendition = Rendition {
                    is_video: true,
                    bits_per_second: inf.bandwidth(),
                    names: resolution.into_iter().collect(),
                    ..Rendition::default()
                };
                let group = |it: Option<&str>| it.map(str::to_owned);
                described = Some((rendition, [group(inf.audio()), group(inf.subtitles())]));
            }
            Ok(Some(HlsLine::KnownTag(KnownTag::Hls(hls::Tag::Media(it))))) => {
                let is_beside = matches!(
                    it.media_type(),
                    EnumeratedString::Known(MediaType::Audio | MediaType::Subtitles)
                );
                if let Some(uri) = it.uri().filter(|_| is_beside) {
                    media.push((it.group_id().to_owned(), uri.to_owned()));
                }
            }
            Ok(Some(HlsLine::Uri(uri))) => {
                if let Some((mut rendition, groups)) = described.take() {
                    rendition.names.push(uri.to_string());
                    variants.push(Variant {
                        uri: uri.to_string(),
                        rendition,
                        groups,
                    });
                }
            }
            Ok(Some(_)) | Err(_) => {}
        }
    }
    (variants, media)
}

#[cfg(test)]
#[path = "hls_tests.rs"]
#[allow(clippy::unwrap_used)]
mod tests;
