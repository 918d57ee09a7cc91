//! livez, readyz, metrics and the dashboard.
//!
//! One file a concern: `health` (for probes), `scrape` (for Prometheus), `page` (for people). May not write.

mod health;
mod page;
mod scrape;

use std::sync::Arc;

use axum::{Router, routing::get};

use crate::{listen::Accepted, service::Cluster};

/// All routes.
pub fn router(cluster: Arc<Cluster>) -> Router {
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(scrape::metrics))
        .route("/", get(page::status))
        .with_state(cluster)
}

/// Serves until the cluster shuts down.
pub async fn serve(cluster: Arc<Cluster>, connections: Accepted) -> anyhow::Result<()> {
    let shutdown = cluster.shutdown.clone();
    axum::serve(connections, router(cluster))
        .with_graceful_shutdown(async move { shutdown.cancelled().await })
        .await?;
    Ok(())
}
