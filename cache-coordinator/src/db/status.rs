//! Totals, and snapshots that belong to one revision of the change log.

use chunkcache_proto::{EntryId, v1};

use super::{
    Binding, Database, DatabaseError, EdgeRecord, EntryRecord, Holding, JobRecord, chunks, edges,
    entries,
    executor::{Executor, Loan},
    jobs, sources, statements,
};

/// Limit for counting rows one by one; larger figures are estimates.
const COUNT_LIMIT: i64 = 200_000;
/// Limit of jobs in a cluster's snapshot: the newest.
const SNAPSHOT_JOBS: i64 = 1_000;

/// Figures for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub entries: u64,
    pub chunks: u64,
    pub bytes_cached: u64,
    /// `chunks` and `bytes_cached` are not counted, but taken from the planner's estimate and the
    /// edges' reports.
    pub estimated: bool,
    pub edges_total: u32,
    pub edges_active: u32,
    pub jobs_running: u32,
    pub revision: u64,
}

/// An entry and its holders, as of `revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntrySnapshot {
    pub revision: u64,
    pub entry: EntryRecord,
    pub holdings: Vec<Holding>,
}

/// All small tables, as of `revision`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSnapshot {
    pub revision: u64,
    pub edges: Vec<EdgeRecord>,
    pub sources: Vec<v1::Source>,
    pub jobs: Vec<JobRecord>,
}

impl Database {
    /// Cheap for tables of any size.
    pub async fn totals(&self) -> Result<Totals, DatabaseError> {
        let row = self.query_one(statements::TOTALS, &[&COUNT_LIMIT]).await?;
        let number = |name: &str| row.get::<_, i64>(name).max(0).unsigned_abs();
        let (entries, chunks) = (number("entries_counted"), number("chunks_counted"));
        let estimated = chunks >= COUNT_LIMIT.unsigned_abs();
        let entries_cut = entries >= COUNT_LIMIT.unsigned_abs();
        Ok(Totals {
            entries: if entries_cut {
                entries.max(number("entries_estimated"))
            } else {
                entries
            },
            chunks: if estimated {
                chunks.max(number("chunks_estimated"))
            } else {
                chunks
            },
            bytes_cached: if estimated {
                number("bytes_counted").max(number("bytes_reported"))
            } else {
                number("bytes_counted")
            },
            estimated,
            edges_total: u32::try_from(number("edges_total")).unwrap_or(u32::MAX),
            edges_active: u32::try_from(number("edges_active")).unwrap_or(u32::MAX),
            jobs_running: u32::try_from(number("jobs_running")).unwrap_or(u32::MAX),
            revision: number("revision"),
        })
    }

    /// Read in one transaction: the changes after `revision` complete it without gaps or
    /// repetitions.
    pub async fn entry_snapshot(&self, id: EntryId) -> Result<EntrySnapshot, DatabaseError> {
        let mut loan = self.reader().await?;
        let result = async {
            let transaction = loan.snapshot(self).await?;
            let executor = Executor::new(&transaction, self);
            let revision: i64 = executor
                .query_one(statements::CHANGE_REVISION, &[])
                .await?
                .get("latest");
            let row = executor.query_opt(statements::ENTRY_GET, &[&id]).await?;
            let entry =
                entries::from_row(&row.ok_or_else(|| DatabaseError::not_found("entry", id))?)?;
            let rows = executor
                .query(statements::CHUNK_HOLDINGS, &[&[id].as_slice()])
                .await?;
            let holdings = chunks::holdings_from_rows(&rows)
                .remove(&id)
                .unwrap_or_default();
            transaction.commit().await?;
            Ok(EntrySnapshot {
                revision: revision.unsigned_abs(),
                entry,
                holdings,
            })
        }
        .await;
        loan.end(result)
    }

    /// Like [`Self::entry_snapshot`], for edges, sources and running jobs.
    pub async fn cluster_snapshot(&self) -> Result<ClusterSnapshot, DatabaseError> {
        let mut loan: Loan = self.reader().await?;
        let result = async {
            let transaction = loan.snapshot(self).await?;
            let executor = Executor::new(&transaction, self);
            let revision: i64 = executor
                .query_one(statements::CHANGE_REVISION, &[])
                .await?
                .get("latest");
            let edges = executor
                .query(statements::EDGE_LIST, &[])
                .await?
                .iter()
                .map(edges::from_row)
                .collect();
            let sources = executor
                .query(statements::SOURCE_LIST, &[])
                .await?
                .iter()
                .map(sources::from_row)
                .collect::<Result<_, _>>()?;
            let jobs = executor
                .query(statements::JOB_LIST, &[&false, &SNAPSHOT_JOBS])
                .await?
                .iter()
                .map(jobs::from_row)
                .collect::<Result<_, _>>()?;
            transaction.commit().await?;
            Ok(ClusterSnapshot {
                revision: revision.unsigned_abs(),
                edges,
                sources,
                jobs,
            })
        }
        .await;
        loan.end(result)
    }

    /// The entry with this id, or `NotFound`.
    pub async fn known_entry(&self, id: EntryId) -> Result<Binding, DatabaseError> {
        self.binding_of_entry(id)
            .await?
            .ok_or_else(|| DatabaseError::not_found("entry", id))
    }
}
