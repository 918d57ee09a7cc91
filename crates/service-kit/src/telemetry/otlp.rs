//! Where the signals of OpenTelemetry are sent, and as whose.

use opentelemetry::KeyValue;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use tonic::transport::ClientTlsConfig;

use super::{EXPORT_TIMEOUT, TelemetryOptions};
use crate::config::Problems;

/// What OpenTelemetry sends separately, each with variables of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Signal {
    Traces,
    Metrics,
    Logs,
}

/// Of [`Signal`]: what says whether it is sent, and to where.
const VARIABLES: [(&str, &str); 3] = [
    ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    (
        "OTEL_METRICS_EXPORTER",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    ),
    ("OTEL_LOGS_EXPORTER", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"),
];

/// Reads an environment variable.
trait Environment: Fn(&str) -> Option<String> {}
impl<F: Fn(&str) -> Option<String>> Environment for F {}

impl TelemetryOptions {
    /// The option, or OpenTelemetry's own variables. Its library reads headers, timeouts and
    /// resource attributes from such variables.
    #[must_use]
    pub fn endpoint(&self, signal: Signal) -> Option<String> {
        self.endpoint_by(signal, &variable)
    }

    /// The same, if the process sends the signal on its own.
    pub(super) fn endpoint_if_sent(&self, signal: Signal) -> Option<String> {
        self.is_sent_by(signal, &variable)
            .then(|| self.endpoint(signal))
            .flatten()
    }

    fn endpoint_by(&self, signal: Signal, variable: &impl Environment) -> Option<String> {
        if is_disabled(variable) {
            return None;
        }
        let option = self.otlp_endpoint.as_ref().map(|url| url.to_string());
        let (_, of_signal) = VARIABLES[signal as usize];
        option
            .or_else(|| variable(of_signal))
            .or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"))
    }

    /// Metrics and logs only if they are named: a collector that takes traces may have no use for
    /// them.
    fn is_sent_by(&self, signal: Signal, variable: &impl Environment) -> bool {
        if !self.otlp_signals.is_empty() {
            return self.otlp_signals.contains(&signal);
        }
        let (exporter, endpoint) = VARIABLES[signal as usize];
        match variable(exporter) {
            Some(names) => names.split(',').any(|name| name.trim() == "otlp"),
            None => signal == Signal::Traces || variable(endpoint).is_some(),
        }
    }

    /// Whether OpenTelemetry's own variable turns every signal off.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        is_disabled(&variable)
    }

    /// Reports signals that have nowhere to go.
    pub fn check(&self, problems: &mut Problems) {
        let is_lost = |signal: &Signal| self.endpoint(*signal).is_none();
        if !self.is_disabled() && self.otlp_signals.iter().any(is_lost) {
            problems.push(
                "otlp-signals",
                "needs --otlp-endpoint, or OTEL_EXPORTER_OTLP_ENDPOINT",
            );
        }
    }
}

fn is_disabled(variable: &impl Environment) -> bool {
    variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Describes this process to the collector.
pub(super) fn resource(service: &'static str, instance: &str) -> Resource {
    Resource::builder()
        .with_service_name(service)
        // All crates of the workspace have one version.
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
        .build()
}

/// Completes the builder of an exporter.
pub(super) fn connect<B: WithExportConfig + WithTonicConfig>(builder: B, endpoint: &str) -> B {
    let builder = builder.with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT);
    if endpoint.starts_with("https:") {
        return builder.with_tls_config(system_roots());
    }
    builder
}

pub(super) fn system_roots() -> ClientTlsConfig {
    ClientTlsConfig::new().with_native_roots()
}

#[cfg(test)]
mod tests {
    use super::super::LogFormat;
    use super::*;

    fn options(endpoint: Option<&str>, signals: &[Signal]) -> TelemetryOptions {
        TelemetryOptions {
            log_format: LogFormat::Json,
            log_level: "info".to_owned(),
            otlp_endpoint: endpoint.and_then(|url| url.parse().ok()),
            otlp_signals: signals.to_vec(),
            trace_sample_ratio: 1.0,
        }
    }

    fn environment(set: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        |name| {
            let found = set.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn the_option_precedes_the_signals_variable_which_precedes_the_common_one() {
        let common = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://common:4317");
        let logs = ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:4317");
        let off = ("OTEL_SDK_DISABLED", "TRUE");
        let option = Some("http://option:4317");
        for (option, set, traces, of_logs) in [
            (None, &[][..], None, None),
            (None, &[logs][..], None, Some("http://logs:4317")),
            (
                None,
                &[common, logs][..],
                Some("http://common:4317"),
                Some("http://logs:4317"),
            ),
            (
                option,
                &[common, logs][..],
                Some("http://option:4317/"),
                Some("http://option:4317/"),
            ),
            (option, &[off][..], None, None),
        ] {
            let options = options(option, &[]);
            let of = |signal| options.endpoint_by(signal, &environment(set));
            assert_eq!(of(Signal::Traces).as_deref(), traces, "{set:?}");
            assert_eq!(of(Signal::Logs).as_deref(), of_logs, "{set:?}");
        }
    }

    #[test]
    fn metrics_and_logs_are_sent_if_they_are_named() {
        const ALL: [Signal; 3] = [Signal::Traces, Signal::Metrics, Signal::Logs];
        let metrics = ("OTEL_METRICS_EXPORTER", "otlp");
        let no_traces = ("OTEL_TRACES_EXPORTER", "none");
        let endpoint = ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:4317");
        for (signals, set, expected) in [
            (&[][..], &[][..], [true, false, false]),
            (&[], &[metrics], [true, true, false]),
            (&[], &[no_traces, metrics], [false, true, false]),
            (&[], &[endpoint], [true, false, true]),
            (&[Signal::Logs], &[no_traces, metrics], [false, false, true]),
            (&ALL, &[no_traces], [true; 3]),
        ] {
            let options = options(None, signals);
            let sent = ALL.map(|it| options.is_sent_by(it, &environment(set)));
            assert_eq!(sent, expected, "{signals:?} {set:?}");
        }
    }
}
