//! Logs, traces and metrics: one subscriber per process, W3C trace context in and out, OTLP if
//! configured.
//!
//! The OpenTelemetry layer is always installed, so that a caller's `traceparent` is passed on even
//! if nothing is exported. Logs go to standard error: standard output belongs to commands.

mod lines;
mod logs;
mod metrics;
mod otlp;
mod propagation;

use std::io::IsTerminal as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use prometheus_client::metrics::counter::Counter;
use tokio::task::spawn_blocking;
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::{Filter, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::{parse_ratio, parse_url};

use lines::LogLines;

pub use logs::{LogRecord, LogSender};
pub use metrics::MetricSender;
pub use opentelemetry::logs::AnyValue;
pub use opentelemetry::trace::SpanContext;
pub use otlp::Signal;
pub use propagation::{
    inject, inject_metadata, parse_traceparent, set_parent, set_parent_from_metadata, span_context,
    trace_id,
};

/// Longest time one export to the collector may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Libraries that log, below this level, bytes they send or receive or bind to a statement
/// (headers, tokens, queries). No filter can enable that.
const WORDY: [&str; 8] = [
    "h2",
    "hyper",
    "hyper_util",
    "rustls",
    "tokio_postgres",
    "tonic",
    "tower",
    "opentelemetry",
];

/// Whether spans are exported.
static EXPORTS: AtomicBool = AtomicBool::new(false);

/// Whether a request without a caller's trace may begin one worth its cost.
pub fn exports() -> bool {
    EXPORTS.load(Ordering::Relaxed)
}

/// Number of log lines that were not written: standard error did not take them in time.
pub fn dropped_log_lines() -> Counter {
    static DROPPED: OnceLock<Counter> = OnceLock::new();
    DROPPED.get_or_init(Counter::default).clone()
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("export to the OpenTelemetry collector can not be set up: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("OpenTelemetry collector can not be used: {0}")]
    Endpoint(String),
    #[error("log filter is not right: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("the thread that writes log lines can not be started: {0}")]
    Thread(#[from] std::io::Error),
    #[error("telemetry is set up already")]
    AlreadySet(#[from] tracing_subscriber::util::TryInitError),
}

/// The telemetry options of both binaries.
#[derive(Clone, Debug, PartialEq, clap::Args)]
pub struct TelemetryOptions {
    /// How log lines look
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "human")]
    pub log_format: LogFormat,
    /// Log level: error, warn, info, debug, trace, or a filter such as info,cache_edge=debug
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = parse_filter)]
    pub log_level: String,
    /// OpenTelemetry collector that --otlp-signals are sent to, over gRPC, as
    /// OTEL_EXPORTER_OTLP_ENDPOINT says it [default: none: nothing is sent]
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    pub otlp_endpoint: Option<url::Url>,
    /// Signals to send: traces, the metrics of /metrics, the process's log lines; as
    /// OTEL_TRACES_EXPORTER, OTEL_METRICS_EXPORTER and OTEL_LOGS_EXPORTER say it
    /// [default: traces]
    #[arg(long, value_name = "SIGNAL", value_enum, value_delimiter = ',')]
    pub otlp_signals: Vec<Signal>,
    /// Part of new traces that is recorded, 0 to 1; a caller's own decision is kept
    #[arg(long, value_name = "RATIO", default_value = "0.01", value_parser = parse_ratio)]
    pub trace_sample_ratio: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Human,
    Json,
}

/// Held by `main`; [`Telemetry::shutdown`] sends what is not exported yet.
pub struct Telemetry {
    traces: SdkTracerProvider,
    logs: Option<SdkLoggerProvider>,
    lines: LogLines,
}

impl Telemetry {
    /// Exports and writes the rest, within a few seconds. The process is ending: errors are logged
    /// only.
    pub async fn shutdown(self) {
        let lines = self.lines;
        let (traces, logs) = (self.traces, self.logs);
        // Both at once: a silent collector takes each its whole time.
        let stops = [
            spawn_blocking(move || traces.shutdown_with_timeout(EXPORT_TIMEOUT)),
            spawn_blocking(move || {
                logs.map_or(Ok(()), |it| it.shutdown_with_timeout(EXPORT_TIMEOUT))
            }),
        ];
        for stop in stops {
            match stop.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the last traces or logs were not sent"),
                Err(error) => tracing::warn!(%error, "the last traces or logs were not sent"),
            }
        }
        // Fails only if it panics.
        let _ = spawn_blocking(move || lines.close()).await;
    }
}

/// Sets up logs and traces for the process. Requires a tokio runtime: the exporter needs one.
pub fn init(
    service: &'static str,
    instance: &str,
    options: &TelemetryOptions,
) -> Result<Telemetry, TelemetryError> {
    let provider = tracer_provider(service, instance, options)?;
    let exported = logger_provider(service, instance, options)?;
    let lines = LogLines::start(std::io::stderr(), dropped_log_lines())?;
    let writer = lines.clone();
    let logs = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
    let logs = if options.log_format == LogFormat::Json {
        logs.json().flatten_event(true).boxed()
    } else {
        logs.with_ansi(std::io::stderr().is_terminal()).boxed()
    };
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer(service));
    // The filter applies to logs only: traces must not depend on the log level.
    let subscriber = tracing_subscriber::registry()
        .with(traces.with_filter(LevelFilter::INFO))
        .with(logs.with_filter(log_filter(options)?));
    match &exported {
        Some(provider) => {
            let bridge = OpenTelemetryTracingBridge::new(provider);
            let bridge = bridge.with_filter(log_filter(options)?);
            subscriber.with(bridge).try_init()?;
        }
        // Not a layer that may be missing: all spans and events of libraries would pass through it,
        // at every level, and cost a request tens of microseconds.
        None => subscriber.try_init()?,
    }
    let exports = options.endpoint_if_sent(Signal::Traces).is_some();
    EXPORTS.store(exports, Ordering::Relaxed);
    Ok(Telemetry {
        traces: provider,
        logs: exported,
        lines,
    })
}

fn log_filter<S: 'static>(
    options: &TelemetryOptions,
) -> Result<impl Filter<S> + 'static + use<S>, TelemetryError> {
    let filter = EnvFilter::try_new(&options.log_level)?;
    let others = filter_fn(|metadata| {
        *metadata.level() <= tracing::Level::INFO || !is_wordy(metadata.target())
    });
    // Without a level of its own it would count as one that wants everything.
    let others = others.with_max_level_hint(LevelFilter::TRACE);
    Ok(FilterExt::<S>::and(filter, others))
}

/// For the log lines of the process, if they are exported.
fn logger_provider(
    service: &'static str,
    instance: &str,
    options: &TelemetryOptions,
) -> Result<Option<SdkLoggerProvider>, TelemetryError> {
    let Some(endpoint) = options.endpoint_if_sent(Signal::Logs) else {
        return Ok(None);
    };
    let exporter = opentelemetry_otlp::LogExporter::builder().with_tonic();
    let exporter = otlp::connect(exporter, &endpoint).build()?;
    let provider = SdkLoggerProvider::builder()
        .with_resource(otlp::resource(service, instance))
        .with_batch_exporter(exporter)
        .build();
    Ok(Some(provider))
}

fn tracer_provider(
    service: &'static str,
    instance: &str,
    options: &TelemetryOptions,
) -> Result<SdkTracerProvider, TelemetryError> {
    let builder = SdkTracerProvider::builder().with_resource(otlp::resource(service, instance));
    let Some(endpoint) = options.endpoint_if_sent(Signal::Traces) else {
        // Ids are still created and passed on; only traces that a caller asked for are recorded.
        return Ok(builder
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOff)))
            .build());
    };
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic();
    let exporter = otlp::connect(exporter, &endpoint).build()?;
    let ratio = Sampler::TraceIdRatioBased(options.trace_sample_ratio);
    Ok(builder
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(ratio)))
        .build())
}

fn is_wordy(target: &str) -> bool {
    let crate_name = target.split("::").next().unwrap_or(target);
    WORDY.contains(&crate_name) || crate_name.starts_with("opentelemetry")
}

fn parse_filter(text: &str) -> Result<String, String> {
    let expected =
        "expected error, warn, info, debug, trace, or a filter such as info,cache_edge=debug";
    if text.trim().is_empty() {
        return Err(expected.to_owned());
    }
    EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| format!("{error}: {expected}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Barrier};

    use opentelemetry::InstrumentationScope;
    use opentelemetry_sdk::{
        error::OTelSdkResult,
        logs::{LogProcessor, SdkLogRecord},
        trace::SpanProcessor,
    };

    use super::*;

    #[test]
    fn filters_are_checked() {
        assert!(parse_filter("info,cache_edge=debug").is_ok());
        assert!(parse_filter("cache_edge=loud").is_err());
        assert!(parse_filter(" ").is_err());
    }

    #[test]
    fn what_prints_secrets_is_known_by_its_crate() {
        for wordy in [
            "h2::codec::framed_write",
            "tokio_postgres::query",
            "opentelemetry_sdk",
            "hyper",
        ] {
            assert!(is_wordy(wordy), "{wordy}");
        }
        for ours in ["cache_edge::http", "h2o", "hyperion::x"] {
            assert!(!is_wordy(ours), "{ours}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_absent_collector_does_not_hold_up_the_end() {
        crate::tls::install_provider();
        for endpoint in ["http://127.0.0.1:1", "https://127.0.0.1:1"] {
            let options = TelemetryOptions {
                log_format: LogFormat::Json,
                log_level: "info".to_owned(),
                otlp_endpoint: Some(endpoint.parse().unwrap()),
                otlp_signals: vec![Signal::Traces, Signal::Logs],
                trace_sample_ratio: 1.0,
            };
            let traces = tracer_provider("test", "one", &options).unwrap();
            let logs = logger_provider("test", "one", &options).unwrap();
            let lines = LogLines::start(std::io::sink(), Counter::default()).unwrap();
            let telemetry = Telemetry {
                traces,
                logs,
                lines,
            };
            telemetry.shutdown().await;
        }
    }

    /// Ends only when another one ends at the same time.
    #[derive(Debug)]
    struct Together(Arc<Barrier>);

    impl SpanProcessor for Together {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &opentelemetry::Context) {}
        fn on_end(&self, _: opentelemetry_sdk::trace::SpanData) {}
        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }
        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            self.0.wait();
            Ok(())
        }
    }

    impl LogProcessor for Together {
        fn emit(&self, _: &mut SdkLogRecord, _: &InstrumentationScope) {}
        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }
        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            self.0.wait();
            Ok(())
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_silent_collector_holds_up_the_end_once() {
        let both = Arc::new(Barrier::new(2));
        let traces = SdkTracerProvider::builder().with_span_processor(Together(both.clone()));
        let logs = SdkLoggerProvider::builder().with_log_processor(Together(both));
        let telemetry = Telemetry {
            traces: traces.build(),
            logs: Some(logs.build()),
            lines: LogLines::start(std::io::sink(), Counter::default()).unwrap(),
        };
        telemetry.shutdown().await;
    }
}
