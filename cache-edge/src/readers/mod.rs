//! Claim, wait, wake: which bytes are here, which are coming, and who waits for them.
//!
//! A byte is in the store (pinned while it is read), or in flight (written, its chunk not yet
//! whole), or it is waited for. A waiter subscribes first, then looks, then waits: a wake is a
//! hint, the state is the truth. What is waited for is told as demand; who fetches it is not
//! decided here. May not know HTTP, the session, or where bytes come from.

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
