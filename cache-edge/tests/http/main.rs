//! The HTTP server over real sockets, against objects in a real store in a temporary directory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod client;
mod connection_cache;
mod connections;
mod hits;
mod http2_and_tls;
mod objects;
mod scrubbing;
mod semantics;
mod split_heads;
