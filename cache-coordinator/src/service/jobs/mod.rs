//! Precache jobs and requests for ranges: demand that does not come from readers.
//!
//! A job is a row; its progress is read from `cache_chunks`. Its wants in the scheduler are rebuilt
//! at the start of each term and whenever one of its edges is lost, so no other state needs to
//! survive. Outside its window a job has no wants; one with a rate gets a few chunks at a time.

mod api;
mod room;
mod supervisor;
mod timing;

pub use api::{cancel, describe, list, precache, watch};
pub use supervisor::run as supervise;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use chunkcache_proto::{ChunkIndex, EntryId, Level, v1};
use jiff::Timestamp;
use parking_lot::Mutex;
use uuid::Uuid;

use self::timing::{ChunkRateLimiter, Window};
use super::{
    Cluster, entries,
    error::{Resource, ServiceError},
    loader::edge_id,
};
use crate::{
    db::{EntryRecord, JobStatus, writer::EndJob},
    sessions::plan::Command,
};
use scheduler::api::{EdgeId, WantId};

/// Limit of requests for ranges that are not done yet.
const MAX_REQUESTS: usize = 10_000;

/// Limit of jobs that an explanation names.
const MAX_NAMED: usize = 3;

/// The present wants.
#[derive(Default)]
pub struct Jobs {
    next_want: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    wants: HashMap<WantId, JobRequest>,
    running: HashMap<Uuid, Running>,
}

/// The owner of a want.
#[derive(Clone, Copy, Debug)]
struct Owner {
    job: Option<Uuid>,
    entry: EntryId,
    edge: EdgeId,
}

#[derive(Clone, Debug)]
struct JobRequest {
    owner: Owner,
    chunks: Vec<Range<ChunkIndex>>,
}

/// A job that the scheduler works on.
#[derive(Debug)]
struct Running {
    entry: EntryId,
    chunks: Vec<Range<ChunkIndex>>,
    /// Wants that are not done yet, and where they are.
    wants: HashSet<WantId>,
    /// Edges that evicted chunks of the job: nothing more is fetched there until they have space
    /// again.
    full: BTreeSet<EdgeId>,
    /// The coordinator chooses the edge, and chooses again when that edge is lost.
    is_free: bool,
    /// Number of checks of the table since its last want was done.
    looks: u32,
    sample: Option<Sample>,
    /// With its words for people.
    window: Option<(Window, String)>,
    /// At the last look. A job without a window is always open.
    is_open: bool,
    limiter: Option<ChunkRateLimiter>,
}

/// Progress at one time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    bytes_done: u64,
    rate: u64,
}

/// The edge that was chosen for a request.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Its row's id.
    pub edge: EdgeId,
    /// Its name.
    pub name: String,
}

/// Converts a caller's priority.
pub fn level(field: &str, priority: v1::Priority) -> Result<Level, ServiceError> {
    Level::try_from(priority).map_err(|error| ServiceError::invalid(field, error.to_string()))
}

/// The named edge, or the best one.
pub async fn choose_edge(
    cluster: &Cluster,
    entry: &EntryRecord,
    position: u64,
    name: &str,
) -> Result<Chosen, ServiceError> {
    if name.is_empty() {
        let holdings = cluster.database.holdings(entry.id).await?;
        let (live, _) = entries::best_edge(cluster, entry, &holdings, position)?;
        return Ok(Chosen {
            edge: live.edge,
            name: live.name.clone(),
        });
    }
    let row = cluster
        .database
        .edge(name)
        .await?
        .ok_or_else(|| ServiceError::not_found(Resource::Edge, name))?;
    Ok(Chosen {
        edge: edge_id(row.id),
        name: row.name,
    })
}

impl Jobs {
    /// Creates a want on an edge without a job.
    pub async fn want(
        &self,
        cluster: &Cluster,
        edge: EdgeId,
        entry: EntryId,
        chunks: Vec<Range<ChunkIndex>>,
        level: Level,
    ) -> Result<(), ServiceError> {
        let requests = self
            .state
            .lock()
            .wants
            .values()
            .filter(|asked| asked.owner.job.is_none())
            .count();
        if requests >= MAX_REQUESTS {
            return Err(ServiceError::Exhausted(format!(
                "{MAX_REQUESTS} requests for ranges are outstanding"
            )));
        }
        let owner = Owner {
            job: None,
            entry,
            edge,
        };
        self.ask(cluster, owner, chunks, level).await
    }

    async fn ask(
        &self,
        cluster: &Cluster,
        owner: Owner,
        chunks: Vec<Range<ChunkIndex>>,
        level: Level,
    ) -> Result<(), ServiceError> {
        let want = WantId(self.next_want.fetch_add(1, Ordering::Relaxed) + 1);
        {
            // Recorded before the want can be done.
            let mut state = self.state.lock();
            let asked = JobRequest {
                owner,
                chunks: chunks.clone(),
            };
            state.wants.insert(want, asked);
            if let Some(running) = owner.job.and_then(|job| state.running.get_mut(&job)) {
                running.wants.insert(want);
            }
        }
        let command = Command::Want {
            want,
            edge: owner.edge,
            entry: owner.entry,
            chunks,
            level,
        };
        Ok(cluster.plan.tell(command).await?)
    }

    /// Ends jobs and requests for entries that no longer exist.
    pub async fn forget_entries(
        &self,
        cluster: &Cluster,
        entries: &HashSet<EntryId>,
        why: &str,
    ) -> Result<(), ServiceError> {
        let ended: Vec<Uuid> = {
            let mut state = self.state.lock();
            state
                .wants
                .retain(|_, asked| !entries.contains(&asked.owner.entry));
            let of_entry = |running: &Running| entries.contains(&running.entry);
            let ended = state
                .running
                .iter()
                .filter(|(_, running)| of_entry(running));
            let ended = ended.map(|(id, _)| *id).collect();
            state.running.retain(|_, running| !of_entry(running));
            ended
        };
        for id in ended {
            let change = EndJob {
                id,
                status: JobStatus::Failed,
                error: why.to_owned(),
            };
            cluster.writer.write(change).await?;
        }
        Ok(())
    }

    /// Clears the state for another term.
    pub fn reset(&self) {
        *self.state.lock() = State::default();
    }

    /// Ends the work on a job.
    async fn withdraw(&self, cluster: &Cluster, job: Uuid) -> Result<(), ServiceError> {
        self.state.lock().running.remove(&job);
        self.close_wants(cluster, job).await
    }

    /// Closes a job's wants.
    async fn close_wants(&self, cluster: &Cluster, job: Uuid) -> Result<(), ServiceError> {
        let wants: Vec<WantId> = {
            let mut state = self.state.lock();
            if let Some(running) = state.running.get_mut(&job) {
                running.wants.clear();
            }
            let of_job = |asked: &JobRequest| asked.owner.job == Some(job);
            let wants = state.wants.iter().filter(|(_, asked)| of_job(asked));
            let wants = wants.map(|(want, _)| *want).collect();
            state.wants.retain(|_, asked| !of_job(asked));
            wants
        };
        for want in wants {
            cluster.plan.tell(Command::WantClosed(want)).await?;
        }
        Ok(())
    }

    /// When the window of a job opens, if that is what it waits for.
    pub fn resumes_at(&self, job: Uuid) -> Option<Timestamp> {
        let state = self.state.lock();
        let running = state.running.get(&job).filter(|it| !it.is_open)?;
        let (window, _) = running.window.as_ref()?;
        window.opens_after(Timestamp::now())
    }

    /// Jobs that wait for their window and want this chunk, in their order; the first few.
    pub fn waiting_for_window(&self, entry: EntryId, chunk: ChunkIndex) -> Vec<Uuid> {
        let state = self.state.lock();
        let waiting = state.running.iter().filter(|(_, running)| {
            let wants = |range: &Range<ChunkIndex>| range.contains(&chunk);
            !running.is_open && running.entry == entry && running.chunks.iter().any(wants)
        });
        let mut ids: Vec<Uuid> = waiting.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.truncate(MAX_NAMED);
        ids
    }

    /// Bytes per second, over the last samples.
    fn rate(&self, job: Uuid) -> u64 {
        let state = self.state.lock();
        let sample = state.running.get(&job).and_then(|running| running.sample);
        sample.map_or(0, |sample| sample.rate)
    }
}
