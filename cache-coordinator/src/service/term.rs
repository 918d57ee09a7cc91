//! The beginning and the end of a term: a leader's state is read from the table, and the state of
//! an earlier term is dropped.
//!
//! Everything is read again each time, without dependence on earlier state, so it can be repeated.

use std::{sync::Arc, time::Duration};

use rand::RngExt as _;

use super::{Cluster, error::ServiceError, loader::edge_id, purge};
use crate::{
    db::Leadership,
    sessions::{
        plan::Command,
        registry::{DisconnectedEdge, End},
    },
};

/// Limit of running jobs to resume.
const MAX_JOBS: u32 = 10_000;
/// Pause between attempts while the database does not answer.
const RETRY: Duration = Duration::from_millis(250);
/// The name of the key with which edges authenticate to each other.
const PEER_KEY: &str = "peer";

/// Follows the lease until the process ends.
pub async fn run(cluster: Arc<Cluster>) {
    let mut leadership = cluster.leadership.clone();
    loop {
        let now = leadership.borrow_and_update().clone();
        match now {
            Leadership::Leader { term } => {
                let begun = tokio::select! {
                    begun = begin_patiently(&cluster) => begun,
                    _ = leadership.changed() => {
                        leadership.mark_changed();
                        false
                    }
                    () = cluster.shutdown.cancelled() => return,
                };
                if begun {
                    tracing::info!(term, "the cluster is led from here");
                    cluster.metrics.leading.set(1);
                    cluster.term_ready.send_replace(true);
                }
            }
            Leadership::Standby { .. } => {
                cluster.term_ready.send_replace(false);
                cluster.metrics.leading.set(0);
                cluster.registry.end_all(End::NotLeader);
                cluster.jobs.reset();
            }
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            () = cluster.shutdown.cancelled() => return,
        }
    }
}

async fn begin_patiently(cluster: &Arc<Cluster>) -> bool {
    loop {
        match begin(cluster).await {
            Ok(()) => return true,
            Err(ServiceError::ShuttingDown) => return false,
            Err(error) => {
                tracing::warn!(%error, "the term can not begin yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn begin(cluster: &Arc<Cluster>) -> Result<(), ServiceError> {
    cluster.term_ready.send_replace(false);
    cluster.registry.end_all(End::NotLeader);
    cluster.jobs.reset();
    cluster.plan.reset().await?;
    let fresh: [u8; 32] = rand::rng().random();
    let key = cluster.database.secret(PEER_KEY, &fresh).await?;
    cluster.peer_keys.store(Arc::new(vec![key]));
    let alone = cluster.publishing.lock().await;
    let sources = cluster.database.sources().await?;
    for source in &sources {
        cluster
            .plan
            .tell(Command::SourceSet(Box::new(source.clone())))
            .await?;
    }
    cluster.sources.store(Arc::new(sources));
    drop(alone);
    let rows = cluster.database.edges().await?;
    let lately = rows
        .iter()
        .filter(|row| row.state != chunkcache_proto::v1::EdgeState::Lost);
    let expected = lately.map(|row| edge_id(row.id)).collect();
    cluster.plan.tell(Command::EdgesExpected(expected)).await?;
    for row in rows {
        cluster.registry.expect(DisconnectedEdge {
            edge: edge_id(row.id),
            name: row.name,
            epoch: row.epoch,
        });
    }
    for job in cluster.database.jobs(false, MAX_JOBS).await? {
        cluster.jobs.begin(cluster, &job).await?;
    }
    purge::resume(cluster).await
}
