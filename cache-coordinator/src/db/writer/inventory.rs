//! Reconciliation: turns a page of an edge's inventory into a handful of statements.

use std::collections::{BTreeMap, HashMap, HashSet};

use chunkcache_proto::{ByteRange, EntryId, Geometry};
use deadpool_postgres::GenericClient;
use tokio_postgres::Row;

use super::super::{
    ChangeKind, DatabaseError,
    chunks::{coalesce, range_from_row, signed},
    statements,
};
use super::{
    InventoryItem, ObserveEntry, ReconcileEntries, Reconciled, apply::Batch,
    observations::Registration,
};

/// The state of the rows before the reconciliation.
struct RecordedState {
    edge: String,
    geometry: HashMap<EntryId, Geometry>,
}

/// The chunks that become rows, by entry and first byte.
type NewRows = BTreeMap<(EntryId, u64), (ByteRange, u64)>;

impl<C: GenericClient> Batch<'_, C> {
    /// Makes the rows of the page's entries on the edge equal to the page, without impossible
    /// chunks. Returns an answer for each item, in order.
    pub(super) async fn reconcile(
        &mut self,
        page: &ReconcileEntries,
    ) -> Result<Vec<Reconciled>, DatabaseError> {
        let RecordedState { edge, mut geometry } = self.known(page).await?;
        let mut answers: Vec<Reconciled> = vec![Reconciled::default(); page.entries.len()];
        let known: HashSet<EntryId> = geometry.keys().copied().collect();
        let adopted = self.adopt(page, &geometry).await?;
        let mut kept = NewRows::new();
        for (item, answer) in page.entries.iter().zip(&mut answers) {
            if let Some(result) = adopted.get(&item.id) {
                match result {
                    Ok(observed) => answer.observed = Some(observed.clone()),
                    Err(error) => answer.refused = Some(error.clone()),
                }
                if let (Ok(_), Some(adopt)) = (result, &item.adopt) {
                    geometry.insert(item.id, adopt.entry.geometry);
                }
            }
            let Some(geometry) = geometry.get(&item.id) else {
                answer.dropped = item.chunks.iter().map(|chunk| chunk.index).collect();
                if answer.refused.is_none() && !item.chunks.is_empty() {
                    answer.refused = Some(DatabaseError::not_found("entry", item.id));
                }
                continue;
            };
            for chunk in &item.chunks {
                if chunk.index < geometry.chunk_count() {
                    let range = geometry.chunk_range(chunk.index);
                    kept.insert((item.id, range.start), (range, chunk.checksum));
                } else {
                    answer.dropped.push(chunk.index);
                }
            }
        }
        let ids: Vec<EntryId> = page
            .entries
            .iter()
            .map(|item| item.id)
            .filter(|id| geometry.contains_key(id))
            .collect();
        let (gone, come) = self.write_rows(page, &ids, &kept).await?;
        let conflicting = self.conflicts_of_known(&known, &kept).await?;
        for (item, answer) in page.entries.iter().zip(&mut answers) {
            answer.is_conflicting = conflicting.contains(&item.id);
            answer.rows_deleted = gone.get(&item.id).map_or(0, |rows| rows.len() as u64);
            answer.rows_written = come.get(&item.id).map_or(0, |rows| rows.len() as u64);
        }
        let with: HashSet<EntryId> = kept.keys().map(|(entry, _)| *entry).collect();
        self.mark_chunkless(with, gone.keys().copied()).await?;
        for (rows, is_stored) in [(gone, false), (come, true)] {
            for (entry, ranges) in rows {
                let (edge, ranges) = (edge.clone(), coalesce(ranges));
                let change = ChangeKind::of_chunks(is_stored, entry, edge, ranges);
                self.changes.push(change);
            }
        }
        Ok(answers)
    }

    /// The edge's name and the entries' geometries; `Fenced` if the session is over.
    async fn known(&self, page: &ReconcileEntries) -> Result<RecordedState, DatabaseError> {
        let entries: Vec<EntryId> = page.entries.iter().map(|item| item.id).collect();
        let edges = vec![page.edge; entries.len()];
        let rows = self
            .executor
            .query(statements::CHUNK_REPORTS, &[&edges, &entries])
            .await?;
        let mut known = RecordedState {
            edge: String::new(),
            geometry: HashMap::new(),
        };
        for (id, row) in entries.iter().zip(&rows) {
            if row.get::<_, Option<i64>>("epoch") != Some(signed(page.epoch)) {
                // Also for an edge that was removed: its session is over too.
                return Err(DatabaseError::Fenced);
            }
            known.edge = row.get("edge");
            if let Some(size) = row.get::<_, Option<i64>>("size") {
                let chunk_size: i32 = row.get("chunk_size");
                let geometry = Geometry::new(size.unsigned_abs(), chunk_size.unsigned_abs())
                    .map_err(|error| DatabaseError::Internal(error.to_string()))?;
                known.geometry.insert(*id, geometry);
            }
        }
        Ok(known)
    }

    /// Registers the entries that the database does not know.
    async fn adopt(
        &mut self,
        page: &ReconcileEntries,
        geometry: &HashMap<EntryId, Geometry>,
    ) -> Result<HashMap<EntryId, Result<super::ObservationEffect, DatabaseError>>, DatabaseError>
    {
        let has_chunks = |item: &InventoryItem, adopt: &ObserveEntry| {
            let count = adopt.entry.geometry.chunk_count();
            item.chunks.iter().any(|chunk| chunk.index < count)
        };
        let unknown: Vec<Registration<'_>> = page
            .entries
            .iter()
            .filter(|item| !geometry.contains_key(&item.id))
            .filter_map(|item| {
                let change = item.adopt.as_ref()?;
                Some(Registration {
                    change,
                    is_chunkless: !has_chunks(item, change),
                })
            })
            .collect();
        let results = self.register(&unknown).await?;
        Ok(unknown
            .iter()
            .map(|registration| registration.change.entry.id)
            .zip(results)
            .collect())
    }

    /// Deletes and writes rows; returns both by entry.
    async fn write_rows(
        &self,
        page: &ReconcileEntries,
        entries: &[EntryId],
        kept: &NewRows,
    ) -> Result<(ByEntry, ByEntry), DatabaseError> {
        let ids: Vec<EntryId> = kept.keys().map(|(entry, _)| *entry).collect();
        let starts: Vec<i64> = kept.keys().map(|(_, start)| signed(*start)).collect();
        let ends: Vec<i64> = kept.values().map(|(range, _)| signed(range.end)).collect();
        let checksums: Vec<i64> = kept.values().map(|(_, sum)| sum.cast_signed()).collect();
        let gone = self
            .executor
            .query(
                statements::CHUNK_RECONCILE_DELETE,
                &[&entries, &page.edge, &ids, &starts],
            )
            .await?;
        let come = self
            .executor
            .query(
                statements::CHUNK_RECONCILE_INSERT,
                &[&page.edge, &ids, &starts, &ends, &checksums],
            )
            .await?;
        Ok((by_entry(&gone), by_entry(&come)))
    }

    /// Skips entries that were created just now, because no other edge holds anything of them.
    async fn conflicts_of_known(
        &self,
        known: &HashSet<EntryId>,
        kept: &NewRows,
    ) -> Result<HashSet<EntryId>, DatabaseError> {
        let rows = || kept.iter().filter(|((entry, _), _)| known.contains(entry));
        let entries: Vec<EntryId> = rows().map(|((entry, _), _)| *entry).collect();
        if entries.is_empty() {
            return Ok(HashSet::new());
        }
        let starts: Vec<i64> = rows().map(|((_, start), _)| signed(*start)).collect();
        let checksums: Vec<i64> = rows().map(|(_, (_, sum))| sum.cast_signed()).collect();
        self.conflicts(&entries, &starts, &checksums).await
    }
}

type ByEntry = BTreeMap<EntryId, Vec<ByteRange>>;

fn by_entry(rows: &[Row]) -> ByEntry {
    let mut grouped = ByEntry::new();
    for row in rows {
        grouped
            .entry(row.get("entry_id"))
            .or_default()
            .push(range_from_row(row));
    }
    grouped
}
