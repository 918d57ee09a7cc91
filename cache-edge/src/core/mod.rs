//! Pure functions and state machines over plain values: what can be decided without waiting.
//!
//! Time and randomness are arguments. Imports std, the proto crate and data crates only: no runtime,
//! no socket, no file, no clock.

pub mod assembly;
pub mod backoff;
pub mod cache_status;
pub mod chunk_table;
pub mod conditional;
pub mod container;
pub mod content_range;
pub mod eviction;
pub mod fetch_queue;
pub mod freshness;
pub mod interval_set;
pub mod journal_record;
pub mod lookahead;
pub mod path;
pub mod range;
pub mod repeated_head;
pub mod signed_url;
pub mod signed_url_keys;
