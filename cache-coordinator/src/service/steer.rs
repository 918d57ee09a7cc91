//! Chooses the edge for a player: the one that holds most of the object, then the least loaded one.

use std::{collections::HashMap, sync::atomic::Ordering};

use chunkcache_proto::v1;
use http_rules::steering::{Candidate, Standing, SteeredObject, rank};
use tokio::sync::Semaphore;

use super::{Cluster, availability, error::ServiceError};

/// Number of players' questions that read the table at a time; further ones are answered by load
/// alone.
static READS: Semaphore = Semaphore::const_new(32);

/// Edges that take players, the best first. Draining ones are left out.
pub async fn candidates(cluster: &Cluster, object: Option<&SteeredObject>) -> Vec<Candidate> {
    let held = match object {
        Some(object) => held(cluster, object).await,
        None => HashMap::new(),
    };
    let sessions = cluster.registry.all();
    let standings = sessions
        .iter()
        .filter(|session| !session.draining.load(Ordering::Relaxed))
        .map(|session| Standing {
            candidate: Candidate {
                name: session.name.clone(),
                url: session.url.clone(),
            },
            bytes_held: held.get(&session.name).copied().unwrap_or(0),
            requests_active: session.status.lock().requests_active,
        });
    rank(standings.collect())
}

/// Bytes by edge; empty if they cannot be determined.
async fn held(cluster: &Cluster, object: &SteeredObject) -> HashMap<String, u64> {
    let Ok(_permit) = READS.try_acquire() else {
        return HashMap::new();
    };
    let path = match object.query.as_str() {
        "" => object.path.clone(),
        query => format!("{}?{query}", object.path),
    };
    let source_path = v1::SourcePath {
        source: object.source.clone(),
        path,
    };
    let name = v1::EntryName {
        name: Some(v1::entry_name::Name::SourcePath(source_path)),
    };
    let request = v1::GetAvailabilityRequest { entry: Some(name) };
    match availability::availability(cluster, request).await {
        Ok(found) => {
            let edges = found.edges.into_iter();
            edges.map(|edge| (edge.edge, edge.bytes)).collect()
        }
        Err(error) => {
            if !matches!(error, ServiceError::NotFound { .. }) {
                tracing::debug!(%error, "players are steered by load alone");
            }
            HashMap::new()
        }
    }
}
