//! The chunk store: one sparse file per entry, and a journal that proves what the files contain.
//!
//! Why both: a sparse file alone does not tell a complete chunk from one that a crash cut short. A
//! chunk is *present* once all its bytes are written (readers of this process can use it), and
//! *durable* once data and journal record are synced, in groups; only then is it reported to the
//! coordinator. In reverse, the journal forgets a chunk before its hole is punched, and no reader
//! holds it by then. So after any crash the journal never claims more than the disk has.
//! `docs/rfcs/0003-store.md` has the reasons and the figures.
//! ```text
//! STORE           format and id of the store
//! LOCK            flock of the process that uses it
//! journal/N.log   a snapshot and what changed since; the newest is the truth
//! entries/ab/abcd….7.chunks sparse, as long as the object
//! spare/…                   empty files, for entries to come
//! ```
//!
//! The store must not know HTTP, gRPC, origins, or clients. Its caller decides what to keep; the
//! store proposes what to drop.

mod cachestat;
mod catalog;
pub mod chunk_table;
mod commit;
mod directory;
mod disk;
mod entry_file;
pub mod eviction;
mod health;
mod idle;
mod journal;
pub mod journal_record;
mod open_files;
mod policy;
mod preallocated;
mod reclaim;
mod removal;
mod residency;
mod scrub;
mod shared;
mod source_space;
mod space;
mod threads;
mod verify;

use std::{
    collections::HashMap,
    fs, io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use chunkcache_proto::{ChunkIndex, EntryId, Geometry, checksum::InventoryDigest, v1};
use parking_lot::Mutex;
use prost::Message;
use uuid::Uuid;

use self::{
    disk::{Disk, RealDisk},
    journal::JOURNAL_DIR,
    policy::Wanted,
    shared::{Shared, SharedConfig},
    space::Space,
    threads::Threads,
};
pub use self::{
    entry_file::{ChunkPin, EntryFile},
    open_files::StoredFile,
    source_space::{Reservation, SourceUse},
    verify::Block,
};
use crate::{chunk_table::ChunkState, journal_record::MAX_BODY_BYTES};

const ENTRIES_DIR: &str = "entries";
/// Directories of entries and preallocated files use a small part of this number.
const PLENTY_OF_INODES: u64 = 16 << 10;
const CHUNKS_SUFFIX: &str = "chunks";
/// Notes and descriptions are small; a frame has room for more.
const MAX_NOTE_BYTES: usize = MAX_BODY_BYTES / 4;

/// Options of a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    pub data_dir: PathBuf,
    /// Maximum size of all chunks; none: 90 % of the file system.
    pub max_bytes: Option<u64>,
    pub min_free: MinFree,
    /// Chunks that finish within this time share their syncs.
    pub group_sync_window: Duration,
}

/// Free space that is never used.
#[derive(Clone, Copy, Debug)]
pub enum MinFree {
    Bytes(u64),
    Percent(f64),
}

/// Settings that operators seldom change.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// The scrub checks all chunks once in this time.
    pub scrub_period: Duration,
    pub max_open_files: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            scrub_period: Duration::from_secs(24 * 3600),
            max_open_files: 512,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another process; each edge needs a data directory of its own")]
    Locked { path: PathBuf },
    #[error("{path} can not be used: {source}")]
    Unusable { path: PathBuf, source: io::Error },
    #[error("{path} was written by a newer version (format {found}, this is {known})")]
    NewerFormat {
        path: PathBuf,
        found: u32,
        known: u32,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no space: {0}")]
    NoSpace(String),
    #[error("quota: {0}")]
    OverQuota(String),
    #[error("disk: {0}")]
    Io(#[from] io::Error),
}

/// Chunks that became durable together: their bytes and their journal records are synced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    pub entry: EntryId,
    /// The chunks, with their checksums.
    pub chunks: Vec<(ChunkIndex, u64)>,
}

/// Chunks proposed for eviction; they are served until `drop_chunks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victims {
    pub entry: EntryId,
    pub chunks: Vec<ChunkIndex>,
}

/// A store; cheap to clone. It closes when its last clone is dropped.
#[derive(Clone)]
pub struct Store(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
}

/// Resources that end at `close`.
struct Running {
    /// None in tests that drive the store step by step.
    threads: Option<Threads>,
    _lock: Option<fs::File>,
}

impl Store {
    /// Locks the directory and reads the journal; nothing else is read. Blocking.
    pub fn open(options: StoreOptions) -> Result<Self, OpenError> {
        Self::open_tuned(options, Tuning::default())
    }

    pub fn open_tuned(options: StoreOptions, tuning: Tuning) -> Result<Self, OpenError> {
        let lock = directory::lock(&options.data_dir)?;
        let disk = Arc::new(RealDisk::new(options.data_dir.clone()));
        let data_dir = options.data_dir.clone();
        let shared = open_shared(disk, options, tuning)?;
        let threads = Threads::start(&shared).map_err(|source| OpenError::Unusable {
            path: data_dir,
            source,
        })?;
        let running = Running {
            threads: Some(threads),
            _lock: Some(lock),
        };
        Ok(Self(Arc::new(Handle {
            shared,
            running: Mutex::new(Some(running)),
        })))
    }

    #[must_use]
    pub fn store_id(&self) -> Uuid {
        self.shared().store_id
    }

    /// Registers the entry, or returns the registered one. The sparse file is created at its first
    /// write.
    pub fn put_entry(
        &self,
        entry: &v1::Entry,
        geometry: Geometry,
    ) -> Result<Arc<EntryFile>, StoreError> {
        let invalid = |what: &str| {
            StoreError::Io(io::Error::new(io::ErrorKind::InvalidInput, what.to_owned()))
        };
        let id: EntryId = entry
            .id
            .parse()
            .map_err(|_| invalid("the entry's id is not a UUID"))?;
        if (entry.size, entry.chunk_size) != (geometry.size(), geometry.chunk_size()) {
            return Err(invalid("the entry's geometry is not the one given"));
        }
        if entry.encoded_len() > MAX_NOTE_BYTES {
            return Err(invalid("the entry's description is too long"));
        }
        let (file, is_new) = {
            let mut catalog = self.shared().catalog.write();
            match catalog.get(&id) {
                Some(known) => (known.clone(), false),
                None => (
                    catalog.insert_new(self.shared(), entry.clone(), id, geometry),
                    true,
                ),
            }
        };
        if file.geometry() != geometry {
            return Err(invalid("the entry is known with another geometry"));
        }
        if is_new {
            // Recorded with its first chunk; forgotten if it never has one.
            self.shared().idle.put(&file);
            if entry.pinned {
                self.shared().queue.describe(file.clone());
            }
        } else if entry.pinned {
            file.set_pinned(true);
        }
        Ok(file)
    }

    #[must_use]
    pub fn entry(&self, id: &EntryId) -> Option<Arc<EntryFile>> {
        let entry = self.shared().catalog.read().get(id).cloned()?;
        entry.ask();
        Some(entry)
    }

    /// Number of entries, with chunks or without.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.shared().catalog.read().len()
    }

    #[must_use]
    pub fn entries(&self) -> Vec<Arc<EntryFile>> {
        self.shared().catalog.read().all()
    }

    /// Removes the entry: it cannot be found from now on. Its records are removed with the next
    /// group, its file once no reader is left.
    pub fn remove_entry(&self, id: &EntryId) {
        if let Some(entry) = self.entry(id) {
            removal::remove_entry(self.shared(), &entry);
        }
    }

    /// Sets a small durable note for the edge (sources, key bindings, peer keys), which survives a
    /// restart without a coordinator. Synced with the next group; a crash loses at most the notes
    /// since then.
    pub fn put_note(&self, key: &[u8], value: Option<Arc<[u8]>>) {
        let value_bytes = value.as_ref().map_or(0, |value| value.len());
        if key.len() + value_bytes > MAX_NOTE_BYTES {
            tracing::error!(bytes = value_bytes, "a note is too long and is not kept");
            return;
        }
        let mut catalog = self.shared().catalog.write();
        // Inside the lock, so that the queue has the same order as memory.
        if catalog.set_note(key.to_vec(), value.clone()) {
            self.shared().queue.note(key.to_vec(), value);
        }
    }

    /// The note of this key.
    #[must_use]
    pub fn note(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        self.shared().catalog.read().notes().get(key).cloned()
    }

    /// The notes whose keys begin with `prefix`, by key.
    #[must_use]
    pub fn notes(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Arc<[u8]>)> {
        let catalog = self.shared().catalog.read();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let following = catalog.notes().range::<[u8], _>(from);
        let notes = following.take_while(|(key, _)| key.starts_with(prefix));
        notes
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Replaces the quotas of sources, with immediate effect.
    pub fn set_quotas(&self, quotas: &HashMap<String, u64>) {
        let shared = self.shared();
        shared.sources.set_quotas(quotas, shared.tick());
        shared.over_quota.notify_one();
    }

    /// The disk use of each source; sources with neither chunks nor a quota are left out.
    #[must_use]
    pub fn source_uses(&self) -> Vec<SourceUse> {
        self.shared().sources.uses()
    }

    /// Returns when a source may have begun to exceed its quota. For a single waiter; cancel safe.
    pub async fn quota_exceeded(&self) {
        self.shared().over_quota.notified().await;
    }

    /// Whether a source is over its quota, not counting chunks that were already proposed for
    /// eviction.
    #[must_use]
    pub fn is_over_quota(&self) -> bool {
        let spaces = self.shared().sources.all();
        spaces.iter().any(|space| space.over_quota() > 0)
    }

    #[must_use]
    pub fn bytes_used(&self) -> u64 {
        self.shared().space.used()
    }

    #[must_use]
    pub fn bytes_allowed(&self) -> u64 {
        self.shared().space.allowed()
    }

    /// Bytes to propose until the pressure ends; 0 if there is none, or if the present proposals
    /// suffice.
    #[must_use]
    pub fn pressure(&self) -> u64 {
        let shared = self.shared();
        let catalog = shared.catalog.read();
        let files = (catalog.len() as u64).max(1);
        let bytes_per_file = (shared.space.chunk_bytes() / files).max(1);
        let over_files = shared.space.files_over().min(files) * bytes_per_file;
        let over = shared.space.over_headroom().max(over_files);
        let mut policy = shared.policy.lock();
        policy.expire(&catalog, Instant::now());
        over.saturating_sub(policy.proposed_bytes())
    }

    /// Proposes chunks to evict: those of sources over their quota, and others until there are at
    /// least `bytes`; at most `max_chunks`, and never one that a reader holds. Each is proposed
    /// once; one that is not dropped within 15 s may be proposed again.
    #[must_use]
    pub fn victims(&self, bytes: u64, max_chunks: usize) -> Vec<Victims> {
        let wanted = Wanted {
            bytes,
            max_chunks,
            whole_entries: self.shared().reaper.frees_whole_files_only(),
            tick: self.shared().tick(),
        };
        let catalog = self.shared().catalog.read();
        self.shared()
            .policy
            .lock()
            .victims(&wanted, &catalog, Instant::now())
    }

    /// Drops chunks whose rows are gone: they cannot be found from now on. The removal is recorded
    /// with the next group; then their bytes are freed, unless a reader still holds them.
    pub fn drop_chunks(&self, entry: &EntryId, chunks: &[ChunkIndex]) {
        if let Some(entry) = self.entry(entry) {
            removal::drop_chunks(self.shared(), &entry, chunks);
        }
    }

    /// Chunks that became durable, in order. One receiver.
    #[must_use]
    pub fn take_durable(&self) -> tokio::sync::mpsc::UnboundedReceiver<Durable> {
        self.shared().durable.take()
    }

    /// Corrupt chunks, and chunks whose sync failed before they were durable. They are already
    /// withdrawn; the receiver reports them and fetches them again.
    #[must_use]
    pub fn take_corrupt(&self) -> tokio::sync::mpsc::UnboundedReceiver<Victims> {
        self.shared().lost.take()
    }

    /// Descriptions of entries that were forgotten, because they had no chunks and no request
    /// looked them up.
    #[must_use]
    pub fn take_forgotten(&self) -> tokio::sync::mpsc::UnboundedReceiver<v1::Entry> {
        self.shared().forgotten.take()
    }

    #[must_use]
    pub fn digest(&self, entry: &EntryId) -> InventoryDigest {
        self.entry(entry)
            .map_or_else(InventoryDigest::default, |entry| entry.digest())
    }

    /// Why writes are refused, if they are.
    #[must_use]
    pub fn degraded(&self) -> Option<String> {
        let shared = self.shared();
        let shortage = || shared.space.shortage(Instant::now());
        shared.health.reason().or_else(shortage)
    }

    /// Syncs a last time, then releases the lock. Blocking.
    pub fn close(&self) {
        self.0.close();
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }
}

impl Handle {
    fn close(&self) {
        let Some(Running { threads, _lock }) = self.running.lock().take() else {
            return;
        };
        self.shared.stopping.store(true, Ordering::Release);
        if let Some(threads) = threads {
            threads.stop(&self.shared);
            commit::commit_group(&self.shared);
            removal::reap(&self.shared);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
        self.shared.catalog.write().clear();
    }
}

/// Opens everything but the lock and the threads.
fn open_shared(
    disk: Arc<dyn Disk>,
    options: StoreOptions,
    tuning: Tuning,
) -> Result<Arc<Shared>, OpenError> {
    let StoreOptions {
        data_dir,
        max_bytes,
        min_free,
        group_sync_window,
    } = options;
    let unusable = |source| OpenError::Unusable {
        path: data_dir.clone(),
        source,
    };
    let store_id = directory::identify(&*disk, &data_dir)?;
    disk.create_dir(Path::new(JOURNAL_DIR)).map_err(unusable)?;
    disk.create_dir(Path::new(ENTRIES_DIR)).map_err(unusable)?;
    disk.sync_dir(Path::new("")).map_err(unusable)?;
    // Detects an unwritable directory before anything is promised. A full disk ends no start: what
    // is there is served, and nothing is stored until there is space.
    let mut full = None;
    let tried = health::probe(&*disk).and_then(|()| health::try_abilities(&*disk));
    let abilities = match tried {
        Err(error) if health::is_full(&error) => {
            full = Some(error);
            // If not, the first attempt to punch tells.
            health::Abilities { punch: true }
        }
        tried => tried.map_err(unusable)?,
    };

    preallocated::remove_leftovers(&*disk);
    let space = Space::new(disk.clone(), max_bytes, min_free);
    let config = SharedConfig {
        disk,
        store_id,
        group_sync_window,
        tuning,
        space,
    };
    let shared = Arc::new(Shared::new(config));
    if !abilities.punch {
        shared.reaper.set_no_punching();
    }
    let mut journal = shared.journal.lock();
    let mut catalog = shared.catalog.write();
    journal
        .load(|record| catalog.replay(&shared, record))
        .map_err(unusable)?;
    {
        let mut policy = shared.policy.lock();
        for entry in catalog.all() {
            for chunk in entry.table().select(ChunkState::is_durable) {
                policy.insert(&catalog, &entry, chunk);
            }
            if !entry.has_durable() {
                shared.idle.put(&entry);
            }
        }
    }
    let numbers = catalog.reserve_numbers();
    drop(catalog);
    let written = if journal.is_broken() {
        shared.rewrite_journal(&mut journal)
    } else if let Some(numbers) = numbers {
        let mut frame = Vec::new();
        let encoded = numbers.encode(&mut frame).map_err(io::Error::other);
        encoded.and_then(|()| journal.append(&frame))
    } else {
        Ok(())
    };
    match written {
        Err(error) if health::is_full(&error) => {
            // The numbers are reserved by the rewrite, before any of them is used.
            journal.give_up();
            full.get_or_insert(error);
        }
        written => written.map_err(unusable)?,
    }
    drop(journal);
    if let Some(error) = full {
        shared.health.degrade("opening the store", &error);
    }
    Ok(shared)
}

/// Creates the directories of entries, so that no first byte waits for one. If one cannot be
/// created, its first entry creates it or fails. None are created where inodes are scarce.
fn make_directories(disk: &dyn Disk) {
    let enough = |space: disk::DiskSpace| {
        space
            .free_inodes
            .is_none_or(|free| free >= PLENTY_OF_INODES)
    };
    if !disk.space().is_ok_and(enough) {
        return;
    }
    for prefix in 0..=u8::MAX {
        if let Err(error) = disk.create_dir(&Path::new(ENTRIES_DIR).join(format!("{prefix:02x}"))) {
            tracing::debug!(%error, "a directory of entries could not be made");
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
