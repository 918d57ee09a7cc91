//! Compares an edge's proved chunks with the rows. Pure.

use std::collections::HashMap;

use chunkcache_proto::{EntryId, checksum::InventoryDigest};

use crate::db::Digest;

/// The differences between rows and inventory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Rows of entries that the edge does not have.
    pub gone: Vec<EntryId>,
    /// Entries to be requested in full.
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
    // The same order each time, which is easier to read in traces.
    gone.sort_unstable();
    differing.sort_unstable();
    Difference { gone, differing }
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
}
