//! Fetches: decides which run next, runs them, and turns their bytes into chunks.
//!
//! The coordinator gives assignments with levels and deadlines; `downloads` queues them, runs as
//! many as there are slots, and reports. `run` is one fetch from its assignment to its end, over
//! all retries; `stream` writes one answer's body into the store, one checked block at a time.
//! Knows readers by their incoming chunks only, and origins and peers through `upstream`.

mod assignment;
pub mod direct;
pub mod downloads;
mod gap;
pub mod handle;
mod retries;
pub mod run;
mod stream;

pub use assignment::Assignment;
pub use downloads::Downloads;
