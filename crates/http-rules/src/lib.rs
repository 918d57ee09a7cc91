//! The rules of HTTP that both services follow, as pure functions over plain values.
//!
//! Ranges, conditional requests, freshness, the normal form of paths, `Cache-Status`. No runtime, no
//! socket, no file, no clock: time is an argument.

pub mod cache_status;
pub mod conditional;
pub mod content_range;
pub mod freshness;
pub mod path;
pub mod range;
