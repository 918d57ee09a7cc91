//! The checksum of a chunk: XXH3-64 over its bytes, seeded with the offset of its
//! first byte in the object.
//!
//! The seed binds the bytes to their position: correct bytes at a wrong offset do not verify. It
//! detects faults of disks, memory and code, not an adversary; peers are authenticated instead.

use xxhash_rust::xxh3::Xxh3;

use crate::ByteRange;

/// The checksum of a whole chunk that begins at `start`.
#[must_use]
pub fn chunk_checksum(start: u64, bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(bytes, start)
}

/// Hashes a chunk's bytes as they arrive, in order.
#[derive(Clone)]
pub struct ChunkHasher(Xxh3);

impl ChunkHasher {
    /// For the chunk whose first byte is at `start` in the object.
    #[must_use]
    pub fn new(start: u64) -> Self {
        Self(Xxh3::with_seed(start))
    }

    /// Adds the next bytes of the chunk.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.0.digest()
    }
}

/// Size of a block, which has its own hash: bytes are checked in this unit before a peer, or a
/// reader of a cold file, gets them.
pub const BLOCK_BYTES: u64 = 256 << 10;

/// The checksum of a chunk, and those of its blocks of [`BLOCK_BYTES`], seeded likewise. A chunk of
/// a single block has no list, because its checksum is the block's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkDigest {
    /// Checksum of the whole chunk.
    pub checksum: u64,
    /// Checksums of its blocks, in order.
    pub blocks: Box<[u64]>,
}

impl ChunkDigest {
    /// The digest of a whole chunk that begins at `start`.
    #[must_use]
    pub fn of(start: u64, bytes: &[u8]) -> Self {
        let mut hasher = DigestHasher::new(ByteRange::new(start, start + bytes.len() as u64));
        hasher.update(bytes);
        hasher.finish()
    }
}

/// The range of the block that contains `offset`, in a chunk of range `chunk`.
#[must_use]
pub fn block_range(chunk: ByteRange, offset: u64) -> ByteRange {
    let start = offset - offset.saturating_sub(chunk.start) % BLOCK_BYTES;
    ByteRange::new(start, (start + BLOCK_BYTES).min(chunk.end))
}

/// Computes a [`ChunkDigest`] of bytes as they arrive, in order.
#[derive(Clone)]
pub struct DigestHasher {
    chunk: ByteRange,
    /// Position of the next byte.
    position: u64,
    whole: ChunkHasher,
    /// Hashes the block at `position`; `None` if the chunk is a single block.
    block: Option<ChunkHasher>,
    blocks: Vec<u64>,
}

impl DigestHasher {
    /// For the chunk of this range.
    #[must_use]
    pub fn new(chunk: ByteRange) -> Self {
        Self {
            chunk,
            position: chunk.start,
            whole: ChunkHasher::new(chunk.start),
            block: (chunk.len() > BLOCK_BYTES).then(|| ChunkHasher::new(chunk.start)),
            blocks: Vec::new(),
        }
    }

    /// Position of the next byte.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Adds the next bytes of the chunk.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
        let Some(block) = &mut self.block else {
            self.position += bytes.len() as u64;
            return;
        };
        while !bytes.is_empty() {
            let end = block_range(self.chunk, self.position).end;
            let lacking = usize::try_from(end.saturating_sub(self.position)).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(bytes.len().min(lacking.max(1)));
            block.update(part);
            self.position += part.len() as u64;
            if self.position >= end {
                self.blocks.push(block.finish());
                *block = ChunkHasher::new(end);
            }
            bytes = rest;
        }
    }

    /// The digest of all bytes so far, and of the chunk once all were added.
    #[must_use]
    pub fn finish(self) -> ChunkDigest {
        ChunkDigest {
            checksum: self.whole.finish(),
            blocks: self.blocks.into(),
        }
    }
}

/// A digest of an edge's chunks of one entry, in two numbers: independent of order, and computed in
/// PostgreSQL with `count(*)` and `bit_xor(checksum)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InventoryDigest {
    /// Number of chunks.
    pub chunk_count: u64,
    /// XOR of their checksums. Because these are seeded, exchanged chunks are detected.
    pub checksum_xor: u64,
}

impl InventoryDigest {
    /// Adds one chunk.
    pub fn add(&mut self, checksum: u64) {
        self.chunk_count += 1;
        self.checksum_xor ^= checksum;
    }

    /// Removes one chunk.
    pub fn remove(&mut self, checksum: u64) {
        self.chunk_count -= 1;
        self.checksum_xor ^= checksum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_equals_at_once() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
        let mut hasher = ChunkHasher::new(4 << 20);
        for part in bytes.chunks(777) {
            hasher.update(part);
        }
        assert_eq!(hasher.finish(), chunk_checksum(4 << 20, &bytes));
    }

    #[test]
    fn each_block_has_the_hash_of_its_bytes_at_their_place() {
        let start = 2 << 20;
        let bytes: Vec<u8> = (0..700_000u32).map(|i| (i * 13) as u8).collect();
        let chunk = ByteRange::new(start, start + bytes.len() as u64);
        let mut hasher = DigestHasher::new(chunk);
        for part in bytes.chunks(100_001) {
            hasher.update(part);
        }
        let digest = hasher.finish();
        assert_eq!(digest, ChunkDigest::of(start, &bytes));
        assert_eq!(digest.checksum, chunk_checksum(start, &bytes));
        let blocks = bytes.chunks(BLOCK_BYTES as usize).enumerate();
        let hashes: Vec<u64> = blocks
            .map(|(at, block)| chunk_checksum(start + at as u64 * BLOCK_BYTES, block))
            .collect();
        assert_eq!(*digest.blocks, *hashes);
        assert_eq!(
            block_range(chunk, start + 700_000 - 1).len(),
            700_000 % BLOCK_BYTES
        );
        let small = ChunkDigest::of(start, &bytes[..1000]);
        assert!(small.blocks.is_empty());
    }

    #[test]
    fn the_place_is_part_of_it() {
        assert_ne!(chunk_checksum(0, b"same"), chunk_checksum(2 << 20, b"same"));
    }
}
