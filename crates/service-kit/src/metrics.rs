//! Metrics as text, and the buckets that both services use.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::prometheus_protobuf;
pub use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::MetricFamily;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::telemetry::dropped_log_lines;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Seconds, for waits of people and players: 0.5 ms to 65 s, each twice the previous one.
pub const LATENCY_SECONDS: [f64; 18] = [
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048,
    4.096, 8.192, 16.384, 32.768, 65.536,
];

/// Seconds, for internal delays such as statements, syncs and queue passes: 10 µs to 1.3 s, each
/// four times the previous one.
pub const INTERNAL_SECONDS: [f64; 10] = [
    0.000_01, 0.000_04, 0.000_16, 0.000_64, 0.002_56, 0.010_24, 0.040_96, 0.163_84, 0.655_36,
    2.621_44,
];

/// An answer to a scrape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposition {
    pub content_type: &'static str,
    pub body: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: String,
}

/// Adds `NAME_build_info{version="…"} 1`. A gauge instead of the OpenMetrics type `info`, which
/// readers of the older Prometheus text format refuse.
pub fn register_build_info(registry: &mut Registry, version: &str) {
    let family = Family::<BuildLabels, Gauge>::default();
    family
        .get_or_create(&BuildLabels {
            version: version.to_owned(),
        })
        .set(1);
    registry.register("build_info", "The version that runs, always 1", family);
}

/// Adds `NAME_log_dropped_lines_total`.
pub fn register_log_lines(registry: &mut Registry) {
    registry.register(
        "log_dropped_lines",
        "Log lines that standard error did not take in time",
        dropped_log_lines(),
    );
}

/// Encodes all metrics: as OpenMetrics if `accept`, the request's header, names it, otherwise as
/// the older Prometheus text.
pub fn encode(registry: &Registry, accept: Option<&str>) -> Result<Exposition, std::fmt::Error> {
    let mut body = String::with_capacity(16 * 1024);
    prometheus_client::encoding::text::encode(&mut body, registry)?;
    if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
        return Ok(Exposition {
            content_type: OPEN_METRICS,
            body,
        });
    }
    Ok(Exposition {
        content_type: PROMETHEUS,
        body: as_prometheus_text(&body),
    })
}

/// All metrics, by their names at `/metrics`, for export elsewhere.
#[must_use]
pub fn families(registry: &Registry) -> Vec<MetricFamily> {
    // Fails only if writing to memory fails.
    prometheus_protobuf::encode(registry).unwrap_or_default()
}

/// Converts to the older text format, which describes a counter under the name of its samples,
/// ending in `_total`. Read as that format, unconverted OpenMetrics would contain a counter without
/// samples and samples without a type. The older format has neither units nor an end mark.
fn as_prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    // A family's `HELP` precedes its `TYPE`, which has the family's name.
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap_or((typed, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some((_, words)) = help.take().filter(|(of, _)| *of == name) {
                text.extend(["# HELP ", name, suffix, " ", words, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::registry::Unit;

    use super::*;

    #[test]
    fn either_format_by_its_own_rules() {
        let mut registry = Registry::with_prefix("cache_edge");
        register_build_info(&mut registry, "1.2.3");
        let sent = Counter::<u64>::default();
        sent.inc_by(7);
        registry.register_with_unit("sent", "What was sent", Unit::Bytes, sent);
        let open = encode(
            &registry,
            Some("application/openmetrics-text;q=1,*/*;q=0.1"),
        )
        .unwrap();
        assert!(
            open.content_type
                .starts_with("application/openmetrics-text")
        );
        assert_eq!(
            open.body,
            "# HELP cache_edge_build_info The version that runs, always 1.\n\
             # TYPE cache_edge_build_info gauge\n\
             cache_edge_build_info{version=\"1.2.3\"} 1\n\
             # HELP cache_edge_sent_bytes What was sent.\n\
             # TYPE cache_edge_sent_bytes counter\n\
             # UNIT cache_edge_sent_bytes bytes\n\
             cache_edge_sent_bytes_total 7\n\
             # EOF\n"
        );
        let plain = encode(&registry, None).unwrap();
        assert!(plain.content_type.starts_with("text/plain; version=0.0.4"));
        assert_eq!(
            plain.body,
            "# HELP cache_edge_build_info The version that runs, always 1.\n\
             # TYPE cache_edge_build_info gauge\n\
             cache_edge_build_info{version=\"1.2.3\"} 1\n\
             # HELP cache_edge_sent_bytes_total What was sent.\n\
             # TYPE cache_edge_sent_bytes_total counter\n\
             cache_edge_sent_bytes_total 7\n"
        );
    }

    #[test]
    fn buckets_rise() {
        assert!(LATENCY_SECONDS.is_sorted() && INTERNAL_SECONDS.is_sorted());
    }
}
