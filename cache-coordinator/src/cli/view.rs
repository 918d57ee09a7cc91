//! The JSON that people script against, and the words for enums. A list is an array; every object
//! has `id` or `name`; ranges are `{"start", "end"}` with `end` one past the last byte.

use chunkcache_proto::Level;
use chunkcache_proto::v1::{
    ByteRange, Edge, EdgeRanges, EdgeState, Entry, EntryDetail, Job, JobState, Priority, Source,
    SourceMode, TimeWindow,
};
use serde_json::{Value, json};

pub(super) fn source(source: &Source) -> Value {
    let freshness = source.freshness.unwrap_or_default();
    let headers: Vec<Value> = source
        .headers
        .iter()
        .map(|header| json!({"name": header.name, "value": header.value}))
        .collect();
    let connection = source.connection.clone().unwrap_or_default();
    let keys = source.key_rules.clone().unwrap_or_default();
    json!({
        "name": source.name,
        "base_url": source.base_url,
        "further_base_urls": source.further_base_urls,
        "failover_on_not_found": source.failover_on_not_found,
        "redirect_hosts": source.redirect_hosts,
        "quota_bytes": source.quota_bytes,
        "ttl_rules": source.ttl_rules,
        "key_rules": keys,
        "connection": connection,
        "s3": source.s3,
        "headers": headers,
        "mode": mode(source.mode()),
        "max_connections": source.max_connections,
        "max_rate_bytes_per_second": source.max_rate_bytes_per_second,
        "background_fill": source.background_fill,
        "default_ttl_seconds": freshness.default_ttl_seconds,
        "override_ttl_seconds": freshness.override_ttl_seconds,
        "stale_if_error_seconds": freshness.stale_if_error_seconds,
        "negative_ttl_seconds": freshness.negative_ttl_seconds,
        "forward_credentials": source.forward_credentials,
        "forward_headers": source.forward_headers,
        "revision": source.revision,
    })
}

/// An entry, without the edges that hold it.
pub(super) fn entry(entry: &Entry) -> Value {
    let key = entry.key.clone().unwrap_or_default();
    json!({
        "id": entry.id,
        "source": key.source,
        "path": key.path,
        "query": key.query,
        "variant": key.variant,
        "size": entry.size,
        "etag": entry.etag,
        "last_modified": entry.last_modified,
        "content_type": entry.content_type,
        "validator": entry.validator,
        "chunk_size": entry.chunk_size,
        "pinned": entry.pinned,
        "created_at_ms": entry.created_at_ms,
    })
}

pub(super) fn entry_detail(detail: &EntryDetail) -> Value {
    let mut object = entry(&detail.entry.clone().unwrap_or_default());
    object["complete"] = json!(detail.complete);
    object["freshness"] = detail.freshness.as_ref().map_or(Value::Null, |freshness| {
        json!({
            "validated_at_ms": freshness.validated_at_ms,
            "fresh_until_ms": freshness.fresh_until_ms,
            "cache_control": freshness.cache_control,
            "vary": freshness.vary,
        })
    });
    object["edges"] = detail.edges.iter().map(edge_ranges).collect();
    object
}

pub(super) fn edge_ranges(held: &EdgeRanges) -> Value {
    json!({
        "name": held.edge,
        "url": held.url,
        "state": edge_state(held.state()),
        "bytes": held.bytes,
        "ranges": ranges(&held.ranges),
    })
}

pub(super) fn ranges(ranges: &[ByteRange]) -> Value {
    ranges
        .iter()
        .map(|range| json!({"start": range.start, "end": range.end}))
        .collect()
}

pub(super) fn job(job: &Job) -> Value {
    let entry = job.entry.clone().unwrap_or_default();
    let key = entry.key.unwrap_or_default();
    json!({
        "id": job.id,
        "entry_id": entry.id,
        "source": key.source,
        "path": key.path,
        "ranges": ranges(&job.ranges),
        "edges": job.edges,
        "state": job_state(job.state()),
        "priority": priority(job.priority()),
        "bytes_done": job.bytes_done,
        "bytes_total": job.bytes_total,
        "rate": job.rate_bytes_per_second,
        "eta_seconds": job.eta_seconds,
        "error": job.error,
        "waiting": job.waiting,
        "window": job.window.as_ref().map(window),
        "max_rate": job.max_rate_bytes_per_second,
        "resumes_at_ms": job.resumes_at_ms,
        "created_at_ms": job.created_at_ms,
    })
}

fn window(window: &TimeWindow) -> Value {
    json!({
        "start": window.start,
        "end": window.end,
        "time_zone": window.zone_name(),
    })
}

pub(super) fn edge(edge: &Edge) -> Value {
    json!({
        "name": edge.name,
        "state": edge_state(edge.state()),
        "url": edge.url,
        "bytes_used": edge.bytes_used,
        "bytes_allowed": edge.bytes_allowed,
        "chunks": edge.chunks,
        "readers": edge.readers,
        "requests_active": edge.requests_active,
        "chunks_to_hand_over": edge.chunks_to_hand_over,
        "epoch": edge.epoch,
        "last_seen_ms": edge.last_seen_ms,
        "store_id": edge.store_id,
    })
}

pub(super) fn mode(mode: SourceMode) -> &'static str {
    match mode {
        // Unset means the default.
        SourceMode::Unspecified | SourceMode::Serve => "serve",
        SourceMode::Passthrough => "passthrough",
        SourceMode::Record => "record",
    }
}

pub(super) fn edge_state(state: EdgeState) -> &'static str {
    match state {
        EdgeState::Unspecified => "unknown",
        EdgeState::Active => "active",
        EdgeState::Draining => "draining",
        EdgeState::Suspect => "suspect",
        EdgeState::Lost => "lost",
    }
}

pub(super) fn job_state(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unknown",
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Cancelled => "cancelled",
        JobState::Failed => "failed",
    }
}

pub(super) fn priority(priority: Priority) -> &'static str {
    Level::try_from(priority).map_or("unset", Level::label)
}
