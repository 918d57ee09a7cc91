//! Pure functions and state machines over plain values. Imports std and data crates only.

pub mod cache_status;
pub mod chunk_table;
pub mod conditional;
pub mod eviction;
pub mod interval_set;
pub mod journal_record;
pub mod path;
pub mod range;
pub mod signed_url;
