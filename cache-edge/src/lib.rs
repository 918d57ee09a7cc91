//! An edge of the chunk cache: downloader, store, and the HTTP proxy players stream from.
//!
//! The folder tree is the architecture; see ARCHITECTURE.md for the invariant of each room.

pub mod admin;
pub mod app;
pub mod availability;
pub mod coordinator;
pub mod core;
pub mod http;
pub mod import;
pub mod options;
pub mod serve;
pub mod sign;
mod system_calls;
pub mod upstream;
pub mod worker_pool;
