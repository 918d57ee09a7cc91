//! The session with the coordinator: inventory, outbox, assignments; and what this edge plans
//! itself while there is none.
//!
//! Never in the way: nothing here is waited for by a reader of cached bytes, every queue is
//! bounded, and a queue that overflows ends the session, because the inventory of the next one says
//! all that was lost with it. May not know HTTP.

pub mod channel;
pub mod leases;
pub mod link;
pub mod maintenance;
pub mod notes;
pub mod planner;
pub mod session;

pub use link::Link;
pub use session::Session;
