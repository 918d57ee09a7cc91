//! Totals of the cluster.

use chunkcache_proto::v1;

use super::{Cluster, error::ServiceError};
use crate::{
    db::{Health, Leadership},
    metrics::DriftLabel,
};

/// This coordinator's view; works on a standby and without a database, too.
pub async fn status(cluster: &Cluster) -> Result<v1::GetStatusResponse, ServiceError> {
    let leadership = cluster.leadership.borrow().clone();
    let is_leader = cluster.is_leader();
    let leader = match leadership {
        Leadership::Leader { .. } => cluster.address.clone(),
        Leadership::Standby { leader_address } => leader_address.unwrap_or_default(),
    };
    let totals = cluster.database.totals().await;
    let database_ready = totals.is_ok() && cluster.database.health().await == Health::Ready;
    let totals = totals.unwrap_or_default();
    let (queued, running) = cluster
        .plan
        .ask(|plan| {
            (
                plan.scheduler().queued_by_level(),
                plan.scheduler().running_by_level(),
            )
        })
        .await?;
    let live = cluster.registry.all();
    let drift = |kind| {
        let family = &cluster.metrics.drift_chunks;
        family.get_or_create(&DriftLabel { kind }).get()
    };
    Ok(v1::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        leader,
        is_leader,
        database_ready,
        revision: totals.revision,
        edges_active: totals.edges_active,
        edges_total: totals.edges_total,
        entries: totals.entries,
        chunks: totals.chunks,
        bytes_cached: totals.bytes_cached,
        readers: live.iter().map(|live| live.status.lock().readers).sum(),
        jobs_running: totals.jobs_running,
        queued_by_level: queued.to_vec(),
        running_by_level: running.to_vec(),
        drift_rows_without_bytes: drift("rows_without_bytes"),
        drift_bytes_without_rows: drift("bytes_without_rows"),
        refused_changes: cluster.metrics.refused_changes.get(),
    })
}
