//! Pins and invalidations: every connected edge has forgotten the entry before the caller gets its
//! answer.

use std::{collections::HashSet, sync::Arc, time::Duration};

use chunkcache_proto::{EntryId, v1};
use v1::session_response::Message;

use super::{Cluster, entries, error::ServiceError};
use crate::{
    db::writer::{InvalidateEntry, SetPinned},
    sessions::{plan::Command, registry::Confirmation},
};

/// How long to wait for edges.
const CONFIRM_WITHIN: Duration = Duration::from_secs(2);

/// Sets or clears the pin; a pinned entry is evicted last.
pub async fn pin(
    cluster: &Cluster,
    request: v1::PinEntryRequest,
) -> Result<v1::PinEntryResponse, ServiceError> {
    cluster.require_leader()?;
    let mut entry = entries::find(cluster, request.entry.as_ref()).await?.entry;
    let pinned = request.pinned;
    cluster
        .writer
        .write(SetPinned {
            entry: entry.id,
            pinned,
        })
        .await?;
    entry.pinned = pinned;
    let entry = entry.to_proto();
    cluster
        .plan
        .tell(Command::EntryChanged(Box::new(entry.clone())))
        .await?;
    for live in cluster.registry.all() {
        live.outbox.post(Message::EntryChanged(v1::EntryChanged {
            entry_id: entry.id.clone(),
            pinned,
        }));
    }
    Ok(v1::PinEntryResponse { entry: Some(entry) })
}

/// Removes all bindings of the entry; with `purge`, its rows and bytes too.
pub async fn invalidate(
    cluster: &Cluster,
    request: v1::InvalidateEntryRequest,
) -> Result<v1::InvalidateEntryResponse, ServiceError> {
    cluster.require_leader()?;
    let entry = entries::find(cluster, request.entry.as_ref()).await?.entry;
    let purge = request.purge;
    // Stop its fetches first, so that no chunk is stored after the purge.
    cluster.plan.tell(Command::EntryClosed(entry.id)).await?;
    cluster
        .jobs
        .forget_entries(
            cluster,
            &HashSet::from([entry.id]),
            "the entry was invalidated",
        )
        .await?;
    let change = InvalidateEntry {
        entry: entry.id,
        purge,
    };
    let sequence = cluster.registry.begin_invalidation().await;
    let invalidated = cluster.writer.write(change).await;
    let mut keys = match &invalidated {
        Ok(committed) => committed.value.keys.clone(),
        Err(_) => Vec::new(),
    };
    // An edge may remember a key that the table no longer has.
    if !keys.contains(&entry.key()) {
        keys.push(entry.key());
    }
    let message = |sequence| {
        Message::Invalidate(v1::Invalidate {
            sequence,
            keys: keys.clone(),
            entry_ids: vec![entry.id.to_string()],
            purge,
            epoch: 0,
        })
    };
    let mut pushed = cluster
        .registry
        .push_as(
            sequence,
            Confirmation::Invalidations,
            message,
            CONFIRM_WITHIN,
        )
        .await;
    // Sent even if it was not recorded: the edges confirm the sequence, and ask their origins once
    // more.
    invalidated?;
    // A disconnected edge still has its bindings, and learns of the invalidation when it returns.
    for edge in cluster.database.edges().await? {
        if !pushed.confirmed.contains(&edge.name) && !pushed.unconfirmed.contains(&edge.name) {
            pushed.unconfirmed.push(edge.name);
        }
    }
    Ok(v1::InvalidateEntryResponse {
        confirmed_edges: pushed.confirmed,
        unconfirmed_edges: pushed.unconfirmed,
    })
}

/// Two edges hold different bytes of one chunk. Which ones are right is unknown, so no edge keeps
/// the entry.
pub async fn drop_conflicting(cluster: Arc<Cluster>, entry: EntryId) {
    cluster.metrics.conflicting_entries.inc();
    tracing::error!(
        %entry,
        "two edges hold different bytes of a chunk; the entry is dropped everywhere"
    );
    let request = v1::InvalidateEntryRequest {
        entry: Some(v1::EntryName {
            name: Some(v1::entry_name::Name::Id(entry.to_string())),
        }),
        purge: true,
    };
    if let Err(error) = invalidate(&cluster, request).await {
        tracing::warn!(%entry, %error, "an entry with two contents was not dropped");
    }
}
