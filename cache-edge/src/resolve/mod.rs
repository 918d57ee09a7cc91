//! Joins the ports: from a request to an object and a reader over its bytes.
//!
//! A key is answered from its binding while that is fresh; the coordinator is asked for one that is
//! not known, the origin last. Only registered sources are ever asked. May not know hyper, the disk
//! layout or the session's messages.

mod ailing;
mod asked_by_cluster;
pub mod bindings;
pub mod compare;
pub mod directory;
pub mod objects;
pub mod pass_through;
mod patience;
pub mod peer_handler;
pub mod ports;
pub mod probe;
mod resume;
pub mod revalidate;
mod short_memory;
mod singleflight;
mod unknown_key;
mod whole;
mod whole_answer;

pub use bindings::{Bindings, Bound};
pub use directory::{Directory, NoDirectory};
pub use objects::{EdgeObjects, Parts};
