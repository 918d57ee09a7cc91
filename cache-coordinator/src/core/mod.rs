//! Pure: scheduler, edge choice, ranges. No tokio, tonic, SQL, clock or randomness.

pub mod scheduler;
