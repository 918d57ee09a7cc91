//! Disconnected edges: an edge is disconnected at once when its session ends, and lost after a
//! while; its work is then given to others.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::v1;

use super::{Cluster, error::ServiceError, loader::row_id};
use crate::{db::writer::SetEdgeState, sessions::registry::DisconnectedEdge};

/// An edge that restarts is back before it counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(30);
/// Time between checks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs until the process ends.
pub async fn run(cluster: Arc<Cluster>) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = cluster.shutdown.cancelled() => return,
            _ = look.tick() => {}
        }
        if !cluster.is_leader() {
            continue;
        }
        for suspect in cluster.registry.take_lost(LOST_AFTER) {
            tracing::warn!(edge = %suspect.name, "edge is lost");
            if let Err(error) = lost(&cluster, &suspect).await {
                tracing::debug!(edge = %suspect.name, %error, "its loss is recorded later");
                // Start the wait again: the edge may have come back, which its epoch shows.
                cluster.registry.expect(suspect);
            }
        }
    }
}

async fn lost(cluster: &Cluster, suspect: &DisconnectedEdge) -> Result<(), ServiceError> {
    let change = SetEdgeState {
        edge: row_id(suspect.edge),
        epoch: suspect.epoch,
        state: v1::EdgeState::Lost,
    };
    match cluster
        .writer
        .write(change)
        .await
        .map_err(ServiceError::from)
    {
        Ok(_) => cluster.jobs.edge_lost(cluster, suspect.edge).await,
        // It came back, or was forgotten.
        Err(ServiceError::Precondition { .. } | ServiceError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
