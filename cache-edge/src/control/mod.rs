//! The session with the coordinator: inventory, outbox, assignments; and this edge's own planning
//! while there is none.
//!
//! Readers of cached bytes never wait for anything here. Every queue is bounded, and a queue that
//! overflows ends the session: the inventory of the next one reports all that was lost with it.
//! Must not know HTTP.

pub mod channel;
pub mod leases;
pub mod link;
pub mod maintenance;
pub mod notes;
pub mod planner;
pub mod session;

pub use link::Link;
pub use session::Session;
