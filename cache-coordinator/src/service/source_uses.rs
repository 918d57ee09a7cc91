//! The resource use and traffic of each source, as the connected edges report them.
//!
//! Totals count from the start of each edge, and are summed as they are. So they need no memory
//! here, a new leader shows the same ones, and a restarted edge removes only its own part. Rates
//! and longer periods are left to monitoring systems that scrape the edges.

use std::collections::BTreeMap;

use chunkcache_proto::v1;

use super::Cluster;

/// Number of failing origins listed for each source.
const MAX_DOWN: usize = 8;

/// The use of one source, by edge, in the order of their names.
#[must_use]
pub fn of_source(cluster: &Cluster, source: &str) -> Vec<v1::SourceUse> {
    let mut uses = Vec::new();
    for live in cluster.registry.all() {
        let status = live.status.lock();
        let of_source = status.sources.iter().find(|it| it.source == source);
        uses.extend(of_source.map(|it| on_edge(it, &live.name, status.uptime_ms)));
    }
    uses.sort_unstable_by(|one: &v1::SourceUse, other| one.edge.cmp(&other.edge));
    uses
}

/// The use of each source on all connected edges.
#[must_use]
pub fn of_cluster(cluster: &Cluster) -> BTreeMap<String, v1::SourceUse> {
    let mut sums = BTreeMap::new();
    for live in cluster.registry.all() {
        let status = live.status.lock();
        for it in &status.sources {
            add(&mut sums, it, status.uptime_ms);
        }
    }
    sums
}

/// An origin that fails at an edge.
pub struct DownOrigin {
    pub edge: String,
    pub health: v1::OriginHealth,
}

/// The failing origins of each source, the first few of each.
#[must_use]
pub fn origins_down(cluster: &Cluster) -> BTreeMap<String, Vec<DownOrigin>> {
    let mut all: BTreeMap<String, Vec<DownOrigin>> = BTreeMap::new();
    for live in cluster.registry.all() {
        let status = live.status.lock();
        for source in &status.sources {
            let down = source.origins.iter().filter(|it| it.down_ms.is_some());
            for health in down.cloned() {
                let of_source = all.entry(source.source.clone()).or_default();
                if of_source.len() < MAX_DOWN {
                    let edge = live.name.clone();
                    of_source.push(DownOrigin { edge, health });
                }
            }
        }
    }
    all
}

fn on_edge(status: &v1::SourceStatus, edge: &str, uptime_ms: u64) -> v1::SourceUse {
    v1::SourceUse {
        source: status.source.clone(),
        edge: edge.to_owned(),
        uptime_ms,
        bytes_used: status.bytes_used,
        quota_bytes: status.quota_bytes,
        bytes_sent_total: status.bytes_sent_total,
        bytes_hit_total: status.bytes_hit_total,
        bytes_origin_total: status.bytes_origin_total,
        origin_errors_total: status.origin_errors_total,
        origins: status.origins.clone(),
        origins_down: down(status),
    }
}

fn add(sums: &mut BTreeMap<String, v1::SourceUse>, status: &v1::SourceStatus, uptime_ms: u64) {
    let sum = sums
        .entry(status.source.clone())
        .or_insert_with(|| v1::SourceUse {
            source: status.source.clone(),
            uptime_ms,
            ..v1::SourceUse::default()
        });
    sum.uptime_ms = sum.uptime_ms.min(uptime_ms);
    for (total, more) in [
        (&mut sum.bytes_used, status.bytes_used),
        (&mut sum.quota_bytes, status.quota_bytes),
        (&mut sum.bytes_sent_total, status.bytes_sent_total),
        (&mut sum.bytes_hit_total, status.bytes_hit_total),
        (&mut sum.bytes_origin_total, status.bytes_origin_total),
        (&mut sum.origin_errors_total, status.origin_errors_total),
    ] {
        *total = total.saturating_add(more);
    }
    // Edges report the same origins, so take the count of the edge that reaches the fewest.
    sum.origins_down = sum.origins_down.max(down(status));
}

fn down(status: &v1::SourceStatus) -> u32 {
    let down = status.origins.iter().filter(|it| it.down_ms.is_some());
    u32::try_from(down.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_summed() {
        let origin = |down_ms| v1::OriginHealth {
            down_ms,
            ..Default::default()
        };
        let status = |hit, origins| v1::SourceStatus {
            source: "films".into(),
            bytes_used: 1,
            quota_bytes: 10,
            bytes_sent_total: 100,
            bytes_hit_total: hit,
            bytes_origin_total: u64::MAX,
            origin_errors_total: 2,
            origins,
        };
        let mut sums = BTreeMap::new();
        let one = status(90, vec![origin(Some(3)), origin(None)]);
        add(&mut sums, &one, 5_000);
        add(&mut sums, &status(50, vec![origin(None)]), 3_000);
        let sum = v1::SourceUse {
            source: "films".into(),
            uptime_ms: 3_000,
            bytes_used: 2,
            quota_bytes: 20,
            bytes_sent_total: 200,
            bytes_hit_total: 140,
            bytes_origin_total: u64::MAX,
            origin_errors_total: 4,
            origins_down: 1,
            ..Default::default()
        };
        assert_eq!(sums, BTreeMap::from([("films".to_owned(), sum)]));
    }
}
