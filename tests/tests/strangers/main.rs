//! Attacks, and faults nobody planned: each figure of an attack, and its limit.
#![allow(clippy::unwrap_used)]

mod claims;
mod inventories;
mod one_client;
mod wrong_bytes;
