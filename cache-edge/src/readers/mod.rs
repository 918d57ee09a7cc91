//! Claim, wait, wake: which bytes are here, which are coming, and the readers that wait for them.
//!
//! A byte is in the store (pinned while it is read), or in flight (written, its chunk not yet
//! complete), or waited for. A waiter subscribes first, then checks, then waits: a wake-up is only
//! a hint, and the state decides. Waits are reported as demand; which fetch brings the bytes is
//! decided elsewhere. Must not know HTTP, the session, or where bytes come from.

mod ahead;
pub mod announce;
pub mod demand;
pub mod incoming_chunk;
pub mod incoming_chunks;
pub mod miss_history;
mod pieces;
pub mod reader;
pub mod unread;

pub use announce::Announce;
pub use demand::{DemandRegistry, ReaderState};
pub use incoming_chunk::{IncomingChunk, IncomingError};
pub use incoming_chunks::{EntryIncoming, IncomingChunks};
pub use reader::{DirectBytes, Reader, ReaderFactory};
