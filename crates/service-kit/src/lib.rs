//! Code that both binaries need and neither owns: configuration, telemetry, metrics, TLS, health,
//! shutdown, and one back-off, clock and token bucket.
//!
//! Must not know chunks, entries, SQL or the protocol.

pub mod backoff;
pub mod causes;
pub mod clock;
pub mod config;
pub mod health;
pub mod metrics;
pub mod open_files;
pub mod route;
pub mod shell;
pub mod shutdown;
pub mod systemd;
pub mod telemetry;
pub mod text_file;
pub mod tls;
pub mod token_bucket;
