//! Edge sessions: convert messages to events and effects to messages, and reconcile inventories.
//!
//! `protocol`, `command`, `directory`, `loading`, `translate`, `plan` and `reconcile` are pure;
//! `connection` and `storage` are the two lanes of a session; `actor` owns the plan; `registry`
//! knows the connected edges. Must not know SQL, HTTP, or the clients' requests to CacheService.

pub mod actor;
pub mod command;
pub mod connection;
pub mod directory;
mod hello;
mod inventory;
pub mod loading;
pub mod plan;
#[cfg(test)]
mod plan_tests;
pub mod protocol;
pub mod reconcile;
pub mod registry;
pub mod storage;
pub mod translate;
