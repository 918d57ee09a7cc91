//! Handles an origin's answer for a key: registers the entry, binds the key, and notifies the
//! edges.

use std::{collections::HashSet, sync::Arc};

use chunkcache_proto::{
    EntryId, EntryIdentity,
    key::{MAX_KEY_BYTES, is_key_recordable},
    v1,
};
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
        writer::{Observation, ObservationEffect, ObserveEntry, Pending},
    },
    sessions::plan::Command,
};
use scheduler::api::EdgeId;

/// An observation that is queued for the writer.
pub struct Observing {
    by: Option<EdgeId>,
    id: EntryId,
    key: v1::Key,
    binding: v1::KeyBinding,
    pending: Pending<ObserveEntry>,
}

impl Observing {
    #[must_use]
    pub fn entry(&self) -> EntryId {
        self.id
    }

    #[must_use]
    pub fn key(&self) -> &v1::Key {
        &self.key
    }
}

/// Registers an observation. `by`: the edge that made it, which needs no notification.
pub async fn observe(
    cluster: &Cluster,
    by: Option<EdgeId>,
    entry: v1::Entry,
    freshness: v1::Freshness,
    observation: Observation,
) -> Result<ObservationEffect, ServiceError> {
    let observing = begin(cluster, by, entry, freshness, observation).await?;
    finish(cluster, observing).await
}

/// Queues the observation: changes that are queued later are recorded after it.
pub async fn begin(
    cluster: &Cluster,
    by: Option<EdgeId>,
    entry: v1::Entry,
    freshness: v1::Freshness,
    observation: Observation,
) -> Result<Observing, ServiceError> {
    let change = admit(cluster, &entry, freshness.clone(), observation)?;
    let (id, key) = (change.entry.id, change.entry.key());
    let pending = cluster.writer.enqueue(change).await?;
    Ok(Observing {
        by,
        id,
        key,
        binding: v1::KeyBinding {
            entry: Some(entry),
            freshness: Some(freshness),
        },
        pending,
    })
}

/// Waits until it is recorded, and notifies the edges.
pub async fn finish(
    cluster: &Cluster,
    observing: Observing,
) -> Result<ObservationEffect, ServiceError> {
    let Observing {
        by,
        id,
        key,
        binding,
        pending,
    } = observing;
    let observed = pending.await?.value;
    announce(cluster, by, (id, &key), &observed, binding).await?;
    Ok(observed)
}

/// The change that records an observation, if it can be recorded.
pub fn admit(
    cluster: &Cluster,
    entry: &v1::Entry,
    freshness: v1::Freshness,
    observation: Observation,
) -> Result<ObserveEntry, ServiceError> {
    let record = check(cluster, entry)?;
    Ok(ObserveEntry {
        entry: record,
        freshness,
        observation,
    })
}

/// Called once it is recorded: wakes the waiters of the key, and notifies the plan and the edges.
async fn announce(
    cluster: &Cluster,
    by: Option<EdgeId>,
    (id, key): (EntryId, &v1::Key),
    observed: &ObservationEffect,
    binding: v1::KeyBinding,
) -> Result<(), ServiceError> {
    // Open the entry before an edge names it, so that the first demand waits for nothing.
    let open = match &binding.entry {
        Some(entry) if observed.created => Command::EntryCreated(Box::new(entry.clone())),
        _ => Command::EntryWanted(id),
    };
    announce_to(cluster, open, by, (id, key), observed, binding).await
}

/// The same for an observation in an inventory. The entry is not opened until it is named, because
/// an inventory may list a million.
pub async fn announce_replayed(
    cluster: &Cluster,
    by: EdgeId,
    (id, key): (EntryId, &v1::Key),
    observed: &ObservationEffect,
    binding: v1::KeyBinding,
) -> Result<(), ServiceError> {
    let registered = Command::EntryRegistered(id);
    announce_to(cluster, registered, Some(by), (id, key), observed, binding).await
}

async fn announce_to(
    cluster: &Cluster,
    command: Command,
    by: Option<EdgeId>,
    (id, key): (EntryId, &v1::Key),
    observed: &ObservationEffect,
    binding: v1::KeyBinding,
) -> Result<(), ServiceError> {
    cluster.resolver.bound(key);
    if let Some(previous) = observed.previous.filter(|previous| *previous != id) {
        cluster.plan.tell(Command::EntryClosed(previous)).await?;
        cluster
            .jobs
            .forget_entries(
                cluster,
                &HashSet::from([previous]),
                "the object changed at the origin",
            )
            .await?;
    }
    cluster.plan.tell(command).await?;
    tell_edges(cluster, by, observed, binding).await
}

/// Notifies edges. A key that moved concerns every edge; one that was confirmed concerns the edges
/// that hold the entry; a new one concerns none (waiters in `ResolveKey` have their answer).
async fn tell_edges(
    cluster: &Cluster,
    by: Option<EdgeId>,
    observed: &ObservationEffect,
    binding: v1::KeyBinding,
) -> Result<(), ServiceError> {
    let others = cluster.registry.all();
    if observed.created && observed.previous.is_none()
        || others.iter().all(|live| Some(live.edge) == by)
    {
        return Ok(());
    }
    let moved = observed.key_changed;
    let holders: HashSet<EdgeId> = match binding.entry.as_ref().and_then(|e| e.id.parse().ok()) {
        // Read edges only, not chunks: an entry may have fifty thousand chunks on a thousand edges,
        // and each of these edges confirms it.
        Some(id) if !moved => {
            let edges = cluster.database.edges_holding(id).await?;
            edges.into_iter().map(edge_id).collect()
        }
        _ => HashSet::new(),
    };
    for live in others {
        if Some(live.edge) != by && (moved || holders.contains(&live.edge)) {
            live.outbox.post(Message::KeyChanged(v1::KeyChanged {
                binding: Some(stamped(binding.clone())),
            }));
        }
    }
    Ok(())
}

/// Refuses a key that is too long to be recorded; edges pass it through.
pub fn check_key(key: &v1::Key) -> Result<(), ServiceError> {
    if is_key_recordable(key) {
        return Ok(());
    }
    Err(ServiceError::invalid(
        "key",
        format!(
            "expected at most {MAX_KEY_BYTES} bytes of path, query and variant, without zero bytes"
        ),
    ))
}

/// Derives the id again, so that an edge cannot register one object under another's id.
fn check(cluster: &Cluster, entry: &v1::Entry) -> Result<EntryRecord, ServiceError> {
    let record = EntryRecord::from_proto(entry)?;
    check_key(&record.key())?;
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
