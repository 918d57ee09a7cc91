//! The common ground of both services: the gRPC messages and services generated from
//! `chunkcache/v1/*.proto`, the geometry of chunks, and the identity and checksums of entries.
//!
//! Must not know time, I/O, SQL or HTTP.

pub mod checksum;
pub mod fetch_id;
pub mod geometry;
pub mod identity;
pub mod key;
pub mod priority;
pub mod range_set;
pub mod source_name;
pub mod space;
mod time_window;

/// Generated from `proto/chunkcache/v1`.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod v1 {
    tonic::include_proto!("chunkcache.v1");
}

/// The encoded `FileDescriptorSet` of [`v1`], for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub use fetch_id::FetchId;
pub use geometry::{ByteRange, ChunkIndex, Geometry};
pub use identity::{EntryId, EntryIdentity};
pub use priority::Level;
pub use range_set::RangeSet;
