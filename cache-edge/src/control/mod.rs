//! The session with the coordinator: inventory, outbox, assignments; and this edge's own planning
//! while there is none.
//!
//! Never in the way: nothing here is waited for by a reader of cached bytes, and what waits to be
//! said is bounded by what is on the disk and by what is being fetched (docs/rfcs/0008). May not
//! know HTTP.

pub mod channel;
mod directory;
pub mod leases;
pub mod link;
pub mod maintenance;
pub mod notes;
pub mod outgoing;
pub mod planner;
pub mod session;
mod source_statuses;

pub use link::Link;
pub use session::Session;
