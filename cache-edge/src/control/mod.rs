//! The session with the coordinator: inventory, outbox, assignments; and this edge's own planning
//! without a session.
//!
//! No reader of cached bytes waits for anything here. Unsent reports are bounded by what is on the
//! disk and by what is being fetched (docs/rfcs/0008). Must not know HTTP.

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
