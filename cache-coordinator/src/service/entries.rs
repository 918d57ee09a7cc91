//! Entries: open one to play it, get one, list them.

use std::collections::HashMap;

use chunkcache_proto::{ByteRange, EntryId, v1};
use prost::Message as _;

use super::{
    Cluster,
    entry_ref::{self, EntryRef},
    error::{FieldViolation, Resource, ServiceError},
    loader::edge_id,
    observe, probe, ranges,
    resolve_key::{stamped, wait_while_asked},
};
use crate::{
    db::{
        Binding, EntryCursor, EntryRecord, Holding,
        writer::{Observation, TouchEntry},
    },
    sessions::registry::EdgeSession,
};
use scheduler::api::EdgeId;
use scheduler::edge_choice::{Candidate, choose_edge};

/// Entries in one page of a listing by default.
const DEFAULT_PAGE: u32 = 100;
/// The largest page of a listing.
const MAX_PAGE: u32 = 1000;
/// The largest page in bytes, unless one entry takes more: gRPC clients take 4 MiB by default.
const MAX_PAGE_BYTES: usize = 3 << 20;
/// Range around a viewer's start position in which edges are compared.
const NEAR_BYTES: u64 = 256 << 20;

/// Parses the name of an entry in a request.
pub fn read_name(
    cluster: &Cluster,
    name: Option<&v1::EntryName>,
) -> Result<EntryRef, ServiceError> {
    let sources = cluster.sources.load();
    let pairs = sources
        .iter()
        .map(|s| (s.name.as_str(), s.base_url.as_str()));
    entry_ref::read_name(name, pairs).map_err(|violation| ServiceError::Invalid(vec![violation]))
}

/// Finds a known entry.
pub async fn find(
    cluster: &Cluster,
    name: Option<&v1::EntryName>,
) -> Result<Binding, ServiceError> {
    let reference = read_name(cluster, name)?;
    lookup(cluster, &reference)
        .await?
        .ok_or_else(|| ServiceError::not_found(Resource::Entry, reference.to_string()))
}

/// Finds a known entry, or creates one because the origin has the object.
pub async fn find_or_make(
    cluster: &Cluster,
    name: Option<&v1::EntryName>,
) -> Result<Binding, ServiceError> {
    let reference = read_name(cluster, name)?;
    if let Some(binding) = lookup(cluster, &reference).await? {
        if binding.is_idle {
            let entry = binding.entry.id;
            cluster.writer.write(TouchEntry { entry }).await?;
        }
        return Ok(binding);
    }
    let EntryRef::Key(key) = reference else {
        return Err(ServiceError::not_found(
            Resource::Entry,
            reference.to_string(),
        ));
    };
    if cluster.source(&key.source).is_none() {
        return Err(ServiceError::not_found(Resource::Source, &key.source));
    }
    let invalidations = cluster.registry.invalidations();
    let found = probe::probe(cluster, &key).await?;
    let (Some(entry), Some(freshness)) = (found.entry, found.freshness) else {
        return Err(ServiceError::Internal("an edge found no entry".into()));
    };
    let _observing = cluster.registry.observing().await;
    // An origin's answer from before an invalidation does not count after it.
    let how = if cluster.registry.invalidations() == invalidations {
        Observation::Live
    } else {
        Observation::Replayed
    };
    observe::observe(cluster, None, entry.clone(), freshness.clone(), how).await?;
    Ok(Binding {
        entry: EntryRecord::from_proto(&entry)?,
        freshness: Some(freshness),
        is_idle: false,
    })
}

async fn lookup(cluster: &Cluster, reference: &EntryRef) -> Result<Option<Binding>, ServiceError> {
    match reference {
        EntryRef::Id(id) => Ok(cluster.database.binding_of_entry(*id).await?),
        EntryRef::Key(key) => loop {
            let seen = cluster.resolver.ended(key);
            // Among several variants, take the one that was confirmed last.
            let mut bindings = cluster
                .database
                .bindings_of_path(&key.source, &key.path, &key.query)
                .await?;
            if !bindings.is_empty() {
                return Ok(Some(bindings.swap_remove(0)));
            }
            // A viewer may have its answer from an edge that is about to report the entry.
            if !wait_while_asked(cluster, key, seen).await? {
                return Ok(None);
            }
        },
    }
}

/// The URL to play, on the best edge.
pub async fn open(
    cluster: &Cluster,
    request: v1::OpenEntryRequest,
) -> Result<v1::OpenEntryResponse, ServiceError> {
    cluster.require_leader()?;
    let binding = find_or_make(cluster, request.entry.as_ref()).await?;
    let entry = binding.entry;
    let holdings = cluster.database.holdings(entry.id).await?;
    let (live, held) = best_edge(cluster, &entry, &holdings, request.position)?;
    let key = entry.key();
    let query = if key.query.is_empty() {
        String::new()
    } else {
        format!("?{}", key.query)
    };
    Ok(v1::OpenEntryResponse {
        play_url: format!("{}/{}/{}{query}", live.url, key.source, key.path),
        entry_url: format!("{}/v1/entries/{}", live.url, entry.id),
        edge: live.name.clone(),
        reason: if held > 0 {
            format!("holds {held} chunks near the position")
        } else {
            "holds nothing of it, as every edge that takes readers; chosen by load and by hash"
                .into()
        },
        entry: Some(entry.to_proto()),
    })
}

/// The best edge and the number of chunks that it holds near the position: alive, not draining,
/// holding most chunks there, least loaded.
pub fn best_edge(
    cluster: &Cluster,
    entry: &EntryRecord,
    holdings: &[Holding],
    position: u64,
) -> Result<(std::sync::Arc<EdgeSession>, u64), ServiceError> {
    let near = ByteRange::new(position, position.saturating_add(NEAR_BYTES));
    let held: HashMap<EdgeId, u64> = holdings
        .iter()
        .map(|holding| {
            let runs = holding.ranges.iter().map(|range| range.intersect(near));
            let chunks = runs
                .map(|run| entry.geometry.chunks_covering(run).len() as u64)
                .sum();
            (edge_id(holding.edge_id), chunks)
        })
        .collect();
    let live = cluster.registry.all();
    let candidates: Vec<Candidate> = live
        .iter()
        .map(|live| Candidate {
            edge: live.edge,
            alive: true,
            draining: live.draining.load(std::sync::atomic::Ordering::Relaxed),
            chunks_held: held.get(&live.edge).copied().unwrap_or(0),
            readers: live.status.lock().readers,
        })
        .collect();
    let chosen = choose_edge(hash_of(entry.id), &candidates);
    live.into_iter()
        .find(|live| Some(live.edge) == chosen)
        .map(|live| {
            let chunks = held.get(&live.edge).copied().unwrap_or(0);
            (live, chunks)
        })
        .ok_or_else(|| ServiceError::NoEdge("no edge is in session that takes readers".into()))
}

/// A stable 64-bit hash of an entry; its id is a hash already.
fn hash_of(id: EntryId) -> u64 {
    id.as_u64_pair().0
}

/// One entry with the parts that each edge holds.
pub async fn get(
    cluster: &Cluster,
    request: v1::GetEntryRequest,
) -> Result<v1::GetEntryResponse, ServiceError> {
    let binding = find(cluster, request.entry.as_ref()).await?;
    let holdings = cluster.database.holdings(binding.entry.id).await?;
    Ok(v1::GetEntryResponse {
        entry: Some(detail(&binding.entry, binding.freshness, &holdings)),
    })
}

/// A page of entries.
pub async fn list(
    cluster: &Cluster,
    request: v1::ListEntriesRequest,
) -> Result<v1::ListEntriesResponse, ServiceError> {
    let page_size = match request.page_size {
        0 => DEFAULT_PAGE,
        size if size <= MAX_PAGE => size,
        _ => {
            let description = format!("expected 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}");
            return Err(ServiceError::Invalid(vec![FieldViolation::new(
                "page_size",
                description,
            )]));
        }
    };
    let after = EntryCursor::decode(&request.page_token)?;
    // One entry more than the page shows whether there is a next page.
    let mut entries = cluster
        .database
        .entries(&request.source, &after, page_size + 1)
        .await?;
    let mut has_more = entries.len() > page_size as usize;
    entries.truncate(page_size as usize);
    let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id).collect();
    let mut holdings = cluster.database.holdings_of(&ids).await?;
    let (mut page, mut bytes) = (Vec::with_capacity(entries.len()), 0);
    for entry in &entries {
        let held = holdings.remove(&entry.id).unwrap_or_default();
        let detail = detail(entry, None, &held);
        bytes += detail.encoded_len();
        if bytes > MAX_PAGE_BYTES && !page.is_empty() {
            has_more = true;
            break;
        }
        page.push(detail);
    }
    let last = page.len().checked_sub(1).and_then(|last| entries.get(last));
    Ok(v1::ListEntriesResponse {
        next_page_token: last
            .filter(|_| has_more)
            .map(|last| last.cursor().encode())
            .unwrap_or_default(),
        entries: page,
    })
}

fn detail(
    entry: &EntryRecord,
    freshness: Option<v1::Freshness>,
    holdings: &[Holding],
) -> v1::EntryDetail {
    let everywhere = ranges::joined(holdings.iter().flat_map(|h| h.ranges.clone()).collect());
    let held: u64 = everywhere.iter().map(|range| range.len()).sum();
    v1::EntryDetail {
        entry: Some(entry.to_proto()),
        freshness,
        complete: held == entry.geometry.size(),
        edges: holdings.iter().map(Holding::to_proto).collect(),
    }
}

/// Used for `GET /v1/entries/{id}` at an edge.
pub async fn lookup_by_id(
    cluster: &Cluster,
    request: v1::LookupEntryRequest,
) -> Result<v1::LookupEntryResponse, ServiceError> {
    let id: EntryId = request
        .id
        .parse()
        .map_err(|_| ServiceError::invalid("id", "expected a UUID"))?;
    let binding = cluster.database.known_entry(id).await?;
    Ok(v1::LookupEntryResponse {
        binding: Some(stamped(binding.to_proto())),
    })
}
