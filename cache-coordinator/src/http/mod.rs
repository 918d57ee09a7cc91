//! livez, readyz, metrics, purges, calls in JSON and the dashboard.
//!
//! One file per concern: `health` (for probes), `scrape` (for Prometheus), `server` (connections),
//! `purge` and `json` (for programs), `dashboard` with its views (for people). Acts only through
//! use cases.

mod dashboard;
mod entry_view;
mod guard;
mod health;
mod json;
mod live;
mod purge;
pub mod scrape;
mod server;
mod source_history;
mod source_view;
mod steer;

use std::sync::Arc;

use axum::{Router, middleware, routing::get, serve::Listener as _};

use crate::{access::Access, listen::AcceptedConnection, service::Cluster};

/// All routes.
fn router(
    cluster: Arc<Cluster>,
    access: Arc<Access>,
    live: Arc<live::LiveView>,
    is_loopback: bool,
) -> anyhow::Result<Router> {
    let json = json::router(Arc::clone(&cluster), Arc::clone(&access), is_loopback)?;
    Ok(Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(scrape::metrics))
        .route("/steer/{*target}", get(steer::steer))
        .route("/steer.json", get(steer::steer))
        .with_state(Arc::clone(&cluster))
        .merge(json)
        .merge(dashboard::router(
            Arc::clone(&cluster),
            Arc::clone(&access),
            live,
            is_loopback,
        ))
        .layer(middleware::map_response(dashboard::explained))
        .layer(middleware::from_fn_with_state(
            purge::Purger {
                cluster,
                access,
                is_loopback,
            },
            purge::purge,
        )))
}

/// Serves until the cluster shuts down.
pub async fn serve(
    cluster: Arc<Cluster>,
    access: Arc<Access>,
    connections: AcceptedConnection,
) -> anyhow::Result<()> {
    let shutdown = cluster.shutdown.clone();
    let live = live::LiveView::new(Arc::clone(&cluster));
    let sampler = Arc::clone(&live).run(shutdown.clone());
    cluster.tasks.spawn(sampler);
    let is_loopback = connections.local_addr()?.ip().is_loopback();
    let router = router(cluster, access, live, is_loopback)?;
    server::serve(connections, router, shutdown).await;
    Ok(())
}
