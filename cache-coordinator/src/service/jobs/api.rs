//! The clients' API for jobs.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::v1;
use tokio::sync::mpsc;
use tonic::Status;
use uuid::Uuid;

use super::super::{
    Cluster, entries,
    error::{Resource, ServiceError},
    ranges,
    watch::{Watched, spawn},
};
use super::{level, timing};
use crate::db::{
    JobRecord, JobStatus,
    writer::{AddJob, EndJob},
};

/// Limit of jobs in one answer.
const MAX_LISTED: u32 = 1000;
/// Limit of edges in one job.
const MAX_EDGES: usize = 1000;
/// How often progress is sampled for a watcher; a sample also shows that the job ended.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);

/// Records a job and begins it.
pub async fn precache(
    cluster: &Cluster,
    request: v1::PrecacheRequest,
) -> Result<v1::PrecacheResponse, ServiceError> {
    cluster.require_leader()?;
    let level = match v1::Priority::try_from(request.priority) {
        Ok(v1::Priority::Unspecified) => chunkcache_proto::Level::Medium,
        priority => level("priority", priority.unwrap_or_default())?,
    };
    let timing = timing::read(&request)?;
    if request.edges.len() > MAX_EDGES {
        let description = format!("expected at most {MAX_EDGES} edges");
        return Err(ServiceError::invalid("edges", description));
    }
    let mut edges = request.edges;
    edges.sort_unstable();
    edges.dedup();
    for name in &edges {
        if cluster.database.edge(name).await?.is_none() {
            return Err(ServiceError::not_found(Resource::Edge, name));
        }
    }
    let entry = entries::find_or_make(cluster, request.entry.as_ref())
        .await?
        .entry;
    let ranges = ranges::several("ranges", &request.ranges, entry.geometry)?;
    let id = Uuid::new_v4();
    let change = AddJob {
        id,
        entry: entry.id,
        ranges,
        edges,
        level,
        timing,
    };
    cluster.writer.write(change).await?;
    let job = required(cluster, id).await?;
    cluster.jobs.begin(cluster, &job).await?;
    Ok(v1::PrecacheResponse {
        job: describe(cluster, &job).await?,
    })
}

/// Lists jobs, newest first, or the named ones.
pub async fn list(
    cluster: &Cluster,
    request: v1::ListJobsRequest,
) -> Result<v1::ListJobsResponse, ServiceError> {
    let rows = if request.ids.is_empty() {
        let jobs = cluster.database.jobs(request.include_ended, MAX_LISTED);
        jobs.await?
    } else if request.ids.len() > MAX_LISTED as usize {
        let expected = format!("expected at most {MAX_LISTED} ids");
        return Err(ServiceError::invalid("ids", expected));
    } else {
        let ids = request.ids.iter().map(|id| read_id("ids", id));
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        cluster.database.jobs_named(&ids).await?
    };
    let mut jobs = Vec::with_capacity(rows.len());
    for row in &rows {
        jobs.extend(describe(cluster, row).await?);
    }
    Ok(v1::ListJobsResponse { jobs })
}

/// Ends a job; its chunks are kept. Ending an ended job changes nothing.
pub async fn cancel(
    cluster: &Cluster,
    request: v1::CancelJobRequest,
) -> Result<v1::CancelJobResponse, ServiceError> {
    cluster.require_leader()?;
    let id = read_id("id", &request.id)?;
    required(cluster, id).await?;
    let change = EndJob {
        id,
        status: JobStatus::Cancelled,
        error: String::new(),
    };
    cluster.writer.write(change).await?;
    cluster.jobs.withdraw(cluster, id).await?;
    let job = required(cluster, id).await?;
    Ok(v1::CancelJobResponse {
        job: describe(cluster, &job).await?,
    })
}

/// Streams progress until the job ends.
pub async fn watch(
    cluster: &Arc<Cluster>,
    request: v1::WatchJobRequest,
) -> Result<Watched<v1::WatchJobResponse>, ServiceError> {
    cluster.require_leader()?;
    let id = read_id("id", &request.id)?;
    required(cluster, id).await?;
    let (sender, receiver) = mpsc::channel(4);
    spawn(
        cluster,
        sender.clone(),
        follow(Arc::clone(cluster), id, sender),
    )?;
    Ok(receiver)
}

async fn follow(
    cluster: Arc<Cluster>,
    id: Uuid,
    sender: mpsc::Sender<Result<v1::WatchJobResponse, Status>>,
) -> Result<(), ServiceError> {
    let mut sample = tokio::time::interval(SAMPLE_EVERY);
    let mut last = None;
    loop {
        sample.tick().await;
        cluster.require_leader()?;
        let row = required(&cluster, id).await?;
        let job = describe(&cluster, &row).await?;
        if job != last {
            let response = v1::WatchJobResponse { job: job.clone() };
            if sender.send(Ok(response)).await.is_err() {
                return Ok(());
            }
            last = job;
        }
        if row.status != JobStatus::Running {
            return Ok(());
        }
    }
}

/// Converts to the wire format, with progress; `None` if its entry was removed meanwhile.
pub async fn describe(cluster: &Cluster, job: &JobRecord) -> Result<Option<v1::Job>, ServiceError> {
    let Some(entry) = cluster.database.entry(job.entry).await? else {
        return Ok(None);
    };
    let bytes_total = job.bytes_total();
    let bytes_done = cluster.database.job_bytes_done(job, entry.geometry).await?;
    let rate = match job.status {
        JobStatus::Running => cluster.jobs.rate(job.id),
        _ => 0,
    };
    let left = bytes_total.saturating_sub(bytes_done);
    Ok(Some(v1::Job {
        id: job.id.to_string(),
        entry: Some(entry.to_proto()),
        ranges: job.ranges.iter().copied().map(Into::into).collect(),
        edges: job.edges.clone(),
        state: state(job.status).into(),
        bytes_done,
        bytes_total,
        rate_bytes_per_second: rate,
        eta_seconds: (rate > 0).then(|| left.div_ceil(rate)),
        error: job.error.clone(),
        created_at_ms: job.created_at_ms,
        priority: v1::Priority::from(job.level).into(),
        waiting: match job.status {
            JobStatus::Running => cluster.jobs.waits_for(cluster, job.id),
            _ => String::new(),
        },
        window: job.timing.window.as_ref().map(timing::to_proto),
        max_rate_bytes_per_second: job.timing.max_rate,
        resumes_at_ms: match job.status {
            JobStatus::Running => cluster
                .jobs
                .resumes_at(job.id)
                .map(|at| at.as_millisecond()),
            _ => None,
        },
    }))
}

fn state(status: JobStatus) -> v1::JobState {
    match status {
        JobStatus::Running => v1::JobState::Running,
        JobStatus::Done => v1::JobState::Done,
        JobStatus::Cancelled => v1::JobState::Cancelled,
        JobStatus::Failed => v1::JobState::Failed,
    }
}

async fn required(cluster: &Cluster, id: Uuid) -> Result<JobRecord, ServiceError> {
    let job = cluster.database.job(id).await?;
    job.ok_or_else(|| ServiceError::not_found(Resource::Job, id.to_string()))
}

fn read_id(field: &str, id: &str) -> Result<Uuid, ServiceError> {
    id.parse()
        .map_err(|_| ServiceError::invalid(field, "expected a UUID"))
}
