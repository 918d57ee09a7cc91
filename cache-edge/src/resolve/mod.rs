//! Implements the ports: finds the object of a request, and opens readers over its bytes.
//!
//! A fresh binding answers at once. For an unknown key the coordinator is asked, and the origin
//! last. Only registered sources are ever asked. Must not know hyper, the disk layout or the
//! session's messages.

mod ailing;
mod asked_by_cluster;
pub mod bindings;
mod bound_map;
pub mod compare;
pub mod directory;
mod keeper;
pub mod objects;
pub mod pass_through;
mod passing;
mod patience;
pub mod peer_handler;
mod permission;
pub mod ports;
pub mod probe;
pub mod read_all;
mod resume;
pub mod revalidate;
mod short_memory;
mod singleflight;
mod title;
mod unknown_key;
mod whole;
mod whole_answer;
mod whole_store;

pub use bindings::{Bindings, Bound};
pub use directory::{Directory, NoDirectory};
pub use objects::{EdgeObjects, Parts};
