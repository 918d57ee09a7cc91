//! Pure functions and state machines over plain values. Imports std and data crates only.

pub mod chunk_table;
pub mod eviction;
pub mod interval_set;
pub mod journal_record;
