//! Log records that are sent to an OpenTelemetry collector in batches of their maker.

use std::time::SystemTime;

use opentelemetry::InstrumentationScope;
use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::trace::SpanContext;
use opentelemetry_otlp::LogExporter;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::logs::{LogBatch, LogExporter as _, SdkLogRecord, SdkLogger};
use tokio::runtime::Handle;

use super::otlp::{self, Signal};
use super::{TelemetryError, TelemetryOptions};

/// One record.
#[derive(Clone, Debug)]
pub struct LogRecord {
    pub time: SystemTime,
    pub body: String,
    pub attributes: Vec<(&'static str, AnyValue)>,
    pub trace: Option<SpanContext>,
}

/// Sends records when its owner says so: queue and batches are the owner's.
pub struct LogSender {
    exporter: LogExporter,
    /// Makes empty records: they have no constructor.
    logger: SdkLogger,
    scope: InstrumentationScope,
    runtime: Handle,
}

impl LogSender {
    /// `None`: OpenTelemetry is turned off, or no endpoint is known. Requires a tokio runtime,
    /// which must outlive the sender.
    pub fn new(
        service: &'static str,
        instance: &str,
        scope: &'static str,
        options: &TelemetryOptions,
    ) -> Result<Option<Self>, TelemetryError> {
        let Some(endpoint) = options.endpoint(Signal::Logs) else {
            return Ok(None);
        };
        let builder = LogExporter::builder().with_tonic();
        let mut exporter = otlp::connect(builder, &endpoint).build()?;
        exporter.set_resource(&otlp::resource(service, instance));
        Ok(Some(Self {
            exporter,
            logger: SdkLoggerProvider::builder().build().logger(scope),
            scope: InstrumentationScope::builder(scope).build(),
            runtime: Handle::current(),
        }))
    }

    /// Blocks until the collector has taken the records, or did not within some seconds.
    pub fn send(&self, records: impl Iterator<Item = LogRecord>) -> Result<(), OTelSdkError> {
        let records: Vec<_> = records.map(|record| self.convert(record)).collect();
        let batch: Vec<_> = records.iter().map(|record| (record, &self.scope)).collect();
        self.runtime
            .block_on(self.exporter.export(LogBatch::new(&batch)))
    }

    fn convert(&self, record: LogRecord) -> SdkLogRecord {
        let mut converted = self.logger.create_log_record();
        converted.set_timestamp(record.time);
        converted.set_observed_timestamp(record.time);
        converted.set_severity_number(Severity::Info);
        converted.set_body(AnyValue::from(record.body));
        converted.add_attributes(record.attributes);
        if let Some(trace) = record.trace {
            let flags = Some(trace.trace_flags());
            converted.set_trace_context(trace.trace_id(), trace.span_id(), flags);
        }
        converted
    }
}
