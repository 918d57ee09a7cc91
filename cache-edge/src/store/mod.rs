//! The chunk store: one sparse file an entry, and a journal that proves what is in them.
//!
//! SIGNATURES ONLY (to be filled by the owner of this room; the shapes below are what other rooms code against).

use std::{path::PathBuf, sync::Arc, time::Duration};

use chunkcache_proto::{ByteRange, ChunkIndex, EntryId, Geometry, checksum::InventoryDigest, v1};
use uuid::Uuid;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    pub data_dir: PathBuf,
    /// Bytes of chunks kept at most; none: 90 % of the file system.
    pub max_bytes: Option<u64>,
    pub min_free: MinFree,
    /// Chunks that finish within this time share their syncs.
    pub group_sync_window: Duration,
}

/// Free space never used.
#[derive(Clone, Copy, Debug)]
pub enum MinFree {
    Bytes(u64),
    Percent(f64),
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another process; each edge needs a data directory of its own")]
    Locked { path: PathBuf },
    #[error("{path} can not be used: {source}")]
    Unusable { path: PathBuf, source: std::io::Error },
    #[error("{path} was written by a newer version (format {found}, this is {known})")]
    NewerFormat { path: PathBuf, found: u32, known: u32 },
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no space: {0}")]
    NoSpace(String),
    #[error("disk: {0}")]
    Io(#[from] std::io::Error),
}

/// One store; cheap to clone.
#[derive(Clone)]
pub struct Store(());

/// Chunks that became durable together: their bytes and their journal records are synced.
#[derive(Clone, Debug)]
pub struct Durable {
    pub entry: EntryId,
    pub chunks: Vec<(ChunkIndex, u64)>,
}

/// Chunks proposed for eviction; they go on being served until `drop_chunks`.
#[derive(Clone, Debug)]
pub struct Victims {
    pub entry: EntryId,
    pub chunks: Vec<ChunkIndex>,
}

impl Store {
    /// Locks the directory and reads the journal; nothing else is read. Blocking.
    pub fn open(options: StoreOptions) -> Result<Self, OpenError>;
    pub fn store_id(&self) -> Uuid;

    /// Makes the entry known, or returns it. The sparse file is made at its first write.
    pub fn put_entry(&self, entry: &v1::Entry, geometry: Geometry) -> Result<Arc<EntryFile>, StoreError>;
    pub fn entry(&self, id: &EntryId) -> Option<Arc<EntryFile>>;
    pub fn entries(&self) -> Vec<Arc<EntryFile>>;
    /// Removes the entry, its file and its records, once no reader is left.
    pub fn remove_entry(&self, id: &EntryId) -> Result<(), StoreError>;

    /// Small durable notes for other rooms (sources, key bindings, peer keys), so that a restart without a coordinator
    /// knows what it was told. Synced with the next group, lost at worst if younger than that.
    pub fn put_note(&self, key: &[u8], value: Option<&[u8]>);
    pub fn notes(&self) -> Vec<(Vec<u8>, Vec<u8>)>;

    /// Space is reserved before it is written; the hard limit holds at each moment.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, StoreError>;
    pub fn bytes_used(&self) -> u64;
    pub fn bytes_allowed(&self) -> u64;
    /// Bytes that must go for the pressure to end; 0 when there is none.
    pub fn pressure(&self) -> u64;
    /// What to evict for `bytes`, by the published policy; never pinned chunks a reader holds.
    pub fn victims(&self, bytes: u64) -> Vec<Victims>;
    /// After the rows are gone: journal the removal, sync, punch holes where no reader holds the chunk (later where one does).
    pub fn drop_chunks(&self, entry: &EntryId, chunks: &[ChunkIndex]) -> Result<(), StoreError>;

    /// Durable chunks, in the order of their durability. One receiver.
    pub fn take_durable(&self) -> tokio::sync::mpsc::UnboundedReceiver<Durable>;
    /// Chunks found corrupt: withdrawn already, to be reported and fetched again.
    pub fn take_corrupt(&self) -> tokio::sync::mpsc::UnboundedReceiver<Victims>;

    pub fn digest(&self, entry: &EntryId) -> InventoryDigest;
    /// Why writes are refused at present, if they are.
    pub fn degraded(&self) -> Option<String>;
    /// Last syncs; then the lock is given back.
    pub fn close(&self);
}

/// An entry: its description, which chunks are present, its sparse file.
pub struct EntryFile(());

impl EntryFile {
    pub fn id(&self) -> EntryId;
    pub fn geometry(&self) -> Geometry;
    pub fn description(&self) -> &v1::Entry;
    pub fn set_pinned(&self, pinned: bool);

    pub fn is_present(&self, chunk: ChunkIndex) -> bool;
    /// First chunk at or after `from` that is not present, before `to`.
    pub fn first_missing(&self, from: ChunkIndex, to: ChunkIndex) -> Option<ChunkIndex>;
    pub fn present_chunks(&self) -> Vec<(ChunkIndex, u64)>;

    /// Holds the chunk for reading. Lock-free. `None`: not present. Counts as a use for the eviction policy.
    pub fn pin(&self, chunk: ChunkIndex) -> Option<ChunkPin>;
    /// The chunk's bytes were checked since this process started (or written by it).
    pub fn is_verified(&self, chunk: ChunkIndex) -> bool;
    /// Reads and checks it off the caller's thread; false: it was corrupt and has been withdrawn.
    pub async fn verify(&self, chunk: ChunkIndex) -> Result<bool, StoreError>;

    /// Positional write of part of a chunk that is not present. Blocking, for the fetch threads.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError>;
    /// All bytes of the chunk are written: it is present from now on, and durable with the next group.
    /// `checksum` is checked against the bytes nowhere: the caller computed it while they passed.
    pub fn finish_chunk(&self, chunk: ChunkIndex, checksum: u64, reservation: Reservation);
    /// Positional read, for TLS, HTTP/2 and hashing. Blocking if the pages are not resident.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError>;
    /// For sendfile: the file and, for hyper, memory that maps the range.
    pub fn map(&self, range: ByteRange) -> Result<Mapped, StoreError>;
    /// The pages of the range are in memory (so that sendfile does not block).
    pub fn is_resident(&self, range: ByteRange) -> bool;
    /// Asks the kernel to read ahead. Blocking.
    pub fn read_ahead(&self, range: ByteRange);
}

/// A mapped range and the file it maps, for an I/O object that sends it with sendfile.
pub struct Mapped(());
impl Mapped {
    pub fn as_ptr(&self) -> *const u8;
    pub fn len(&self) -> usize;
    pub fn file(&self) -> std::os::fd::BorrowedFd<'_>;
    pub fn file_offset(&self) -> u64;
}

/// Keeps a chunk from being punched while held.
pub struct ChunkPin(());
/// Space promised; given back when dropped unused.
pub struct Reservation(());
