//! The sources on the dashboard: the resource use and traffic of each, and its failing origins.

use serde_json::{Value, json};

use crate::service::{Cluster, source_uses};

/// Limit of sources on the page: those with the most bytes sent. The command line lists all.
const MAX_SOURCES: usize = 256;

/// The sources, ordered by bytes sent since their edges started.
pub fn sources(cluster: &Cluster) -> Value {
    let mut uses = source_uses::of_cluster(cluster);
    let mut down = source_uses::origins_down(cluster);
    let sources = cluster.sources.load();
    let mut used: Vec<_> = sources
        .iter()
        .map(|source| {
            let of = uses.remove(&source.name);
            (&source.name, of.unwrap_or_default())
        })
        .collect();
    used.sort_by_key(|(_, of)| std::cmp::Reverse(of.bytes_sent_total));
    used.truncate(MAX_SOURCES);
    let described = used.into_iter().map(|(name, of)| {
        let down: Vec<Value> = down
            .remove(name)
            .unwrap_or_default()
            .iter()
            .map(|it| {
                json!({
                    "edge": it.edge, "origin": it.health.origin, "down_ms": it.health.down_ms,
                    "error": it.health.last_error,
                })
            })
            .collect();
        json!({
            "name": name, "sent": of.bytes_sent_total, "hit": of.bytes_hit_total,
            "origin": of.bytes_origin_total, "errors": of.origin_errors_total,
            "bytes_used": of.bytes_used, "quota_bytes": of.quota_bytes, "down": down,
        })
    });
    described.collect()
}
