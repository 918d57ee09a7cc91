//! Record mode's check: compares the origin's answer with the stored bytes, byte by byte, on its
//! way to the client.

use std::sync::Arc;

use chunkcache_proto::ByteRange;
use http::{HeaderMap, StatusCode};

use crate::upstream::{answer, counters::Counters};
use chunk_store::EntryFile;

/// Follows one answer. Chunks that are not stored yet are left to the next reader.
pub struct Comparison {
    file: Arc<EntryFile>,
    counters: Arc<Counters>,
    /// Offset of the next byte in the object.
    offset: u64,
    differs: bool,
    buffer: Vec<u8>,
}

impl Comparison {
    /// `None`: the answer is no part of this entry (another version, an encoding, an error).
    #[must_use]
    pub fn of(
        file: Arc<EntryFile>,
        counters: Arc<Counters>,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Option<Self> {
        let offset = answer::offset_in(status, headers, &file.description())?;
        Some(Self {
            file,
            counters,
            offset,
            differs: false,
            buffer: Vec::new(),
        })
    }

    /// The next bytes of the answer. Blocks on the disk: for the fetch runtime.
    pub fn take(&mut self, bytes: &[u8]) {
        let geometry = self.file.geometry();
        let all = ByteRange::new(self.offset, self.offset + bytes.len() as u64);
        for chunk in geometry.chunks_covering(all) {
            let range = geometry.chunk_range(chunk).intersect(all);
            let Some(_pin) = self.file.pin(chunk) else {
                continue;
            };
            self.buffer.resize(range.len() as usize, 0);
            if self.file.read_at(range.start, &mut self.buffer).is_err() {
                // A disk fault is counted where it is found, and is not a mismatch.
                continue;
            }
            let from = (range.start - all.start) as usize;
            let came = &bytes[from..from + self.buffer.len()];
            self.counters.compared_bytes.inc_by(range.len());
            if came != self.buffer.as_slice() && !self.differs {
                // Count once per answer: operators judge a rollout by the number of answers that
                // differ.
                self.differs = true;
                self.counters.mismatches.inc();
                tracing::error!(
                    entry = %self.file.id(),
                    chunk,
                    "what the origin answers is not what is stored"
                );
            }
        }
        self.offset = all.end;
    }
}
