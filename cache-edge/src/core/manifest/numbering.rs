//! Tracks whose segments have their number or time in their names, kept as a few numbers.

use std::{sync::Arc, time::Duration};

use super::{NEXT_SEGMENTS, Segment, duration_of};

/// Limit of the digits of a number.
const MAX_WIDTH: usize = 20;

/// Consecutive segments of the same duration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The position of its first segment in the track.
    pub first: u64,
    /// Start of that segment.
    pub time: u64,
    pub duration: u64,
    pub count: u64,
}

/// A track of segments with a number in their names.
#[derive(Debug, PartialEq, Eq)]
pub struct Numbering {
    /// The parts of path and query before and after the number.
    prefix: String,
    suffix: String,
    /// Digits of the number, with leading zeros.
    width: usize,
    /// The number is the segment's time.
    by_time: bool,
    /// Number of the first segment, unless `by_time`.
    start: u64,
    /// In ascending order.
    runs: Arc<[Run]>,
    timescale: u64,
    init: Option<Segment>,
}

/// The arguments of [`Numbering::new`] besides the name.
pub(super) struct Counting {
    pub width: usize,
    pub by_time: bool,
    pub start: u64,
    pub runs: Arc<[Run]>,
    pub timescale: u64,
    pub init: Option<Segment>,
}

impl Numbering {
    /// `name` contains `mark` in place of the number. `None`: not exactly once.
    pub(super) fn new(name: &str, mark: &str, counting: Counting) -> Option<Self> {
        let (prefix, suffix) = name.split_once(mark)?;
        if suffix.contains(mark) {
            return None;
        }
        Some(Self {
            prefix: prefix.to_owned(),
            suffix: suffix.to_owned(),
            width: counting.width.min(MAX_WIDTH),
            by_time: counting.by_time,
            start: counting.start,
            runs: counting.runs,
            timescale: counting.timescale.max(1),
            init: counting.init,
        })
    }

    /// The text before and after the number. `None`: it has an adjacent digit, so that a name does
    /// not show where the number begins or ends.
    #[must_use]
    pub fn pattern(&self) -> Option<(&str, &str)> {
        let is_digit = |it: Option<u8>| it.is_some_and(|it| it.is_ascii_digit());
        let is_unclear =
            is_digit(self.prefix.bytes().last()) || is_digit(self.suffix.bytes().next());
        (!is_unclear).then_some((&self.prefix, &self.suffix))
    }

    /// Size in memory.
    pub(super) fn bytes(&self) -> usize {
        let init = self.init.as_ref().map_or(0, Segment::bytes);
        self.prefix.len() + self.suffix.len() + self.runs.len() * size_of::<Run>() + init
    }

    /// The initialization section.
    #[must_use]
    pub fn init(&self) -> Option<&Segment> {
        self.init.as_ref()
    }

    /// The position of the segment with this number.
    #[must_use]
    pub fn position_of(&self, number: u64) -> Option<u64> {
        if !self.by_time {
            let position = number.checked_sub(self.start)?;
            return self.run_at(position).map(|_| position);
        }
        let after = self.runs.partition_point(|run| run.time <= number);
        let run = self.runs.get(after.checked_sub(1)?)?;
        let after_first = number.checked_sub(run.time)?;
        let ahead = after_first.checked_div(run.duration)?;
        let is_one = after_first == ahead * run.duration && ahead < run.count;
        is_one.then(|| run.first.saturating_add(ahead))
    }

    /// The segment at a position.
    #[must_use]
    pub fn segment(&self, position: u64) -> Option<Segment> {
        let run = self.run_at(position)?;
        let number = if self.by_time {
            let before = (position - run.first).checked_mul(run.duration)?;
            run.time.checked_add(before)?
        } else {
            self.start.checked_add(position)?
        };
        let name = format!(
            "{}{number:0width$}{}",
            self.prefix,
            self.suffix,
            width = self.width
        );
        let (path, query) = name.split_once('?').unwrap_or((&name, ""));
        Some(Segment {
            path: path.to_owned(),
            query: query.to_owned(),
            range: None,
            duration: duration_of(run.duration as f64 / self.timescale as f64),
        })
    }

    fn run_at(&self, position: u64) -> Option<&Run> {
        let after = self.runs.partition_point(|run| run.first <= position);
        let run = self.runs.get(after.checked_sub(1)?)?;
        (position - run.first < run.count).then_some(run)
    }

    pub(super) fn next(&self, position: u64) -> Vec<(Segment, Duration)> {
        let mut due = Duration::ZERO;
        let mut next = Vec::with_capacity(NEXT_SEGMENTS);
        let Some(mut before) = self.segment(position) else {
            return next;
        };
        for ahead in 1..=NEXT_SEGMENTS as u64 {
            due += before.duration;
            let segment = position.checked_add(ahead);
            let Some(segment) = segment.and_then(|it| self.segment(it)) else {
                break;
            };
            before = segment.clone();
            next.push((segment, due));
        }
        next
    }
}
