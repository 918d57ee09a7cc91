//! What both binaries need and neither owns: configuration, telemetry, metrics, TLS, shutdown.
//!
//! Knows nothing of chunks, entries, SQL or the protocol.

pub mod config;
pub mod metrics;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
