//! livez, readyz, metrics and the dashboard.
//!
//! One file a concern: `health` (for probes), `scrape` (for Prometheus), `dashboard` with its
//! views (for people). Acts only through use cases.

mod dashboard;
mod entry_view;
mod guard;
mod health;
mod live;
mod scrape;

use std::sync::Arc;

use axum::{Router, routing::get};

use crate::{access::Access, listen::Accepted, service::Cluster};

/// All routes.
fn router(cluster: Arc<Cluster>, access: Arc<Access>, live: Arc<live::LiveView>) -> Router {
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(scrape::metrics))
        .with_state(Arc::clone(&cluster))
        .merge(dashboard::router(cluster, access, live))
}

/// Serves until the cluster shuts down.
pub async fn serve(
    cluster: Arc<Cluster>,
    access: Arc<Access>,
    connections: Accepted,
) -> anyhow::Result<()> {
    let shutdown = cluster.shutdown.clone();
    let live = live::LiveView::new(Arc::clone(&cluster));
    let sampler = Arc::clone(&live).run(shutdown.clone());
    cluster.tasks.spawn(sampler);
    axum::serve(connections, router(cluster, access, live))
        .with_graceful_shutdown(async move { shutdown.cancelled().await })
        .await?;
    Ok(())
}
