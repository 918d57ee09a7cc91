//! Pure functions and state machines over plain values. Imports std and data crates only.

pub mod cache_status;
pub mod conditional;
pub mod path;
pub mod range;
pub mod signed_url;
