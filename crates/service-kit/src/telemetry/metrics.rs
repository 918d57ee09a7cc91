//! The metrics of `/metrics`, sent to an OpenTelemetry collector under the same names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client as client;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value,
};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use percent_encoding::percent_decode_str;
use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model as prometheus;
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};

use super::otlp::{self, Signal};
use super::{EXPORT_TIMEOUT, TelemetryError, TelemetryOptions};
use crate::metrics::MetricFamily;

/// OpenTelemetry's own default.
const INTERVAL: Duration = Duration::from_secs(60);

/// Sends the metrics of a process at an interval.
pub struct MetricSender {
    client: client::MetricsServiceClient<Channel>,
    metadata: MetadataMap,
    resource: Resource,
    interval: Duration,
    /// Since when the process counts.
    start: u64,
    is_failing: bool,
}

impl MetricSender {
    /// `None`: metrics are not sent. Requires a tokio runtime.
    pub fn new(
        service: &'static str,
        instance: &str,
        options: &TelemetryOptions,
    ) -> Result<Option<Self>, TelemetryError> {
        let Some(endpoint) = options.endpoint_if_sent(Signal::Metrics) else {
            return Ok(None);
        };
        let wrong = |error: tonic::transport::Error| TelemetryError::Endpoint(error.to_string());
        let mut channel = Endpoint::from_shared(endpoint.clone())
            .map_err(wrong)?
            .timeout(EXPORT_TIMEOUT)
            .connect_timeout(EXPORT_TIMEOUT);
        if endpoint.starts_with("https:") {
            channel = channel.tls_config(otlp::system_roots()).map_err(wrong)?;
        }
        let variable = |name| otlp::variable(name);
        let resource: ResourceAttributesWithSchema = (&otlp::resource(service, instance)).into();
        Ok(Some(Self {
            client: client::MetricsServiceClient::new(channel.connect_lazy()),
            metadata: headers(
                variable("OTEL_EXPORTER_OTLP_METRICS_HEADERS")
                    .or_else(|| variable("OTEL_EXPORTER_OTLP_HEADERS")),
            ),
            resource: Resource {
                attributes: resource.attributes.0,
                ..Resource::default()
            },
            interval: variable("OTEL_METRIC_EXPORT_INTERVAL")
                .and_then(|text| text.parse().ok())
                .filter(|milliseconds| *milliseconds > 0)
                .map_or(INTERVAL, Duration::from_millis),
            start: nanoseconds(SystemTime::now()),
            is_failing: false,
        }))
    }

    /// Sends what `read` returns at each interval, and once more at the end.
    pub async fn run<F>(mut self, stop: CancellationToken, read: impl Fn() -> F)
    where
        F: Future<Output = Vec<MetricFamily>>,
    {
        let first = tokio::time::Instant::now() + self.interval;
        let mut ticks = interval_at(first, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_last = tokio::select! {
                _ = ticks.tick() => false,
                () = stop.cancelled() => true,
            };
            let families = read().await;
            self.send(families).await;
            if is_last {
                return;
            }
        }
    }

    /// Warns at the first of several failures.
    async fn send(&mut self, families: Vec<MetricFamily>) {
        let now = nanoseconds(SystemTime::now());
        let metrics = families
            .into_iter()
            .map(|family| translate(family, self.start, now))
            .collect();
        let scope = InstrumentationScope {
            name: env!("CARGO_PKG_NAME").to_owned(),
            ..InstrumentationScope::default()
        };
        let message = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(scope),
                    metrics,
                    schema_url: String::new(),
                }],
                schema_url: String::new(),
            }],
        };
        let metadata = self.metadata.clone();
        let request = tonic::Request::from_parts(metadata, tonic::Extensions::default(), message);
        let error = match timeout(EXPORT_TIMEOUT, self.client.export(request)).await {
            Ok(Ok(_)) => {
                self.is_failing = false;
                return;
            }
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => "the collector does not answer".to_owned(),
        };
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(error, "metrics were not sent to the collector");
        }
    }
}

/// `key=value` pairs, separated by commas, with values in percent-encoding. Others are ignored, as
/// OpenTelemetry's libraries do.
fn headers(text: Option<String>) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for pair in text.as_deref().unwrap_or_default().split(',') {
        let Some((key, value)) = pair.split_once('=') else {
            continue;
        };
        let value = percent_decode_str(value.trim()).decode_utf8_lossy();
        let key = key.trim().to_ascii_lowercase();
        let parsed = (
            key.parse::<AsciiMetadataKey>(),
            value.parse::<AsciiMetadataValue>(),
        );
        if let (Ok(key), Ok(value)) = parsed {
            metadata.insert(key, value);
        }
    }
    metadata
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Times of a family's points.
#[derive(Clone, Copy)]
struct Times {
    start: u64,
    now: u64,
}

fn translate(family: MetricFamily, start: u64, now: u64) -> Metric {
    let times = Times { start, now };
    let temporality = AggregationTemporality::Cumulative.into();
    let kind = family.r#type();
    let points = family.metric.into_iter();
    let data = match kind {
        prometheus::MetricType::Histogram => Data::Histogram(Histogram {
            data_points: points.map(|metric| histogram(metric, times)).collect(),
            aggregation_temporality: temporality,
        }),
        prometheus::MetricType::Counter => Data::Sum(Sum {
            data_points: points.map(|metric| number(metric, times)).collect(),
            aggregation_temporality: temporality,
            is_monotonic: true,
        }),
        _ => Data::Gauge(Gauge {
            data_points: points.map(|metric| number(metric, times)).collect(),
        }),
    };
    Metric {
        name: family.name,
        description: family.help,
        unit: match family.unit.as_str() {
            "seconds" => "s".to_owned(),
            "bytes" => "By".to_owned(),
            other => other.to_owned(),
        },
        metadata: Vec::new(),
        data: Some(data),
    }
}

fn number(metric: prometheus::Metric, times: Times) -> NumberDataPoint {
    let counter = metric.counter.map(|it| it.value);
    let value = counter
        .or(metric.gauge.map(|it| it.value))
        .or(metric.untyped.map(|it| it.value));
    NumberDataPoint {
        attributes: attributes(metric.label),
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        value: value.map(number_data_point::Value::AsDouble),
        ..NumberDataPoint::default()
    }
}

/// Buckets of Prometheus count all that is below their bound; those of OpenTelemetry what is
/// between two, with one bucket more than there are bounds.
fn histogram(metric: prometheus::Metric, times: Times) -> HistogramDataPoint {
    let histogram = metric.histogram.unwrap_or_default();
    let (mut bounds, mut counts, mut below) = (Vec::new(), Vec::new(), 0);
    for bucket in &histogram.bucket {
        // The registry's last bucket has the greatest number as its bound.
        if bucket.upper_bound < f64::MAX {
            bounds.push(bucket.upper_bound);
            counts.push(bucket.cumulative_count - below);
            below = bucket.cumulative_count;
        }
    }
    counts.push(histogram.sample_count.saturating_sub(below));
    HistogramDataPoint {
        attributes: attributes(metric.label),
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        count: histogram.sample_count,
        sum: Some(histogram.sample_sum),
        bucket_counts: counts,
        explicit_bounds: bounds,
        ..HistogramDataPoint::default()
    }
}

fn attributes(labels: Vec<prometheus::LabelPair>) -> Vec<KeyValue> {
    let pairs = labels.into_iter().map(|label| KeyValue {
        key: label.name,
        value: Some(AnyValue {
            value: Some(Value::StringValue(label.value)),
        }),
        ..KeyValue::default()
    });
    pairs.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::registry::{Registry, Unit};

    use super::*;

    fn translated(registry: &Registry) -> Vec<Metric> {
        let families = crate::metrics::families(registry).into_iter();
        families.map(|family| translate(family, 1, 2)).collect()
    }

    #[test]
    fn numbers_keep_their_names_and_labels() {
        let mut registry = Registry::with_prefix("cache_edge");
        let sent = Family::<[(&'static str, &'static str); 1], Counter>::default();
        sent.get_or_create(&[("source", "films")]).inc_by(7);
        registry.register_with_unit("sent", "What was sent", Unit::Bytes, sent);
        let readers = Gauge::<i64>::default();
        readers.set(-3);
        registry.register("readers", "Readers", readers);

        let metrics = translated(&registry);
        let [sent, readers] = &metrics[..] else {
            panic!("{metrics:?}");
        };
        // As at /metrics.
        assert_eq!(sent.name, "cache_edge_sent_bytes_total");
        assert_eq!((sent.unit.as_str(), readers.unit.as_str()), ("By", ""));
        let Some(Data::Sum(sum)) = &sent.data else {
            panic!("{sent:?}");
        };
        assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
        let point = &sum.data_points[0];
        assert_eq!(point.value, Some(number_data_point::Value::AsDouble(7.0)));
        assert_eq!(point.attributes[0].key, "source");
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1, 2));
        let Some(Data::Gauge(gauge)) = &readers.data else {
            panic!("{readers:?}");
        };
        let value = gauge.data_points[0].value;
        assert_eq!(value, Some(number_data_point::Value::AsDouble(-3.0)));
    }

    #[test]
    fn buckets_are_between_their_bounds() {
        let mut registry = Registry::default();
        let waits = Histogram::new([1.0, 2.0, 4.0]);
        for seconds in [0.5, 1.5, 1.75, 9.0] {
            waits.observe(seconds);
        }
        registry.register("wait", "Waits", waits);
        let metrics = translated(&registry);
        let Some(Data::Histogram(histogram)) = &metrics[0].data else {
            panic!("{metrics:?}");
        };
        let point = &histogram.data_points[0];
        assert_eq!(point.explicit_bounds, [1.0, 2.0, 4.0]);
        assert_eq!(point.bucket_counts, [1, 2, 0, 1]);
        assert_eq!((point.count, point.sum), (4, Some(12.75)));
    }

    #[test]
    fn headers_are_decoded() {
        let text = "Authorization=Bearer%20a%3Db, x-tenant = one ,nonsense,=,a b=c";
        let metadata = headers(Some(text.to_owned()));
        assert_eq!(metadata.get("authorization").unwrap(), "Bearer a=b");
        assert_eq!(metadata.get("x-tenant").unwrap(), "one");
        assert_eq!(metadata.len(), 2);
    }
}
