//! The base of the contract tests: a private PostgreSQL, and a coordinator's database code on its
//! own database.

// Each test binary uses a part of it.
#![allow(dead_code)]

pub mod postgres;
pub mod proxy;

use std::{sync::Arc, time::Duration};

use cache_coordinator::{
    db::{
        ChunkSum, Database, DatabaseConfig, EntryRecord, Leadership, LeaseKeeper, MigrateMode,
        NoObserver, Writer,
        lease::{LeaseTimes, StepDown},
        writer::{
            JoinEdge, JoinedEdge, Observation, ObserveEntry, PutSource, WriterConfig, WriterTask,
        },
    },
    events::ChangeLog,
};
use chunkcache_proto::{EntryId, Geometry, v1};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use postgres::Server;

/// Chunk size of the entries made here.
pub const CHUNK: u64 = 64 << 10;

/// One coordinator's database code; several may share a database.
pub struct Coordinator {
    pub database: Database,
    pub writer: Writer,
    pub log: ChangeLog,
    pub leadership: watch::Receiver<Leadership>,
    pub step_down: StepDown,
    pub holder: Uuid,
    pub cancel: CancellationToken,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

pub fn database(url: &str) -> Database {
    Database::new(&DatabaseConfig::new(url), Arc::new(NoObserver)).unwrap()
}

pub async fn migrated(url: &str) -> Database {
    let database = database(url);
    database
        .wait_ready(MigrateMode::Apply, &CancellationToken::new())
        .await
        .unwrap();
    database
}

/// Runs a coordinator's database code; does not wait for it to lead.
pub async fn coordinator(url: &str, address: &str, config: WriterConfig) -> Coordinator {
    let database = migrated(url).await;
    let (holder, cancel) = (Uuid::new_v4(), CancellationToken::new());
    let keeper = LeaseKeeper::new(
        database.clone(),
        holder,
        address.into(),
        LeaseTimes::default(),
    );
    let leadership = keeper.leadership();
    let step_down = keeper.step_down_handle();
    let (writer, task) = WriterTask::new(
        database.clone(),
        holder,
        keeper.step_down_handle(),
        config,
        Arc::new(NoObserver),
    );
    let log = ChangeLog::new(database.clone(), task.commits(), leadership.clone());
    tokio::spawn(keeper.run(cancel.clone()));
    tokio::spawn(task.run(cancel.clone()));
    Coordinator {
        database,
        writer,
        log,
        leadership,
        step_down,
        holder,
        cancel,
    }
}

/// A coordinator that leads, on a new database.
pub async fn leader() -> (Arc<Server>, String, Coordinator) {
    let server = Server::shared();
    let url = server.create_database().await;
    let coordinator = coordinator(&url, "http://one", WriterConfig::default()).await;
    coordinator.leads().await;
    (server, url, coordinator)
}

impl Coordinator {
    pub async fn leads(&self) {
        let mut leadership = self.leadership.clone();
        let wait = leadership.wait_for(|now| matches!(now, Leadership::Leader { .. }));
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap()
            .unwrap();
    }

    pub async fn source(&self, name: &str) {
        let source = v1::Source {
            name: name.into(),
            base_url: "http://origin".into(),
            ..Default::default()
        };
        self.writer.write(PutSource { source }).await.unwrap();
    }

    pub async fn entry(&self, id: u128, path: &str, chunks: u64) -> EntryRecord {
        let entry = entry(id, path, chunks);
        self.writer.write(observe(&entry, 1_000)).await.unwrap();
        entry
    }

    pub async fn edge(&self, name: &str, store: u128) -> JoinedEdge {
        let join = JoinEdge {
            name: name.into(),
            url: format!("http://{name}"),
            store_id: Uuid::from_u128(store),
            bytes_allowed: 1 << 40,
        };
        self.writer.join_edge(join).await.unwrap().value
    }
}

/// Its last chunk is ten bytes short.
pub fn entry(id: u128, path: &str, chunks: u64) -> EntryRecord {
    EntryRecord {
        id: EntryId::from_u128(id),
        source: "films".into(),
        path: path.into(),
        query: String::new(),
        variant: String::new(),
        validator: format!("\"{id}\""),
        etag: format!("\"{id}\""),
        last_modified: String::new(),
        content_type: "video/mp4".into(),
        geometry: Geometry::new(chunks * CHUNK - 10, CHUNK as u32).unwrap(),
        pinned: false,
        created_at_ms: 0,
    }
}

pub fn observe(entry: &EntryRecord, validated_at_ms: i64) -> ObserveEntry {
    let freshness = v1::Freshness {
        validated_at_ms,
        fresh_until_ms: validated_at_ms + 60_000,
        initial_age_seconds: 3,
        cache_control: "max-age=60".into(),
        vary: vec!["accept".into()],
        ..v1::Freshness::default()
    };
    ObserveEntry {
        entry: entry.clone(),
        freshness,
        observation: Observation::Live,
    }
}

pub fn sums(indexes: impl IntoIterator<Item = u32>) -> Vec<ChunkSum> {
    indexes
        .into_iter()
        .map(|index| ChunkSum {
            index,
            checksum: checksum(index),
        })
        .collect()
}

/// Uses the sign bit, as real ones do.
pub fn checksum(index: u32) -> u64 {
    (u64::from(index) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
