//! Metrics as text.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use chunkcache_proto::Level;
use service_kit::metrics::MetricFamily;

use crate::{metrics::LevelLabel, service::Cluster};

/// Takes the plan's counts: at each reading, so they cost something once per reading instead of
/// once per event.
async fn count_plan(cluster: &Cluster) {
    let counted = cluster
        .plan
        .ask(|plan| {
            (
                plan.scheduler().queued_by_level(),
                plan.scheduler().running_by_level(),
            )
        })
        .await;
    if let Ok((queued, running)) = counted {
        for level in Level::ALL {
            let label = LevelLabel::of(level);
            let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            let at = level as usize;
            let metrics = &cluster.metrics;
            metrics
                .queued_chunks
                .get_or_create(&label)
                .set(gauge(queued[at]));
            metrics
                .running_chunks
                .get_or_create(&label)
                .set(gauge(running[at]));
        }
    }
}

/// All metrics, for export.
pub async fn families(cluster: &Cluster) -> Vec<MetricFamily> {
    count_plan(cluster).await;
    cluster.metrics.families()
}

/// Returns the metrics.
pub async fn metrics(State(cluster): State<Arc<Cluster>>, headers: HeaderMap) -> Response {
    count_plan(&cluster).await;
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    match cluster.metrics.encode(accept) {
        Ok(text) => ([(header::CONTENT_TYPE, text.content_type)], text.body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
