//! Whether the process lives, and whether it is of use.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use serde::Serialize;

use crate::{
    repository::{Health, Leadership},
    service::Cluster,
};

/// What `/readyz` says.
#[derive(Serialize)]
pub struct Readiness {
    ready: bool,
    role: &'static str,
    /// Empty when ready.
    reasons: Vec<String>,
}

/// 200 as long as the process runs.
pub async fn live() -> &'static str {
    "ok\n"
}

/// 503 with reasons where something is missing. A standby that knows its leader is ready.
pub async fn ready(State(cluster): State<Arc<Cluster>>) -> (StatusCode, Json<Readiness>) {
    let readiness = readiness(&cluster).await;
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness))
}

pub(super) async fn readiness(cluster: &Cluster) -> Readiness {
    let mut reasons = Vec::new();
    if cluster.shutdown.is_cancelled() {
        reasons.push("shutting down".to_owned());
    }
    if let Health::NotReady(reason) = cluster.database.health().await {
        reasons.push(format!("database: {reason}"));
    }
    let leadership = cluster.leadership.borrow().clone();
    let role = match leadership {
        Leadership::Leader { .. } if cluster.is_leader() => "leader",
        Leadership::Leader { .. } => {
            reasons.push("taking over the lead".to_owned());
            "leader"
        }
        Leadership::Standby {
            leader_address: Some(_),
        } => "standby",
        Leadership::Standby {
            leader_address: None,
        } => {
            reasons.push("no leader is known yet".to_owned());
            "standby"
        }
    };
    Readiness {
        ready: reasons.is_empty(),
        role,
        reasons,
    }
}
