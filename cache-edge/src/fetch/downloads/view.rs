//! Read-only questions about the fetches.

use std::time::Duration;

use chunkcache_proto::{ChunkIndex, EntryId, FetchId};

use super::Downloads;
use chunk_store::EntryFile;

impl Downloads {
    /// The entry and chunk that the fetch is working on.
    #[must_use]
    pub fn under_way(&self, id: FetchId) -> Option<(EntryId, ChunkIndex)> {
        let state = self.0.state.lock();
        let fetch = state.fetches.get(&id)?;
        let file = &fetch.assignment.file;
        Some((file.id(), file.geometry().chunk_of(fetch.handle.position())))
    }

    /// The chunk that the fetch is working on.
    #[must_use]
    pub fn chunk_under_way(&self, id: FetchId) -> Option<ChunkIndex> {
        self.under_way(id).map(|(_, chunk)| chunk)
    }

    /// Whether the entry's origin has limits, which apply to the whole cluster.
    #[must_use]
    pub fn is_limited(&self, file: &EntryFile) -> bool {
        let source = self.0.fetcher.catalogue.get(file.source());
        source.is_some_and(|source| source.is_limited())
    }

    /// Wakes when a fetch is submitted. Subscribe before checking.
    pub fn ordered(&self) -> tokio::sync::futures::Notified<'_> {
        self.0.ordered.notified()
    }

    /// Time since the fetch was submitted.
    #[must_use]
    pub fn age(&self, id: FetchId) -> Duration {
        self.0
            .state
            .lock()
            .fetches
            .get(&id)
            .map_or(Duration::ZERO, |fetch| fetch.ordered.elapsed())
    }

    /// Whether the store refused a chunk within this time.
    #[must_use]
    pub fn refused_within(&self, time: Duration) -> bool {
        self.0
            .state
            .lock()
            .refused
            .is_some_and(|at| at.elapsed() < time)
    }

    /// How many of `bytes` that became durable came from the origin; each byte is counted once.
    #[must_use]
    pub fn take_origin_bytes(&self, bytes: u64) -> u64 {
        let counters = &self.0.fetcher.counters;
        let came = counters.origin_bytes.get();
        let mut state = self.0.state.lock();
        let taken = bytes.min(came.saturating_sub(state.origin_bytes_told));
        state.origin_bytes_told += taken;
        taken
    }

    /// Numbers of running and of waiting fetches.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let state = self.0.state.lock();
        (state.queue.running_count(), state.queue.waiting_count())
    }
}
