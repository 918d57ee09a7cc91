//! Restores an entry from the journal, at open.

use std::sync::atomic::Ordering;

use chunkcache_proto::ChunkIndex;

use super::EntryFile;
use crate::chunk_table::ChunkState;

impl EntryFile {
    pub(crate) fn restore_pinned(&self, pinned: bool) {
        self.pinned.store(pinned, Ordering::Release);
    }

    pub(crate) fn restore(&self, chunk: ChunkIndex, checksum: u64) {
        if chunk >= self.geometry.chunk_count() {
            return;
        }
        // A chunk may be recorded again with another checksum (withdrawn while the journal was
        // broken, then fetched again).
        self.restore_removed(chunk);
        if self.table.restore(chunk, checksum) {
            let bytes = self.geometry.chunk_len(chunk);
            self.disk_bytes.fetch_add(bytes, Ordering::AcqRel);
            self.space.add_chunk(bytes);
            self.mark_durable(chunk);
        }
    }

    pub(crate) fn restore_removed(&self, chunk: ChunkIndex) {
        if self.withdraw(chunk) {
            self.table.mark_empty(chunk);
            self.release(chunk);
        }
    }

    pub(crate) fn restore_all_removed(&self) {
        let chunks: Vec<_> = self.table.select(ChunkState::is_present).collect();
        chunks
            .into_iter()
            .for_each(|chunk| self.restore_removed(chunk));
    }
}
