//! CacheService and EdgeService: translation and error mapping only.
//!
//! No decision is made here: each method passes its message to one use case of `service/`. `status`
//! is the one place that turns an error into a gRPC status.

mod cache_service;
mod edge_service;
mod guard;
mod health;
pub mod server;
pub mod status;

pub use cache_service::CacheApi;
pub use edge_service::EdgeApi;
