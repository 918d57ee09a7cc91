//! Metrics as text, and what both services measure alike.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Seconds, for what a person or a player waits for: 0.5 ms to 65 s, each twice the one before.
pub const LATENCY_SECONDS: [f64; 18] = [
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048,
    4.096, 8.192, 16.384, 32.768, 65.536,
];

/// Seconds, for what should not be felt: 10 µs to 1.3 s, each four times the one before. For
/// statements, syncs and queue passes.
pub const INTERNAL_SECONDS: [f64; 10] = [
    0.000_01, 0.000_04, 0.000_16, 0.000_64, 0.002_56, 0.010_24, 0.040_96, 0.163_84, 0.655_36,
    2.621_44,
];

/// Bytes: 4 KiB to 4 GiB, each four times the one before.
pub const SIZE_BYTES: [f64; 11] = [
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
    4_294_967_296.0,
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

/// Adds `NAME_build_info{version="…"} 1`. A gauge and not the OpenMetrics type `info`, which readers
/// of the older Prometheus text refuse.
pub fn register_build_info(registry: &mut Registry, version: &str) {
    let family = Family::<BuildLabels, Gauge>::default();
    family
        .get_or_create(&BuildLabels {
            version: version.to_owned(),
        })
        .set(1);
    registry.register("build_info", "The version that runs, always 1", family);
}

/// Encodes all metrics. The text reads as OpenMetrics and as the older Prometheus format; `accept` is
/// the request's header and decides which of the two it is announced as.
pub fn encode(registry: &Registry, accept: Option<&str>) -> Result<Exposition, std::fmt::Error> {
    let mut body = String::with_capacity(16 * 1024);
    prometheus_client::encoding::text::encode(&mut body, registry)?;
    let wants_open_metrics =
        accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
    let content_type = if wants_open_metrics {
        OPEN_METRICS
    } else {
        PROMETHEUS
    };
    Ok(Exposition { content_type, body })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_text_ends_as_open_metrics_wants() {
        let mut registry = Registry::with_prefix("cache_edge");
        register_build_info(&mut registry, "1.2.3");
        let plain = encode(&registry, None).unwrap();
        assert!(plain.content_type.starts_with("text/plain; version=0.0.4"));
        assert!(
            plain
                .body
                .contains("cache_edge_build_info{version=\"1.2.3\"} 1\n"),
            "{}",
            plain.body
        );
        assert!(plain.body.ends_with("# EOF\n"));
        let open = encode(
            &registry,
            Some("application/openmetrics-text;q=1,*/*;q=0.1"),
        )
        .unwrap();
        assert!(
            open.content_type
                .starts_with("application/openmetrics-text")
        );
    }

    #[test]
    fn buckets_rise() {
        assert!(
            LATENCY_SECONDS.is_sorted() && INTERNAL_SECONDS.is_sorted() && SIZE_BYTES.is_sorted()
        );
    }
}
