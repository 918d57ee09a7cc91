//! The contract of the database code, on a real PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cache_coordinator::{
    db::{
        ChangeKind, Database, DatabaseConfig, DatabaseError, Digest, EdgeStatus, EntryCursor,
        EntryRecord, Health, JobStatus, JobTiming, JobWindow, Leadership, LogPage, MigrateMode,
        NoObserver, SchemaError, lease::StepDown, migrations, statements, writer::*,
    },
    events::{Event, Filter},
};
use chunkcache_proto::{ByteRange, EntryId, Level, v1};
use support::{
    CHUNK, checksum, coordinator, database, entry, leader, migrated, observe,
    postgres::{Server, client},
    proxy::{CommitFault, Proxy},
    sums,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

fn range(first_chunk: u64, end_chunk: u64) -> ByteRange {
    ByteRange::new(first_chunk * CHUNK, end_chunk * CHUNK)
}

#[path = "contract/chunks.rs"]
mod chunks_contract;
#[path = "contract/connect.rs"]
mod connect_contract;
#[path = "contract/edges.rs"]
mod edges_contract;
#[path = "contract/entries.rs"]
mod entries_contract;
#[path = "contract/fill.rs"]
mod fill_contract;
#[path = "contract/lease.rs"]
mod lease_contract;
#[path = "contract/plans.rs"]
mod plans_contract;
#[path = "contract/schema.rs"]
mod schema_contract;
#[path = "contract/watch.rs"]
mod watch_contract;
#[path = "contract/writer.rs"]
mod writer_contract;
