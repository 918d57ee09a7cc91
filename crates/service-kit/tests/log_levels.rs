//! Which spans and events reach the subscriber, in a process of its own: there is one subscriber.
#![allow(clippy::unwrap_used)]

use service_kit::telemetry::{self, LogFormat, TelemetryOptions};
use tracing::level_filters::LevelFilter;

#[tokio::test]
async fn what_no_log_shows_costs_one_comparison() {
    let options = TelemetryOptions {
        log_format: LogFormat::Human,
        log_level: "info".to_owned(),
        otlp_endpoint: None,
        otlp_signals: Vec::new(),
        trace_sample_ratio: 0.01,
    };
    let telemetry = telemetry::init("test", "one", &options).unwrap();
    assert_eq!(LevelFilter::current(), LevelFilter::INFO);
    // The libraries begin one for each frame that they send.
    assert!(tracing::debug_span!(target: "h2", "frame").is_none());
    assert!(!tracing::info_span!("request").is_none());
    telemetry.shutdown().await;
}
