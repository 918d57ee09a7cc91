//! What an edge can prove against what the rows say. Pure.

use std::collections::HashMap;

use chunkcache_proto::{ChunkIndex, EntryId, Geometry, checksum::InventoryDigest, v1};

use crate::db::{ChunkSum, Digest};

/// Where rows and inventory do not agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Rows of entries the edge has nothing of.
    pub gone: Vec<EntryId>,
    /// Entries to be sent in full.
    pub differing: Vec<EntryId>,
}

/// Compares digests.
#[must_use]
pub fn compare(
    inventory: &HashMap<EntryId, InventoryDigest>,
    rows: &HashMap<EntryId, Digest>,
) -> Difference {
    let has_chunks = |entry: &EntryId| inventory.get(entry).is_some_and(|d| d.chunk_count > 0);
    let mut gone: Vec<EntryId> = rows.keys().filter(|e| !has_chunks(e)).copied().collect();
    let mut differing: Vec<EntryId> = inventory
        .iter()
        .filter(|(_, digest)| digest.chunk_count > 0)
        .filter(|(entry, digest)| {
            rows.get(entry).is_none_or(|row| {
                row.chunk_count != digest.chunk_count || row.checksum_xor != digest.checksum_xor
            })
        })
        .map(|(entry, _)| *entry)
        .collect();
    // The same order each time: easier to read in traces.
    gone.sort_unstable();
    differing.sort_unstable();
    Difference { gone, differing }
}

/// An inventory of one entry, judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// To be recorded; each index once.
    pub kept: Vec<ChunkSum>,
    /// To be dropped by the edge.
    pub dropped: Vec<ChunkIndex>,
}

/// Without a geometry the entry is refused, and all of it is dropped.
#[must_use]
pub fn split(chunks: &[v1::Chunk], geometry: Option<Geometry>) -> Split {
    let count = geometry.map_or(0, Geometry::chunk_count);
    let mut split = Split::default();
    let mut sums: HashMap<ChunkIndex, u64> = HashMap::with_capacity(chunks.len());
    for chunk in chunks {
        if chunk.index < count {
            sums.insert(chunk.index, chunk.checksum);
        } else {
            split.dropped.push(chunk.index);
        }
    }
    split.kept = sums
        .into_iter()
        .map(|(index, checksum)| ChunkSum { index, checksum })
        .collect();
    split.kept.sort_unstable_by_key(|chunk| chunk.index);
    split
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn digests_tell_what_is_gone_and_what_differs() {
        let id = EntryId::from_u128;
        let digest = |chunk_count, checksum_xor| InventoryDigest {
            chunk_count,
            checksum_xor,
        };
        let row = |chunk_count, checksum_xor| Digest {
            chunk_count,
            checksum_xor,
        };
        let inventory = HashMap::from([
            (id(1), digest(2, 7)),
            (id(2), digest(2, 8)),
            (id(4), digest(1, 1)),
            (id(5), digest(0, 0)),
        ]);
        let rows = HashMap::from([
            (id(1), row(2, 7)),
            (id(2), row(2, 9)),
            (id(3), row(1, 1)),
            (id(5), row(3, 3)),
        ]);
        let difference = compare(&inventory, &rows);
        assert_eq!(difference.gone, [id(3), id(5)]);
        assert_eq!(difference.differing, [id(2), id(4)]);
    }

    #[test]
    fn chunks_past_the_object_are_dropped() {
        let chunks = [3, 0, 9].map(|index| v1::Chunk { index, checksum: 1 });
        let geometry = Geometry::new(4 << 20, 1 << 20).unwrap();
        let judged = split(&chunks, Some(geometry));
        assert_eq!(
            judged.kept.iter().map(|c| c.index).collect::<Vec<_>>(),
            [0, 3]
        );
        assert_eq!(judged.dropped, [9]);
        assert_eq!(split(&chunks, None).dropped, [3, 0, 9]);
    }
}
