//! The only module with SQL.
//!
//! Reads are methods of [`Database`], each one statement (or one REPEATABLE READ transaction) from
//! `queries/`. Changes go through the only [`Writer`], which commits them in batches together with
//! the change log, under the leader's lease. This module must not know gRPC, sessions or the
//! scheduler. It knows the value types of the protos only where a table stores a whole message
//! (sources).

mod changes;
mod chunks;
pub(crate) mod connect;
mod database;
mod edges;
mod entries;
mod error;
mod executor;
mod jobs;
pub mod lease;
mod lookups;
mod migrations;
mod observer;
mod purges;
mod secrets;
mod sources;
pub mod statements;
mod status;
pub mod writer;

pub use changes::{Change, ChangeKind, LogPage};
pub use chunks::{ChunkSum, Digest, Holding, StoredChunk};
pub use database::{Database, DatabaseConfig, Health};
pub use edges::{EdgeId, EdgeRecord, EdgeStatus};
pub use entries::{Binding, EntryCursor, EntryRecord, IncompleteEntry, key_hash};
pub use error::DatabaseError;
pub use jobs::{JobRecord, JobStatus, JobTiming, JobWindow};
pub use lease::{Leadership, LeaseKeeper};
pub use migrations::{MigrateMode, Migration, SchemaError, migrations};
pub use observer::{NoObserver, StatementObserver};
pub use purges::{MAX_PURGES, PendingPurge, PurgeRecord};
pub use status::{ClusterSnapshot, EntrySnapshot, Totals};
pub use writer::{Committed, Pending, Writer};

/// Whether some row may hold these texts: PostgreSQL stores no zero byte, and refuses to look for
/// one.
fn may_exist(texts: &[&str]) -> bool {
    !texts.iter().any(|text| text.contains('\0'))
}

/// A timestamp from milliseconds since the Unix epoch, limited to what PostgreSQL can store (the
/// year 9999).
fn from_ms(ms: i64) -> std::time::SystemTime {
    const YEAR_9999: i64 = 253_402_300_799_999;
    std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms.clamp(0, YEAR_9999).unsigned_abs())
}
