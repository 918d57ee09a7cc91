//! The scrub: reads and checks every chunk once in a set time, evenly paced.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use chunkcache_proto::ChunkIndex;

use super::{entry_file::EntryFile, shared::Shared, verify};
use crate::chunk_table::ChunkState;

/// Maximum rate, however many chunks there are.
const MAX_RATE_BYTES_PER_SECOND: u64 = 64 << 20;
/// After a pause (a suspended machine), at most this much time is caught up.
const MAX_CREDIT: Duration = Duration::from_secs(2);

/// The scrub's position. Chunks that arrive after their entry was passed are checked in the next
/// round.
pub(super) struct Scrub {
    period: Duration,
    /// Weak: a removed entry's file goes with its last reader, not with the scrub.
    entries: Vec<Weak<EntryFile>>,
    chunks: Vec<ChunkIndex>,
    last_step: Instant,
    credit_bytes: f64,
}

impl Scrub {
    pub fn new(period: Duration, now: Instant) -> Self {
        Self {
            period,
            entries: Vec::new(),
            chunks: Vec::new(),
            last_step: now,
            credit_bytes: 0.0,
        }
    }

    /// Checks the chunks that are due. Blocking.
    pub fn step(&mut self, shared: &Shared, now: Instant) {
        let used = shared.space.chunk_bytes();
        let rate = (used as f64 / self.period.as_secs_f64().max(1.0))
            .min(MAX_RATE_BYTES_PER_SECOND as f64);
        let elapsed = now
            .saturating_duration_since(self.last_step)
            .min(MAX_CREDIT);
        self.last_step = now;
        self.credit_bytes += rate * elapsed.as_secs_f64();
        while self.credit_bytes > 0.0 && !shared.is_stopping() && !shared.health.is_degraded() {
            let Some((entry, chunk)) = self.next(shared) else {
                self.credit_bytes = 0.0;
                return;
            };
            self.credit_bytes -= entry.geometry().chunk_len(chunk) as f64;
            if let Err(error) = verify::check(&entry, chunk, verify::Trust::VerifiedAndCold) {
                tracing::warn!(%error, entry = %entry.id(), chunk, "a chunk could not be checked");
            }
        }
    }

    fn next(&mut self, shared: &Shared) -> Option<(Arc<EntryFile>, ChunkIndex)> {
        if self.entries.is_empty() {
            self.entries = shared
                .catalog
                .read()
                .all()
                .iter()
                .map(Arc::downgrade)
                .collect();
            // The vector is processed from its end.
            self.load_chunks();
        }
        loop {
            let entry = self.entries.last()?;
            if let Some(entry) = entry.upgrade()
                && let Some(chunk) = self.chunks.pop()
            {
                return Some((entry, chunk));
            }
            self.entries.pop();
            self.load_chunks();
        }
    }

    fn load_chunks(&mut self) {
        self.chunks.clear();
        if let Some(entry) = self.entries.last().and_then(Weak::upgrade) {
            self.chunks = entry.table().select(ChunkState::is_durable).collect();
        }
    }
}
