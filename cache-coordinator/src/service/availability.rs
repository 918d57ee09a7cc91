//! Availability: which edges hold which ranges, read from the table; waits are woken by events.

use std::time::Duration;

use chunkcache_proto::{ByteRange, EntryId, Geometry, v1};

use super::{
    Cluster, entries,
    error::{Resource, ServiceError},
    jobs,
    ranges::{chunks_of, or_whole, required},
};
use crate::{
    db::ChangeKind,
    events::{Event, Filter},
};

/// Limit of missing ranges in one answer.
const MAX_MISSING: u32 = 1000;
/// For callers without a deadline of their own.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Whether every byte of the range is held.
pub async fn has_range(
    cluster: &Cluster,
    request: v1::HasByteRangeRequest,
) -> Result<v1::HasByteRangeResponse, ServiceError> {
    let entry = entries::find(cluster, request.entry.as_ref()).await?.entry;
    let range = required("range", request.range, entry.geometry)?;
    let missing = missing(cluster, entry.id, entry.geometry, range, &request.edge).await?;
    Ok(v1::HasByteRangeResponse {
        present: missing.is_empty(),
        missing: missing.into_iter().map(Into::into).collect(),
    })
}

/// The parts of a range that are missing on an edge; with an empty name, on all edges together.
pub async fn missing(
    cluster: &Cluster,
    entry: EntryId,
    geometry: Geometry,
    range: ByteRange,
    edge: &str,
) -> Result<Vec<ByteRange>, ServiceError> {
    if edge.is_empty() {
        let missing = cluster
            .database
            .missing_anywhere(entry, geometry, range, MAX_MISSING);
        return Ok(missing.await?);
    }
    let row = cluster.database.edge(edge).await?;
    let row = row.ok_or_else(|| ServiceError::not_found(Resource::Edge, edge))?;
    let edges = [row.id];
    let missing = cluster
        .database
        .missing(entry, geometry, range, &edges, MAX_MISSING);
    Ok(missing.await?)
}

/// Ranges per edge, as of one revision.
pub async fn availability(
    cluster: &Cluster,
    request: v1::GetAvailabilityRequest,
) -> Result<v1::GetAvailabilityResponse, ServiceError> {
    let entry = entries::find(cluster, request.entry.as_ref()).await?.entry;
    snapshot(cluster, entry.id).await
}

/// The same by id.
pub async fn snapshot(
    cluster: &Cluster,
    id: EntryId,
) -> Result<v1::GetAvailabilityResponse, ServiceError> {
    let snapshot = cluster.database.entry_snapshot(id).await?;
    Ok(v1::GetAvailabilityResponse {
        entry: Some(snapshot.entry.to_proto()),
        edges: snapshot
            .holdings
            .iter()
            .map(|holding| holding.to_proto())
            .collect(),
        revision: snapshot.revision,
    })
}

/// Requests a range at a priority. Not durable.
pub async fn request(
    cluster: &Cluster,
    request: v1::RequestRangeRequest,
) -> Result<v1::RequestRangeResponse, ServiceError> {
    cluster.require_leader()?;
    let level = jobs::level("priority", request.priority())?;
    let entry = entries::find_or_make(cluster, request.entry.as_ref())
        .await?
        .entry;
    let range = or_whole("range", request.range, entry.geometry)?;
    let edge = jobs::choose_edge(cluster, &entry, range.start, &request.edge).await?;
    let missing = missing(cluster, entry.id, entry.geometry, range, &edge.name).await?;
    let chunks = chunks_of(&missing, entry.geometry);
    let chunks_requested = chunks.iter().map(|run| run.len() as u64).sum();
    if chunks_requested > 0 {
        cluster
            .jobs
            .want(cluster, edge.edge, entry.id, chunks, level)
            .await?;
    }
    Ok(v1::RequestRangeResponse {
        chunks_requested,
        edge: edge.name,
    })
}

/// Returns when the range is recorded. Subscribes first, then checks, then waits, so that nothing
/// is missed in between.
pub async fn wait(
    cluster: &Cluster,
    request: v1::WaitForRangeRequest,
) -> Result<v1::WaitForRangeResponse, ServiceError> {
    cluster.require_leader()?;
    let entry = entries::find(cluster, request.entry.as_ref()).await?.entry;
    let range = required("range", request.range, entry.geometry)?;
    if request.request_priority() != v1::Priority::Unspecified {
        let level = jobs::level("request_priority", request.request_priority())?;
        let edge = jobs::choose_edge(cluster, &entry, range.start, &request.edge).await?;
        let chunks = chunks_of(&[range], entry.geometry);
        cluster
            .jobs
            .want(cluster, edge.edge, entry.id, chunks, level)
            .await?;
    }
    let recorded = recorded(cluster, entry.id, entry.geometry, range, &request.edge);
    tokio::select! {
        revision = recorded => Ok(v1::WaitForRangeResponse { revision: revision? }),
        () = tokio::time::sleep(MAX_WAIT) => Err(ServiceError::DeadlineExceeded(
            "the range was not recorded in time".into(),
        )),
        () = cluster.shutdown.cancelled() => Err(ServiceError::ShuttingDown),
    }
}

async fn recorded(
    cluster: &Cluster,
    entry: EntryId,
    geometry: Geometry,
    range: ByteRange,
    edge: &str,
) -> Result<u64, ServiceError> {
    loop {
        let revision = cluster.database.latest_revision().await?;
        let mut changes = cluster.events.subscribe(revision, Filter::Entry(entry))?;
        if missing(cluster, entry, geometry, range, edge)
            .await?
            .is_empty()
        {
            // Read after the check, because the rows may be newer than the subscription.
            return cluster.database.latest_revision().await.map_err(Into::into);
        }
        // Check again only after a change that concerns the range.
        loop {
            match changes.next().await {
                Some(Ok(Event::Change(change))) => {
                    if matches!(&change.kind, ChangeKind::Stored { edge: on, ranges, .. }
                        if (edge.is_empty() || on == edge)
                            && ranges.iter().any(|stored| !stored.intersect(range).is_empty()))
                        && missing(cluster, entry, geometry, range, edge)
                            .await?
                            .is_empty()
                    {
                        return Ok(change.revision);
                    }
                }
                Some(Err(error)) => return Err(error.into()),
                // The log was pruned meanwhile: begin again.
                Some(Ok(Event::SnapshotNeeded)) | None => break,
            }
        }
    }
}
