//! What somebody who means harm, or a fault nobody planned, can make of the system: each figure of
//! an attack, and what it has to be.
#![allow(clippy::unwrap_used)]

mod claims;
mod inventories;
mod wrong_bytes;
