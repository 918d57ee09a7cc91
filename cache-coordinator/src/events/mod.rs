//! The change log, delivered to watchers.
//!
//! A subscriber gets every change after its revision once and in order: from the table while it is
//! behind, otherwise from the writer's broadcast. This module must not know SQL (which is in `db`),
//! gRPC, or the watchers.

mod pruner;
mod subscription;

use chunkcache_proto::EntryId;
use tokio::sync::{broadcast, watch};

pub use pruner::{PrunePolicy, prune_until};
pub use subscription::Subscription;

use crate::db::{Change, ChangeKind, Database, DatabaseError, Leadership, writer::CommittedBatch};

/// Which changes a subscriber gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All changes.
    Cluster,
    /// One entry: its chunks, its own changes, and its key when it moves to another entry.
    Entry(EntryId),
}

impl Filter {
    fn matches(self, kind: &ChangeKind) -> bool {
        match self {
            Self::Cluster => true,
            Self::Entry(id) => kind.concerns() == Some(id),
        }
    }

    fn entry(self) -> Option<EntryId> {
        match self {
            Self::Cluster => None,
            Self::Entry(id) => Some(id),
        }
    }
}

/// An item of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Change(Change),
    /// The log no longer reaches back to the subscriber's position: the subscriber must take a
    /// snapshot and subscribe from its revision.
    SnapshotNeeded,
}

/// Where watchers subscribe; cheap to clone.
#[derive(Clone)]
pub struct ChangeLog {
    database: Database,
    commits: broadcast::Sender<CommittedBatch>,
    leadership: watch::Receiver<Leadership>,
}

impl ChangeLog {
    /// Announces the commits of one writer.
    #[must_use]
    pub fn new(
        database: Database,
        commits: broadcast::Sender<CommittedBatch>,
        leadership: watch::Receiver<Leadership>,
    ) -> Self {
        Self {
            database,
            commits,
            leadership,
        }
    }

    /// Changes after `from_revision`. Ends with `NotLeader` when this process stops leading,
    /// because then another process writes the log.
    pub fn subscribe(
        &self,
        from_revision: u64,
        filter: Filter,
    ) -> Result<Subscription, DatabaseError> {
        let now = self.leadership.borrow().clone();
        if !matches!(now, Leadership::Leader { .. }) {
            return Err(now.refusal());
        }
        // Subscribe to the broadcast first, then read the table: changes that are committed in
        // between are in both, and are delivered once.
        Ok(Subscription::new(
            self.database.clone(),
            self.commits.subscribe(),
            self.leadership.clone(),
            from_revision,
            filter,
        ))
    }
}
