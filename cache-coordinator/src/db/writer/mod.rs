//! The leader's only writer: applies all changes of tables in the order in which they were queued.
//! It works in batches; each is one transaction together with its rows of the change log.
//!
//! Why only one: revisions are committed in order, fsyncs are shared, and a fence that is checked
//! at the start of a batch holds to its end. The queue is bounded: callers that queue faster than
//! PostgreSQL commits must wait.

mod apply;
mod chunks;
mod inventory;
mod observations;
mod operation;
mod purge;
mod task;

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::{mpsc, oneshot};

pub use operation::*;
pub use task::{CommittedBatch, WriterConfig, WriterObserver, WriterTask};

use super::{DatabaseError, edges::EdgeId};

/// Limit of queued commands; a session's reports carry up to some hundred chunks each.
const QUEUE: usize = 4_096;
/// Rows deleted in one transaction of a long removal, so that it never delays other changes.
const BITE: u32 = 20_000;

/// The answer to a committed change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed<T> {
    /// The newest revision after the commit.
    pub revision: u64,
    pub value: T,
}

pub(super) type Answer = Result<Committed<Outcome>, DatabaseError>;

pub(super) struct Command {
    pub operation: Operation,
    pub answer: oneshot::Sender<Answer>,
}

/// Queues changes; cheap to clone.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: mpsc::Sender<Command>,
}

impl Writer {
    /// Queues a change, waiting for space. Changes that are queued one after the other are applied
    /// in that order. The answer comes after the commit; dropping it does not undo the change.
    pub async fn enqueue<W: Write>(&self, change: W) -> Result<Pending<W>, DatabaseError> {
        let (sender, answer) = oneshot::channel();
        self.queue
            .send(Command {
                operation: change.into(),
                answer: sender,
            })
            .await
            .map_err(|_| stopped())?;
        Ok(Pending {
            answer,
            output: std::marker::PhantomData,
        })
    }

    /// Queues a change and waits for its commit.
    pub async fn write<W: Write>(&self, change: W) -> Result<Committed<W::Output>, DatabaseError> {
        self.enqueue(change).await?.await
    }

    /// Begins a session with a new epoch. If the edge has another disk, the rows of the old one are
    /// deleted first, in bounded batches.
    pub async fn join_edge(&self, join: JoinEdge) -> Result<Committed<JoinedEdge>, DatabaseError> {
        loop {
            let answer = self.write(join.clone()).await?;
            match answer.value {
                JoinStep::Joined(value) => {
                    return Ok(Committed {
                        revision: answer.revision,
                        value,
                    });
                }
                JoinStep::OldRows(edge) => self.remove_rows_of_edge(edge).await.map(drop)?,
            }
        }
    }

    /// Removes an edge and all its rows. Returns the number of rows.
    pub async fn forget_edge(&self, name: &str) -> Result<Committed<u64>, DatabaseError> {
        let edge = self
            .write(RetireEdge {
                name: name.to_owned(),
            })
            .await?
            .value;
        let removed = self.remove_rows_of_edge(edge).await?;
        let answer = self
            .write(ForgetEdge {
                name: name.to_owned(),
            })
            .await?;
        Ok(Committed {
            revision: answer.revision,
            value: removed + answer.value,
        })
    }

    /// Removes a source with its entries, keys and jobs. Returns the number of deleted chunk rows.
    pub async fn remove_source(&self, name: &str) -> Result<Committed<u64>, DatabaseError> {
        let mut removed = 0;
        loop {
            let bite = self
                .write(RemoveRowsOfSource {
                    name: name.to_owned(),
                    limit: BITE,
                })
                .await?
                .value;
            removed += bite;
            if bite < u64::from(BITE) {
                break;
            }
        }
        loop {
            let change = RemoveEntriesOfSource {
                name: name.to_owned(),
                limit: BITE,
            };
            if self.write(change).await?.value < u64::from(BITE) {
                break;
            }
        }
        let answer = self
            .write(RemoveSource {
                name: name.to_owned(),
            })
            .await?;
        Ok(Committed {
            revision: answer.revision,
            value: removed + answer.value,
        })
    }

    /// Reconciles a page of an edge's inventory. Items that the database refuses are answered with
    /// the error; the others are recorded. The page has at most one item per entry.
    pub async fn reconcile(
        &self,
        page: ReconcileEntries,
    ) -> Result<Vec<Reconciled>, DatabaseError> {
        let mut work = vec![page.entries];
        let mut answers = Vec::new();
        while let Some(entries) = work.pop() {
            let part = ReconcileEntries {
                edge: page.edge,
                epoch: page.epoch,
                entries,
            };
            match self.write(part.clone()).await {
                Ok(committed) => answers.extend(committed.value),
                Err(error) if !error.is_of_one_change() || error == DatabaseError::Fenced => {
                    return Err(error);
                }
                Err(error) => match part.entries.len() {
                    0 => {}
                    1 => answers.push(Reconciled {
                        dropped: part.entries[0].chunks.iter().map(|it| it.index).collect(),
                        refused: Some(error),
                        ..Reconciled::default()
                    }),
                    count => {
                        let (first, second) = part.entries.split_at(count / 2);
                        // The first half is processed next, so that answers come in the items'
                        // order.
                        work.push(second.to_vec());
                        work.push(first.to_vec());
                    }
                },
            }
        }
        Ok(answers)
    }

    async fn remove_rows_of_edge(&self, edge: EdgeId) -> Result<u64, DatabaseError> {
        let mut removed = 0;
        loop {
            let bite = self
                .write(RemoveRowsOfEdge { edge, limit: BITE })
                .await?
                .value;
            removed += bite;
            if bite < u64::from(BITE) {
                return Ok(removed);
            }
        }
    }
}

/// The answer to a queued change, after its commit.
pub struct Pending<W> {
    answer: oneshot::Receiver<Answer>,
    output: std::marker::PhantomData<fn() -> W>,
}

impl<W: Write> Future for Pending<W> {
    type Output = Result<Committed<W::Output>, DatabaseError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| {
            let committed = answer.unwrap_or_else(|_| Err(stopped()))?;
            let value = W::output(committed.value).ok_or_else(|| {
                DatabaseError::Internal("the writer answered another question".into())
            })?;
            Ok(Committed {
                revision: committed.revision,
                value,
            })
        })
    }
}

fn stopped() -> DatabaseError {
    DatabaseError::unavailable("the coordinator is shutting down")
}
