//! The geometry of an entry: which chunk holds which bytes.
//!
//! Ranges are half-open, `[start, end)`. All chunks have the entry's chunk size except the last,
//! which ends where the object ends; an empty object has no chunk. There is no chunk past the end
//! of the object (nginx slice requests one from strict origins and gets a 416).

use crate::v1;

/// A half-open range of bytes, `[start, end)`. May be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    pub start: u64,
    /// One past the last byte; never less than `start`.
    pub end: u64,
}

impl ByteRange {
    /// `[start, end)`; an inverted pair is the empty range at `start`.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Self {
        Self {
            start,
            end: end.max(start),
        }
    }

    /// The same as a range of the standard library.
    #[must_use]
    pub const fn as_range(self) -> std::ops::Range<u64> {
        self.start..self.end
    }

    #[must_use]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    #[must_use]
    pub fn is_empty(self) -> bool {
        self.end == self.start
    }

    /// Whether it contains `offset`.
    #[must_use]
    pub fn contains(self, offset: u64) -> bool {
        self.start <= offset && offset < self.end
    }

    /// The common part; empty if there is none.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }
}

impl From<v1::ByteRange> for ByteRange {
    fn from(range: v1::ByteRange) -> Self {
        Self::new(range.start, range.end)
    }
}

impl From<ByteRange> for v1::ByteRange {
    fn from(range: ByteRange) -> Self {
        Self {
            start: range.start,
            end: range.end,
        }
    }
}

/// Position of a chunk in its entry; 0 is the first.
pub type ChunkIndex = u32;

/// Size of an object and of its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    size_bytes: u64,
    chunk_size_bytes: u32,
}

/// Why a geometry is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Chunks are powers of two from 64 KiB to 64 MiB, so that they align with pages and blocks.
    #[error("chunk size {0} is not a power of two from {min} to {max}",
        min = Geometry::MIN_CHUNK_SIZE, max = Geometry::MAX_CHUNK_SIZE)]
    ChunkSize(u32),
    /// Chunk indexes are 32 bits wide.
    #[error(
        "an object of {size_bytes} bytes has more than 2^32 - 1 chunks of {chunk_size_bytes} bytes"
    )]
    TooManyChunks {
        size_bytes: u64,
        chunk_size_bytes: u32,
    },
}

impl Geometry {
    /// Smallest chunk, 64 KiB.
    pub const MIN_CHUNK_SIZE: u32 = 64 << 10;
    /// Smallest chunk of an entry that is served, 2 MiB. No folio of the page cache is larger, so
    /// punching a hole beside bytes that are still in a socket never zeroes a part of their folio.
    pub const MIN_SERVED_CHUNK_SIZE: u32 = 2 << 20;
    /// Largest chunk, 64 MiB.
    pub const MAX_CHUNK_SIZE: u32 = 64 << 20;
    /// Default chunk size, 2 MiB.
    pub const DEFAULT_CHUNK_SIZE: u32 = 2 << 20;

    /// Checks both numbers.
    pub fn new(size_bytes: u64, chunk_size_bytes: u32) -> Result<Self, GeometryError> {
        if !chunk_size_bytes.is_power_of_two()
            || !(Self::MIN_CHUNK_SIZE..=Self::MAX_CHUNK_SIZE).contains(&chunk_size_bytes)
        {
            return Err(GeometryError::ChunkSize(chunk_size_bytes));
        }
        // Offsets are signed in PostgreSQL and in the kernel.
        if size_bytes > i64::MAX as u64
            || size_bytes.div_ceil(u64::from(chunk_size_bytes)) > u64::from(u32::MAX)
        {
            return Err(GeometryError::TooManyChunks {
                size_bytes,
                chunk_size_bytes,
            });
        }
        Ok(Self {
            size_bytes,
            chunk_size_bytes,
        })
    }

    #[must_use]
    pub fn size(self) -> u64 {
        self.size_bytes
    }

    /// Size of every chunk except the last.
    #[must_use]
    pub fn chunk_size(self) -> u32 {
        self.chunk_size_bytes
    }

    /// Number of chunks; 0 for an empty object.
    #[must_use]
    pub fn chunk_count(self) -> u32 {
        self.size_bytes.div_ceil(u64::from(self.chunk_size_bytes)) as u32
    }

    /// The chunk that contains `offset`, which need not be inside the object.
    #[must_use]
    pub fn chunk_of(self, offset: u64) -> ChunkIndex {
        u32::try_from(offset / u64::from(self.chunk_size_bytes)).unwrap_or(u32::MAX)
    }

    /// The bytes of one chunk; empty past the end of the object.
    #[must_use]
    pub fn chunk_range(self, index: ChunkIndex) -> ByteRange {
        let start = u64::from(index) * u64::from(self.chunk_size_bytes);
        let end = (start + u64::from(self.chunk_size_bytes)).min(self.size_bytes);
        ByteRange::new(start.min(self.size_bytes), end)
    }

    /// Size of one chunk; 0 past the end of the object.
    #[must_use]
    pub fn chunk_len(self, index: ChunkIndex) -> u64 {
        self.chunk_range(index).len()
    }

    /// The chunks that contain any byte of `range`, cut to the object.
    #[must_use]
    pub fn chunks_covering(self, range: ByteRange) -> std::ops::Range<ChunkIndex> {
        let range = range.intersect(ByteRange::new(0, self.size_bytes));
        if range.is_empty() {
            return 0..0;
        }
        self.chunk_of(range.start)..self.chunk_of(range.end - 1) + 1
    }

    /// The bytes of a run of adjacent chunks.
    #[must_use]
    pub fn run_range(self, first: ChunkIndex, count: u32) -> ByteRange {
        let start = self.chunk_range(first).start;
        let last = u64::from(first) + u64::from(count);
        let end = (last * u64::from(self.chunk_size_bytes)).min(self.size_bytes);
        ByteRange::new(start, end)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_last_chunk_is_short_and_nothing_follows_it() {
        let g = Geometry::new(5 * MIB, 2 << 20).unwrap();
        assert_eq!(g.chunk_count(), 3);
        assert_eq!(g.chunk_range(2), ByteRange::new(4 * MIB, 5 * MIB));
        assert!(g.chunk_range(3).is_empty());
    }

    #[test]
    fn an_aligned_end_makes_no_empty_chunk() {
        let g = Geometry::new(4 * MIB, 2 << 20).unwrap();
        assert_eq!(g.chunk_count(), 2);
        assert_eq!(g.chunks_covering(ByteRange::new(0, 4 * MIB)), 0..2);
        assert_eq!(g.chunks_covering(ByteRange::new(4 * MIB, 6 * MIB)), 0..0);
    }

    #[test]
    fn an_empty_object_has_no_chunk() {
        assert_eq!(Geometry::new(0, 2 << 20).unwrap().chunk_count(), 0);
    }

    #[test]
    fn bad_geometries_are_refused() {
        assert!(Geometry::new(1, 3 << 20).is_err());
        assert!(Geometry::new(1, 4096).is_err());
        assert!(Geometry::new(u64::MAX, 2 << 20).is_err());
    }

    proptest! {
        #[test]
        fn chunks_tile_the_object(size in 0u64..(1 << 40), shift in 16u32..=26) {
            let g = Geometry::new(size, 1 << shift).unwrap();
            let probe = [0, g.chunk_count() / 2, g.chunk_count().saturating_sub(1)];
            for index in probe {
                let range = g.chunk_range(index);
                if size > 0 {
                    prop_assert!(!range.is_empty());
                    prop_assert_eq!(g.chunk_of(range.start), index);
                    prop_assert_eq!(g.chunk_of(range.end - 1), index);
                }
                prop_assert_eq!(g.chunk_range(index + 1).start.min(size), range.end);
            }
            prop_assert_eq!(g.run_range(0, g.chunk_count()), ByteRange::new(0, size));
        }

        #[test]
        fn covering_chunks_hold_the_range_and_no_more(
            size in 1u64..(1 << 34),
            a in 0u64..(1 << 34),
            len in 1u64..(1 << 24),
        ) {
            let g = Geometry::new(size, 2 << 20).unwrap();
            let range = ByteRange::new(a, a + len).intersect(ByteRange::new(0, size));
            let chunks = g.chunks_covering(ByteRange::new(a, a + len));
            if range.is_empty() {
                prop_assert!(chunks.is_empty());
            } else {
                prop_assert!(g.chunk_range(chunks.start).contains(range.start));
                prop_assert!(g.chunk_range(chunks.end - 1).contains(range.end - 1));
            }
        }
    }
}
