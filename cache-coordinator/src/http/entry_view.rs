//! One entry for the dashboard: the chunks that each edge holds, running fetches by level, and the
//! viewers' positions.

use std::collections::HashMap;

use chunkcache_proto::{EntryId, Geometry, v1};
use serde_json::{Value, json};

use crate::{
    service::{Cluster, entries, error::ServiceError},
    sessions::{plan::Plan, translate},
};
use scheduler::{
    RunningFetch,
    api::{EdgeId, FetchSource},
};

/// The entry as JSON, for `dashboard/app.js`.
pub async fn entry(cluster: &Cluster, id: EntryId) -> Result<Value, ServiceError> {
    render(cluster, id, &RecordedDetail::read(cluster, id).await?).await
}

/// One entry for a long-lived view: the table is read again only after a change, running fetches
/// each time.
pub struct EntryView {
    id: EntryId,
    held: Option<(Option<u64>, RecordedDetail)>,
}

impl EntryView {
    #[must_use]
    pub fn new(id: EntryId) -> Self {
        Self { id, held: None }
    }

    /// Like [`entry`].
    pub async fn picture(&mut self, cluster: &Cluster) -> Result<Value, ServiceError> {
        // Read first, so that changes during the read of the table are read again the next time.
        let latest = cluster.database.latest_revision_of(self.id).await?;
        let held = match self.held.take() {
            Some((revision, held)) if revision == latest => held,
            _ => RecordedDetail::read(cluster, self.id).await?,
        };
        let (_, held) = self.held.insert((latest, held));
        render(cluster, self.id, held).await
    }
}

/// The table's content.
struct RecordedDetail(v1::EntryDetail);

impl RecordedDetail {
    async fn read(cluster: &Cluster, id: EntryId) -> Result<Self, ServiceError> {
        let name = v1::EntryName {
            name: Some(v1::entry_name::Name::Id(id.to_string())),
        };
        let request = v1::GetEntryRequest { entry: Some(name) };
        let found = entries::get(cluster, request).await?;
        Ok(Self(found.entry.unwrap_or_default()))
    }
}

async fn render(
    cluster: &Cluster,
    id: EntryId,
    held: &RecordedDetail,
) -> Result<Value, ServiceError> {
    let found = &held.0;
    let entry = found.entry.clone().unwrap_or_default();
    let geometry = Geometry::new(entry.size, entry.chunk_size)
        .map_err(|error| ServiceError::invalid("entry", error.to_string()))?;
    let flights = cluster.plan.ask(move |plan| flights(plan, id)).await?;
    let edges: Vec<Value> = found
        .edges
        .iter()
        .map(|held| {
            json!({
                "edge": held.edge, "bytes": held.bytes,
                "runs": held.ranges.iter().map(|r| run(geometry, r)).collect::<Vec<_>>(),
            })
        })
        .collect();
    let key = entry.key.unwrap_or_default();
    Ok(json!({
        "id": entry.id, "source": key.source, "path": path(&key.path, &key.query),
        "size": entry.size, "chunk_size": entry.chunk_size,
        "chunk_count": geometry.chunk_count(), "validator": entry.validator, "pinned": entry.pinned,
        "complete": found.complete,
        "edges": with_all_edges(edges, &flights, cluster), "flights": flights,
        "viewers": viewers(cluster, &entry.id),
    }))
}

/// A page of entries, from the newest state of the table.
pub async fn entries(
    cluster: &Cluster,
    source: String,
    after: String,
) -> Result<Value, ServiceError> {
    let page = entries::list(
        cluster,
        v1::ListEntriesRequest {
            source,
            page_size: 100,
            page_token: after,
        },
    )
    .await?;
    let rows: Vec<Value> = page
        .entries
        .iter()
        .map(|detail| {
            let entry = detail.entry.clone().unwrap_or_default();
            let key = entry.key.unwrap_or_default();
            json!({
                "id": entry.id, "source": key.source, "path": path(&key.path, &key.query),
                "size": entry.size, "complete": detail.complete, "pinned": entry.pinned,
                "edges": detail.edges.iter()
                    .map(|e| json!({ "edge": e.edge, "bytes": e.bytes })).collect::<Vec<_>>(),
            })
        })
        .collect();
    Ok(json!({ "entries": rows, "next": page.next_page_token }))
}

fn path(path: &str, query: &str) -> String {
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    }
}

/// First chunk and one past the last. Rows are whole chunks, so nothing is lost.
fn run(geometry: Geometry, range: &v1::ByteRange) -> (u32, u32) {
    let chunks = geometry.chunks_covering((*range).into());
    (chunks.start, chunks.end)
}

fn flights(plan: &Plan, id: EntryId) -> Vec<Value> {
    let Some(number) = plan.directory().entry_number(id) else {
        return Vec::new();
    };
    let flights = plan.scheduler().fetches_of(number);
    flights
        .map(|(edge, flight)| rendered(plan, edge, flight))
        .collect()
}

/// The running fetches of the whole cluster with their reasons, the most urgent first, at most
/// `limit`.
pub fn all_flights(plan: &Plan, limit: usize) -> Vec<Value> {
    let mut flights: Vec<_> = plan.scheduler().fetches().collect();
    flights.sort_by_key(|(_, flight)| flight.level as u8);
    flights.truncate(limit);
    let told = flights.into_iter().filter_map(|(edge, flight)| {
        let entry = &plan.directory().entry(flight.entry)?.entry;
        let key = entry.key.clone().unwrap_or_default();
        let mut told = rendered(plan, edge, flight);
        told["entry"] = json!(entry.id);
        told["object"] = json!(format!("{}/{}", key.source, key.path));
        Some(told)
    });
    told.collect()
}

fn rendered(plan: &Plan, edge: EdgeId, flight: &RunningFetch) -> Value {
    let name = |edge| {
        plan.directory()
            .edge(edge)
            .map(|e| e.name.clone())
            .unwrap_or_default()
    };
    let from = match flight.from {
        FetchSource::Origin => "origin".to_owned(),
        FetchSource::Peer(peer) => name(peer),
    };
    json!({
        "edge": name(edge), "first": flight.chunks.start,
        "count": flight.chunks.end - flight.chunks.start,
        "level": flight.level as u8 + 1, "from": from,
        "reason": translate::reason(plan.scheduler().reason_of(edge, flight)),
        "bytes_done": flight.bytes_done,
    })
}

fn viewers(cluster: &Cluster, id: &str) -> Vec<Value> {
    let mut viewers = Vec::new();
    for session in cluster.registry.all() {
        let status = session.status.lock();
        let here = status.viewers.iter().filter(|v| v.entry_id == id);
        for viewer in one_of_each_viewer(here) {
            let name = (viewer.viewer > 0).then(|| format!("{:x}", viewer.viewer));
            viewers.push(json!({
                "edge": session.name, "viewer": name, "reader": viewer.reader_id,
                "position": viewer.position,
                "waiting": viewer.waiting,
                "rate": viewer.rate_bytes_per_second, "buffered": viewer.buffered_bytes,
                "paused": viewer.paused,
            }));
        }
    }
    viewers
}

/// One reader of each viewer, which shows its position: the newest that is not paused.
fn one_of_each_viewer<'a>(
    readers: impl Iterator<Item = &'a v1::ReaderDemand>,
) -> Vec<&'a v1::ReaderDemand> {
    let mut shown = Vec::new();
    let mut by_viewer: HashMap<u64, &v1::ReaderDemand> = HashMap::new();
    let rank = |reader: &v1::ReaderDemand| (!reader.paused, reader.reader_id);
    for reader in readers {
        if reader.viewer == 0 {
            shown.push(reader);
            continue;
        }
        let best = by_viewer.entry(reader.viewer).or_insert(reader);
        if rank(best) < rank(reader) {
            *best = reader;
        }
    }
    shown.extend(by_viewer.into_values());
    shown
}

/// Adds edges that hold nothing yet but are fetching their first chunk: they get a strip too.
fn with_all_edges(mut edges: Vec<Value>, flights: &[Value], cluster: &Cluster) -> Vec<Value> {
    for session in cluster.registry.all() {
        let is_listed = edges.iter().any(|e| e["edge"] == session.name.as_str());
        if !is_listed && flights.iter().any(|f| f["edge"] == session.name.as_str()) {
            edges.push(json!({ "edge": session.name, "bytes": 0, "runs": [] }));
        }
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_viewer_is_shown_where_it_reads_now() {
        let reader = |viewer, reader_id, paused| v1::ReaderDemand {
            viewer,
            reader_id,
            paused,
            ..v1::ReaderDemand::default()
        };
        let readers = [
            reader(0, 1, false),
            reader(0, 2, true),
            reader(7, 3, true),
            reader(7, 4, false),
            reader(7, 5, false),
            reader(7, 6, true),
            reader(8, 7, true),
        ];
        let shown = one_of_each_viewer(readers.iter());
        let mut shown: Vec<_> = shown.iter().map(|it| it.reader_id).collect();
        shown.sort_unstable();
        assert_eq!(shown, [1, 2, 5, 7]);
    }
}
