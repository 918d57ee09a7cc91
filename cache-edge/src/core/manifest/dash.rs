//! DASH MPDs (ISO/IEC 23009-1): segments from a template, from a list, or all in one object.

use std::{mem::take, sync::Arc, time::Duration};

use http_rules::{cmcd::OpenRange, path};
use quick_xml::{
    XmlVersion,
    escape::resolve_predefined_entity,
    events::{BytesStart, Event},
    reader::Reader,
};

use super::{
    Manifest, Names, Numbering, Rendition, Segment, Track, duration_of,
    numbering::{Counting, Run},
};

/// Limit of Representations of one MPD.
const MAX_TRACKS: usize = 1_000;
/// Limit of nested elements.
const MAX_DEPTH: usize = 32;
/// Placeholder of the number while a name is normalised. Normalisation does not change it.
const MARK: &str = "~*~";
/// Longer values are not read.
const MAX_VALUE_BYTES: usize = 2 << 10;
/// A longer duration of a title is ignored.
const MAX_SECONDS: f64 = 1e8;

pub(super) fn parse(text: &str, asked_for: &str, source: String) -> Manifest {
    let mut manifest = Manifest::new(source);
    let source = manifest.source.clone();
    let mut reading = Reading {
        names: Names::new(&source),
        levels: vec![Level {
            base: Some(asked_for.to_owned()),
            ..Level::default()
        }],
        in_base: false,
        sets: 0,
        starts: starts_of_periods(text),
        period_end: Duration::ZERO,
        tracks: Vec::new(),
    };
    reading.read(text);
    manifest.bytes = reading.names.bytes;
    manifest.tracks = reading.tracks;
    manifest
}

/// The values of an element, including inherited ones.
#[derive(Clone, Default)]
struct Level {
    element: String,
    /// Base of references. `None`: it is outside of the source.
    base: Option<String>,
    has_base: bool,
    rendition: Rendition,
    /// Length of the period. `None`: unknown.
    length: Option<Duration>,
    /// Its Representation@id.
    id: String,
    media: Option<String>,
    initialization: Option<Reference>,
    timescale: Option<u64>,
    duration: Option<u64>,
    start_number: Option<u64>,
    end_number: Option<u64>,
    time_offset: u64,
    timeline: Arc<[TimelineEntry]>,
    list: Arc<[Reference]>,
}

#[derive(Clone, Copy)]
struct TimelineEntry {
    time: Option<u64>,
    duration: u64,
    repeats: i64,
}

/// A URL, or a range of the base itself.
#[derive(Clone)]
struct Reference {
    url: String,
    range: Option<OpenRange>,
}

struct Reading<'a> {
    names: Names<'a>,
    levels: Vec<Level>,
    /// Whether the reader is inside of a BaseURL.
    in_base: bool,
    sets: usize,
    /// The starts that the periods from here on name.
    starts: std::vec::IntoIter<Option<Duration>>,
    /// End of the last period.
    period_end: Duration,
    tracks: Vec<(Rendition, Track)>,
}

impl Reading<'_> {
    fn read(&mut self, text: &str) {
        let mut reader = Reader::from_str(text);
        let mut base = String::new();
        let (mut timeline, mut list) = (Vec::new(), Vec::new());
        loop {
            match reader.read_event() {
                Ok(Event::Start(element)) => {
                    let is_read = self.open(&element, &mut timeline, &mut list);
                    if !is_read || self.levels.len() > MAX_DEPTH {
                        return;
                    }
                }
                Ok(Event::Empty(element)) => {
                    if !self.open(&element, &mut timeline, &mut list) {
                        return;
                    }
                    self.close(&mut base, &mut timeline, &mut list);
                }
                Ok(Event::End(_)) => self.close(&mut base, &mut timeline, &mut list),
                Ok(Event::Text(text)) if self.in_base => base.push_str(&text),
                Ok(Event::CData(text)) if self.in_base => base.push_str(&text),
                Ok(Event::GeneralRef(name)) if self.in_base => match name.resolve_char_ref() {
                    Ok(Some(character)) => base.push(character),
                    _ => base.push_str(resolve_predefined_entity(&name).unwrap_or_default()),
                },
                Ok(Event::Eof) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Reads a start tag. False: the text is no MPD, or a limit is reached.
    fn open(
        &mut self,
        element: &BytesStart<'_>,
        timeline: &mut Vec<TimelineEntry>,
        list: &mut Vec<Reference>,
    ) -> bool {
        let Some(parent) = self.levels.last() else {
            return false;
        };
        let is_root = self.levels.len() == 1;
        let name = element.local_name().into_inner().to_owned();
        if is_root != (name == "MPD") {
            return false;
        }
        // Other elements have nothing to inherit, nor do these within themselves: what is inherited
        // would grow with each.
        let inherits = match name.as_str() {
            "Period" => parent.element == "MPD",
            "AdaptationSet" => parent.element == "Period",
            "Representation" => parent.element == "AdaptationSet",
            "MPD" | "SegmentTemplate" | "SegmentList" | "SegmentBase" => true,
            _ => false,
        };
        let mut level = if inherits {
            parent.clone()
        } else {
            Level::default()
        };
        level.has_base = false;
        let read = Attributes(element);
        match name.as_str() {
            "MPD" => level.length = read.time("mediaPresentationDuration"),
            "Period" => {
                let start = read.time("start").unwrap_or(self.period_end);
                self.starts.next();
                // It ends where the next one begins (5.3.2.1).
                let end = self.starts.as_slice().first().copied().flatten();
                let rest = end.or(level.length).map(|end| end.saturating_sub(start));
                level.length = read.time("duration").or(rest);
                self.period_end = start.saturating_add(level.length.unwrap_or_default());
                level.rendition.start = start;
            }
            "AdaptationSet" => {
                self.sets += 1;
                level.rendition.set = self.sets;
                read.describe(&mut level.rendition);
            }
            "Representation" => {
                read.describe(&mut level.rendition);
                level.rendition.bits_per_second = read.number("bandwidth").unwrap_or(0);
                level.id = read.text("id").unwrap_or_default();
                level.rendition.names.push(level.id.clone());
            }
            "SegmentTemplate" | "SegmentList" | "SegmentBase" => level.address(&read),
            "Initialization" => {
                level.initialization = Some(Reference {
                    url: read.text("sourceURL").unwrap_or_default(),
                    range: read.range("range"),
                });
            }
            "S" => {
                let entry = TimelineEntry {
                    time: read.number("t"),
                    duration: read.number("d").unwrap_or(0),
                    repeats: read.text("r").and_then(|it| it.parse().ok()).unwrap_or(0),
                };
                if !self.names.count(0) {
                    return false;
                }
                timeline.push(entry);
            }
            "SegmentURL" => {
                let url = read.text("media").unwrap_or_default();
                if !self.names.count(url.len()) {
                    return false;
                }
                let range = read.range("mediaRange");
                list.push(Reference { url, range });
            }
            "BaseURL" => self.in_base = true,
            _ => {}
        }
        level.element = name;
        self.levels.push(level);
        true
    }

    /// Reads an end tag, and uses the content of its element.
    fn close(
        &mut self,
        base: &mut String,
        timeline: &mut Vec<TimelineEntry>,
        list: &mut Vec<Reference>,
    ) {
        // The first level is the URL of the manifest.
        if self.levels.len() < 2 {
            return;
        }
        let Some(closed) = self.levels.pop() else {
            return;
        };
        let Some(parent) = self.levels.last_mut() else {
            return;
        };
        match closed.element.as_str() {
            "BaseURL" => {
                self.in_base = false;
                let reference = take(base);
                // Further BaseURLs are alternatives.
                if !parent.has_base {
                    let joined = |base: String| path::join_reference(&base, reference.trim());
                    let joined = parent.base.take().and_then(joined);
                    parent.base = joined.filter(|it| it.len() <= path::MAX_TARGET_BYTES);
                    parent.has_base = true;
                }
            }
            "SegmentTimeline" => parent.timeline = take(timeline).into(),
            "Initialization" => parent.initialization = closed.initialization,
            "SegmentTemplate" | "SegmentList" | "SegmentBase" => {
                parent.take_address(closed);
                if !list.is_empty() {
                    parent.list = take(list).into();
                }
            }
            "Representation" => self.represent(closed),
            _ => {}
        }
    }

    /// Adds the track of a complete Representation.
    fn represent(&mut self, level: Level) {
        if self.tracks.len() >= MAX_TRACKS || !self.names.count(level.rendition.bytes()) {
            return;
        }
        let track = match (&level.media, level.list.is_empty()) {
            (Some(media), true) => self.by_template(&level, media),
            (_, false) => self.by_list(&level),
            (None, true) => self.whole(&level),
        };
        let Some(track) = track else {
            return;
        };
        let bytes = match &track {
            // Its segments were counted one by one.
            Track::Listed(_) => 0,
            Track::Numbered(numbering) => numbering.bytes(),
            Track::Whole(segment) => segment.bytes(),
        };
        if self.names.count(bytes) {
            self.tracks.push((level.rendition, track));
        }
    }

    fn by_template(&mut self, level: &Level, media: &str) -> Option<Track> {
        let (reference, number) = expand(media, level)?;
        let (path, query) = self.names.resolve(level.base.as_ref()?, &reference)?;
        let init = level.initialization.as_ref();
        let init = init.and_then(|init| self.segment(level, init, Duration::ZERO));
        let Some((by_time, width)) = number else {
            return Some(Track::Whole(Segment {
                path,
                query,
                range: None,
                duration: level.length.unwrap_or_default(),
            }));
        };
        let name = if query.is_empty() {
            path
        } else {
            format!("{path}?{query}")
        };
        let counting = Counting {
            width,
            by_time,
            start: level.start_number.unwrap_or(1),
            runs: level.runs(),
            timescale: level.timescale.unwrap_or(1),
            init,
        };
        Numbering::new(&name, MARK, counting).map(Track::Numbered)
    }

    fn by_list(&mut self, level: &Level) -> Option<Track> {
        let mut segments = Vec::with_capacity(level.list.len() + 1);
        if let Some(init) = &level.initialization {
            segments.extend(self.segment(level, init, Duration::ZERO));
        }
        let is_timed = level.duration.is_some() || !level.timeline.is_empty();
        let runs = if is_timed {
            level.runs()
        } else {
            Arc::default()
        };
        for (position, reference) in level.list.iter().enumerate() {
            let run = runs.partition_point(|run| run.first <= position as u64);
            let run = run.checked_sub(1).and_then(|run| runs.get(run));
            let ticks = run.map_or(0, |run| run.duration);
            let seconds = ticks as f64 / level.timescale.unwrap_or(1).max(1) as f64;
            let segment = self.segment(level, reference, duration_of(seconds));
            if !self.names.count(segment.as_ref().map_or(0, Segment::bytes)) {
                return None;
            }
            segments.extend(segment);
        }
        (!segments.is_empty()).then_some(Track::Listed(segments))
    }

    fn whole(&mut self, level: &Level) -> Option<Track> {
        let base = Reference {
            url: String::new(),
            range: None,
        };
        // Without a BaseURL below the MPD, this would be the MPD itself.
        let is_named = self.levels.first().map(|it| &it.base) != Some(&level.base);
        let length = level.length.unwrap_or_default();
        let segment = self.segment(level, &base, length).filter(|_| is_named)?;
        Some(Track::Whole(segment))
    }

    fn segment(&self, level: &Level, reference: &Reference, duration: Duration) -> Option<Segment> {
        let (url, number) = expand(&reference.url, level)?;
        let (path, query) = self.names.resolve(level.base.as_ref()?, &url)?;
        number.is_none().then_some(Segment {
            path,
            query,
            range: reference.range,
            duration,
        })
    }
}

impl Level {
    /// Reads a SegmentTemplate, SegmentList or SegmentBase. Missing attributes are inherited.
    fn address(&mut self, read: &Attributes<'_>) {
        self.media = read.text("media").or(self.media.take());
        if let Some(url) = read.text("initialization") {
            self.initialization = Some(Reference { url, range: None });
        }
        self.timescale = read.number("timescale").or(self.timescale);
        self.duration = read.number("duration").or(self.duration);
        self.start_number = read.number("startNumber").or(self.start_number);
        self.end_number = read.number("endNumber").or(self.end_number);
        let offset = read.number("presentationTimeOffset");
        self.time_offset = offset.unwrap_or(self.time_offset);
    }

    fn take_address(&mut self, from: Self) {
        self.media = from.media;
        self.initialization = from.initialization;
        self.timescale = from.timescale;
        self.duration = from.duration;
        self.start_number = from.start_number;
        self.end_number = from.end_number;
        self.time_offset = from.time_offset;
        self.timeline = from.timeline;
        self.list = from.list;
    }

    fn runs(&self) -> Arc<[Run]> {
        let timescale = self.timescale.unwrap_or(1).max(1);
        // End of the period on the track's clock.
        let end = self.length.map(|length| {
            let ticks = (length.as_secs_f64() * timescale as f64).ceil() as u64;
            ticks.saturating_add(self.time_offset)
        });
        if self.timeline.is_empty() {
            let duration = self.duration.unwrap_or(0);
            let length = end.map(|end| end - self.time_offset);
            let count = length.and_then(|it| (duration > 0).then(|| it.div_ceil(duration)));
            let start = self.start_number.unwrap_or(1);
            let named = self
                .end_number
                .map(|end| end.saturating_add(1).saturating_sub(start));
            let count = named.or(count);
            return Arc::new([Run {
                first: 0,
                time: self.time_offset,
                duration: duration.max(1),
                count: if duration > 0 {
                    count.unwrap_or(u64::MAX)
                } else {
                    1
                },
            }]);
        }
        let mut runs: Vec<Run> = Vec::with_capacity(self.timeline.len());
        let (mut first, mut now) = (0_u64, 0_u64);
        for (position, entry) in self.timeline.iter().enumerate() {
            let time = entry.time.unwrap_or(now);
            if entry.duration == 0 || time < now {
                continue;
            }
            let next = self.timeline.get(position + 1).and_then(|next| next.time);
            let count = match u64::try_from(entry.repeats) {
                Ok(repeats) => repeats.saturating_add(1),
                // It repeats until the next entry, or the end of the period.
                Err(_) => next.or(end).map_or(u64::MAX, |until| {
                    until.saturating_sub(time).div_ceil(entry.duration).max(1)
                }),
            };
            runs.push(Run {
                first,
                time,
                duration: entry.duration,
                count,
            });
            first = first.saturating_add(count);
            now = time.saturating_add(count.saturating_mul(entry.duration));
        }
        runs.into()
    }
}

/// The start that each period of the MPD names.
fn starts_of_periods(text: &str) -> std::vec::IntoIter<Option<Duration>> {
    let mut reader = Reader::from_str(text);
    let mut starts = Vec::new();
    loop {
        match reader.read_event() {
            Ok(Event::Start(element) | Event::Empty(element)) => {
                if element.local_name().into_inner() == "Period" {
                    starts.push(Attributes(&element).time("start"));
                }
            }
            Ok(Event::Eof) | Err(_) => return starts.into_iter(),
            Ok(_) => {}
        }
    }
}

/// A template with its identifiers replaced (5.3.9.4.4). The number or the time becomes the mark,
/// and is returned as whether it is the time, and its digits. `None`: the template is not
/// supported.
fn expand(template: &str, level: &Level) -> Option<(String, Option<(bool, usize)>)> {
    let (mut text, mut number) = (String::with_capacity(template.len()), None);
    let mut rest = template;
    while let Some((literal, tail)) = rest.split_once('$') {
        text.push_str(literal);
        let (identifier, tail) = tail.split_once('$')?;
        rest = tail;
        let (name, width) = match identifier.split_once("%0") {
            Some((name, width)) => (name, width.strip_suffix('d')?.parse().ok()?),
            None => (identifier, 1),
        };
        match name {
            "" => text.push('$'),
            "RepresentationID" => text.push_str(&level.id),
            "Bandwidth" => {
                let bandwidth = level.rendition.bits_per_second;
                let width = usize::min(width, 20);
                text.push_str(&format!("{bandwidth:0width$}"));
            }
            "Number" | "Time" if number.is_none() => {
                text.push_str(MARK);
                number = Some((name == "Time", width));
            }
            _ => return None,
        }
        if text.len() > path::MAX_TARGET_BYTES {
            return None;
        }
    }
    text.push_str(rest);
    Some((text, number))
}

struct Attributes<'a>(&'a BytesStart<'a>);

impl Attributes<'_> {
    fn text(&self, name: &str) -> Option<String> {
        let attribute = self.0.try_get_attribute(name).ok()??;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).ok()?;
        (value.len() <= MAX_VALUE_BYTES).then(|| value.into_owned())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.trim().parse().ok()
    }

    fn time(&self, name: &str) -> Option<Duration> {
        time_of(self.text(name)?.trim())
    }

    /// `first-last`, both inclusive.
    fn range(&self, name: &str) -> Option<OpenRange> {
        let text = self.text(name)?;
        let (first, last) = text.split_once('-')?;
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some((first, Some(last)))
    }

    fn describe(&self, rendition: &mut Rendition) {
        let kinds = ["contentType", "mimeType"].map(|name| self.text(name));
        let is_video = |it: &String| it.starts_with("video");
        rendition.is_video |= kinds.iter().flatten().any(is_video);
        if let (Some(width), Some(height)) = (self.number("width"), self.number("height")) {
            rendition.names.push(format!("{width}x{height}"));
        }
        rendition.names.extend(self.text("lang"));
    }
}

/// An `xs:duration`, `PT1H2M3.5S`; years and months have no length.
fn time_of(text: &str) -> Option<Duration> {
    let rest = text.strip_prefix('P')?;
    let (days, clock) = rest.split_once('T').unwrap_or((rest, ""));
    let mut seconds = 0.0;
    for (mut part, units) in [
        (days, &[('D', 86_400.0)][..]),
        (clock, &[('H', 3_600.0), ('M', 60.0), ('S', 1.0)][..]),
    ] {
        for (unit, length) in units {
            if let Some((number, rest)) = part.split_once(*unit) {
                seconds += number.parse::<f64>().ok()? * length;
                part = rest;
            }
        }
        if !part.is_empty() {
            return None;
        }
    }
    (0.0..MAX_SECONDS)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
#[path = "dash_tests.rs"]
#[allow(clippy::unwrap_used)]
mod tests;
