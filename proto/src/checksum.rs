//! The checksum of a chunk: XXH3-64 over its bytes, seeded with the offset of its
//! first byte in the object.
//!
//! The seed binds the bytes to their place: right bytes written at a wrong offset do not
//! verify. It guards against faults of disks, memory and code, not against an
//! adversary; peers are authenticated instead.

use xxhash_rust::xxh3::Xxh3;

/// Of a whole chunk that begins at `start`.
#[must_use]
pub fn chunk_checksum(start: u64, bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(bytes, start)
}

/// The same, over bytes as they come, in order.
#[derive(Clone)]
pub struct ChunkHasher(Xxh3);

impl ChunkHasher {
    /// For the chunk whose first byte is at `start` in the object.
    #[must_use]
    pub fn new(start: u64) -> Self {
        Self(Xxh3::with_seed(start))
    }

    /// The next bytes of the chunk.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all bytes so far.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.0.digest()
    }
}

/// What an edge holds of one entry, in two numbers: independent of order, and
/// computed by PostgreSQL with `count(*)` and `bit_xor(checksum)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InventoryDigest {
    /// Chunks held.
    pub chunk_count: u64,
    /// XOR of their checksums. Seeded checksums make a permutation of chunks show.
    pub checksum_xor: u64,
}

impl InventoryDigest {
    /// Takes one chunk in.
    pub fn add(&mut self, checksum: u64) {
        self.chunk_count += 1;
        self.checksum_xor ^= checksum;
    }

    /// Takes one chunk out.
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
    fn the_place_is_part_of_it() {
        assert_ne!(chunk_checksum(0, b"same"), chunk_checksum(2 << 20, b"same"));
    }
}
