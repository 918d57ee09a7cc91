//! Work beside the session: reports durable chunks, makes space, sweeps incoming chunks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chunkcache_proto::{EntryId, v1};
use tokio_util::sync::CancellationToken;

use super::link::{Link, Removal};
use crate::clock::now_ms;
use crate::fetch::Downloads;
use crate::{
    readers::{DemandRegistry, IncomingChunks},
    resolve::{Bindings, bindings::Bound},
};
use chunk_store::{Durable, EntryFile, Store, Victims};
use http_rules::freshness;

const PRESSURE_INTERVAL: Duration = Duration::from_millis(250);
const SWEEP_EVERY: u32 = 20;
/// A key that no request asks for is forgotten after this time, and before twice this time.
const KEYS_UNUSED_FOR: Duration = Duration::from_secs(12 * 3_600);
/// Keys forgotten in one sweep.
const KEYS: usize = 2_000;
/// Removals whose rows may be in deletion at a time: with four rounds a second, ten thousand small
/// entries.
const MAX_REMOVALS: usize = 4_096;

/// See the module.
#[derive(Clone)]
pub struct Maintenance {
    pub link: Arc<Link>,
    pub store: Store,
    pub bindings: Arc<Bindings>,
    pub downloads: Downloads,
    pub incoming: Arc<IncomingChunks>,
    pub demand: Arc<DemandRegistry>,
}

impl Maintenance {
    /// Runs until `shutdown`. The only receiver of the store's channels.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut durable = self.store.take_durable();
        let mut corrupt = self.store.take_corrupt();
        let mut forgotten = self.store.take_forgotten();
        let mut tick = tokio::time::interval(PRESSURE_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks = 0u32;
        let mut look_at_keys = Instant::now() + KEYS_UNUSED_FOR;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(stored) = durable.recv() => self.stored(&stored),
                Some(lost) = corrupt.recv() => self.lost(lost),
                Some(entry) = forgotten.recv() => self.bindings.forget_entry(&entry),
                () = self.store.quota_exceeded() => self.relieve(false).await,
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    let sweep = ticks.is_multiple_of(SWEEP_EVERY);
                    if sweep && Instant::now() >= look_at_keys
                        && self.bindings.forget_unused(KEYS) {
                        look_at_keys = Instant::now() + KEYS_UNUSED_FOR;
                    }
                    self.relieve(sweep).await;
                }
                else => return,
            }
        }
    }

    fn stored(&self, durable: &Durable) {
        let chunks = durable
            .chunks
            .iter()
            .map(|(index, checksum)| v1::Chunk {
                index: *index,
                checksum: *checksum,
            })
            .collect();
        if let Some(file) = self.store.entry(&durable.entry) {
            let length = |chunk| file.geometry().chunk_len(chunk);
            let bytes = durable.chunks.iter().map(|(chunk, _)| length(*chunk)).sum();
            let origin_bytes = self.downloads.take_origin_bytes(bytes);
            self.link.stored(
                durable.entry,
                || observed(&self.bindings, &file),
                chunks,
                origin_bytes,
            );
        }
        self.downloads.durable(&durable.entry, &durable.chunks);
    }

    /// Reports withdrawn chunks: their rows are deleted, and a reader or the coordinator requests
    /// the chunks again.
    fn lost(&self, victims: Victims) {
        tracing::warn!(
            entry = %victims.entry,
            chunks = victims.chunks.len(),
            "chunks were found corrupt"
        );
        self.count(v1::RemovalReason::Corrupt, victims.chunks.len());
        let removal = Removal::Nothing(victims.entry);
        // Without a session, the next inventory does not list them, so their rows are deleted then.
        self.link
            .removed(removal, victims.chunks, v1::RemovalReason::Corrupt);
    }

    fn count(&self, reason: v1::RemovalReason, chunks: usize) {
        self.downloads.fetcher().counters.removed(reason, chunks);
    }

    async fn relieve(&self, sweep: bool) {
        let (this, pressed) = (self.clone(), self.store.pressure());
        if sweep || pressed > 0 {
            let readers = self.demand.all();
            let has_reader = |entry| readers.iter().any(|reader| reader.file.id() == entry);
            self.incoming.unread.sweep(Instant::now(), has_reader);
            let incoming = self.incoming.clone();
            let _ = self
                .downloads
                .workers()
                .spawn_blocking(move || incoming.sweep(pressed > 0))
                .await;
        }
        // Rows are deleted first: without a coordinator nothing is evicted, and misses pass through
        // uncached.
        let room = MAX_REMOVALS.saturating_sub(self.link.removals_under_way());
        let is_pressed = pressed > 0 || self.store.is_over_quota();
        if !is_pressed || !self.link.is_ready() || room < MAX_REMOVALS / 2 {
            return;
        }
        for victims in this.store.victims(pressed, room) {
            self.count(v1::RemovalReason::Evicted, victims.chunks.len());
            let history = self.incoming.history();
            history.note_evicted(victims.entry, &victims.chunks);
            let removal = Removal::Chunks(victims.entry, victims.chunks.clone());
            this.link
                .removed(removal, victims.chunks, v1::RemovalReason::Evicted);
        }
    }
}

/// The message that introduces an entry to the coordinator.
#[must_use]
pub fn observed(bindings: &Bindings, file: &EntryFile) -> v1::EntryObserved {
    let entry = file.description();
    let freshness = binding_of(bindings, &entry).map(|bound| bound.freshness.clone());
    v1::EntryObserved {
        entry: Some(entry),
        freshness: Some(freshness::stamp(freshness.unwrap_or_default(), now_ms())),
    }
}

/// The binding that points to exactly this entry.
#[must_use]
pub fn binding_of(bindings: &Bindings, entry: &v1::Entry) -> Option<Arc<Bound>> {
    bindings
        .peek(entry.key.as_ref()?)
        .filter(|bound| bound.entry.id == entry.id)
}

/// The chunks of an entry on this disk, which the coordinator compares with its rows.
#[must_use]
pub fn inventory_entry(
    store: &Store,
    bindings: &Bindings,
    id: &EntryId,
) -> Option<v1::InventoryEntry> {
    let file = store.entry(id)?;
    let chunks = file
        .present_chunks()
        .into_iter()
        .map(|(index, checksum)| v1::Chunk { index, checksum })
        .collect();
    let v1::EntryObserved { entry, freshness } = observed(bindings, &file);
    let freshness = binding_of(bindings, &file.description()).and(freshness);
    Some(v1::InventoryEntry {
        entry,
        freshness,
        chunks,
        is_continued: false,
    })
}
