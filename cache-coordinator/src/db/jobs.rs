//! Precache jobs. Progress is computed from the chunk rows each time, so there is no copy to
//! maintain.

use chunkcache_proto::{ByteRange, EntryId, Geometry, Level};
use tokio_postgres::Row;
use uuid::Uuid;

use service_kit::clock::unix_ms;

use super::{Database, DatabaseError, chunks::signed, statements};

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStatus {
    Running,
    Done,
    Cancelled,
    Failed,
}

impl JobStatus {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// When a job may fetch, and how fast.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobTiming {
    /// `None`: at any time.
    pub window: Option<JobWindow>,
    /// Bytes per second; 0: no limit.
    pub max_rate: u64,
}

/// A part of each day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobWindow {
    /// Minutes of the day. An end before the start is on the next day.
    pub start: u16,
    pub end: u16,
    /// A name of the IANA database; empty: UTC.
    pub time_zone: String,
}

/// A row of `precache_jobs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRecord {
    pub id: Uuid,
    pub entry: EntryId,
    /// Disjoint, ascending.
    pub ranges: Vec<ByteRange>,
    /// By name. Empty: a chunk counts as done wherever it is held.
    pub edges: Vec<String>,
    pub level: Level,
    pub timing: JobTiming,
    pub status: JobStatus,
    pub error: String,
    pub created_at_ms: i64,
}

impl JobRecord {
    /// Total number of bytes: of the ranges, once for each named edge.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.ranges.iter().map(|range| range.len()).sum::<u64>() * self.edges.len().max(1) as u64
    }
}

impl Database {
    pub async fn job(&self, id: Uuid) -> Result<Option<JobRecord>, DatabaseError> {
        self.query_opt(statements::JOB_GET, &[&id])
            .await?
            .as_ref()
            .map(from_row)
            .transpose()
    }

    /// The newest jobs first, at most `limit`.
    pub async fn jobs(
        &self,
        include_ended: bool,
        limit: u32,
    ) -> Result<Vec<JobRecord>, DatabaseError> {
        self.query(statements::JOB_LIST, &[&include_ended, &i64::from(limit)])
            .await?
            .iter()
            .map(from_row)
            .collect()
    }

    /// Those of these jobs that there are.
    pub async fn jobs_named(&self, ids: &[Uuid]) -> Result<Vec<JobRecord>, DatabaseError> {
        self.query(statements::JOBS_NAMED, &[&ids])
            .await?
            .iter()
            .map(from_row)
            .collect()
    }

    /// How many of [`JobRecord::bytes_total`] have rows.
    pub async fn job_bytes_done(
        &self,
        job: &JobRecord,
        geometry: Geometry,
    ) -> Result<u64, DatabaseError> {
        let starts: Vec<i64> = job.ranges.iter().map(|range| signed(range.start)).collect();
        let ends: Vec<i64> = job.ranges.iter().map(|range| signed(range.end)).collect();
        let chunk_size = i64::from(geometry.chunk_size());
        let bytes: i64 = if job.edges.is_empty() {
            self.query_one(
                statements::JOB_BYTES_ANYWHERE,
                &[&job.entry, &starts, &ends, &chunk_size],
            )
            .await?
            .get("bytes")
        } else {
            self.query(
                statements::JOB_BYTES_ON_EDGES,
                &[&job.entry, &starts, &ends, &chunk_size, &job.edges],
            )
            .await?
            .iter()
            .map(|row| row.get::<_, i64>("bytes"))
            .sum()
        };
        Ok(bytes.unsigned_abs())
    }
}

pub(super) fn from_row(row: &Row) -> Result<JobRecord, DatabaseError> {
    let (starts, ends): (Vec<i64>, Vec<i64>) = (row.get("starts"), row.get("ends"));
    let level = match row.get::<_, i16>("priority") {
        1 => Level::Critical,
        2 => Level::High,
        3 => Level::Medium,
        _ => Level::Low,
    };
    let status = match row.get("state") {
        "running" => JobStatus::Running,
        "done" => JobStatus::Done,
        "cancelled" => JobStatus::Cancelled,
        "failed" => JobStatus::Failed,
        other => {
            return Err(DatabaseError::Internal(format!("state of a job: {other}")));
        }
    };
    let minute = |column: &str| row.get::<_, Option<i16>>(column).map(i16::unsigned_abs);
    Ok(JobRecord {
        id: row.get("id"),
        entry: row.get("entry_id"),
        ranges: starts
            .iter()
            .zip(&ends)
            .map(|(start, end)| ByteRange::new(start.unsigned_abs(), end.unsigned_abs()))
            .collect(),
        edges: row.get("edges"),
        level,
        timing: JobTiming {
            window: minute("window_start")
                .zip(minute("window_end"))
                .map(|(start, end)| JobWindow {
                    start,
                    end,
                    time_zone: row.get("time_zone"),
                }),
            max_rate: row.get::<_, i64>("max_rate").unsigned_abs(),
        },
        status,
        error: row.get("error"),
        created_at_ms: unix_ms(row.get("created_at")),
    })
}

pub(super) fn level_number(level: Level) -> i16 {
    match level {
        Level::Critical => 1,
        Level::High => 2,
        Level::Medium => 3,
        Level::Low => 4,
    }
}
