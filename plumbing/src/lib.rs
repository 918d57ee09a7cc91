//! What both binaries need and neither owns: configuration, telemetry, TLS, shutdown.

pub mod config;
