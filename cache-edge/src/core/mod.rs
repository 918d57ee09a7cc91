//! Pure functions and state machines over plain values: what can be decided without waiting.
//!
//! Time and randomness are arguments. Imports std, the proto crate and data crates only: no runtime,
//! no socket, no file, no clock.

pub mod backoff;
pub mod container;
pub mod content_range;
pub mod fetch_queue;
pub mod freshness;
pub mod lookahead;
