//! The writer's task: gathers, commits, retries, isolates bad changes, answers.

use std::{sync::Arc, time::Duration};

use service_kit::backoff::Backoff;
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::{
    Change, ChangeKind, Database, DatabaseError, Leadership, NoObserver,
    chunks::signed,
    executor::{Executor, timed},
    lease::StepDown,
    statements,
};
use super::{
    Command, Committed, Operation, QUEUE, Writer,
    apply::{Batch, Judged},
};

/// Number of batches that a slow watcher may lag behind before it reads the table instead.
const BROADCAST: usize = 1_024;
/// If a COMMIT is not answered within this time, it or its answer was lost.
const COMMIT_PATIENCE: Duration = Duration::from_secs(3);
/// A leader that could write nothing for this long, in at least two attempts, gives up its lease:
/// another coordinator may still reach the database.
const UNABLE_FOR: Duration = Duration::from_secs(2);
/// First and longest wait between attempts at the same batch.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Limits of batches.
#[derive(Clone, Copy, Debug)]
pub struct WriterConfig {
    /// Batches of what edges report begin at least this long one after the other, and gather
    /// meanwhile: a transaction costs the database as much as some twenty reports. The first one
    /// after a rest does not wait, and a change of an operator's never does.
    pub spacing: Duration,
    /// A batch is closed at this many rows.
    pub max_rows: usize,
    /// How long the same batch is retried.
    pub patience: Duration,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self {
            spacing: Duration::from_millis(5),
            max_rows: 8_192,
            patience: Duration::from_secs(15),
        }
    }
}

/// The log rows of one transaction. Never empty.
#[derive(Clone, Debug)]
pub struct CommittedBatch {
    /// The newest revision before it: a watcher that has seen less has missed something.
    pub previous: u64,
    pub changes: Arc<[Change]>,
}

/// The writer's task. One per process; it writes only while its process leads.
pub struct WriterTask {
    database: Database,
    holder: Uuid,
    leadership: watch::Receiver<Leadership>,
    config: WriterConfig,
    queue: mpsc::Receiver<Command>,
    commits: broadcast::Sender<CommittedBatch>,
    /// Term and newest revision, once read in that term. Unknown again after any error, because an
    /// unanswered COMMIT may have extended the log.
    position: Option<(u64, u64)>,
    step_down: StepDown,
    inability: Inability,
    /// When the last batch was closed.
    last_batch: Option<Instant>,
    observer: Arc<dyn WriterObserver>,
}

/// Called for changes that were set aside.
pub trait WriterObserver: Send + Sync {
    /// A change was refused and would be refused again. `kind`: the name of its operation.
    fn refused(&self, kind: &'static str, error: &DatabaseError);
}

impl WriterObserver for NoObserver {
    fn refused(&self, _kind: &'static str, _error: &DatabaseError) {}
}

/// Since when nothing could be written.
#[derive(Default)]
struct Inability {
    since: Option<Instant>,
    attempts: u32,
}

impl Inability {
    /// Records a failed attempt that began at `began`. True: give up the lease.
    fn failed(&mut self, began: Instant) -> bool {
        let since = *self.since.get_or_insert(began);
        self.attempts += 1;
        self.attempts >= 2 && since.elapsed() >= UNABLE_FOR
    }
}

/// A batch whose COMMIT was sent but not answered.
struct Uncertain {
    judged: Vec<Judged>,
    batch: CommittedBatch,
}

impl WriterTask {
    /// Creates the task, and the handle with which changes are queued.
    #[must_use]
    pub fn new(
        database: Database,
        holder: Uuid,
        step_down: StepDown,
        config: WriterConfig,
        observer: Arc<dyn WriterObserver>,
    ) -> (Writer, Self) {
        let leadership = step_down.leadership();
        let (sender, queue) = mpsc::channel(QUEUE);
        let (commits, _) = broadcast::channel(BROADCAST);
        (
            Writer { queue: sender },
            Self {
                database,
                holder,
                leadership,
                config,
                queue,
                commits,
                position: None,
                step_down,
                inability: Inability::default(),
                last_batch: None,
                observer,
            },
        )
    }

    /// The channel on which committed changes are announced.
    #[must_use]
    pub fn commits(&self) -> broadcast::Sender<CommittedBatch> {
        self.commits.clone()
    }

    /// Runs until cancelled; changes that were queued by then are still committed.
    pub async fn run(mut self, cancel: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                command = self.queue.recv() => command,
                () = cancel.cancelled() => {
                    self.queue.close();
                    self.queue.recv().await
                }
            };
            let Some(first) = first else { return };
            let batch = self.gather(first).await;
            self.commit_all(batch).await;
        }
    }

    async fn gather(&mut self, first: Command) -> Vec<Command> {
        let mut rows = rows(&first.operation);
        let mut is_patient = is_report(&first.operation);
        let last = self.last_batch;
        let deadline = last.map_or_else(Instant::now, |last| last + self.config.spacing);
        let mut batch = vec![first];
        while rows < self.config.max_rows {
            let next = match self.queue.try_recv() {
                Ok(next) => next,
                Err(mpsc::error::TryRecvError::Empty) if is_patient => {
                    match tokio::time::timeout_at(deadline, self.queue.recv()).await {
                        Ok(Some(next)) => next,
                        _ => break,
                    }
                }
                Err(_) => break,
            };
            rows += self::rows(&next.operation);
            is_patient &= is_report(&next.operation);
            batch.push(next);
        }
        self.last_batch = Some(Instant::now());
        batch
    }

    /// Commits the batch. If something in it cannot be committed, commits its halves, down to the
    /// culprit.
    async fn commit_all(&mut self, batch: Vec<Command>) {
        let mut work = vec![batch];
        while let Some(mut batch) = work.pop() {
            match self.commit_patiently(&batch).await {
                Ok((judged, revision)) => {
                    for (command, judged) in batch.into_iter().zip(judged) {
                        // It does not matter if the caller no longer waits.
                        let _ = command
                            .answer
                            .send(judged.map(|value| Committed { revision, value }));
                    }
                }
                Err(error) if batch.len() > 1 && !concerns_all(&error) => {
                    tracing::debug!(changes = batch.len(), "a batch is split: {error}");
                    let second = batch.split_off(batch.len() / 2);
                    // The first half is processed next, to keep the order.
                    work.push(second);
                    work.push(batch);
                }
                Err(error) => {
                    for command in batch {
                        if !concerns_all(&error) {
                            let kind = command.operation.kind();
                            tracing::warn!(kind, "a change is set aside: {error}");
                            self.observer.refused(kind, &error);
                        }
                        let _ = command.answer.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// Retries errors that may pass while this process leads, for as long as its patience lasts.
    async fn commit_patiently(
        &mut self,
        batch: &[Command],
    ) -> Result<(Vec<Judged>, u64), DatabaseError> {
        let deadline = Instant::now() + self.config.patience;
        let mut backoff = Backoff::new(BACK_OFF.0, BACK_OFF.1);
        let mut uncertain = None;
        loop {
            let now = self.leadership.borrow().clone();
            let Leadership::Leader { term } = now else {
                self.position = None;
                return Err(now.refusal());
            };
            let began = Instant::now();
            let error = match self.commit_once(term, batch, &mut uncertain).await {
                Ok(settled) => {
                    self.inability = Inability::default();
                    return Ok(settled);
                }
                Err(error) => error,
            };
            self.position = None;
            if error.is_unavailable() {
                self.database.renew_connections();
            }
            // A change that is refused for its content says nothing about whether others can be
            // written.
            if !error.is_of_one_change() && self.inability.failed(began) {
                tracing::error!("nothing can be written, the lease is given up: {error}");
                self.inability = Inability::default();
                self.step_down.request();
                return Err(error);
            }
            if !error.is_unavailable() || (batch.len() > 1 && error.is_timeout()) {
                return Err(error);
            }
            let wait = backoff.wait(rand::random());
            if Instant::now() + wait > deadline {
                return Err(error);
            }
            tracing::warn!(
                changes = batch.len(),
                retry_in_ms = wait.as_millis() as u64,
                "a batch is tried again: {error}"
            );
            tokio::time::sleep(wait).await;
        }
    }

    async fn commit_once(
        &mut self,
        term: u64,
        batch: &[Command],
        uncertain: &mut Option<Uncertain>,
    ) -> Result<(Vec<Judged>, u64), DatabaseError> {
        let database = self.database.clone();
        let mut loan = database.writer_connection().await?;
        let result = async {
            let (observer, patience) = (database.observer(), database.give_up_after());
            let transaction =
                timed(observer, patience, "begin", loan.client()?.transaction()).await?;
            let executor = Executor::new(&transaction, &database);
            if executor
                .query_opt(statements::LEASE_CHECK, &[&self.holder, &signed(term)])
                .await?
                .is_none()
            {
                return Err(DatabaseError::NotLeader { leader: None });
            }
            let before = match self.position {
                Some((of_term, revision)) if of_term == term => revision,
                _ => {
                    let latest: i64 = executor
                        .query_one(statements::CHANGE_REVISION, &[])
                        .await?
                        .get("latest");
                    self.position = Some((term, latest.unsigned_abs()));
                    latest.unsigned_abs()
                }
            };
            // Nobody else writes in this term. So if the log has grown as the unanswered commit
            // would have extended it, that commit succeeded.
            if let Some(known) = uncertain.take_if(|known| before > known.batch.previous) {
                transaction.rollback().await?;
                return Ok(self.announce(known));
            }
            let (judged, changes) = Batch::new(executor, before)
                .apply(batch.iter().map(|command| &command.operation))
                .await?;
            let changes = numbered(before, changes);
            if !changes.is_empty() {
                insert_changes(&Executor::new(&transaction, &database), &changes).await?;
            }
            let done = Uncertain {
                judged,
                batch: CommittedBatch {
                    previous: before,
                    changes: changes.into(),
                },
            };
            let done = uncertain.insert(done);
            timed(observer, COMMIT_PATIENCE, "commit", transaction.commit()).await?;
            self.position = Some((term, before + done.batch.changes.len() as u64));
            Ok(uncertain
                .take()
                .map(|done| self.announce(done))
                .unwrap_or_default())
        }
        .await;
        loan.end(result)
    }

    fn announce(&self, done: Uncertain) -> (Vec<Judged>, u64) {
        let revision = done.batch.previous + done.batch.changes.len() as u64;
        if !done.batch.changes.is_empty() {
            // An error means that there is no watcher.
            let _ = self.commits.send(done.batch);
        }
        (done.judged, revision)
    }
}

/// Whether the error concerns the whole batch, so that splitting would not help. A batch that takes
/// too long may succeed in halves.
fn concerns_all(error: &DatabaseError) -> bool {
    matches!(
        error,
        DatabaseError::NotLeader { .. } | DatabaseError::Unusable(_)
    ) || (error.is_unavailable() && !error.is_timeout())
}

fn is_report(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::StoreChunks(_)
            | Operation::RemoveChunks(_)
            | Operation::TouchEdge(_)
            | Operation::ObserveEntry(_)
    )
}

/// The rough cost of a change, in rows.
fn rows(operation: &Operation) -> usize {
    match operation {
        Operation::StoreChunks(change) => change.chunks.len().max(1),
        Operation::RemoveChunks(change) => change.indexes.len().max(1),
        Operation::ReconcileEntries(page) => {
            let rows = page.entries.iter().map(|item| item.chunks.len() + 4);
            rows.sum::<usize>().max(1)
        }
        Operation::ObserveEntry(_) => 4,
        Operation::TouchEdge(_) | Operation::TouchEntry(_) => 1,
        _ => 32,
    }
}

fn numbered(before: u64, changes: Vec<ChangeKind>) -> Vec<Change> {
    (before + 1..)
        .zip(changes)
        .map(|(revision, kind)| Change { revision, kind })
        .collect()
}

async fn insert_changes<C: deadpool_postgres::GenericClient>(
    executor: &Executor<'_, C>,
    changes: &[Change],
) -> Result<(), DatabaseError> {
    let columns: Vec<_> = changes.iter().map(|change| change.kind.columns()).collect();
    let revisions: Vec<i64> = changes
        .iter()
        .map(|change| signed(change.revision))
        .collect();
    let entries: Vec<_> = columns.iter().map(|row| row.entry).collect();
    let edges: Vec<_> = columns.iter().map(|row| row.edge.as_deref()).collect();
    let kinds: Vec<_> = columns.iter().map(|row| row.kind).collect();
    let starts: Vec<_> = columns.iter().map(|row| row.starts.as_str()).collect();
    let ends: Vec<_> = columns.iter().map(|row| row.ends.as_str()).collect();
    let subjects: Vec<_> = columns.iter().map(|row| row.subject.as_str()).collect();
    executor
        .execute(
            statements::CHANGE_INSERT,
            &[
                &revisions, &entries, &edges, &kinds, &starts, &ends, &subjects,
            ],
        )
        .await?;
    Ok(())
}
