//! An entry: its description, which chunks are present, its sparse file.

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

use super::{
    Reservation, StoreError,
    commit::Finished,
    disk::Open,
    open_files::{OpenFile, StoredFile},
    residency,
    shared::Shared,
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
    number: EntryNumber,
    id: EntryId,
    geometry: Geometry,
    description: v1::Entry,
    pinned: AtomicBool,
    /// Its records are gone; the file follows with the last handle.
    removed: AtomicBool,
    table: ChunkTable,
    /// Hashes of the blocks of chunks that are here and longer than one. A chunk of a journal from
    /// before there were any has none until it is checked.
    blocks: Mutex<BTreeMap<ChunkIndex, Box<[u64]>>>,
    /// Of the durable chunks.
    digest: Mutex<InventoryDigest>,
    /// Bytes of chunks its file holds, also of withdrawn ones that are not punched yet.
    disk_bytes: AtomicU64,
    open: ArcSwapOption<OpenFile>,
    naming: FileNaming,
    /// Held while the file is opened.
    opening: Mutex<()>,
    /// Held while chunks are punched or their file is removed, and by the first write to a chunk,
    /// so that neither meets the other.
    pub(super) emptying: Mutex<()>,
    /// The directory entry of the file is synced.
    pub(super) linked: AtomicBool,
    /// The journal has the description. Changed under the journal's lock.
    pub(super) described: AtomicBool,
    /// It is among the entries without chunks.
    idle: AtomicBool,
    /// Somebody looked for it since it was put there.
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
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            shared,
            number,
            id,
            geometry,
            pinned: AtomicBool::new(description.pinned),
            description,
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

    /// As it was given first; [`is_pinned`](Self::is_pinned) is what changes.
    #[must_use]
    pub fn description(&self) -> &v1::Entry {
        &self.description
    }

    /// Pinned entries are evicted when nothing else is left. Recorded with the next group.
    pub fn set_pinned(&self, pinned: bool) {
        if self.pinned.swap(pinned, Ordering::AcqRel) != pinned
            && let Some(me) = self.me.upgrade()
        {
            self.shared.queue.describe(me);
            self.shared.policy.lock().pinning_changed();
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

    /// Runs of present bytes within `range`, ascending, at most `limit` of them. Costs what is
    /// stored there, not what the range claims.
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

    /// What can be proved: chunks whose bytes and records are synced, with their checksums. One
    /// that is present and waits for its group's sync comes through
    /// [`Store::take_durable`](super::Store::take_durable) instead.
    #[must_use]
    pub fn present_chunks(&self) -> Vec<(ChunkIndex, u64)> {
        self.durable_chunks()
    }

    /// Of a chunk that is present, synced or not.
    #[must_use]
    pub fn checksum(&self, chunk: ChunkIndex) -> Option<u64> {
        self.is_present(chunk).then(|| self.table.checksum(chunk))
    }

    /// Holds the chunk for reading. Lock-free. `None`: not present. Counts as a use for the
    /// eviction policy.
    #[must_use]
    pub fn pin(&self, chunk: ChunkIndex) -> Option<ChunkPin> {
        let entry = self.me.upgrade()?;
        self.table
            .try_pin(chunk, self.shared.tick())
            .then(|| ChunkPin { entry, chunk })
    }

    /// Holds a chunk that may be unfinished: what is written of it is not punched before the hold
    /// ends, whatever becomes of the chunk. What is written is known to whoever writes it, and is
    /// asked again once held. `None`: nothing is.
    #[must_use]
    pub fn hold_unfinished(&self, chunk: ChunkIndex) -> Option<ChunkPin> {
        let entry = self.me.upgrade()?;
        self.table
            .try_hold_unfinished(chunk)
            .then(|| ChunkPin { entry, chunk })
    }

    /// The chunk's bytes were checked since this process started (or written by it).
    #[must_use]
    pub fn is_verified(&self, chunk: ChunkIndex) -> bool {
        self.table.state(chunk).is_verified()
    }

    /// As [`verify`](Self::verify), also where it was checked before: somebody got other bytes of
    /// it.
    pub async fn verify_again(&self, chunk: ChunkIndex) -> Result<bool, StoreError> {
        let Some(entry) = self.me.upgrade() else {
            return Ok(false);
        };
        tokio::task::spawn_blocking(move || verify::check(&entry, chunk, verify::Trust::Verified))
            .await
            .map_err(io::Error::other)?
    }

    /// Reads and checks it off the caller's thread; false: it was corrupt and has been withdrawn,
    /// or is not present.
    pub async fn verify(&self, chunk: ChunkIndex) -> Result<bool, StoreError> {
        if self.is_verified(chunk) {
            return Ok(true);
        }
        self.verify_again(chunk).await
    }

    /// Positional write of part of a chunk that is not present. Blocking, for the fetch threads.
    /// After an error all that was written of the chunk is void: it begins anew, or is given up
    /// with [`abandon_chunk`](Self::abandon_chunk).
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

    /// A write failed. A length the file system does not have is this object's problem alone, and
    /// a lack of files that of new ones, until some are evicted.
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

    /// The first write to a chunk: not while it is being punched.
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
            // Its old blocks are the new chunk's, for which space has been reserved.
            self.release(chunk);
        }
        Ok(())
    }

    /// The store is being closed.
    pub(super) fn is_stopping(&self) -> bool {
        self.shared.is_stopping()
    }

    /// All bytes of the chunk are written: it is present from now on, and durable with the next
    /// group. `digest` is checked against the bytes nowhere: the caller computed it while they
    /// passed.
    pub fn finish_chunk(&self, chunk: ChunkIndex, digest: ChunkDigest, reservation: Reservation) {
        let Some(me) = self.me.upgrade() else { return };
        if self.is_present(chunk) {
            return;
        }
        // Counted before it can be found, withdrawn and counted off.
        let bytes = self.geometry.chunk_len(chunk);
        reservation.become_chunk(bytes);
        self.disk_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.set_blocks(chunk, digest.blocks);
        if self
            .table
            .finish(chunk, digest.checksum, self.shared.tick())
        {
            self.shared.queue.finished(Finished { entry: me, chunk });
        } else {
            self.uncount(chunk);
            // A sync failed while it was being written.
            self.abandon_chunk(chunk);
            self.shared.report_lost(self.id, vec![chunk]);
        }
    }

    /// What was written of a chunk that will not be finished goes back to the disk. Without it the bytes stay until the chunk is fetched again or the store is opened the next
    /// time.
    pub fn abandon_chunk(&self, chunk: ChunkIndex) {
        let _no_write_begins = self.emptying.lock();
        self.abandon_locked(chunk);
    }

    /// `emptying` is held. Its blocks count until they are punched, as those of a chunk do.
    fn abandon_locked(&self, chunk: ChunkIndex) {
        if self.table.abandon(chunk).is_some() {
            let bytes = self.geometry.chunk_len(chunk);
            self.disk_bytes.fetch_add(bytes, Ordering::AcqRel);
            self.shared.space.add_chunk(bytes);
            self.shared.space.begin_leaving(bytes);
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

    /// The pages of the range are in memory (so that sendfile does not block), or were a moment
    /// ago.
    #[must_use]
    pub fn is_resident(&self, range: ByteRange) -> bool {
        self.is_resident_at(range, Instant::now())
    }

    /// The same, for who knows what time it is.
    #[must_use]
    pub fn is_resident_at(&self, range: ByteRange, now: Instant) -> bool {
        let Ok(file) = self.open_file(Open::Reading) else {
            return false;
        };
        let mut chunks = self.geometry.chunks_covering(range);
        chunks.all(|chunk| {
            let whole = self.geometry.chunk_range(chunk);
            let part = whole.intersect(range);
            residency::is_resident_lately(&*file.file, self.id, (chunk, whole), part, now)
        })
    }

    /// Reads the range into the page cache and compares it with its hashes on the way. False: it
    /// is not what was stored, and its chunk has been withdrawn. Blocking.
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

    /// The block of a present chunk that holds this byte, compared with its hash. `None`: it is not
    /// what was stored, and its chunk has been withdrawn, or it is not here. Blocking.
    pub fn read_block(&self, offset: u64) -> Result<Option<Block>, StoreError> {
        match self.me.upgrade() {
            Some(me) => verify::read_block(&me, offset),
            None => Ok(None),
        }
    }

    /// Hashes of a chunk's blocks; `None`: they are not known.
    pub(super) fn blocks(&self, chunk: ChunkIndex) -> Option<Box<[u64]>> {
        if self.geometry.chunk_len(chunk) <= BLOCK_BYTES {
            return Some([self.table.checksum(chunk)].into());
        }
        self.blocks.lock().get(&chunk).cloned()
    }

    /// Kept where they are as many as the chunk has blocks.
    pub(super) fn set_blocks(&self, chunk: ChunkIndex, hashes: Box<[u64]>) {
        let len = self.geometry.chunk_len(chunk);
        if len > BLOCK_BYTES && hashes.len() as u64 == len.div_ceil(BLOCK_BYTES) {
            self.blocks.lock().insert(chunk, hashes);
        }
    }

    /// What the journal says of durable chunks beside their checksums.
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

    /// Holds a chunk without counting a use: for the store's own reading.
    pub(super) fn hold(&self, chunk: ChunkIndex) -> Option<ChunkPin> {
        let entry = self.me.upgrade()?;
        self.table
            .try_hold(chunk)
            .then(|| ChunkPin { entry, chunk })
    }

    /// The entry is removed: its chunks go on being read by who holds it, and prove nothing.
    /// Returns how many.
    pub(super) fn forget_durable(&self) -> usize {
        let mut digest = self.digest.lock();
        *digest = InventoryDigest::default();
        let forgotten = self.table.forget_durable();
        self.shared
            .durable_chunks
            .fetch_sub(forgotten as u64, Ordering::AcqRel);
        forgotten
    }

    /// Its records are gone; it goes on being read by who holds it.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    pub(super) fn set_removed(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// False: it was so already.
    pub(super) fn set_idle(&self, idle: bool) -> bool {
        self.idle.swap(idle, Ordering::AcqRel) != idle
    }

    /// Somebody looks for it.
    pub(super) fn ask(&self) {
        if !self.asked.load(Ordering::Relaxed) {
            self.asked.store(true, Ordering::Relaxed);
        }
    }

    /// Somebody looked for it since the last call.
    pub(super) fn take_asked(&self) -> bool {
        self.asked.swap(false, Ordering::Relaxed)
    }

    /// Its sync and its record succeeded. False: it was withdrawn meanwhile.
    pub(super) fn mark_durable(&self, chunk: ChunkIndex) -> bool {
        // Under the digest's lock, as the withdrawal is: the digest then follows the flag.
        let mut digest = self.digest.lock();
        if !self.table.mark_durable(chunk) {
            return false;
        }
        digest.add(self.table.checksum(chunk));
        self.shared.durable_chunks.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// No reader gets it from now on; its bytes stay until they are punched. True if it was
    /// present.
    pub(super) fn withdraw(&self, chunk: ChunkIndex) -> bool {
        let mut digest = self.digest.lock();
        let Some(before) = self.table.withdraw(chunk) else {
            return false;
        };
        if before.is_durable() {
            digest.remove(self.table.checksum(chunk));
            self.shared.durable_chunks.fetch_sub(1, Ordering::AcqRel);
        }
        self.shared
            .space
            .begin_leaving(self.geometry.chunk_len(chunk));
        true
    }

    /// A withdrawn chunk's blocks are free, or another's.
    pub(super) fn release(&self, chunk: ChunkIndex) {
        self.shared
            .space
            .end_leaving(self.geometry.chunk_len(chunk));
        self.uncount(chunk);
    }

    fn uncount(&self, chunk: ChunkIndex) {
        let bytes = self.geometry.chunk_len(chunk);
        self.disk_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.shared.space.release_chunk(bytes);
        self.blocks.lock().remove(&chunk);
    }
}

impl Drop for EntryFile {
    fn drop(&mut self) {
        if *self.removed.get_mut() {
            let bytes = *self.disk_bytes.get_mut();
            let leaving = self.table.select(ChunkState::is_doomed);
            let leaving = leaving.map(|chunk| self.geometry.chunk_len(chunk)).sum();
            self.shared.space.end_leaving(leaving);
            self.shared.reaper.unlink(self.path(), bytes);
        }
    }
}

/// Keeps a chunk from being punched while held.
pub struct ChunkPin {
    entry: Arc<EntryFile>,
    chunk: ChunkIndex,
}

impl Drop for ChunkPin {
    fn drop(&mut self) {
        if self.entry.table.unpin(self.chunk).is_disposable() {
            // Not here: punching blocks, and this may be a serving thread.
            let entry = self.entry.clone();
            entry.shared.reaper.dispose(self.entry.clone(), self.chunk);
        }
    }
}
