//! A claim: an owner wants a set of chunks on one edge, at one level.
//!
//! A reader has up to three (the chunk it waits for, its lookahead, its hints), a want has one, and
//! each partly held entry of an edge has one for its background fill. A claim consists of ranges,
//! never a list of chunks: the cost of a job over 50,000 chunks depends on its gaps.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Level};

use super::api::{EdgeId, EntryNo, Millis, ReaderId, Reason, SourceId, WantId};
use super::queue::Key;
use crate::edge_choice::mix;
use chunkcache_proto::RangeSet;

/// The owner of a claim. Its order is the last tie-break, so that equal input gives equal output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    Waiting(ReaderId),
    Lookahead(ReaderId),
    Hints(ReaderId),
    Want(WantId),
    Fill(EdgeId, EntryNo),
}

impl Owner {
    /// The reason that an effect carries for it.
    pub fn reason(self) -> Reason {
        match self {
            Self::Waiting(reader) => Reason::ReaderWaits(reader),
            Self::Lookahead(reader) => Reason::Lookahead(reader),
            Self::Hints(reader) => Reason::Hint(reader),
            Self::Want(want) => Reason::Want(want),
            Self::Fill(..) => Reason::BackgroundFill,
        }
    }

    /// A claim that nobody asked for: it runs only while nothing above it needs the origin.
    pub fn is_background(self) -> bool {
        matches!(self, Self::Fill(..))
    }
}

/// Claims by owner. A hash map, because each event looks up many of them and a tree of tens of
/// thousands is slow. The hash has no random seed, and code that iterates over all claims sorts
/// them first.
pub type Claims = HashMap<Owner, Claim, BuildHasherDefault<OwnerHasher>>;

/// A hasher for small integers. The cluster's own edges and coordinator assign them, so nobody can
/// choose them to collide, and a cryptographic hash would cost more than the rest of a look-up.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnerHasher(u64);

impl Hasher for OwnerHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = mix(self.0.rotate_left(23) ^ value);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value.unsigned_abs() as u64);
    }
}

/// A claim and its position in the queue.
#[derive(Clone, Debug)]
pub struct Claim {
    pub edge: EdgeId,
    pub entry: EntryNo,
    pub source: SourceId,
    pub level: Level,
    /// From the first chunk to one past the last.
    pub span: Range<ChunkIndex>,
    /// The claimed ranges within the span; unset: all of it.
    pub ranges: Option<RangeSet<ChunkIndex>>,
    /// No chunk before this one is missing.
    pub cursor: ChunkIndex,
    /// The byte its owner is at (the start of the object if it has none).
    pub position: u64,
    /// How fast the owner approaches; 0: it does not, and `since` is the deadline.
    pub rate_bytes_per_second: u64,
    /// How much the owner's player has buffered before it needs `position`.
    pub player_buffer_ms: Option<u32>,
    /// Whose it is; 0: its owner names none.
    pub viewer: u64,
    /// Its owner is a viewer's next request, see [`Demand`](super::api::Demand).
    pub is_expected: bool,
    /// When the claim was made, or when its owner began to wait.
    pub since: Millis,
    /// Chunks granted so far, for fair shares.
    pub served: u64,
    /// Its position in the queue of its edge, level and source.
    pub queued: Option<Key>,
}

impl Claim {
    /// A claim without a reader. Callers set the fields that differ.
    pub fn new(
        (edge, entry): (EdgeId, EntryNo),
        source: SourceId,
        level: Level,
        span: Range<ChunkIndex>,
        now: Millis,
    ) -> Self {
        Self {
            edge,
            entry,
            source,
            level,
            cursor: span.start,
            span,
            ranges: None,
            position: 0,
            rate_bytes_per_second: 0,
            player_buffer_ms: None,
            viewer: 0,
            is_expected: false,
            since: now,
            served: 0,
            queued: None,
        }
    }

    /// When its owner, a viewer's next request, will be made.
    pub fn due(&self) -> Option<Millis> {
        let buffer = Millis::from(self.player_buffer_ms.unwrap_or(0));
        self.is_expected.then(|| self.since.saturating_add(buffer))
    }

    /// Whether the claim wants any of these.
    pub fn wants(&self, chunks: &Range<ChunkIndex>) -> bool {
        let start = chunks.start.max(self.span.start);
        let end = chunks.end.min(self.span.end);
        start < end
            && self
                .ranges
                .as_ref()
                .is_none_or(|ranges| ranges.intersects(start..end))
    }

    /// Finds the first chunk, from the cursor on, that is wanted and not covered, and where its
    /// range ends. Moves the cursor.
    pub fn first_gap(
        &mut self,
        covered: &RangeSet<ChunkIndex>,
    ) -> Option<(ChunkIndex, ChunkIndex)> {
        let from = self.cursor.max(self.span.start);
        let found = match &self.ranges {
            None => covered
                .first_missing(from..self.span.end)
                .map(|gap| (gap, self.span.end)),
            Some(ranges) => ranges.iter_from(from).find_map(|range| {
                let within = range.start.max(from)..range.end;
                covered.first_missing(within).map(|gap| (gap, range.end))
            }),
        };
        self.cursor = found.map_or(self.span.end, |(gap, _)| gap);
        found
    }

    /// Moves the cursor back, because some of these chunks may be missing again.
    pub fn uncovered(&mut self, chunks: &Range<ChunkIndex>) {
        if self.wants(chunks) {
            self.cursor = self.cursor.min(chunks.start).max(self.span.start);
        }
    }
}
