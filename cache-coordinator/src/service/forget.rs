//! Forgets entries without chunks on any edge, by age and by number, in bounded batches.
//!
//! Clients choose keys, and each requested key makes an entry: without this, the tables would grow
//! with every key ever requested. Entries in use are kept: pinned ones, those with a job, and those
//! with a reader or a watcher.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chunkcache_proto::EntryId;
use parking_lot::Mutex;

use super::{Cluster, error::ServiceError};
use crate::db::writer::ForgetEntries;

/// An entry without chunks that was not requested for this long is forgotten.
const UNUSED_FOR: Duration = Duration::from_secs(8 * 60);
/// Beyond this number they are forgotten earlier, the oldest first …
const MAX_CHUNKLESS: u64 = 100_000;
/// … but not while a chunk of one may be on its way.
const AT_LEAST: Duration = Duration::from_secs(15);
/// Time between checks when there is little to do.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// Entries deleted in one transaction, and the pause to the next.
const BITE: u32 = 2_000;
const PAUSE: Duration = Duration::from_millis(50);

/// Entries that have watchers.
#[derive(Debug, Default)]
pub struct Watched(Mutex<HashMap<EntryId, usize>>);

/// One watcher of an entry.
pub struct Watching {
    cluster: Arc<Cluster>,
    entry: EntryId,
}

impl Watching {
    /// Protects the entry from being forgotten until this is dropped.
    #[must_use]
    pub fn new(cluster: &Arc<Cluster>, entry: EntryId) -> Self {
        *cluster.watched.0.lock().entry(entry).or_default() += 1;
        Self {
            cluster: Arc::clone(cluster),
            entry,
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut watched = self.cluster.watched.0.lock();
        if let Some(count) = watched.get_mut(&self.entry) {
            *count -= 1;
            if *count == 0 {
                watched.remove(&self.entry);
            }
        }
    }
}

/// Runs until the process ends.
pub async fn run(cluster: Arc<Cluster>) {
    loop {
        let pause = if cluster.is_leader() {
            match forget_some(&cluster).await {
                Ok(true) => PAUSE,
                Ok(false) => LOOK_EVERY,
                Err(error) => {
                    tracing::debug!(%error, "unused entries are forgotten later");
                    LOOK_EVERY
                }
            }
        } else {
            LOOK_EVERY
        };
        tokio::select! {
            () = cluster.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Forgets some entries. True: there may be more.
async fn forget_some(cluster: &Arc<Cluster>) -> Result<bool, ServiceError> {
    let chunkless = cluster.database.chunkless_entries().await?;
    let are_too_many = chunkless > MAX_CHUNKLESS;
    let unused_for = if are_too_many { AT_LEAST } else { UNUSED_FOR };
    let found = cluster
        .database
        .unused_entries(unused_for, are_too_many, BITE)
        .await?;
    let is_full = found.len() == BITE as usize;
    let entries = not_in_use(cluster, found).await?;
    let mut forgotten = 0;
    if !entries.is_empty() {
        let change = ForgetEntries {
            entries,
            unused_for,
            are_too_many,
        };
        forgotten = cluster.writer.write(change).await?.value;
        cluster.metrics.entries_forgotten.inc_by(forgotten);
        tracing::debug!(forgotten, chunkless, "entries without chunks are forgotten");
    }
    let has_more = is_full && forgotten > 0;
    if !has_more {
        let entries = cluster.database.totals().await?.entries;
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        cluster.metrics.entries.set(gauge(entries));
        let left = chunkless.saturating_sub(forgotten);
        cluster.metrics.chunkless_entries.set(gauge(left));
    }
    Ok(has_more)
}

/// The entries without readers and watchers. The others count as requested now, so that the next
/// check does not return them again.
async fn not_in_use(
    cluster: &Cluster,
    entries: Vec<EntryId>,
) -> Result<Vec<EntryId>, ServiceError> {
    let watched: HashSet<EntryId> = cluster.watched.0.lock().keys().copied().collect();
    let (free, mut used) = cluster
        .plan
        .ask(move |plan| {
            entries.into_iter().partition::<Vec<EntryId>, _>(|id| {
                plan.directory().entry_number(*id).is_none() && !watched.contains(id)
            })
        })
        .await?;
    used.truncate(100);
    for entry in used {
        let change = crate::db::writer::TouchEntry { entry };
        cluster.writer.enqueue(change).await?;
    }
    Ok(free)
}
