//! The run that a fetch brings.

use std::sync::Arc;

use chunk_store::EntryFile;
use chunkcache_proto::{ByteRange, ChunkIndex, FetchId, Level};

use crate::upstream::RequestClass;

/// A run to fetch, assigned or local.
#[derive(Clone)]
pub struct Assignment {
    pub id: FetchId,
    pub file: Arc<EntryFile>,
    pub first_chunk: ChunkIndex,
    pub chunk_count: u32,
    pub level: Level,
    /// Milliseconds from now.
    pub deadline_in_ms: u32,
    /// The byte to begin at.
    pub start_at: u64,
    /// Base URL of the peer to fetch from.
    pub peer: Option<String>,
    /// The reader it was assigned for; 0: no reader whose departure the edge could notice.
    pub reader: u64,
}

impl Assignment {
    /// Whether this edge decided on it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.id.is_local()
    }

    #[must_use]
    pub fn class(&self) -> RequestClass {
        match self.level {
            _ if !self.is_local() => RequestClass::Assigned,
            Level::Critical => RequestClass::Foreground,
            _ => RequestClass::Background,
        }
    }

    /// The name of the entry's source.
    #[must_use]
    pub fn source(&self) -> Arc<str> {
        self.file.source().into()
    }

    /// Whether all its chunks are here.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let end = self.first_chunk.saturating_add(self.chunk_count);
        (self.first_chunk..end).all(|chunk| self.file.is_present(chunk))
    }

    /// Whether it is from an origin and on behalf of a reader.
    #[must_use]
    pub fn is_ahead(&self) -> bool {
        self.peer.is_none() && (self.reader != 0 || self.level <= Level::High)
    }

    /// All bytes of its chunks.
    #[must_use]
    pub fn run(&self) -> ByteRange {
        self.file
            .geometry()
            .run_range(self.first_chunk, self.chunk_count)
    }
}
