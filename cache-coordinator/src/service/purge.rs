//! Purges of many objects, by key, prefix, glob, tag or source: every connected edge has forgotten
//! them before the caller gets its answer.

use std::{collections::HashSet, sync::Arc, time::Duration};

use chunkcache_proto::{
    EntryId, identity,
    v1::{self, purge_selector::Objects, session_response::Message},
};
use http_rules::{path, query_rules, tags};

use super::{
    Cluster,
    error::{Resource, ServiceError},
};
use crate::{
    db::{
        MAX_PURGES, PendingPurge, PurgeRecord,
        writer::{FinishPurge, RecordPurge},
    },
    sessions::{
        plan::Command,
        registry::{Confirmation, EdgeSession},
    },
};

/// How long to wait for edges.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// For this long, rows are deleted before their bytes, which suffices for some thousand objects.
/// The other rows are deleted after the answer; their keys are hidden, so no client is served by
/// them.
const ROWS_WITHIN: Duration = Duration::from_millis(500);
/// Entries whose rows are deleted at a time during that phase: some 0.1 s.
const ROWS_BITE: usize = 1_000;
/// Entries looked up at a time: 16 MB of ids.
const MAX_SELECTED: u32 = 1_000_000;
/// Number of entries named to an edge in one message.
const MAX_NAMED: usize = 50_000;
/// Pause between attempts while the database does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// See the module.
pub async fn purge(
    cluster: &Arc<Cluster>,
    request: v1::PurgeEntriesRequest,
) -> Result<v1::PurgeEntriesResponse, ServiceError> {
    cluster.require_leader()?;
    let selector = check(cluster, request.selector.unwrap_or_default())?;
    // One at a time, so that an edge that has carried one out has carried out all earlier ones.
    let _alone = cluster.purging.lock().await;
    // From now on, edges' reports about keys count as outdated until the edges have heard of the
    // purge.
    let sequence = cluster.registry.begin_invalidation().await;
    let change = RecordPurge {
        selector: selector.clone(),
        soft: request.soft,
    };
    let begun = begin(cluster, change).await;
    let (purge, selected, named) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            // Sent because the edges must confirm the sequence.
            let nothing = |sequence| {
                Message::Invalidate(v1::Invalidate {
                    sequence,
                    ..v1::Invalidate::default()
                })
            };
            let registry = &cluster.registry;
            drop(registry.post_as(sequence, Confirmation::Invalidations, nothing));
            return Err(error);
        }
    };
    let (record, mut purged) = (&purge.record, selected.purged);
    let left = remove_rows(cluster, &purge, selected.left).await;
    let mut parts: Vec<&[EntryId]> = named.chunks(MAX_NAMED).collect();
    let last = identity::pack(parts.pop().unwrap_or_default());
    for part in parts {
        let message = v1::Purge {
            // Only the last part carries the number.
            number: 0,
            ..record.to_proto(cluster.registry.next_sequence(), identity::pack(part))
        };
        for live in cluster.registry.all() {
            live.outbox.send(Message::Purge(message.clone())).await;
        }
    }
    // Its sequence comes after those of the parts.
    let sequence = match named.len() {
        0..=MAX_NAMED => sequence,
        _ => cluster.registry.next_sequence(),
    };
    let message = |sequence| Message::Purge(record.to_proto(sequence, last.clone()));
    let pushed = cluster
        .registry
        .push_as(
            sequence,
            Confirmation::Invalidations,
            message,
            CONFIRM_WITHIN,
        )
        .await;
    // Also forget what edges reported before they heard of the purge.
    cluster.resolver.forget_absent(&selector);
    let (number, rows_left) = (record.number, left.len());
    let rest = cluster
        .tasks
        .spawn(finish(Arc::clone(cluster), purge, left));
    if rows_left == 0 {
        // Runs after the edges' reports of chunks that they stored before they heard of it, or
        // dropped.
        let _ = tokio::time::timeout(ROWS_WITHIN, rest).await;
    }
    let mut unconfirmed = pushed.unconfirmed;
    // A disconnected edge carries it out when it returns.
    for edge in cluster.database.edges().await? {
        if !pushed.confirmed.contains(&edge.name) && !unconfirmed.contains(&edge.name) {
            unconfirmed.push(edge.name);
        }
    }
    let sessions = cluster.registry.all();
    purged += sessions.iter().map(|live| live.take_purged()).sum::<u64>();
    tracing::info!(number, purged, rows_left, ?unconfirmed, "purged");
    Ok(v1::PurgeEntriesResponse {
        purged,
        confirmed_edges: pushed.confirmed,
        unconfirmed_edges: unconfirmed,
    })
}

/// The entries that a purge selected in the table.
struct Selected {
    /// Number of selected entries.
    purged: u64,
    /// Those whose rows still exist.
    left: Vec<EntryId>,
}

/// Records the purge and stops all activity for the selected entries. For a tag, also returns the
/// entries that edges must be told; other selectors match keys, which the edges know themselves.
async fn begin(
    cluster: &Cluster,
    change: RecordPurge,
) -> Result<(PendingPurge, Selected, Vec<EntryId>), ServiceError> {
    let purge = cluster.writer.write(change).await?.value;
    cluster.resolver.forget_absent(&purge.record.selector);
    let is_by_tag = matches!(purge.record.selector.objects, Some(Objects::Tag(_)));
    let (mut purged, mut named) = (0, Vec::new());
    loop {
        let found = select(cluster, &purge).await?;
        purged += found.len() as u64;
        if is_by_tag {
            named.extend_from_slice(&found);
        }
        if found.len() < MAX_SELECTED as usize {
            let left = found;
            return Ok((purge, Selected { purged, left }, named));
        }
        // More than are kept in memory: purge these before the next are looked up.
        cluster.writer.purge(&purge, &found).await?;
    }
}

/// The selected entries that are not purged yet. Unless the purge is soft, stops all fetches of
/// them.
async fn select(cluster: &Cluster, purge: &PendingPurge) -> Result<Vec<EntryId>, ServiceError> {
    let selector = &purge.record.selector;
    let found = cluster
        .database
        .selected_entries(selector, purge.purged_at, MAX_SELECTED)
        .await?;
    if !purge.record.soft && !found.is_empty() {
        let entries: Arc<HashSet<EntryId>> = Arc::new(found.iter().copied().collect());
        let closed = Command::EntriesClosed(Arc::clone(&entries));
        cluster.plan.tell(closed).await?;
        cluster
            .jobs
            .forget_entries(cluster, &entries, "the entry was purged")
            .await?;
    }
    Ok(found)
}

/// Deletes rows before edges drop the bytes, while there is time. Returns the entries whose rows
/// remain.
async fn remove_rows(
    cluster: &Cluster,
    purge: &PendingPurge,
    mut entries: Vec<EntryId>,
) -> Vec<EntryId> {
    let until = tokio::time::Instant::now() + ROWS_WITHIN;
    while !entries.is_empty() && tokio::time::Instant::now() < until {
        let kept = entries.len() - entries.len().min(ROWS_BITE);
        if let Err(error) = cluster.writer.purge(purge, &entries[kept..]).await {
            tracing::warn!(%error, "the rows of a purge are not gone yet");
            break;
        }
        entries.truncate(kept);
    }
    entries
}

/// Deletes the rows of the entries, then ends the purge. If this leader is interrupted, a later one
/// continues.
async fn finish(cluster: Arc<Cluster>, purge: PendingPurge, entries: Vec<EntryId>) {
    let number = purge.record.number;
    loop {
        let done = async {
            cluster.writer.purge(&purge, &entries).await?;
            cluster.writer.write(FinishPurge { number }).await
        };
        let Err(error) = done.await else { return };
        if cluster.require_leader().is_err() {
            return;
        }
        tracing::warn!(%error, number, "the rows of a purge are not gone yet");
        tokio::time::sleep(RETRY).await;
    }
}

/// Finishes the purges that an earlier leader began. Edges learn of them when they connect.
pub async fn resume(cluster: &Arc<Cluster>) -> Result<(), ServiceError> {
    for purge in cluster.database.pending_purges().await? {
        let cluster = Arc::clone(cluster);
        cluster.tasks.clone().spawn(async move {
            loop {
                let found = match select(&cluster, &purge).await {
                    Ok(found) => found,
                    Err(error) => {
                        tracing::warn!(%error, "a purge can not be resumed yet");
                        tokio::time::sleep(RETRY).await;
                        if cluster.require_leader().is_err() {
                            return;
                        }
                        continue;
                    }
                };
                let is_last = found.len() < MAX_SELECTED as usize;
                if is_last {
                    return finish(cluster, purge, found).await;
                }
                if cluster.writer.purge(&purge, &found).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

/// Sends an edge the purges that it missed while it was disconnected.
pub async fn replay(
    cluster: &Cluster,
    live: &EdgeSession,
    last_purge: u64,
) -> Result<(), ServiceError> {
    let purges = cluster.database.purges().await?;
    // Otherwise purges that it missed may have been pruned.
    let is_complete = purges.len() < MAX_PURGES as usize
        || purges
            .first()
            .is_none_or(|oldest| oldest.number <= last_purge);
    let missed = purges.iter().filter(|it| it.number > last_purge);
    let everything = PurgeRecord {
        number: last_purge,
        selector: v1::PurgeSelector {
            source: String::new(),
            objects: Some(Objects::All(true)),
        },
        soft: true,
    };
    let everything = (!is_complete).then_some(&everything);
    for record in everything.into_iter().chain(missed) {
        let sequence = cluster.registry.next_sequence();
        live.owes_confirmation(sequence);
        let message = record.to_proto(sequence, Vec::new());
        live.outbox.send(Message::Purge(message)).await;
    }
    Ok(())
}

/// Checks the selector, and normalises its names as in keys.
fn check(
    cluster: &Cluster,
    selector: v1::PurgeSelector,
) -> Result<v1::PurgeSelector, ServiceError> {
    let objects = selector.objects.ok_or_else(|| {
        ServiceError::invalid("selector", "expected a key, a prefix, a glob, a tag or all")
    })?;
    let is_of_all = selector.source.is_empty() && matches!(objects, Objects::Tag(_));
    let source = cluster.source(&selector.source);
    if source.is_none() && !is_of_all {
        if selector.source.is_empty() {
            return Err(ServiceError::invalid(
                "selector.source",
                "expected the name of a source",
            ));
        }
        return Err(ServiceError::not_found(Resource::Source, selector.source));
    }
    let rules = source.unwrap_or_default().key_rules.unwrap_or_default();
    let normal = |field: &'static str, written: &str| {
        let written = written.strip_prefix('/').unwrap_or(written);
        let (path, query) = written.split_once('?').unwrap_or((written, ""));
        let (path, query) = path::normalize_name(path, query)
            .map_err(|error| ServiceError::invalid(field, error.to_string()))?;
        let path = query_rules::fold_path(&path, &rules).into_owned();
        Ok::<_, ServiceError>((path, query))
    };
    let joined = |path: String, query: &str| {
        if query.is_empty() {
            path
        } else {
            format!("{path}?{query}")
        }
    };
    let objects = match objects {
        Objects::Key(key) => {
            let (path, query) = normal("selector.key", &key)?;
            let query = query_rules::split(&query, &rules).key.into_owned();
            Objects::Key(joined(path, &query))
        }
        Objects::Prefix(prefix) if prefix.trim_start_matches('/').is_empty() => Objects::All(true),
        Objects::Prefix(prefix) => {
            let (path, query) = normal("selector.prefix", &prefix)?;
            Objects::Prefix(joined(path, &query))
        }
        Objects::Glob(glob) => {
            let (path, query) = normal("selector.glob", &glob)?;
            Objects::Glob(joined(path, &query))
        }
        Objects::Tag(tag) => {
            let tag = tag.trim();
            if tag.is_empty() || tag.len() > tags::MAX_TAG_BYTES || tag.contains(char::is_control) {
                let expected = format!("expected 1 to {} bytes of text", tags::MAX_TAG_BYTES);
                return Err(ServiceError::invalid("selector.tag", expected));
            }
            Objects::Tag(tag.to_owned())
        }
        Objects::All(true) => Objects::All(true),
        Objects::All(false) => {
            return Err(ServiceError::invalid("selector.all", "expected true"));
        }
    };
    Ok(v1::PurgeSelector {
        source: selector.source,
        objects: Some(objects),
    })
}
