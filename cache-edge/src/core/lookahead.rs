//! The edge's own planning for one reader while no coordinator plans for it.
//!
//! The same order as the coordinator's scheduler on a small scale: the awaited byte at CRITICAL,
//! the bytes after it at HIGH. No cluster and no fairness: those belong to the coordinator.

use chunkcache_proto::{ByteRange, ChunkIndex, Geometry, Level};

/// The minimum lookahead that `CACHE_DESIGN.md` requires.
pub const DEFAULT_LOOKAHEAD_CHUNKS: u32 = 10;
/// Maximum number of chunks in one origin request: long enough that a round trip does not matter,
/// short enough that a seek does not wait long.
pub const MAX_RUN_CHUNKS: u32 = 8;
/// Number of chunks fetched of an object that a viewer is expected to request next.
pub const NEXT_OBJECT_CHUNKS: u32 = 2;

/// The parts of a reader's state that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderView {
    pub position: u64,
    /// One past the last wanted byte.
    pub end: u64,
    /// The reader is blocked on `position`.
    pub waiting: bool,
    pub paused: bool,
}

/// A run of chunks to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    pub first_chunk: ChunkIndex,
    pub chunk_count: u32,
    pub level: Level,
    /// The byte at which to begin, inside the first chunk.
    pub start_at: u64,
}

/// Plans the fetches for a reader. `covered` returns whether a chunk is present, or a fetch of it
/// is running or waiting.
#[must_use]
pub fn plan(
    geometry: Geometry,
    reader: ReaderView,
    lookahead_chunks: u32,
    covered: impl Fn(ChunkIndex) -> bool,
) -> Vec<Want> {
    let wanted = geometry.chunks_covering(ByteRange::new(reader.position, reader.end));
    if reader.paused || wanted.is_empty() {
        return Vec::new();
    }
    let mut wants = Vec::new();
    if reader.waiting && !covered(wanted.start) {
        wants.push(Want {
            first_chunk: wanted.start,
            chunk_count: 1,
            level: Level::Critical,
            start_at: reader.position,
        });
    }
    let ahead_end = wanted
        .start
        .saturating_add(1)
        .saturating_add(lookahead_chunks)
        .min(wanted.end);
    let mut chunk = wanted.start + u32::from(reader.waiting);
    while chunk < ahead_end {
        if covered(chunk) {
            chunk += 1;
            continue;
        }
        let first_chunk = chunk;
        while chunk < ahead_end && chunk - first_chunk < MAX_RUN_CHUNKS && !covered(chunk) {
            chunk += 1;
        }
        let start_at = geometry.chunk_range(first_chunk).start;
        wants.push(Want {
            first_chunk,
            chunk_count: chunk - first_chunk,
            level: Level::High,
            start_at,
        });
    }
    wants
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK: u64 = 2 << 20;

    fn geometry() -> Geometry {
        Geometry::new(40 * CHUNK + 5, CHUNK as u32).unwrap()
    }

    fn reader(position: u64, end: u64, waiting: bool) -> ReaderView {
        ReaderView {
            position,
            end,
            waiting,
            paused: false,
        }
    }

    #[test]
    fn the_byte_waited_for_first_then_what_follows() {
        let wants = plan(
            geometry(),
            reader(3 * CHUNK + 7, u64::MAX, true),
            10,
            |chunk| chunk == 5,
        );
        let shape: Vec<_> = wants
            .iter()
            .map(|w| (w.first_chunk, w.chunk_count, w.level, w.start_at))
            .collect();
        assert_eq!(
            shape,
            [
                (3, 1, Level::Critical, 3 * CHUNK + 7),
                (4, 1, Level::High, 4 * CHUNK),
                (6, 8, Level::High, 6 * CHUNK),
            ]
        );
    }

    #[test]
    fn a_short_range_wants_no_more_than_itself_and_a_paused_reader_nothing() {
        let wants = plan(geometry(), reader(0, 10, true), 10, |_| false);
        assert_eq!(wants.len(), 1);
        let paused = ReaderView {
            paused: true,
            ..reader(0, 10, true)
        };
        assert!(plan(geometry(), paused, 10, |_| false).is_empty());
        assert!(
            plan(geometry(), reader(50 * CHUNK, 60 * CHUNK, true), 10, |_| {
                false
            })
            .is_empty()
        );
    }

    proptest! {
        #[test]
        fn never_twice_never_covered_never_past_the_window(
            position in 0u64..41 * CHUNK, len in 0u64..41 * CHUNK, waiting: bool, mask: u64,
                ahead in 0u32..20,
        ) {
            let covered = |chunk: u32| mask >> (chunk % 64) & 1 == 1;
            let mut seen = std::collections::HashSet::new();
            for want in plan(geometry(), reader(position, position + len, waiting), ahead,
                covered) {
                prop_assert!(want.chunk_count >= 1 && want.chunk_count <= MAX_RUN_CHUNKS);
                for chunk in want.first_chunk..want.first_chunk + want.chunk_count {
                    prop_assert!(seen.insert(chunk));
                    prop_assert!(!covered(chunk));
                    prop_assert!(chunk <= geometry().chunk_of(position) + ahead);
                    prop_assert!(chunk < geometry().chunk_count());
                }
                prop_assert!(geometry().chunk_range(want.first_chunk).contains(want.start_at));
            }
        }
    }
}
