//! Keeps running jobs and the scheduler's wants consistent: begins jobs, samples and ends them, and
//! assigns them again.

use std::{
    collections::{BTreeSet, HashSet},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use chunkcache_proto::ChunkIndex;
use jiff::Timestamp;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use uuid::Uuid;

use super::super::{
    Cluster, availability, entries, error::ServiceError, loader::edge_id, ranges::chunks_of,
};
use super::timing::{self, ChunkRateLimiter, Window};
use super::{Jobs, Owner, Running, Sample};
use crate::db::{EntryRecord, JobRecord, JobStatus, writer::EndJob};
use scheduler::api::{EdgeId, WantId};

/// Time between checks of running jobs.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Jobs checked in one round; the others follow in the next.
const LOOKS: usize = 64;
/// A want is done when its fetch is, and its rows follow with the next commit. If they are missing
/// after this many checks, the chunks are requested again.
const PATIENCE_LOOKS: u32 = 10;

/// Runs until the process ends.
pub async fn run(cluster: Arc<Cluster>, mut done: mpsc::UnboundedReceiver<WantId>) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut after = Uuid::nil();
    loop {
        tokio::select! {
            () = cluster.shutdown.cancelled() => return,
            want = done.recv() => match want {
                None => return,
                Some(want) => {
                    if let Some(job) = cluster.jobs.want_done(want) {
                        log(job, look_at(&cluster, job).await);
                    }
                }
            },
            _ = look.tick() => {
                for job in cluster.jobs.follow_clock(Timestamp::now()) {
                    log(job, look_at(&cluster, job).await);
                }
                for job in cluster.jobs.some_after(after, LOOKS) {
                    log(job, look_at(&cluster, job).await);
                    after = job;
                }
                if cluster.jobs.is_last(after) {
                    after = Uuid::nil();
                }
            }
        }
    }
}

fn log(job: Uuid, result: Result<(), ServiceError>) {
    if let Err(error) = result {
        tracing::debug!(%job, %error, "a job is looked at again later");
    }
}

async fn look_at(cluster: &Cluster, id: Uuid) -> Result<(), ServiceError> {
    cluster.require_leader()?;
    let job = cluster.database.job(id).await?;
    let Some(job) = job.filter(|job| job.status == JobStatus::Running) else {
        return cluster.jobs.withdraw(cluster, id).await;
    };
    let Some(entry) = cluster.database.entry(job.entry).await? else {
        return cluster.jobs.withdraw(cluster, id).await;
    };
    let bytes_done = cluster
        .database
        .job_bytes_done(&job, entry.geometry)
        .await?;
    if bytes_done >= job.bytes_total() {
        let change = EndJob {
            id,
            status: JobStatus::Done,
            error: String::new(),
        };
        cluster.writer.write(change).await?;
        tracing::info!(job = %id, bytes = bytes_done, "job is done");
        return cluster.jobs.withdraw(cluster, id).await;
    }
    if let Some(error) = can_not_end(cluster, &job, bytes_done).await? {
        let change = EndJob {
            id,
            status: JobStatus::Failed,
            error,
        };
        cluster.writer.write(change).await?;
        return cluster.jobs.withdraw(cluster, id).await;
    }
    if !cluster.jobs.is_open(id) {
        return cluster.jobs.close_wants(cluster, id).await;
    }
    let has_room = cluster.jobs.find_room(cluster, id, &entry.source);
    if cluster.jobs.sample(id, bytes_done) || has_room {
        cluster.jobs.give(cluster, &job, &entry).await?;
    }
    Ok(())
}

/// Why the job can never end: named edges were removed from the cluster, and the others have all
/// chunks.
async fn can_not_end(
    cluster: &Cluster,
    job: &JobRecord,
    bytes_done: u64,
) -> Result<Option<String>, ServiceError> {
    let mut gone = Vec::new();
    for name in &job.edges {
        if cluster.database.edge(name).await?.is_none() {
            gone.push(name.as_str());
        }
    }
    let each = job.bytes_total() / job.edges.len().max(1) as u64;
    let can_be_done = each * (job.edges.len() - gone.len()) as u64;
    if gone.is_empty() || bytes_done < can_be_done {
        return Ok(None);
    }
    let names = gone.join(" and ");
    Ok(Some(format!("{names} was removed from the cluster")))
}

/// The first chunks, as many as are left; then as many less are.
fn first(chunks: Vec<Range<ChunkIndex>>, left: &mut u64) -> Vec<Range<ChunkIndex>> {
    let mut kept = Vec::new();
    for run in chunks {
        let count = u64::from(run.end - run.start).min(*left);
        if count == 0 {
            break;
        }
        *left -= count;
        let end = run.start + u32::try_from(count).unwrap_or(u32::MAX);
        kept.push(run.start..end);
    }
    kept
}

impl Jobs {
    /// Begins a running job. Has no effect if repeated.
    pub async fn begin(&self, cluster: &Cluster, job: &JobRecord) -> Result<(), ServiceError> {
        let Some(entry) = cluster.database.entry(job.entry).await? else {
            return Ok(());
        };
        {
            let mut state = self.state.lock();
            if state.running.contains_key(&job.id) {
                return Ok(());
            }
            let window = job.timing.window.as_ref();
            let described = |it| Some((Window::new(it)?, timing::to_proto(it).to_string()));
            let window = window.and_then(described);
            let is_open = |(window, _): &(Window, String)| window.is_open(Timestamp::now());
            let (rate, chunk_size) = (job.timing.max_rate, entry.geometry.chunk_size());
            let limit = |rate| ChunkRateLimiter::new(rate, chunk_size, Instant::now());
            let running = Running {
                entry: job.entry,
                chunks: chunks_of(&job.ranges, entry.geometry),
                wants: HashSet::new(),
                full: BTreeSet::new(),
                is_free: job.edges.is_empty(),
                // If there is no edge for it, the first check tries again.
                looks: PATIENCE_LOOKS,
                sample: None,
                is_open: window.as_ref().is_none_or(is_open),
                window,
                limiter: (rate > 0).then(|| limit(rate)),
            };
            state.running.insert(job.id, running);
        }
        match self.give(cluster, job, &entry).await {
            // The supervisor assigns it as soon as there is an edge.
            Err(ServiceError::NoEdge(_)) => Ok(()),
            other => other,
        }
    }

    /// Creates wants for the missing chunks.
    async fn give(
        &self,
        cluster: &Cluster,
        job: &JobRecord,
        entry: &EntryRecord,
    ) -> Result<(), ServiceError> {
        let mut left = self.take_budget(job.id, Instant::now());
        if left == 0 {
            return Ok(());
        }
        let given = self.give_at_most(cluster, job, entry, &mut left).await;
        self.give_budget_back(job.id, left);
        given
    }

    /// The same for so many chunks; `left` is how many it did not use.
    async fn give_at_most(
        &self,
        cluster: &Cluster,
        job: &JobRecord,
        entry: &EntryRecord,
        left: &mut u64,
    ) -> Result<(), ServiceError> {
        let mut targets: Vec<(EdgeId, String)> = Vec::new();
        if job.edges.is_empty() {
            let holdings = cluster.database.holdings(entry.id).await?;
            let start = job.ranges.first().map_or(0, |range| range.start);
            let (live, _) = entries::best_edge(cluster, entry, &holdings, start)?;
            // Chunks that any edge holds are done: the rest goes to this one.
            targets.push((live.edge, String::new()));
        } else {
            for name in &job.edges {
                // A forgotten edge cannot get anything.
                if let Some(row) = cluster.database.edge(name).await? {
                    targets.push((edge_id(row.id), row.name));
                }
            }
        }
        for (edge, name) in targets {
            if !self.may_ask(job.id, edge) {
                continue;
            }
            let mut missing = Vec::new();
            for range in &job.ranges {
                missing.extend(
                    availability::missing(cluster, entry.id, entry.geometry, *range, &name).await?,
                );
            }
            let chunks = first(chunks_of(&missing, entry.geometry), left);
            if !chunks.is_empty() {
                let owner = Owner {
                    job: Some(job.id),
                    entry: entry.id,
                    edge,
                };
                self.ask(cluster, owner, chunks, job.level).await?;
            }
        }
        Ok(())
    }

    /// Opens and closes the windows of jobs. Returns those that changed.
    pub(super) fn follow_clock(&self, now: Timestamp) -> Vec<Uuid> {
        let mut changed = Vec::new();
        for (id, running) in &mut self.state.lock().running {
            let Some((window, _)) = &running.window else {
                continue;
            };
            let is_open = window.is_open(now);
            if std::mem::replace(&mut running.is_open, is_open) != is_open {
                // It is given its chunks at once, not after some looks.
                running.looks = PATIENCE_LOOKS;
                changed.push(*id);
            }
        }
        changed
    }

    fn is_open(&self, job: Uuid) -> bool {
        let state = self.state.lock();
        state.running.get(&job).is_some_and(|it| it.is_open)
    }

    /// Takes the chunks that may be requested for the job now.
    fn take_budget(&self, job: Uuid, now: Instant) -> u64 {
        let mut state = self.state.lock();
        match state.running.get_mut(&job) {
            Some(running) if running.is_open => {
                let limiter = running.limiter.as_mut();
                limiter.map_or(u64::MAX, |limiter| limiter.take(now))
            }
            _ => 0,
        }
    }

    fn give_budget_back(&self, job: Uuid, chunks: u64) {
        let mut state = self.state.lock();
        let running = state.running.get_mut(&job);
        if let Some(limiter) = running.and_then(|running| running.limiter.as_mut()) {
            limiter.give_back(chunks);
        }
    }

    /// The job of a finished want, if that was its last one.
    fn want_done(&self, want: WantId) -> Option<Uuid> {
        let mut state = self.state.lock();
        let job = state.wants.remove(&want)?.owner.job?;
        let running = state.running.get_mut(&job)?;
        running.wants.remove(&want);
        running.wants.is_empty().then_some(job)
    }

    /// Records progress. True: bytes are missing, but the job has had no want for a while.
    fn sample(&self, job: Uuid, bytes_done: u64) -> bool {
        let mut state = self.state.lock();
        let Some(running) = state.running.get_mut(&job) else {
            return false;
        };
        let now = Instant::now();
        let rate = running.sample.map_or(0, |before| {
            let seconds = now.duration_since(before.at).as_secs_f64();
            let gained = bytes_done.saturating_sub(before.bytes_done) as f64;
            let present = if seconds > 0.0 { gained / seconds } else { 0.0 };
            // The mean of the last few samples, weighted towards the newest.
            (0.7 * before.rate as f64 + 0.3 * present) as u64
        });
        running.sample = Some(Sample {
            at: now,
            bytes_done,
            rate,
        });
        if !running.wants.is_empty() {
            running.looks = 0;
            return false;
        }
        if running.limiter.is_some() {
            return true;
        }
        running.looks += 1;
        let is_due = running.looks > PATIENCE_LOOKS;
        if is_due {
            running.looks = 0;
        }
        is_due
    }

    /// Ids of running jobs after `after`, in order.
    fn some_after(&self, after: Uuid, limit: usize) -> Vec<Uuid> {
        let mut ids: Vec<Uuid> = self.state.lock().running.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter()
            .filter(|id| *id > after)
            .take(limit)
            .collect()
    }

    fn is_last(&self, job: Uuid) -> bool {
        !self.state.lock().running.keys().any(|id| *id > job)
    }

    /// Chooses another edge for jobs that lost theirs, if they may use any edge.
    pub async fn edge_lost(&self, cluster: &Cluster, edge: EdgeId) -> Result<(), ServiceError> {
        let free: Vec<Uuid> = {
            let state = self.state.lock();
            let owners = state.wants.values().map(|asked| asked.owner);
            owners
                .filter(|owner| owner.edge == edge)
                .filter_map(|owner| owner.job)
                .filter(|job| {
                    state
                        .running
                        .get(job)
                        .is_some_and(|running| running.is_free)
                })
                .collect()
        };
        for id in free {
            self.withdraw(cluster, id).await?;
            if let Some(job) = cluster.database.job(id).await? {
                self.begin(cluster, &job).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use crate::db::JobWindow;

    fn job(window: JobWindow) -> (Jobs, Uuid) {
        let (jobs, id) = (Jobs::default(), Uuid::from_u128(1));
        let running = Running {
            entry: chunkcache_proto::EntryId::from_u128(7),
            chunks: vec![0..10],
            wants: HashSet::new(),
            full: BTreeSet::new(),
            is_free: true,
            looks: 0,
            sample: None,
            window: Some((
                Window::new(&window).unwrap(),
                timing::to_proto(&window).to_string(),
            )),
            is_open: false,
            limiter: None,
        };
        jobs.state.lock().running.insert(id, running);
        (jobs, id)
    }

    #[test]
    fn a_job_is_asked_for_only_within_its_window() {
        let (jobs, id) = job(JobWindow {
            start: 60,
            end: 120,
            time_zone: String::new(),
        });
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(jobs.follow_clock(at("2026-06-01T00:59:59Z")).is_empty());
        assert_eq!(jobs.take_budget(id, Instant::now()), 0);
        let entry = chunkcache_proto::EntryId::from_u128(7);
        assert_eq!(jobs.waiting_for_window(entry, 9), [id]);
        assert!(jobs.waiting_for_window(entry, 10).is_empty());
        assert_eq!(jobs.follow_clock(at("2026-06-01T01:00:00Z")), [id]);
        assert_eq!(jobs.take_budget(id, Instant::now()), u64::MAX);
        assert!(
            jobs.sample(id, 0),
            "it is given its chunks at the first look"
        );
        assert!(jobs.follow_clock(at("2026-06-01T01:59:59Z")).is_empty());
        assert!(jobs.waiting_for_window(entry, 9).is_empty());
        assert_eq!(jobs.follow_clock(at("2026-06-01T02:00:00Z")), [id]);
        assert_eq!(jobs.take_budget(id, Instant::now()), 0);
    }

    #[test]
    fn a_part_of_the_chunks() {
        let mut left = 5;
        assert_eq!(first(vec![0..2, 4..10], &mut left), [0..2, 4..7]);
        assert_eq!(left, 0);
        assert!(first(vec![0..2], &mut left).is_empty());
        let mut left = u64::MAX;
        assert_eq!(first(vec![0..2, 4..10], &mut left), [0..2, 4..10]);
    }
}
