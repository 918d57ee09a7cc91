//! Hashes of an incoming chunk's bytes, computed as they arrive, so that another edge can check the
//! bytes before the chunk is complete.
//!
//! A piece ends at a multiple of [`PIECE_BYTES`]. It begins at one too, unless a fetch began in
//! between. A fetch that begins in the middle adds one piece, not one for each of its writes, so
//! the number of pieces is bounded by the chunk's length and the number of its fetches.

use std::collections::BTreeMap;

use chunkcache_proto::{ByteRange, checksum::ChunkHasher};

/// From a slow origin, a peer gets bytes in portions of this size.
const PIECE_BYTES: u64 = 16 << 10;
/// Pieces hashed at a time: one for each fetch of the chunk.
const MAX_OPEN: usize = 4;

/// The pieces of one chunk.
pub(super) struct Pieces {
    chunk: ByteRange,
    /// Start → end and hash.
    complete: BTreeMap<u64, (u64, u64)>,
    /// Oldest first.
    open: Vec<OpenPiece>,
}

struct OpenPiece {
    range: ByteRange,
    hasher: ChunkHasher,
}

impl Pieces {
    pub fn new(chunk: ByteRange) -> Self {
        Self {
            chunk,
            complete: BTreeMap::new(),
            open: Vec::new(),
        }
    }

    /// Adds bytes of the chunk that arrived.
    pub fn add(&mut self, mut offset: u64, mut bytes: &[u8]) {
        let continued = self.open.iter().position(|open| open.range.end == offset);
        let mut open = continued.map(|at| self.open.remove(at));
        while !bytes.is_empty() {
            let end = (offset / PIECE_BYTES + 1) * PIECE_BYTES;
            let end = end.min(self.chunk.end);
            let lacking = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(bytes.len().min(lacking.max(1)));
            let mut piece = open.take().unwrap_or_else(|| OpenPiece {
                range: ByteRange::new(offset, offset),
                hasher: ChunkHasher::new(offset),
            });
            piece.hasher.update(part);
            offset += part.len() as u64;
            piece.range.end = offset;
            bytes = rest;
            if offset >= end {
                let hash = piece.hasher.finish();
                self.complete
                    .insert(piece.range.start, (piece.range.end, hash));
            } else {
                open = Some(piece);
            }
        }
        self.open.extend(open);
        if self.open.len() > MAX_OPEN {
            // Its bytes can be proved once the chunk is complete.
            self.open.remove(0);
        }
    }

    /// The complete piece that contains this byte, with its hash.
    pub fn find(&self, offset: u64) -> Option<(ByteRange, u64)> {
        let (&start, &(end, hash)) = self.complete.range(..=offset).next_back()?;
        (offset < end).then_some((ByteRange::new(start, end), hash))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use chunkcache_proto::checksum::chunk_checksum;

    use super::*;

    #[test]
    fn pieces_are_proved_from_where_a_fetch_began_however_its_bytes_come() {
        let start = 4 << 20;
        let chunk = ByteRange::new(start, start + (1 << 20) + 5);
        let bytes: Vec<u8> = (0..chunk.len()).map(|at| (at * 11 / 3) as u8).collect();
        let mut pieces = Pieces::new(chunk);
        // A fetch from the middle, at first byte by byte, beside another fetch.
        let middle = 20_000_usize;
        for at in middle..middle + 50 {
            pieces.add(start + at as u64, &bytes[at..=at]);
        }
        assert!(pieces.find(start + middle as u64).is_none(), "not complete");
        pieces.add(start, &bytes[..10_000]);
        for part in (middle + 50..bytes.len()).step_by(7_000) {
            let end = (part + 7_000).min(bytes.len());
            pieces.add(start + part as u64, &bytes[part..end]);
        }
        pieces.add(start + 10_000, &bytes[10_000..middle]);
        let mut at = chunk.start;
        let mut count = 0;
        while at < chunk.end {
            let (range, hash) = match pieces.find(at) {
                Some(piece) => piece,
                // The two fetches share a piece here.
                None => {
                    assert_eq!(at, start + PIECE_BYTES);
                    at = start + middle as u64;
                    continue;
                }
            };
            assert_eq!(range.start, at);
            let within = (range.start - start) as usize..(range.end - start) as usize;
            assert_eq!(hash, chunk_checksum(at, &bytes[within]));
            at = range.end;
            count += 1;
        }
        assert_eq!(count, 65);
        assert!(pieces.find(chunk.end).is_none());
    }
}
