//! Liveness and readiness.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};

use crate::service::{
    Cluster,
    readiness::{Readiness, readiness},
};

/// 200 as long as the process runs.
pub async fn live() -> &'static str {
    "ok\n"
}

/// 503 with reasons if something is missing. A standby that knows its leader is ready.
pub async fn ready(State(cluster): State<Arc<Cluster>>) -> (StatusCode, Json<Readiness>) {
    let readiness = readiness(&cluster).await;
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness))
}
