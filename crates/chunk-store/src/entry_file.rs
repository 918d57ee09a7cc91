//! An entry: its description, which chunks are present, its sparse file.

mod accounting;
mod on_disk;
mod replay;

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwapOption;
use chunkcache_proto::{
    ByteRange, ChunkIndex, EntryId, Geometry,
    checksum::{BLOCK_BYTES, ChunkDigest, InventoryDigest},
    v1,
};
use parking_lot::Mutex;
use prost::Message;

use super::{
    StoreError,
    commit::FinishedChunk,
    disk::Open,
    open_files::{OpenFile, StoredFile},
    residency,
    shared::Shared,
    source_space::{Reservation, SourceSpace},
    verify::{self, Block},
};
use crate::{
    chunk_table::{ChunkState, ChunkTable},
    journal_record::{EntryNumber, FileNaming, Record},
};

/// An entry: its description, which chunks are present, its sparse file.
pub struct EntryFile {
    me: Weak<Self>,
    shared: Arc<Shared>,
    /// The space of its source.
    space: Arc<SourceSpace>,
    number: EntryNumber,
    id: EntryId,
    geometry: Geometry,
    /// Encoded: an edge has many entries and seldom needs what is said of them.
    description: Box<[u8]>,
    pinned: AtomicBool,
    /// Its records are gone; the file is removed with the last handle.
    removed: AtomicBool,
    table: ChunkTable,
    /// Block hashes of stored chunks that are longer than one block. A chunk from a journal that
    /// predates them has none until it is checked.
    blocks: Mutex<BTreeMap<ChunkIndex, Box<[u64]>>>,
    /// Digest of the durable chunks.
    digest: Mutex<InventoryDigest>,
    /// Bytes of the chunks in its file, including withdrawn ones that are not punched yet.
    disk_bytes: AtomicU64,
    open: ArcSwapOption<OpenFile>,
    naming: FileNaming,
    /// Locked while the file is opened.
    opening: Mutex<()>,
    /// Locked while chunks are punched or their file is removed, and by the first write to a chunk,
    /// so that these exclude each other.
    pub(super) emptying: Mutex<()>,
    /// The directory entry of the file is synced.
    pub(super) linked: AtomicBool,
    /// The journal has its description. Changed under the journal's lock.
    pub(super) described: AtomicBool,
    /// It is listed among the entries without chunks.
    idle: AtomicBool,
    /// A request looked it up since it was listed there.
    asked: AtomicBool,
}

impl EntryFile {
    pub(super) fn new(
        shared: Arc<Shared>,
        number: EntryNumber,
        id: EntryId,
        geometry: Geometry,
        description: v1::Entry,
        naming: FileNaming,
    ) -> Arc<Self> {
        let source = description.key.as_ref().map_or("", |key| &key.source);
        let space = shared.sources.of(source, shared.tick());
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            shared,
            space,
            number,
            id,
            geometry,
            pinned: AtomicBool::new(description.pinned),
            description: description.encode_to_vec().into(),
            removed: AtomicBool::new(false),
            table: ChunkTable::new(geometry.chunk_count()),
            blocks: Mutex::default(),
            digest: Mutex::default(),
            disk_bytes: AtomicU64::new(0),
            open: ArcSwapOption::empty(),
            naming,
            opening: Mutex::new(()),
            emptying: Mutex::new(()),
            linked: AtomicBool::new(false),
            described: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            asked: AtomicBool::new(false),
        })
    }

    #[must_use]
    pub fn id(&self) -> EntryId {
        self.id
    }

    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The description as first given; [`is_pinned`](Self::is_pinned) is the part that changes.
    #[must_use]
    pub fn description(&self) -> v1::Entry {
        // It was encoded by `new`, so it can be decoded.
        v1::Entry::decode(&*self.description).unwrap_or_default()
    }

    /// The name of its source; empty if it has no key.
    #[must_use]
    pub fn source(&self) -> &str {
        self.space.name()
    }

    /// Pins the entry: it is evicted only when nothing else is left. Recorded with the next group.
    pub fn set_pinned(&self, pinned: bool) {
        if self.pinned.swap(pinned, Ordering::AcqRel) != pinned
            && let Some(me) = self.me.upgrade()
        {
            self.shared.queue.describe(me);
            self.shared.policy.lock().pinning_changed(self);
        }
    }

    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn is_present(&self, chunk: ChunkIndex) -> bool {
        self.table.state(chunk).is_present()
    }

    /// First chunk at or after `from` that is not present, before `to`.
    #[must_use]
    pub fn first_missing(&self, from: ChunkIndex, to: ChunkIndex) -> Option<ChunkIndex> {
        self.table.first_missing(from, to)
    }

    /// Runs of present bytes within `range`, ascending, at most `limit` of them. Costs as much as
    /// is stored there, not as much as the range claims.
    #[must_use]
    pub fn present_runs(&self, range: ByteRange, limit: usize) -> Vec<ByteRange> {
        let chunks = self.geometry.chunks_covering(range);
        let runs = self.table.present_runs(chunks, limit).into_iter();
        let bytes = |run: std::ops::Range<ChunkIndex>| {
            let start = self.geometry.chunk_range(run.start).start;
            let end = self.geometry.chunk_range(run.end - 1).end;
            ByteRange::new(start, end).intersect(range)
        };
        runs.map(bytes).collect()
    }

    /// First chunk at or after `from` that is present, before `to`.
    #[must_use]
    pub fn first_present(&self, from: ChunkIndex, to: ChunkIndex) -> Option<ChunkIndex> {
        self.table.first_present(from, to)
    }

    /// The chunks that can be proved, with their checksums: their bytes and records are synced. A
    /// present chunk that waits for its group's sync is reported by
    /// [`Store::take_durable`](super::Store::take_durable) instead.
    #[must_use]
    pub fn present_chunks(&self) -> Vec<(ChunkIndex, u64)> {
        self.durable_chunks()
    }

    /// The checksum of a present chunk, synced or not.
    #[must_use]
    pub fn checksum(&self, chunk: ChunkIndex) -> Option<u64> {
        self.is_present(chunk).then(|| self.table.checksum(chunk))
    }

    /// Pins the chunk for reading. Lock-free. `None`: not present. Counts as a use for the eviction
    /// policy.
    #[must_use]
    pub fn pin(&self, chunk: ChunkIndex) -> Option<ChunkPin> {
        let entry = self.me.upgrade()?;
        let tick = self.shared.tick();
        self.space.touch(tick);
        self.table
            .try_pin(chunk, tick)
            .then(|| ChunkPin { entry, chunk })
    }

    /// Pins a chunk that may be unfinished: its written bytes are not punched before the pin ends,
    /// whatever happens to the chunk. The writer knows which bytes are written, so the caller asks
    /// it again after pinning. `None`: no bytes are written.
    #[must_use]
    pub fn hold_unfinished(&self, chunk: ChunkIndex) -> Option<ChunkPin> {
        let entry = self.me.upgrade()?;
        self.table
            .try_hold_unfinished(chunk)
            .then(|| ChunkPin { entry, chunk })
    }

    /// Whether the chunk's bytes were checked (or written) since this process started.
    #[must_use]
    pub fn is_verified(&self, chunk: ChunkIndex) -> bool {
        self.table.state(chunk).is_verified()
    }

    /// Like [`verify`](Self::verify), but ignores earlier checks: a client received other bytes.
    pub async fn verify_again(&self, chunk: ChunkIndex) -> Result<bool, StoreError> {
        let Some(entry) = self.me.upgrade() else {
            return Ok(false);
        };
        tokio::task::spawn_blocking(move || verify::check(&entry, chunk, verify::Trust::Verified))
            .await
            .map_err(io::Error::other)?
    }

    /// Reads and checks the chunk off the caller's thread. False: it was corrupt and was withdrawn,
    /// or it is not present.
    pub async fn verify(&self, chunk: ChunkIndex) -> Result<bool, StoreError> {
        if self.is_verified(chunk) {
            return Ok(true);
        }
        self.verify_again(chunk).await
    }

    /// Whether a chunk of it can be stored at the moment, if need be in the place of others.
    #[must_use]
    pub fn can_store(&self) -> bool {
        let (shared, chunk) = (&self.shared, self.geometry.chunk_range(0));
        !shared.health.is_degraded() && shared.space.can_hold(chunk.len(), Instant::now())
    }

    /// Writes part of a chunk that is not present. Blocking, for the fetch threads. After an error
    /// all written bytes of the chunk are void: write it again from its start, or give it up with
    /// [`abandon_chunk`](Self::abandon_chunk).
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let range = ByteRange::new(offset, offset.saturating_add(bytes.len() as u64));
        if range.end > self.geometry.size() {
            return Err(StoreError::Io(io::ErrorKind::InvalidInput.into()));
        }
        self.shared.health.check()?;
        for chunk in self.geometry.chunks_covering(range) {
            let state = self.table.state(chunk);
            let under_way = state.is_written()
                && !state.is_doomed()
                && !state.is_spoiled()
                && !state.is_present();
            if !under_way {
                self.begin_write(chunk)?;
            }
        }
        let write = || -> io::Result<()> {
            let file = self.open_file(Open::CreateOrExisting)?;
            file.unsynced.store(true, Ordering::Release);
            file.file.write_all_at(bytes, offset)
        };
        write().map_err(|error| self.refused(error))
    }

    /// Classifies a failed write. A length that the file system does not support affects this
    /// object only; a lack of inodes affects new entries only, until some are evicted.
    fn refused(&self, error: io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::FileTooLarge => error.into(),
            io::ErrorKind::StorageFull if self.shared.space.lacks_files() => {
                self.shared.space.refuse_file()
            }
            _ => {
                self.shared.health.degrade("writing a chunk", &error);
                error.into()
            }
        }
    }

    /// Begins the first write to a chunk; excludes punching.
    fn begin_write(&self, chunk: ChunkIndex) -> Result<(), StoreError> {
        let _not_emptied_meanwhile = self.emptying.lock();
        let state = self.table.state(chunk);
        if state.is_present() {
            return Err(StoreError::Io(io::ErrorKind::AlreadyExists.into()));
        }
        if state.is_spoiled() {
            self.abandon_locked(chunk);
            return Err(StoreError::Io(io::Error::other(
                "what was written of the chunk may be lost: a sync failed",
            )));
        }
        if self.table.begin_write(chunk).is_doomed() {
            // The new chunk reuses its old blocks, for which space was reserved.
            self.release(chunk);
        }
        Ok(())
    }

    /// Whether as many bytes are stored as the object has. In constant time, for the hit path:
    /// while withdrawn chunks are being freed, an entry that lacks them may seem complete.
    #[must_use]
    pub fn seems_complete(&self) -> bool {
        self.disk_bytes.load(Ordering::Acquire) >= self.geometry.size()
    }

    /// Whether the store is closing.
    pub(super) fn is_stopping(&self) -> bool {
        self.shared.is_stopping()
    }

    /// Finishes a chunk whose bytes are all written: it is present from now on, and durable with
    /// the next group. `digest` is not checked against the bytes, because the caller computed it
    /// while they passed.
    pub fn finish_chunk(&self, chunk: ChunkIndex, digest: ChunkDigest, reservation: Reservation) {
        let Some(me) = self.me.upgrade() else { return };
        if self.is_present(chunk) {
            return;
        }
        // Count it before another thread can find, withdraw and subtract it.
        let bytes = self.geometry.chunk_len(chunk);
        reservation.become_chunk(bytes);
        self.disk_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.set_blocks(chunk, digest.blocks);
        if self
            .table
            .finish(chunk, digest.checksum, self.shared.tick())
        {
            self.shared
                .queue
                .finished(FinishedChunk { entry: me, chunk });
        } else {
            self.uncount(chunk);
            // A sync failed while it was being written.
            self.abandon_chunk(chunk);
            self.shared.report_lost(self.id, vec![chunk]);
        }
    }

    /// Frees the written bytes of a chunk that will not be finished. Without this call they remain
    /// until the chunk is fetched again or the store is next opened.
    pub fn abandon_chunk(&self, chunk: ChunkIndex) {
        let _no_write_begins = self.emptying.lock();
        self.abandon_locked(chunk);
    }

    /// Requires `emptying` to be locked. The blocks count until they are punched, like those of any
    /// chunk.
    fn abandon_locked(&self, chunk: ChunkIndex) {
        if self.table.abandon(chunk).is_some() {
            let bytes = self.geometry.chunk_len(chunk);
            self.disk_bytes.fetch_add(bytes, Ordering::AcqRel);
            self.space.add_chunk(bytes);
            self.space.begin_leaving(bytes);
            if let Some(me) = self.me.upgrade() {
                self.shared.queue.removed(me, vec![chunk]);
            }
        }
    }

    /// Positional read, for TLS, HTTP/2 and hashing. Blocking if the pages are not resident.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let read = self
            .open_file(Open::Reading)?
            .file
            .read_at(buffer, offset)?;
        if read < buffer.len() {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        } else {
            Ok(())
        }
    }

    /// The sparse file, for sendfile.
    pub fn stored_file(&self) -> Result<StoredFile, StoreError> {
        let open = self.open_file(Open::Reading)?;
        Ok(StoredFile::new(open.file.clone())?)
    }

    /// Whether the pages of the range are in memory, or were a moment ago, so that sendfile does
    /// not block.
    #[must_use]
    pub fn is_resident(&self, range: ByteRange) -> bool {
        self.is_resident_at(range, Instant::now())
    }

    /// The same for a given time.
    #[must_use]
    pub fn is_resident_at(&self, range: ByteRange, now: Instant) -> bool {
        // Do not open the file here: that may wait for the disk, and the caller is a serving
        // thread.
        let Some(file) = self.open.load_full() else {
            return false;
        };
        let mut chunks = self.geometry.chunks_covering(range);
        chunks.all(|chunk| {
            let whole = self.geometry.chunk_range(chunk);
            let part = whole.intersect(range);
            residency::is_resident_lately(&*file.file, self.id, (chunk, whole), part, now)
        })
    }

    /// Reads the range into the page cache and compares it with its hashes. False: it is corrupt,
    /// and its chunk was withdrawn. Blocking.
    pub fn bring_in(&self, range: ByteRange) -> Result<bool, StoreError> {
        let Some(me) = self.me.upgrade() else {
            return Ok(false);
        };
        let file = self.open_file(Open::Reading)?;
        residency::ask_for(&*file.file, range);
        for chunk in self.geometry.chunks_covering(range) {
            let part = self.geometry.chunk_range(chunk).intersect(range);
            if !verify::read_through(&me, part)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the block of a present chunk that contains this byte, and compares it with its hash.
    /// `None`: it is corrupt and its chunk was withdrawn, or it is not present. Blocking.
    pub fn read_block(&self, offset: u64) -> Result<Option<Block>, StoreError> {
        match self.me.upgrade() {
            Some(me) => verify::read_block(&me, offset),
            None => Ok(None),
        }
    }

    /// Hashes of a chunk's blocks; `None`: unknown.
    pub(super) fn blocks(&self, chunk: ChunkIndex) -> Option<Box<[u64]>> {
        if self.geometry.chunk_len(chunk) <= BLOCK_BYTES {
            return Some([self.table.checksum(chunk)].into());
        }
        self.blocks.lock().get(&chunk).cloned()
    }

    /// Stores the hashes if there is one per block.
    pub(super) fn set_blocks(&self, chunk: ChunkIndex, hashes: Box<[u64]>) {
        let len = self.geometry.chunk_len(chunk);
        if len > BLOCK_BYTES && hashes.len() as u64 == len.div_ceil(BLOCK_BYTES) {
            self.blocks.lock().insert(chunk, hashes);
        }
    }

    /// The journal records of the block hashes of durable chunks.
    pub(super) fn block_records(&self, chunks: &[(ChunkIndex, u64)]) -> Vec<Record> {
        let blocks = self.blocks.lock();
        let known = chunks.iter().filter_map(|(chunk, _)| {
            Some(Record::Blocks {
                number: self.number,
                chunk: *chunk,
                hashes: blocks.get(chunk)?.clone(),
            })
        });
        known.collect()
    }

    pub(super) fn space(&self) -> &Arc<SourceSpace> {
        &self.space
    }

    pub(super) fn number(&self) -> EntryNumber {
        self.number
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn table(&self) -> &ChunkTable {
        &self.table
    }

    pub(super) fn open_slot(&self) -> &ArcSwapOption<OpenFile> {
        &self.open
    }

    pub(super) fn digest(&self) -> InventoryDigest {
        *self.digest.lock()
    }

    pub(super) fn durable_chunks(&self) -> Vec<(ChunkIndex, u64)> {
        self.table
            .select(ChunkState::is_durable)
            .map(|chunk| (chunk, self.table.checksum(chunk)))
            .collect()
    }

    pub(super) fn has_durable(&self) -> bool {
        self.digest.lock().chunk_count > 0
    }

    /// Pins a chunk without counting a use: for the store's own reads.
    pub(super) fn hold(&self, chunk: ChunkIndex) -> Option<ChunkPin> {
        let entry = self.me.upgrade()?;
        self.table
            .try_hold(chunk)
            .then(|| ChunkPin { entry, chunk })
    }

    /// Clears the durable marks of a removed entry: readers that hold it continue, but its chunks
    /// prove nothing. Returns how many marks there were.
    pub(super) fn forget_durable(&self) -> usize {
        let mut digest = self.digest.lock();
        *digest = InventoryDigest::default();
        let forgotten = self.table.forget_durable();
        self.shared
            .durable_chunks
            .fetch_sub(forgotten as u64, Ordering::AcqRel);
        forgotten
    }

    /// Whether its records are gone; readers that hold it continue.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    pub(super) fn set_removed(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// Marks the entry as one without chunks. False: it was marked already.
    pub(super) fn set_idle(&self, idle: bool) -> bool {
        self.idle.swap(idle, Ordering::AcqRel) != idle
    }

    /// Records that a request looked the entry up.
    pub(super) fn ask(&self) {
        if !self.asked.load(Ordering::Relaxed) {
            self.asked.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a request looked it up since the last call.
    pub(super) fn take_asked(&self) -> bool {
        self.asked.swap(false, Ordering::Relaxed)
    }

    /// Records that the chunk's sync and record succeeded. False: it was withdrawn meanwhile.
    pub(super) fn mark_durable(&self, chunk: ChunkIndex) -> bool {
        // Under the digest's lock, like a withdrawal, so that the digest agrees with the flag.
        let mut digest = self.digest.lock();
        if !self.table.mark_durable(chunk) {
            return false;
        }
        digest.add(self.table.checksum(chunk));
        self.shared.durable_chunks.fetch_add(1, Ordering::AcqRel);
        true
    }
}

impl Drop for EntryFile {
    fn drop(&mut self) {
        if *self.removed.get_mut() {
            let bytes = *self.disk_bytes.get_mut();
            let leaving = self.table.select(ChunkState::is_doomed);
            let leaving = leaving.map(|chunk| self.geometry.chunk_len(chunk)).sum();
            self.space.end_leaving(leaving);
            let space = self.space.clone();
            self.shared.reaper.unlink(self.path(), bytes, space);
        }
    }
}

/// Keeps a chunk from being punched.
pub struct ChunkPin {
    entry: Arc<EntryFile>,
    chunk: ChunkIndex,
}

impl Drop for ChunkPin {
    fn drop(&mut self) {
        if self.entry.table.unpin(self.chunk).is_disposable() {
            // Not on this thread, which may serve clients: punching blocks.
            let entry = self.entry.clone();
            entry.shared.reaper.dispose(self.entry.clone(), self.chunk);
        }
    }
}
