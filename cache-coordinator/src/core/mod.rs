//! Pure: scheduler, edge choice, ranges. No tokio, tonic, SQL, clock or randomness.
//!
//! Everything here is a function or a state machine over plain values; time is an argument. What
//! can be wrong in a decision is therefore found in microseconds, by thousands of seeded runs.

pub mod edge_choice;
pub mod range_set;
pub mod scheduler;
