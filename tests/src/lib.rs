//! Black-box tests of the whole system: real processes, real PostgreSQL, real clients.
//!
//! This library is the harness shared by the files under `tests/`. It knows only the outside of the
//! system (flags, HTTP, the command line, SQL on the documented columns) and must not import either
//! service, so that a test that passes here shows what users get. It is plain blocking code on
//! threads: a test reads from top to bottom.
//!
//! - [`Cluster`]: PostgreSQL, a coordinator, edges and an origin, each a real process on ports of
//!   its own
//! - [`Origin`]: an HTTP/1.1 origin with content made from the offset, counters, and faults on
//!   demand
//! - [`TlsFront`]: TLS before an origin, right and wrong
//! - [`campaign`]: faults injected while readers compare every byte
//! - [`load`]: the client of the load generators of `tests/bench`
//! - [`live`]: a live ladder for the bench: its origin, and viewers that behave like hls.js
//! - [`http`]: a client that shows exactly what came over the wire
//!
//! Everything listens on 127.0.0.1, every wait has a bound, everything ends when dropped, and the
//! logs of all processes are printed when a test fails.
// A harness that panics fails the test at the faulty line, as a test should.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod authority;
pub mod browser;
pub mod bucket_server;
pub mod campaign;
pub mod cluster;
pub mod content;
pub mod http;
pub mod live;
pub mod load;
pub mod origin;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod python_tools;
pub mod services;
pub mod tls_front;
pub mod wait;

pub use cluster::{Cluster, ClusterOptions};
pub use origin::{Fault, Object, Origin};
pub use postgres::Postgres;
pub use services::{Coordinator, Edge};
pub use tls_front::{Handshake, TlsFront};
pub use wait::{eventually, heavy};

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;
pub const GIB: u64 = 1024 * MIB;
/// The coordinator's default chunk size.
pub const CHUNK: u64 = 2 * MIB;
