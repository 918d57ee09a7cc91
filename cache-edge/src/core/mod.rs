//! Pure functions and state machines over plain values: decisions that need no waiting.
//!
//! Time and randomness are arguments. Imports std, the proto crate and data crates only: no
//! runtime, no socket, no file, no clock.

pub mod access_token;
pub mod block_aligner;
pub mod byte_rate;
pub mod cat;
pub mod consumption;
pub mod container;
pub mod fetch_queue;
pub mod hedging;
mod jwt_crypto;
pub mod link_rate;
pub mod lookahead;
pub mod manifest;
pub mod permissions;
pub mod proxy_header;
pub mod signed_url;
pub mod signed_url_keys;
pub mod trusted_proxies;
pub mod viewers;
