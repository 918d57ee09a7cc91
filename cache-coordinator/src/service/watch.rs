//! Watches: a snapshot, then deltas, resumable from a revision.
//!
//! A watcher that is too slow, or that asks for a revision that is no longer kept, gets a new
//! snapshot in the same stream. One whose coordinator stops leading gets an error that names the
//! leader.

use std::sync::Arc;

use chunkcache_proto::{ByteRange, EntryId, v1};
use tokio::sync::mpsc;
use tonic::Status;

use super::{
    Cluster, availability, edges, entries, error::ServiceError, forget::Watching, jobs,
    source_secrets,
};
use crate::{
    db::{Change, ChangeKind},
    events::{Event, Filter},
};

/// Messages queued for a slow watcher; the log holds the others. Few, because one may hold all
/// sources with their certificates.
const AHEAD: usize = 4;
/// Limit of watchers. One that is idle takes some 10 kB.
const MAX_WATCHERS: i64 = 10_000;

/// A stream's receiving end.
pub type Watched<T> = mpsc::Receiver<Result<T, Status>>;

/// Follows one entry.
pub async fn watch_entry(
    cluster: &Arc<Cluster>,
    request: v1::WatchEntryRequest,
) -> Result<Watched<v1::WatchEntryResponse>, ServiceError> {
    cluster.require_leader()?;
    let entry = entries::find(cluster, request.entry.as_ref())
        .await?
        .entry
        .id;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let task = follow_entry(
        Arc::clone(cluster),
        entry,
        request.from_revision,
        sender.clone(),
    );
    spawn(cluster, sender, task)?;
    Ok(receiver)
}

/// Follows the whole cluster.
pub async fn watch_cluster(
    cluster: &Arc<Cluster>,
    request: v1::WatchClusterRequest,
) -> Result<Watched<v1::WatchClusterResponse>, ServiceError> {
    cluster.require_leader()?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let task = follow_cluster(Arc::clone(cluster), request.from_revision, sender.clone());
    spawn(cluster, sender, task)?;
    Ok(receiver)
}

/// Runs a watch until it fails, its watcher leaves, or the process ends.
pub fn spawn<T: Send + 'static>(
    cluster: &Arc<Cluster>,
    sender: mpsc::Sender<Result<T, Status>>,
    task: impl Future<Output = Result<(), ServiceError>> + Send + 'static,
) -> Result<(), ServiceError> {
    if cluster.metrics.watchers.inc() >= MAX_WATCHERS {
        cluster.metrics.watchers.dec();
        let many = format!("{MAX_WATCHERS} watches are open");
        return Err(ServiceError::Exhausted(many));
    }
    let (cluster, tracker) = (Arc::clone(cluster), cluster.tasks.clone());
    tracker.spawn(async move {
        let end = tokio::select! {
            end = task => end,
            () = sender.closed() => Ok(()),
            () = cluster.shutdown.cancelled() => Err(ServiceError::ShuttingDown),
        };
        cluster.metrics.watchers.dec();
        if let Err(error) = end {
            // A watcher that no longer reads misses the last message.
            let _ = sender.try_send(Err(error.into()));
        }
    });
    Ok(())
}

async fn follow_entry(
    cluster: Arc<Cluster>,
    entry: EntryId,
    mut from: u64,
    sender: mpsc::Sender<Result<v1::WatchEntryResponse, Status>>,
) -> Result<(), ServiceError> {
    use v1::watch_entry_response::Event as Wire;
    let _watching = Watching::new(&cluster, entry);
    loop {
        if from == 0 {
            let snapshot = availability::snapshot(&cluster, entry).await?;
            from = snapshot.revision;
            let response = v1::WatchEntryResponse {
                revision: from,
                event: Some(Wire::Snapshot(snapshot)),
            };
            if sender.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
        let mut changes = cluster.events.subscribe(from, Filter::Entry(entry))?;
        loop {
            match changes.next().await {
                Some(Ok(Event::Change(change))) => {
                    let Some(event) = entry_event(&cluster, &change, entry).await? else {
                        continue;
                    };
                    let response = v1::WatchEntryResponse {
                        revision: change.revision,
                        event: Some(event),
                    };
                    if sender.send(Ok(response)).await.is_err() {
                        return Ok(());
                    }
                }
                Some(Err(error)) => return Err(error.into()),
                Some(Ok(Event::SnapshotNeeded)) | None => break,
            }
        }
        from = 0;
    }
}

async fn entry_event(
    cluster: &Cluster,
    change: &Change,
    watched: EntryId,
) -> Result<Option<v1::watch_entry_response::Event>, ServiceError> {
    use v1::watch_entry_response::Event as Wire;
    Ok(match &change.kind {
        ChangeKind::Stored {
            entry,
            edge,
            ranges,
        } => Some(Wire::Stored(chunks_changed(*entry, edge, ranges))),
        ChangeKind::Removed {
            entry,
            edge,
            ranges,
        } => Some(Wire::Removed(chunks_changed(*entry, edge, ranges))),
        ChangeKind::Key {
            entry: Some(entry), ..
        } if *entry != watched => {
            let entry = cluster.database.entry(*entry).await?;
            entry.map(|entry| Wire::ReplacedBy(entry.to_proto()))
        }
        // Pinned or unpinned: the snapshot's entry is sent again.
        ChangeKind::Entry { .. } => Some(Wire::Snapshot(
            availability::snapshot(cluster, watched).await?,
        )),
        ChangeKind::Key { .. }
        | ChangeKind::Edge { .. }
        | ChangeKind::Source { .. }
        | ChangeKind::Job { .. } => None,
    })
}

fn chunks_changed(entry: EntryId, edge: &str, ranges: &[ByteRange]) -> v1::ChunksChanged {
    v1::ChunksChanged {
        entry_id: entry.to_string(),
        edge: edge.to_owned(),
        ranges: ranges.iter().copied().map(Into::into).collect(),
    }
}

async fn follow_cluster(
    cluster: Arc<Cluster>,
    mut from: u64,
    sender: mpsc::Sender<Result<v1::WatchClusterResponse, Status>>,
) -> Result<(), ServiceError> {
    use v1::watch_cluster_response::Event as Wire;
    loop {
        if from == 0 {
            let snapshot = cluster.database.cluster_snapshot().await?;
            from = snapshot.revision;
            let mut jobs = Vec::with_capacity(snapshot.jobs.len());
            for job in &snapshot.jobs {
                jobs.extend(jobs::describe(&cluster, job).await?);
            }
            let edges = snapshot.edges.iter();
            let event = Wire::Snapshot(v1::ClusterSnapshot {
                edges: edges
                    .map(|edge| edges::describe(&cluster, edge, 0))
                    .collect(),
                sources: snapshot
                    .sources
                    .into_iter()
                    .map(source_secrets::redacted)
                    .collect(),
                jobs,
            });
            let response = v1::WatchClusterResponse {
                revision: from,
                event: Some(event),
            };
            if sender.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
        let mut changes = cluster.events.subscribe(from, Filter::Cluster)?;
        loop {
            match changes.next().await {
                Some(Ok(Event::Change(change))) => {
                    let Some(event) = cluster_event(&cluster, &change.kind).await? else {
                        continue;
                    };
                    let response = v1::WatchClusterResponse {
                        revision: change.revision,
                        event: Some(event),
                    };
                    if sender.send(Ok(response)).await.is_err() {
                        return Ok(());
                    }
                }
                Some(Err(error)) => return Err(error.into()),
                Some(Ok(Event::SnapshotNeeded)) | None => break,
            }
        }
        from = 0;
    }
}

/// Names in the log say which rows to read again; a name that no longer exists was removed.
async fn cluster_event(
    cluster: &Cluster,
    kind: &ChangeKind,
) -> Result<Option<v1::watch_cluster_response::Event>, ServiceError> {
    use v1::watch_cluster_response::Event as Wire;
    Ok(match kind {
        ChangeKind::Stored {
            entry,
            edge,
            ranges,
        } => Some(Wire::Stored(chunks_changed(*entry, edge, ranges))),
        ChangeKind::Removed {
            entry,
            edge,
            ranges,
        } => Some(Wire::Removed(chunks_changed(*entry, edge, ranges))),
        ChangeKind::Edge { name } => Some(match cluster.database.edge(name).await? {
            Some(edge) => Wire::Edge(edges::describe(cluster, &edge, 0)),
            None => Wire::RemovedEdge(name.clone()),
        }),
        ChangeKind::Source { name } => Some(match cluster.database.source(name).await? {
            Some(source) => Wire::Source(source_secrets::redacted(source)),
            None => Wire::RemovedSource(name.clone()),
        }),
        ChangeKind::Job { id } => match cluster.database.job(*id).await? {
            Some(job) => jobs::describe(cluster, &job).await?.map(Wire::Job),
            None => None,
        },
        ChangeKind::Entry { .. } | ChangeKind::Key { .. } => None,
    })
}
