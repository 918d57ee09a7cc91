//! Begun chunks: what a fetch that was stopped left half written, completed at LOW.
//!
//! A seek stops what it superseded at once; the bytes that came by then were paid for, but only a
//! whole chunk can be recorded. The edge keeps them for a while, then gives them back to its disk:
//! until then they are claimed like a background fill, also where the source has none.

use chunkcache_proto::{ChunkIndex, Level};

use super::Scheduler;
use super::api::{EdgeId, EntryNo};
use super::claim::{Claim, Owner};
use super::state::Timer;
use crate::range_set::RangeSet;

/// Of one entry on one edge; older ones are left to the edge, which gives them back.
const MAX_BEGUN: usize = 64;

impl Scheduler {
    /// The edge holds some bytes of these chunks, and not all.
    pub(super) fn begun(&mut self, edge: EdgeId, entry: EntryNo, chunks: &[ChunkIndex]) {
        let until = self.now.saturating_add(self.config.begun_ms);
        let Some(known) = self.entries.get_mut(&entry) else {
            return;
        };
        let count = known.geometry.chunk_count();
        let chunks = chunks.iter().filter(|&&chunk| chunk < count);
        if chunks.clone().next().is_none() {
            return;
        }
        let line = known.lines.entry(edge).or_default();
        for &chunk in chunks {
            line.begun.retain(|&(other, _)| other != chunk);
            line.begun.push((chunk, until));
        }
        let excess = line.begun.len().saturating_sub(MAX_BEGUN);
        line.begun.drain(..excess);
        self.timers.insert((until, Timer::Begun(edge, entry)));
        self.claim_begun(edge, entry);
    }

    /// Makes, changes or removes the claim, as things are now: each chunk goes in its own time,
    /// whatever is begun after it.
    pub(super) fn claim_begun(&mut self, edge: EdgeId, entry: EntryNo) {
        let owner = Owner::Begun(edge, entry);
        self.remove_claim(owner);
        let now = self.now;
        let Some(known) = self.entries.get_mut(&entry) else {
            return;
        };
        let (source, changed) = (known.source, known.changed);
        let Some(line) = known.lines.get_mut(&edge) else {
            return;
        };
        let held = &line.held;
        line.begun
            .retain(|&(chunk, until)| until > now && !held.contains(chunk));
        let ranges: RangeSet<ChunkIndex> = line
            .begun
            .iter()
            .map(|&(chunk, _)| chunk..chunk + 1)
            .collect();
        let may = self.edges.get(&edge).is_some_and(|on| on.alive) && !changed;
        let Some(span) = ranges.span().filter(|_| may) else {
            return;
        };
        let claim = Claim {
            edge,
            entry,
            source,
            level: Level::Low,
            cursor: span.start,
            span,
            ranges: Some(ranges),
            position: 0,
            rate_bytes_per_second: 0,
            since: now,
            served: 0,
            queued: None,
        };
        self.add_claim(owner, claim, &mut Vec::new());
        self.dirty.insert(edge);
    }
}
