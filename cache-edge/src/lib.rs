//! An edge of the chunk cache: downloader, store, and the HTTP proxy from which players stream.
//!
//! The folder tree is the architecture; see ARCHITECTURE.md for the invariant of each folder.

pub mod admin;
pub mod app;
pub mod by_source;
pub mod clock;
pub mod control;
pub mod core;
pub mod fetch;
pub mod import;
pub mod options;
pub mod readers;
pub mod resolve;
pub mod server;
pub mod sign;
mod system_calls;
pub mod upstream;
pub mod worker_pool;
