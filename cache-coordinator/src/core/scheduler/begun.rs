//! Begun chunks: what a fetch that was stopped left half written, completed at LOW.
//!
//! A seek stops what it superseded at once; the bytes that came by then were paid for, but only a whole
//! chunk can be recorded. The edge keeps them for a while, then gives them back to its disk: until then they are claimed like a
//! background fill, also where the source has none.

use chunkcache_proto::{ChunkIndex, Level};

use super::Scheduler;
use super::api::{EdgeId, EntryNo};
use super::claim::{Claim, Owner};
use super::state::Timer;

impl Scheduler {
    /// The edge holds some bytes of these chunks, and not all.
    pub(super) fn begun(&mut self, edge: EdgeId, entry: EntryNo, chunks: &[ChunkIndex]) {
        let Some(known) = self.entries.get(&entry) else {
            return;
        };
        let may = self.edges.get(&edge).is_some_and(|on| on.alive) && !known.changed;
        let count = known.geometry.chunk_count();
        if !may || !chunks.iter().any(|&chunk| chunk < count) {
            return;
        }
        let owner = Owner::Begun(edge, entry);
        let source = known.source;
        let mut ranges = self
            .remove_claim(owner)
            .and_then(|claim| claim.ranges)
            .unwrap_or_default();
        for &chunk in chunks.iter().filter(|&&chunk| chunk < count) {
            ranges.insert(chunk..chunk + 1);
        }
        let Some(span) = ranges.span() else {
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
            since: self.now,
            served: 0,
            queued: None,
        };
        self.add_claim(owner, claim, &mut Vec::new());
        let until = self.now.saturating_add(self.config.begun_ms);
        self.timers.insert((until, Timer::Begun(edge, entry)));
        self.dirty.insert(edge);
    }

    /// The edge has given them back by now.
    pub(super) fn begun_is_over(&mut self, edge: EdgeId, entry: EntryNo) {
        let owner = Owner::Begun(edge, entry);
        let since = self.claims.get(&owner).map(|claim| claim.since);
        // One that was extended has a later timer.
        if since.is_some_and(|since| self.now >= since.saturating_add(self.config.begun_ms)) {
            self.remove_claim(owner);
        }
    }
}
