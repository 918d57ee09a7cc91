//! CacheService and EdgeService: translation and error mapping only.
//!
//! No decision is made here: each method passes its message to one use case in `service/`. Only
//! `status` turns errors into gRPC statuses.

mod cache_service;
mod edge_service;
mod guard;
mod health;
pub mod server;
pub mod status;

pub use cache_service::CacheApi;
pub use edge_service::EdgeApi;
