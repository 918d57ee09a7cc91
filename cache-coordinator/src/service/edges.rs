//! Edges: list, drain, forget, verify.

use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use chunkcache_proto::{EntryId, v1};
use v1::session_response::Message;

use super::{
    Cluster,
    error::{Resource, ServiceError},
    loader::edge_id,
};
use crate::{
    db::{EdgeRecord, writer::DrainEdge},
    sessions::{
        plan::Command,
        registry::{End, Reconciliation},
    },
};
use scheduler::api::EdgeId;

/// Limit of entries that are handed over at a drain because they are being played.
const MAX_PLAYED: usize = 256;
/// Limit for counting the chunks of an edge in a listing.
const COUNT_LIMIT: u32 = 1_000_000;
/// Time for an edge to return and be reconciled.
const VERIFY_WITHIN: Duration = Duration::from_secs(60);

/// The row, with the present state of its session.
#[must_use]
pub fn describe(cluster: &Cluster, row: &EdgeRecord, chunks: u64) -> v1::Edge {
    let mut edge = row.to_proto();
    edge.chunks = chunks;
    if let Some(live) = cluster.registry.get(edge_id(row.id)) {
        let status = live.status.lock();
        edge.readers = status.readers;
        edge.requests_active = status.requests_active;
        if status.bytes_used > 0 {
            edge.bytes_used = status.bytes_used;
        }
        if status.bytes_allowed > 0 {
            edge.bytes_allowed = status.bytes_allowed;
        }
        if live.draining.load(Ordering::Relaxed) {
            edge.state = v1::EdgeState::Draining.into();
        }
    }
    edge
}

/// All edges, by name.
pub async fn list(cluster: &Cluster) -> Result<v1::ListEdgesResponse, ServiceError> {
    let rows = cluster.database.edges().await?;
    let mut edges = Vec::with_capacity(rows.len());
    for row in rows {
        let chunks = cluster
            .database
            .edge_chunk_count(row.id, COUNT_LIMIT)
            .await?;
        let mut edge = describe(cluster, &row, chunks);
        let number = edge_id(row.id);
        if edge.state() == v1::EdgeState::Draining {
            let left = cluster
                .plan
                .ask(move |plan| plan.chunks_to_hand_over(number));
            edge.chunks_to_hand_over = left.await?;
        }
        edges.push(edge);
    }
    Ok(v1::ListEdgesResponse { edges })
}

/// Stops or resumes sending new readers to the edge. The next chunks of its readers are handed over
/// to the edges that will serve them.
pub async fn drain(
    cluster: &Cluster,
    request: v1::DrainEdgeRequest,
) -> Result<v1::DrainEdgeResponse, ServiceError> {
    cluster.require_leader()?;
    require_name(&request.name)?;
    let draining = request.drain;
    let change = DrainEdge {
        name: request.name,
        draining,
    };
    let row = cluster.writer.write(change).await?.value;
    let edge = edge_id(row.id);
    if let Some(live) = cluster.registry.get(edge) {
        live.draining.store(draining, Ordering::Relaxed);
        live.outbox.post(Message::Drain(v1::Drain { draining }));
    }
    cluster
        .plan
        .tell(Command::EdgeDraining { edge, draining })
        .await?;
    for entry in played(cluster, edge).into_iter().filter(|_| draining) {
        cluster.plan.tell(Command::HandOver { edge, entry }).await?;
    }
    let chunks = cluster
        .database
        .edge_chunk_count(row.id, COUNT_LIMIT)
        .await?;
    Ok(v1::DrainEdgeResponse {
        edge: Some(describe(cluster, &row, chunks)),
    })
}

/// The entries that its viewers are playing, as last reported.
fn played(cluster: &Cluster, edge: EdgeId) -> BTreeSet<EntryId> {
    let Some(live) = cluster.registry.get(edge) else {
        return BTreeSet::new();
    };
    let status = live.status.lock();
    let ids = status.viewers.iter().map(|viewer| viewer.entry_id.parse());
    ids.filter_map(Result::ok).take(MAX_PLAYED).collect()
}

async fn find(cluster: &Cluster, name: &str) -> Result<EdgeRecord, ServiceError> {
    require_name(name)?;
    let row = cluster.database.edge(name).await?;
    row.ok_or_else(|| ServiceError::not_found(Resource::Edge, name))
}

/// Removes an edge and its rows from the cluster.
pub async fn forget(
    cluster: &Cluster,
    request: v1::ForgetEdgeRequest,
) -> Result<v1::ForgetEdgeResponse, ServiceError> {
    cluster.require_leader()?;
    let row = find(cluster, &request.name).await?;
    if let Some(live) = cluster.registry.get(edge_id(row.id)) {
        if !request.force {
            return Err(ServiceError::Precondition {
                reason: "EDGE_CONNECTED",
                message: format!(
                    "edge {:?} is connected; stop it first, or use force",
                    request.name
                ),
            });
        }
        live.outbox.send(Message::Forget(v1::Forget {})).await;
        live.outbox.end(End::Forgotten);
    }
    let removed = cluster.writer.forget_edge(&request.name).await?.value;
    cluster.registry.forget(edge_id(row.id));
    cluster
        .plan
        .tell(Command::EdgeForgotten(edge_id(row.id)))
        .await?;
    Ok(v1::ForgetEdgeResponse {
        chunks_removed: removed,
    })
}

/// Compares the rows with the edge's chunks, by ending the edge's session: the next one begins with
/// an inventory and its reconciliation, which is this comparison. Meanwhile readers continue to
/// receive bytes.
pub async fn verify(
    cluster: &Cluster,
    request: v1::VerifyEdgeRequest,
) -> Result<v1::VerifyEdgeResponse, ServiceError> {
    cluster.require_leader()?;
    let row = find(cluster, &request.name).await?;
    let edge = edge_id(row.id);
    let live = cluster
        .registry
        .get(edge)
        .ok_or_else(|| ServiceError::Precondition {
            reason: "EDGE_NOT_CONNECTED",
            message: format!("edge {:?} is not connected", request.name),
        })?;
    let before = live.epoch;
    live.outbox.end(End::Verify);
    drop(live);
    let found = tokio::time::timeout(VERIFY_WITHIN, reconciled_after(cluster, edge, before))
        .await
        .map_err(|_| ServiceError::DeadlineExceeded("the edge did not come back in time".into()))?;
    let found = found.ok_or(ServiceError::ShuttingDown)?;
    Ok(v1::VerifyEdgeResponse {
        chunks_checked: found.chunks_checked,
        rows_without_bytes: found.rows_without_bytes,
        bytes_without_rows: found.bytes_without_rows,
    })
}

/// The reconciliation of the edge's next session.
async fn reconciled_after(cluster: &Cluster, edge: EdgeId, epoch: u64) -> Option<Reconciliation> {
    let mut joins = cluster.registry.joins();
    loop {
        joins.borrow_and_update();
        let next = cluster.registry.get(edge).filter(|live| live.epoch > epoch);
        if let Some(live) = next {
            let mut reconciled = live.reconciled.subscribe();
            let found = tokio::select! {
                found = reconciled.wait_for(Option::is_some) => found.ok().and_then(|found| *found),
                () = live.outbox.ended() => None,
            };
            if found.is_some() {
                return found;
            }
        }
        joins.changed().await.ok()?;
    }
}

fn require_name(name: &str) -> Result<(), ServiceError> {
    if name.is_empty() {
        return Err(ServiceError::invalid(
            "name",
            "expected the name of an edge",
        ));
    }
    Ok(())
}
