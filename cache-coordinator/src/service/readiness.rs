//! Whether this coordinator is ready, and why not.

use serde::Serialize;

use super::Cluster;
use crate::db::{Health, Leadership};

/// The answer of `/readyz`, and of the gRPC health service in one word.
#[derive(Serialize)]
pub struct Readiness {
    pub ready: bool,
    /// `leader` or `standby`.
    pub role: &'static str,
    /// Empty when ready.
    pub reasons: Vec<String>,
}

/// Checks now. A standby that knows its leader is ready.
pub async fn readiness(cluster: &Cluster) -> Readiness {
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
            let trouble = cluster.lease_trouble.borrow().clone();
            reasons.push(match trouble {
                Some(reason) => {
                    format!("no leader is known, and the lease can not be taken: {reason}")
                }
                None => "no leader is known yet".to_owned(),
            });
            "standby"
        }
    };
    Readiness {
        ready: reasons.is_empty(),
        role,
        reasons,
    }
}
