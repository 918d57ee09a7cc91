//! The space of an entry's chunks: reserved, counted, released.

use std::sync::atomic::Ordering;

use chunkcache_proto::ChunkIndex;

use super::EntryFile;
use crate::{StoreError, source_space::Reservation};

impl EntryFile {
    /// Reserves space before it is written, so that the limits of the source and of the disk hold
    /// at all times.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, StoreError> {
        self.shared.health.check()?;
        let reserved = self.space.reserve(bytes);
        if self.space.over_quota() > 0 {
            self.shared.over_quota.notify_one();
        }
        reserved
    }

    /// Whether its source's quota leaves space for one more chunk now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.space.has_room_for(self.geometry.chunk_len(0))
    }

    /// Hides the chunk from readers; its bytes stay until they are punched. True if it was present.
    pub(crate) fn withdraw(&self, chunk: ChunkIndex) -> bool {
        let mut digest = self.digest.lock();
        let Some(before) = self.table.withdraw(chunk) else {
            return false;
        };
        if before.is_durable() {
            digest.remove(self.table.checksum(chunk));
            self.shared.durable_chunks.fetch_sub(1, Ordering::AcqRel);
        }
        self.space.begin_leaving(self.geometry.chunk_len(chunk));
        true
    }

    /// Stops counting a withdrawn chunk: its blocks are free or reused.
    pub(crate) fn release(&self, chunk: ChunkIndex) {
        self.space.end_leaving(self.geometry.chunk_len(chunk));
        self.uncount(chunk);
    }

    pub(super) fn uncount(&self, chunk: ChunkIndex) {
        let bytes = self.geometry.chunk_len(chunk);
        self.disk_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.space.release_chunk(bytes);
        self.blocks.lock().remove(&chunk);
    }
}
