//! An origin answered for a key: the entry is registered, the key points to it, who should know is
//! told.

use std::{collections::HashSet, sync::Arc};

use chunkcache_proto::{EntryIdentity, v1};
use v1::session_response::Message;

use super::{
    Cluster,
    error::{Resource, ServiceError},
    loader::edge_id,
    resolve_key::stamped,
};
use crate::{
    db::{
        EntryRecord,
        writer::{Observation, ObserveEntry, Observed},
    },
    session::plan::Command,
};
use scheduler::api::EdgeId;

/// Registers. `by` is the edge that saw it: it need not be told.
pub async fn observe(
    cluster: &Cluster,
    by: Option<EdgeId>,
    entry: v1::Entry,
    freshness: v1::Freshness,
    observation: Observation,
) -> Result<Observed, ServiceError> {
    let record = check(cluster, &entry)?;
    let (id, key) = (record.id, record.key());
    let change = ObserveEntry {
        entry: record,
        freshness: freshness.clone(),
        observation,
    };
    let observed = cluster.writer.write(change).await?.value;
    cluster.resolver.bound(&key);
    if let Some(previous) = observed.previous.filter(|previous| *previous != id) {
        cluster.plan.tell(Command::EntryClosed(previous)).await?;
        cluster
            .jobs
            .forget_entry(cluster, previous, "the object changed at the origin")
            .await?;
    }
    // Loaded before an edge speaks of it: the first demand then waits for nothing.
    cluster.plan.tell(Command::EntryWanted(id)).await?;
    tell_edges(
        cluster,
        by,
        &observed,
        v1::KeyBinding {
            entry: Some(entry),
            freshness: Some(freshness),
        },
    )
    .await?;
    Ok(observed)
}

/// A key that moved concerns every edge; one that was confirmed, those that hold the entry; a new
/// one nobody (who waits for it in `ResolveKey` has its answer).
async fn tell_edges(
    cluster: &Cluster,
    by: Option<EdgeId>,
    observed: &Observed,
    binding: v1::KeyBinding,
) -> Result<(), ServiceError> {
    if observed.created && observed.previous.is_none() {
        return Ok(());
    }
    let moved = observed.key_changed;
    let holders: HashSet<EdgeId> = match binding.entry.as_ref().and_then(|e| e.id.parse().ok()) {
        // Who, not what: an entry may be fifty thousand chunks on a thousand edges, and each of
        // these confirms it.
        Some(id) if !moved => {
            let edges = cluster.database.edges_holding(id).await?;
            edges.into_iter().map(edge_id).collect()
        }
        _ => HashSet::new(),
    };
    for live in cluster.registry.all() {
        if Some(live.edge) != by && (moved || holders.contains(&live.edge)) {
            live.outbox.post(Message::KeyChanged(v1::KeyChanged {
                binding: Some(stamped(binding.clone())),
            }));
        }
    }
    Ok(())
}

/// The id is derived again: an edge can not register one object under another's id.
fn check(cluster: &Cluster, entry: &v1::Entry) -> Result<EntryRecord, ServiceError> {
    let record = EntryRecord::from_proto(entry)?;
    let sources: Arc<Vec<v1::Source>> = cluster.sources.load_full();
    let source = sources
        .iter()
        .find(|source| source.name == record.source)
        .ok_or_else(|| ServiceError::not_found(Resource::Source, &record.source))?;
    let derived = EntryIdentity {
        source: &record.source,
        base_url: &source.base_url,
        path: &record.path,
        query: &record.query,
        variant: &record.variant,
        validator: &record.validator,
        size_bytes: record.geometry.size(),
        chunk_size_bytes: record.geometry.chunk_size(),
    }
    .id();
    if derived == record.id {
        Ok(record)
    } else {
        Err(ServiceError::invalid(
            "entry.id",
            "expected the id derived from the entry and its source's present base URL",
        ))
    }
}
