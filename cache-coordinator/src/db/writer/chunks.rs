//! Chunk reports: the reports of many edges and entries become two statements, each row fenced by
//! its edge's epoch.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chunkcache_proto::{ByteRange, ChunkIndex, EntryId, Geometry};
use deadpool_postgres::GenericClient;
use tokio_postgres::{Row, types::ToSql};

use super::super::{
    ChangeKind, ChunkSum, DatabaseError,
    chunks::{coalesce, range_from_row, signed},
    edges::EdgeId,
    statements::{self, Statement},
};
use super::{Operation, Outcome, TouchEdge, apply::Batch};

/// Reports that are gathered but not applied yet.
#[derive(Default)]
pub(super) struct ChunkReports {
    reports: Vec<Report>,
    touches: Vec<(usize, TouchEdge)>,
    /// For each entry and edge, whether the gathered reports store or remove chunks, because the
    /// two kinds do not commute.
    kinds: HashMap<(EntryId, EdgeId), bool>,
}

struct Report {
    /// The index of the change in its batch.
    number: usize,
    edge: EdgeId,
    epoch: u64,
    entry: EntryId,
    content: Content,
}

enum Content {
    Stored(Vec<ChunkSum>),
    Removed(Vec<ChunkIndex>),
}

impl ChunkReports {
    /// Gathers a change if it is a chunk report and commutes with those gathered.
    pub(super) fn take(&mut self, number: usize, operation: &Operation) -> bool {
        let report = match operation {
            Operation::StoreChunks(change) => Report {
                number,
                edge: change.edge,
                epoch: change.epoch,
                entry: change.entry,
                content: Content::Stored(change.chunks.clone()),
            },
            Operation::RemoveChunks(change) => Report {
                number,
                edge: change.edge,
                epoch: change.epoch,
                entry: change.entry,
                content: Content::Removed(change.indexes.clone()),
            },
            Operation::TouchEdge(touch) => {
                self.touches.push((number, touch.clone()));
                return true;
            }
            _ => return false,
        };
        let stored = matches!(report.content, Content::Stored(_));
        if *self
            .kinds
            .entry((report.entry, report.edge))
            .or_insert(stored)
            != stored
        {
            return false;
        }
        self.reports.push(report);
        true
    }
}

/// Rows by their primary key, so that a chunk that is reported twice in a batch is one row (the
/// last one wins).
type Rows = BTreeMap<(EntryId, EdgeId, u64), (u64, ByteRange, u64)>;

impl<C: GenericClient> Batch<'_, C> {
    pub(super) async fn flush_reports(&mut self) -> Result<(), DatabaseError> {
        let ChunkReports {
            reports, touches, ..
        } = std::mem::take(&mut self.reports);
        self.flush_touches(touches).await?;
        if reports.is_empty() {
            return Ok(());
        }
        let edges: Vec<EdgeId> = reports.iter().map(|report| report.edge).collect();
        let entries: Vec<EntryId> = reports.iter().map(|report| report.entry).collect();
        let rows = self
            .executor
            .query(statements::CHUNK_REPORTS, &[&edges, &entries])
            .await?;
        let (mut stored, mut removed) = (Rows::new(), Rows::new());
        let mut names: HashMap<EdgeId, String> = HashMap::new();
        for (report, row) in reports.iter().zip(&rows) {
            let judged = judge(report, row).and_then(|geometry| ranges_of(report, geometry));
            self.judged[report.number] = Some(match judged {
                Err(error) => Err(error),
                Ok(chunks) => {
                    names.entry(report.edge).or_insert_with(|| row.get("edge"));
                    let (rows, outcome) = match report.content {
                        Content::Stored(_) => (&mut stored, Outcome::StoreChunks(false)),
                        Content::Removed(_) => (&mut removed, Outcome::RemoveChunks(())),
                    };
                    rows.extend(chunks.into_iter().map(|(range, checksum)| {
                        (
                            (report.entry, report.edge, range.start),
                            (report.epoch, range, checksum),
                        )
                    }));
                    Ok(outcome)
                }
            });
        }
        if !stored.is_empty() {
            let columns = ChunkColumns::of(&stored);
            self.executor
                .execute(
                    statements::CHUNK_STORE,
                    &[
                        &columns.entries,
                        &columns.edges,
                        &columns.epochs,
                        &columns.starts,
                        &columns.ends,
                        &columns.checksums,
                    ],
                )
                .await?;
            self.log_rows(&stored, &names, true);
            let conflicting = self
                .conflicts(&columns.entries, &columns.starts, &columns.checksums)
                .await?;
            for report in reports.iter().filter(|it| conflicting.contains(&it.entry)) {
                if let Some(Ok(Outcome::StoreChunks(is_conflicting))) =
                    &mut self.judged[report.number]
                {
                    *is_conflicting = true;
                }
            }
            let entries: BTreeSet<EntryId> = stored.keys().map(|(entry, ..)| *entry).collect();
            self.mark_chunkless(entries, []).await?;
        }
        if !removed.is_empty() {
            let columns = ChunkColumns::of(&removed);
            self.executor
                .execute(
                    statements::CHUNK_REMOVE,
                    &[
                        &columns.entries,
                        &columns.edges,
                        &columns.epochs,
                        &columns.starts,
                    ],
                )
                .await?;
            self.log_rows(&removed, &names, false);
            self.mark_chunkless([], removed.keys().map(|(entry, ..)| *entry))
                .await?;
        }
        Ok(())
    }

    /// Entries of which another edge holds bytes that differ from these rows.
    pub(super) async fn conflicts(
        &self,
        entries: &[EntryId],
        starts: &[i64],
        checksums: &[i64],
    ) -> Result<HashSet<EntryId>, DatabaseError> {
        let rows = self
            .executor
            .query(
                statements::CHUNK_CONFLICTS,
                &[&entries, &starts, &checksums],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get("entry_id")).collect())
    }

    async fn flush_touches(
        &mut self,
        touches: Vec<(usize, TouchEdge)>,
    ) -> Result<(), DatabaseError> {
        if touches.is_empty() {
            return Ok(());
        }
        // One row per edge and epoch; the last one has the present state.
        let latest: BTreeMap<(EdgeId, u64), &TouchEdge> = touches
            .iter()
            .map(|(_, touch)| ((touch.edge, touch.epoch), touch))
            .collect();
        let edges: Vec<EdgeId> = latest.keys().map(|key| key.0).collect();
        let epochs: Vec<i64> = latest.keys().map(|key| signed(key.1)).collect();
        let used: Vec<i64> = latest
            .values()
            .map(|touch| signed(touch.status.bytes_used))
            .collect();
        let allowed: Vec<i64> = latest
            .values()
            .map(|touch| signed(touch.status.bytes_allowed))
            .collect();
        let rows = self
            .executor
            .query(statements::EDGE_TOUCH, &[&edges, &epochs, &used, &allowed])
            .await?;
        let current: HashMap<EdgeId, i64> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        for (number, touch) in touches {
            let is_current = current.get(&touch.edge) == Some(&signed(touch.epoch));
            self.judged[number] = Some(if is_current {
                Ok(Outcome::TouchEdge(()))
            } else {
                Err(DatabaseError::Fenced)
            });
        }
        Ok(())
    }

    fn log_rows(&mut self, rows: &Rows, names: &HashMap<EdgeId, String>, stored: bool) {
        let mut groups: BTreeMap<(EntryId, EdgeId), Vec<ByteRange>> = BTreeMap::new();
        for ((entry, edge, _), (_, range, _)) in rows {
            groups.entry((*entry, *edge)).or_default().push(*range);
        }
        for ((entry, edge), ranges) in groups {
            let edge = names.get(&edge).cloned().unwrap_or_default();
            let ranges = coalesce(ranges);
            let change = ChangeKind::of_chunks(stored, entry, edge, ranges);
            self.changes.push(change);
        }
    }

    /// Maintains `chunkless_since`: null if an entry has chunks, otherwise the time since which it
    /// has none.
    pub(super) async fn mark_chunkless(
        &self,
        with_chunks: impl IntoIterator<Item = EntryId>,
        lost_chunks: impl IntoIterator<Item = EntryId>,
    ) -> Result<(), DatabaseError> {
        let with: Vec<EntryId> = with_chunks.into_iter().collect();
        let lost: BTreeSet<EntryId> = lost_chunks.into_iter().collect();
        let lost: Vec<EntryId> = lost.into_iter().collect();
        for (statement, entries) in [
            (statements::ENTRY_WITH_CHUNKS, with),
            (statements::ENTRY_WITHOUT_CHUNKS, lost),
        ] {
            if !entries.is_empty() {
                self.executor.execute(statement, &[&entries]).await?;
            }
        }
        Ok(())
    }

    /// Runs a statement that deletes chunk rows and returns them, and logs them by entry and edge.
    pub(super) async fn remove_rows(
        &mut self,
        statement: Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, DatabaseError> {
        let (count, entries) = self.delete_rows(statement, params).await?;
        self.mark_chunkless([], entries).await?;
        Ok(count)
    }

    /// The same for entries whose next change marks them as both purged and without chunks.
    pub(super) async fn remove_rows_of_purged(
        &mut self,
        statement: Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, DatabaseError> {
        let (count, _) = self.delete_rows(statement, params).await?;
        Ok(count)
    }

    async fn delete_rows(
        &mut self,
        statement: Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<(u64, Vec<EntryId>), DatabaseError> {
        let rows = self.executor.query(statement, params).await?;
        let mut groups: BTreeMap<(EntryId, EdgeId), Vec<ByteRange>> = BTreeMap::new();
        for row in &rows {
            groups
                .entry((row.get("entry_id"), row.get("edge_id")))
                .or_default()
                .push(range_from_row(row));
        }
        let entries = groups.keys().map(|(entry, _)| *entry).collect();
        if groups.is_empty() {
            return Ok((0, entries));
        }
        let names: HashMap<EdgeId, String> = self
            .executor
            .query(statements::EDGE_LIST, &[])
            .await?
            .iter()
            .map(|row| (row.get("id"), row.get("name")))
            .collect();
        for ((entry, edge), ranges) in groups {
            let edge = names.get(&edge).cloned().unwrap_or_default();
            self.changes.push(ChangeKind::Removed {
                entry,
                edge,
                ranges: coalesce(ranges),
            });
        }
        Ok((rows.len() as u64, entries))
    }
}

/// `row` comes from `chunk_reports.sql`.
fn judge(report: &Report, row: &Row) -> Result<Geometry, DatabaseError> {
    let epoch: Option<i64> = row.get("epoch");
    if epoch != Some(signed(report.epoch)) {
        // Also for an edge that was removed: its session is over too.
        return Err(DatabaseError::Fenced);
    }
    let size: Option<i64> = row.get("size");
    let size = size.ok_or_else(|| DatabaseError::not_found("entry", report.entry))?;
    let chunk_size: i32 = row.get("chunk_size");
    Geometry::new(size.unsigned_abs(), chunk_size.unsigned_abs())
        .map_err(|error| DatabaseError::Internal(error.to_string()))
}

/// The ranges of the chunks, with their checksums if they have any.
fn ranges_of(report: &Report, geometry: Geometry) -> Result<Vec<(ByteRange, u64)>, DatabaseError> {
    let place = |index: ChunkIndex, checksum: u64| {
        if index < geometry.chunk_count() {
            Ok((geometry.chunk_range(index), checksum))
        } else {
            Err(DatabaseError::invalid(
                "chunks",
                format!(
                    "chunk {index} of an entry of {} chunks",
                    geometry.chunk_count()
                ),
            ))
        }
    };
    match &report.content {
        Content::Stored(chunks) => chunks
            .iter()
            .map(|chunk| place(chunk.index, chunk.checksum))
            .collect(),
        Content::Removed(indexes) => indexes.iter().map(|index| place(*index, 0)).collect(),
    }
}

/// The arguments of the statements.
#[derive(Default)]
struct ChunkColumns {
    entries: Vec<EntryId>,
    edges: Vec<EdgeId>,
    epochs: Vec<i64>,
    starts: Vec<i64>,
    ends: Vec<i64>,
    checksums: Vec<i64>,
}

impl ChunkColumns {
    fn of(rows: &Rows) -> Self {
        let mut columns = Self::default();
        for ((entry, edge, _), (epoch, range, checksum)) in rows {
            columns.entries.push(*entry);
            columns.edges.push(*edge);
            columns.epochs.push(signed(*epoch));
            columns.starts.push(signed(range.start));
            columns.ends.push(signed(range.end));
            columns.checksums.push(checksum.cast_signed());
        }
        columns
    }
}
