//! The coordinator of the chunk cache: owner of the database and of priority scheduling.
//!
//! The folder tree is the architecture; see ARCHITECTURE.md for the invariant of each folder.

pub mod access;
pub mod app;
pub mod cli;
pub mod config;
pub mod db;
pub mod events;
pub mod grpc;
pub mod http;
pub mod listen;
pub mod metrics;
pub mod service;
pub mod sessions;
