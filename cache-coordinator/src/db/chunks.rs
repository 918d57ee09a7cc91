//! Queries of chunk rows: holdings, missing ranges, digests.

use std::collections::{HashMap, HashSet};

use chunkcache_proto::{ByteRange, ChunkIndex, EntryId, Geometry, v1};
use tokio_postgres::{Row, types::ToSql};

use super::{
    Database, DatabaseError,
    edges::{EdgeId, parse_state},
    statements,
};

/// A chunk as an edge reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSum {
    pub index: ChunkIndex,
    pub checksum: u64,
}

impl From<&v1::Chunk> for ChunkSum {
    fn from(chunk: &v1::Chunk) -> Self {
        Self {
            index: chunk.index,
            checksum: chunk.checksum,
        }
    }
}

/// A row of `cache_chunks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredChunk {
    pub range: ByteRange,
    pub checksum: u64,
}

/// The part of an entry that one edge holds, coalesced, ascending; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    pub edge_id: EdgeId,
    pub edge: String,
    pub url: String,
    pub state: v1::EdgeState,
    pub ranges: Vec<ByteRange>,
}

impl Holding {
    /// Total size of all ranges.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.len()).sum()
    }

    #[must_use]
    pub fn to_proto(&self) -> v1::EdgeRanges {
        v1::EdgeRanges {
            edge: self.edge.clone(),
            url: self.url.clone(),
            state: self.state.into(),
            ranges: self.ranges.iter().copied().map(Into::into).collect(),
            bytes: self.bytes(),
        }
    }
}

/// A digest of the rows of one edge and entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    pub chunk_count: u64,
    pub checksum_xor: u64,
}

/// The arguments of a query for a part of an object: first byte, one past the last, chunk size.
fn asked(geometry: Geometry, range: ByteRange) -> (i64, i64, i64) {
    let range = range.intersect(ByteRange::new(0, geometry.size()));
    let chunk_size = i64::from(geometry.chunk_size());
    (signed(range.start), signed(range.end), chunk_size)
}

impl Database {
    /// The part of one entry that each edge holds.
    pub async fn holdings(&self, entry: EntryId) -> Result<Vec<Holding>, DatabaseError> {
        Ok(self
            .holdings_of(&[entry])
            .await?
            .remove(&entry)
            .unwrap_or_default())
    }

    /// Edges that hold any part of it.
    pub async fn edges_holding(&self, entry: EntryId) -> Result<HashSet<EdgeId>, DatabaseError> {
        let rows = self.query(statements::CHUNK_EDGES, &[&entry]).await?;
        Ok(rows.iter().map(|row| row.get("edge_id")).collect())
    }

    /// The parts of several entries that each edge holds. Entries without any holder are left out.
    pub async fn holdings_of(
        &self,
        entries: &[EntryId],
    ) -> Result<HashMap<EntryId, Vec<Holding>>, DatabaseError> {
        Ok(holdings_from_rows(
            &self.query(statements::CHUNK_HOLDINGS, &[&entries]).await?,
        ))
    }

    /// The part of `range` that none of `edges` holds, ascending, at most `limit` ranges. Empty:
    /// nothing is missing.
    pub async fn missing(
        &self,
        entry: EntryId,
        geometry: Geometry,
        range: ByteRange,
        edges: &[EdgeId],
        limit: u32,
    ) -> Result<Vec<ByteRange>, DatabaseError> {
        let (start, end, chunk_size) = asked(geometry, range);
        let params: [&(dyn ToSql + Sync); 6] =
            [&entry, &start, &end, &chunk_size, &edges, &i64::from(limit)];
        let rows = self.query(statements::CHUNK_MISSING, &params).await?;
        Ok(rows.iter().map(range_from_row).collect())
    }

    /// Like [`missing`](Self::missing), for all edges together.
    pub async fn missing_anywhere(
        &self,
        entry: EntryId,
        geometry: Geometry,
        range: ByteRange,
        limit: u32,
    ) -> Result<Vec<ByteRange>, DatabaseError> {
        let (start, end, chunk_size) = asked(geometry, range);
        let params: [&(dyn ToSql + Sync); 5] =
            [&entry, &start, &end, &chunk_size, &i64::from(limit)];
        let rows = self
            .query(statements::CHUNK_MISSING_ANYWHERE, &params)
            .await?;
        Ok(rows.iter().map(range_from_row).collect())
    }

    /// Digests of all entries of which the edge holds a part.
    pub async fn digests(&self, edge: EdgeId) -> Result<HashMap<EntryId, Digest>, DatabaseError> {
        let rows = self.query(statements::CHUNK_DIGESTS, &[&edge]).await?;
        Ok(rows
            .iter()
            .map(|row| (row.get("entry_id"), digest_from_row(row)))
            .collect())
    }

    /// The digest of one entry on one edge.
    pub async fn digest(&self, edge: EdgeId, entry: EntryId) -> Result<Digest, DatabaseError> {
        Ok(digest_from_row(
            &self
                .query_one(statements::CHUNK_DIGEST, &[&entry, &edge])
                .await?,
        ))
    }

    /// Every chunk of the entry that the edge holds, ascending.
    pub async fn chunks(
        &self,
        edge: EdgeId,
        entry: EntryId,
    ) -> Result<Vec<StoredChunk>, DatabaseError> {
        let rows = self.query(statements::CHUNK_LIST, &[&entry, &edge]).await?;
        Ok(rows
            .iter()
            .map(|row| StoredChunk {
                range: range_from_row(row),
                checksum: row.get::<_, i64>("checksum").cast_unsigned(),
            })
            .collect())
    }
}

pub(super) fn holdings_from_rows(rows: &[Row]) -> HashMap<EntryId, Vec<Holding>> {
    let mut answer: HashMap<EntryId, Vec<Holding>> = HashMap::new();
    for row in rows {
        let edge_id: EdgeId = row.get("edge_id");
        let holdings = answer.entry(row.get("entry_id")).or_default();
        let range = range_from_row(row);
        // Rows of one edge are adjacent.
        match holdings
            .last_mut()
            .filter(|holding| holding.edge_id == edge_id)
        {
            Some(holding) => holding.ranges.push(range),
            None => holdings.push(Holding {
                edge_id,
                edge: row.get("name"),
                url: row.get("url"),
                state: parse_state(row.get("state")),
                ranges: vec![range],
            }),
        }
    }
    answer
}

pub(super) fn range_from_row(row: &Row) -> ByteRange {
    let (start, end): (i64, i64) = (row.get("start_byte"), row.get("end_byte"));
    ByteRange::new(start.unsigned_abs(), end.unsigned_abs())
}

fn digest_from_row(row: &Row) -> Digest {
    Digest {
        chunk_count: row.get::<_, i64>("chunk_count").unsigned_abs(),
        checksum_xor: row
            .get::<_, Option<i64>>("checksum_xor")
            .unwrap_or(0)
            .cast_unsigned(),
    }
}

/// Offsets are below 2^63 by [`Geometry::new`].
pub(super) fn signed(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

/// Sorts ranges and joins those that touch or overlap.
pub(super) fn coalesce(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable();
    let mut joined: Vec<ByteRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_ranges_become_one() {
        let ranges = vec![
            ByteRange::new(4, 6),
            ByteRange::new(0, 2),
            ByteRange::new(2, 3),
            ByteRange::new(9, 9),
            ByteRange::new(5, 8),
        ];
        assert_eq!(
            coalesce(ranges),
            vec![ByteRange::new(0, 3), ByteRange::new(4, 8)]
        );
    }
}
