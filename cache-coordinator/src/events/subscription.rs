//! One watcher's position in the log.

use std::collections::VecDeque;

use tokio::sync::{broadcast, watch};

use super::{Event, Filter};
use crate::db::{Change, Database, DatabaseError, Leadership, LogPage, writer::CommittedBatch};

/// Changes read from the table at a time; limits a subscriber's memory.
const PAGE: u32 = 500;

/// A position in the log.
pub struct Subscription {
    database: Database,
    live: broadcast::Receiver<CommittedBatch>,
    leadership: watch::Receiver<Leadership>,
    filter: Filter,
    /// Everything up to here was delivered, or is in `ready`.
    seen: u64,
    /// The log must be read before the broadcast is useful.
    behind: bool,
    ended: bool,
    ready: VecDeque<Change>,
}

impl Subscription {
    pub(super) fn new(
        database: Database,
        live: broadcast::Receiver<CommittedBatch>,
        leadership: watch::Receiver<Leadership>,
        seen: u64,
        filter: Filter,
    ) -> Self {
        Self {
            database,
            live,
            leadership,
            filter,
            seen,
            behind: true,
            ended: false,
            ready: VecDeque::new(),
        }
    }

    /// The next event; `None` after `SnapshotNeeded` or an error. Cancel-safe: nothing is lost when
    /// the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Event, DatabaseError>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(Ok(Event::Change(change)));
            }
            if self.ended {
                return None;
            }
            if let Err(end) = self.advance().await {
                self.ended = true;
                return Some(end);
            }
        }
    }

    /// The last revision that was examined: a subscriber without matching changes can resume from
    /// here.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Fills `ready`, or returns how the subscription ends.
    async fn advance(&mut self) -> Result<(), Result<Event, DatabaseError>> {
        if self.behind {
            return self.read_log().await;
        }
        let received = tokio::select! {
            received = self.live.recv() => received,
            changed = self.leadership.changed() => {
                let now = self.leadership.borrow_and_update().clone();
                return match (changed, now) {
                    (Ok(()), Leadership::Leader { .. }) => {
                        // Another term of the same process: other coordinators may have written in
                        // between.
                        self.behind = true;
                        Ok(())
                    }
                    (_, now) => Err(Err(now.refusal())),
                };
            }
        };
        match received {
            Ok(batch) if batch.previous > self.seen => self.behind = true,
            Ok(batch) => {
                let filter = self.filter;
                for change in batch
                    .changes
                    .iter()
                    .filter(|change| change.revision > self.seen && filter.matches(&change.kind))
                {
                    self.ready.push_back(change.clone());
                }
                let newest = batch.previous + batch.changes.len() as u64;
                self.seen = self.seen.max(newest);
            }
            Err(broadcast::error::RecvError::Lagged(_)) => self.behind = true,
            Err(broadcast::error::RecvError::Closed) => {
                return Err(Err(DatabaseError::NotLeader { leader: None }));
            }
        }
        Ok(())
    }

    async fn read_log(&mut self) -> Result<(), Result<Event, DatabaseError>> {
        match self
            .database
            .changes_after(self.seen, self.filter.entry(), PAGE)
            .await
        {
            Ok(LogPage::Changes { changes, through }) => {
                self.behind = changes.len() >= PAGE as usize;
                self.seen = through;
                self.ready.extend(changes);
                Ok(())
            }
            Ok(LogPage::SnapshotNeeded) => Err(Ok(Event::SnapshotNeeded)),
            Err(error) => Err(Err(error)),
        }
    }
}
