//! An incoming chunk: a chunk whose bytes are arriving.
//!
//! Bytes are claimed under the lock, written outside it, then published: readers take them from the
//! sparse file at once. The fetch that publishes the last byte finishes the chunk. Two fetches may
//! write to one chunk (a hedged pair), but each byte is written once.

use std::{sync::Arc, time::Instant};

use chunkcache_proto::{ByteRange, ChunkIndex, FetchId, RangeSet, checksum::DigestHasher};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::pieces::Pieces;
use chunk_store::{EntryFile, Reservation, StoreError};

/// Size of one read when bytes that arrived out of order are read back for the checksum.
const REREAD_BYTES: usize = 256 << 10;
/// A fetch may take the chunk over from another that brought nothing for this long.
const TAKE_OVER_AFTER_MS: u128 = 1_000;

/// Why bytes cannot be stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IncomingError {
    /// Readers get the bytes from the origin, past the store.
    #[error("not stored: {0}")]
    Refused(String),
    /// The same, if only the source's quota is used up.
    #[error("not stored: {0}")]
    OverQuota(String),
}

/// A chunk that is not present yet.
pub struct IncomingChunk {
    file: Arc<EntryFile>,
    chunk: ChunkIndex,
    range: ByteRange,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    /// Being written, or written.
    claimed: RangeSet<u64>,
    /// In the sparse file.
    written: RangeSet<u64>,
    /// Hashes the bytes that arrived in order from the start of the chunk.
    hasher: DigestHasher,
    pieces: Pieces,
    reservation: Option<Reservation>,
    phase: Phase,
    fetcher: Option<FetchId>,
    /// Some reader was given bytes of it.
    read: bool,
    /// Writes in progress, outside the lock.
    writing: u32,
    last_progress: Instant,
}

#[derive(Clone, Debug)]
enum Phase {
    Filling,
    /// Another thread has written the last byte and is making the chunk present.
    Finishing,
    Present,
    /// Refused; its blocks are freed before any fetch can begin the chunk again.
    Refusing(IncomingError),
    Refused(IncomingError),
    /// No reader needed it; like `Refusing` and `Refused`, but a fetch may begin the chunk again.
    Abandoning,
    Abandoned,
}

/// The state at a reader's position.
#[derive(Clone, Debug)]
pub enum ByteState {
    /// Bytes up to this offset are in the file.
    Written(u64),
    Nothing,
    /// The chunk is in the store now.
    Present,
    Refused(String),
}

impl IncomingChunk {
    pub(super) fn new(file: Arc<EntryFile>, chunk: ChunkIndex) -> Self {
        let range = file.geometry().chunk_range(chunk);
        let state = State {
            claimed: RangeSet::new(),
            written: RangeSet::new(),
            hasher: DigestHasher::new(range),
            pieces: Pieces::new(range),
            reservation: None,
            phase: Phase::Filling,
            fetcher: None,
            read: false,
            writing: 0,
            last_progress: Instant::now(),
        };
        Self {
            file,
            chunk,
            range,
            state: Mutex::new(state),
            changed: Notify::new(),
        }
    }

    #[must_use]
    pub fn chunk(&self) -> ChunkIndex {
        self.chunk
    }

    /// Wakes at each change. Subscribe before checking.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Checks one position.
    #[must_use]
    pub fn find(&self, offset: u64) -> ByteState {
        let mut state = self.state.lock();
        match (&state.phase, state.written.run_end(offset)) {
            (Phase::Present, _) => ByteState::Present,
            (Phase::Filling | Phase::Finishing, Some(end)) => {
                state.read = true;
                ByteState::Written(end)
            }
            (Phase::Filling | Phase::Finishing, None) => ByteState::Nothing,
            (Phase::Refusing(why) | Phase::Refused(why), _) => ByteState::Refused(why.to_string()),
            (Phase::Abandoning | Phase::Abandoned, _) => ByteState::Nothing,
        }
    }

    /// The first range of `within` that is neither written nor being written.
    #[must_use]
    pub fn gap(&self, within: ByteRange) -> Option<ByteRange> {
        let state = self.state.lock();
        match state.phase {
            Phase::Filling => first_gap(&state.claimed, within.intersect(self.range)),
            _ => None,
        }
    }

    /// Claims the chunk for a fetch. Another fetch's claim persists, unless that fetch brought
    /// nothing for a second.
    pub fn claim(self: &Arc<Self>, fetch: FetchId) -> Option<ChunkClaim> {
        let mut state = self.state.lock();
        let free = match state.fetcher {
            None => true,
            Some(_) => state.last_progress.elapsed().as_millis() > TAKE_OVER_AFTER_MS,
        };
        let open = matches!(state.phase, Phase::Filling);
        if !free || !open {
            return None;
        }
        state.fetcher = Some(fetch);
        state.last_progress = Instant::now();
        Some(ChunkClaim {
            incoming_chunk: self.clone(),
            fetch,
        })
    }

    /// Bytes around this one that are in the file, with the hash that they had on arrival.
    #[must_use]
    pub fn proved(&self, offset: u64) -> Option<(ByteRange, u64)> {
        let mut state = self.state.lock();
        let piece = match state.phase {
            Phase::Filling | Phase::Finishing => state.pieces.find(offset),
            _ => None,
        };
        state.read |= piece.is_some();
        piece
    }

    fn is_whole(&self, state: &State) -> bool {
        matches!(state.phase, Phase::Filling) && state.written.covers(self.range.as_range())
    }

    /// Whether a fetch is working on it.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        self.state.lock().fetcher.is_some()
    }

    /// Writes the part of `bytes` that lies in this chunk and is missing. Blocking. True: the chunk
    /// is now present.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<bool, IncomingError> {
        let whole = ByteRange::new(offset, offset + bytes.len() as u64).intersect(self.range);
        loop {
            let gap = {
                let mut state = self.state.lock();
                match &state.phase {
                    Phase::Refusing(why) | Phase::Refused(why) => {
                        return Err(why.clone());
                    }
                    Phase::Finishing | Phase::Present => return Ok(true),
                    // A fetch that still wants the chunk begins it again.
                    Phase::Abandoning | Phase::Abandoned => return Ok(false),
                    Phase::Filling => {}
                }
                if state.reservation.is_none() {
                    match self.file.reserve(self.range.len()) {
                        Ok(reservation) => state.reservation = Some(reservation),
                        Err(error) => return Err(self.refuse(state, &error)),
                    }
                }
                let Some(gap) = first_gap(&state.claimed, whole) else {
                    return Ok(false);
                };
                state.claimed.insert(gap.as_range());
                state.writing += 1;
                gap
            };
            let part = &bytes[(gap.start - offset) as usize..(gap.end - offset) as usize];
            let written = self.file.write_at(gap.start, part);
            let mut state = self.state.lock();
            state.writing -= 1;
            if let Err(error) = written {
                return Err(self.refuse(state, &error));
            }
            if let Phase::Refusing(why) = &state.phase {
                let why = why.clone();
                self.give_back(state);
                return Err(why);
            }
            if self.publish(state, gap, part)? {
                return Ok(true);
            }
        }
    }

    fn publish(
        &self,
        mut state: MutexGuard<'_, State>,
        gap: ByteRange,
        part: &[u8],
    ) -> Result<bool, IncomingError> {
        state.written.insert(gap.as_range());
        state.last_progress = Instant::now();
        if gap.start == state.hasher.position() {
            state.hasher.update(part);
        }
        state.pieces.add(gap.start, part);
        if !self.is_whole(&state) {
            drop(state);
            self.changed.notify_waiters();
            return Ok(false);
        }
        self.finish(state)
    }

    /// Finishes the chunk: the last byte is written.
    fn finish(&self, mut state: MutexGuard<'_, State>) -> Result<bool, IncomingError> {
        state.phase = Phase::Finishing;
        let mut hasher = state.hasher.clone();
        let reservation = state.reservation.take();
        drop(state);
        self.changed.notify_waiters();
        if let Err(error) = self.hash_rest(&mut hasher) {
            let mut state = self.state.lock();
            state.reservation = reservation;
            return Err(self.refuse(state, &error));
        }
        if let Some(reservation) = reservation {
            self.file
                .finish_chunk(self.chunk, hasher.finish(), reservation);
        }
        self.state.lock().phase = Phase::Present;
        self.changed.notify_waiters();
        Ok(true)
    }

    /// Hashes the rest of a chunk whose fetch began in the middle.
    fn hash_rest(&self, hasher: &mut DigestHasher) -> Result<(), StoreError> {
        let left = |hasher: &DigestHasher| (self.range.end - hasher.position()) as usize;
        let mut buffer = vec![0; REREAD_BYTES.min(left(hasher))];
        while left(hasher) > 0 {
            let length = buffer.len().min(left(hasher));
            self.file
                .read_at(hasher.position(), &mut buffer[..length])?;
            hasher.update(&buffer[..length]);
        }
        Ok(())
    }

    /// Voids the chunk for lack of space or because of a broken disk. Blocking.
    fn refuse(&self, mut state: MutexGuard<'_, State>, error: &StoreError) -> IncomingError {
        let why = match error {
            StoreError::OverQuota(_) => IncomingError::OverQuota(error.to_string()),
            _ => IncomingError::Refused(error.to_string()),
        };
        if !matches!(state.phase, Phase::Refusing(_) | Phase::Refused(_)) {
            state.phase = Phase::Refusing(why.clone());
        }
        self.give_back(state);
        why
    }

    /// Frees the blocks and the space of an abandoned or refused chunk, after its last write.
    /// Blocking.
    fn give_back(&self, state: MutexGuard<'_, State>) {
        let over = match &state.phase {
            Phase::Refusing(why) if state.writing == 0 => Phase::Refused(why.clone()),
            Phase::Abandoning if state.writing == 0 => Phase::Abandoned,
            _ => return,
        };
        let begun = !state.claimed.is_empty();
        // No writes happen from here on, and no fetch begins the chunk again until it is refused.
        drop(state);
        if begun {
            self.file.abandon_chunk(self.chunk);
        }
        let mut state = self.state.lock();
        state.phase = over;
        let reservation = state.reservation.take();
        drop(state);
        drop(reservation);
        self.changed.notify_waiters();
    }

    /// Whether the rest is worth fetching although no fetch is bringing it. True if a reader was
    /// given bytes of it, because that reader or others may return for more, or if at least half of
    /// its bytes are here, so that the rest costs the origin no more than it has spent already. A
    /// chunk that was hardly begun for a reader that left is not worth it.
    #[must_use]
    pub fn is_worth_completing(&self) -> bool {
        let state = self.state.lock();
        matches!(state.phase, Phase::Filling)
            && state.fetcher.is_none()
            && !state.written.is_empty()
            && (state.read || state.written.count() >= self.range.len().div_ceil(2))
    }

    /// Whether some reader was given bytes of it.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.state.lock().read
    }

    /// Makes waiters check again.
    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Whether it is complete, refused or abandoned.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(
            self.state.lock().phase,
            Phase::Present | Phase::Refused(_) | Phase::Abandoned
        )
    }

    /// Milliseconds since its last change.
    #[must_use]
    pub fn idle_ms(&self) -> u128 {
        self.state.lock().last_progress.elapsed().as_millis()
    }

    /// Stops all writes to it. False: it is complete, refused or abandoned already.
    pub(super) fn begin_abandoning(&self) -> bool {
        let mut state = self.state.lock();
        let is_open = matches!(state.phase, Phase::Filling);
        if is_open {
            state.phase = Phase::Abandoning;
        }
        is_open
    }

    /// Frees its blocks. Blocking.
    pub(super) fn finish_abandoning(&self) {
        self.give_back(self.state.lock());
    }
}

/// The right to fetch a chunk. If dropped before the chunk is complete, it wakes the waiters so
/// that one of them claims the chunk again.
pub struct ChunkClaim {
    incoming_chunk: Arc<IncomingChunk>,
    fetch: FetchId,
}

fn first_gap(set: &RangeSet<u64>, within: ByteRange) -> Option<ByteRange> {
    set.first_gap(within.as_range())
        .map(|gap| ByteRange::new(gap.start, gap.end))
}

impl ChunkClaim {
    #[must_use]
    pub fn incoming_chunk(&self) -> &Arc<IncomingChunk> {
        &self.incoming_chunk
    }

    /// Whether no other fetch has taken the claim over.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.incoming_chunk.state.lock().fetcher == Some(self.fetch)
    }
}

impl Drop for ChunkClaim {
    fn drop(&mut self) {
        let mut state = self.incoming_chunk.state.lock();
        // It may have been taken over.
        if state.fetcher == Some(self.fetch) {
            state.fetcher = None;
            drop(state);
            self.incoming_chunk.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use chunkcache_proto::{Geometry, v1};

    use super::{super::incoming_chunks::IncomingChunks, *};
    use chunk_store::{MinFree, Store, StoreOptions};

    /// A file with chunks of 2 MiB.
    fn a_file() -> (tempfile::TempDir, Store, Arc<EntryFile>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreOptions {
            data_dir: dir.path().to_owned(),
            max_bytes: None,
            min_free: MinFree::Bytes(0),
            group_sync_window: std::time::Duration::from_millis(1),
        })
        .unwrap();
        let entry = v1::Entry {
            id: "00000000-0000-8000-8000-000000000001".into(),
            size: 8 << 20,
            chunk_size: 2 << 20,
            ..v1::Entry::default()
        };
        let geometry = Geometry::new(entry.size, entry.chunk_size).unwrap();
        let file = store.put_entry(&entry, geometry).unwrap();
        (dir, store, file)
    }

    #[test]
    fn what_a_reader_has_bytes_of_or_half_of_is_here_is_worth_completing() {
        let (_dir, _store, file) = a_file();
        let incoming_chunk = |chunk| IncomingChunk::new(file.clone(), chunk);
        let bytes = vec![7; 512 << 10];

        let read = incoming_chunk(0);
        assert!(!read.is_worth_completing(), "nothing is here");
        read.write(1 << 20, &bytes).unwrap();
        assert!(!read.is_worth_completing(), "a quarter, and nobody saw it");
        assert!(matches!(read.find(0), ByteState::Nothing));
        assert!(!read.is_worth_completing(), "nobody was given anything");
        assert!(matches!(read.find(1 << 20), ByteState::Written(_)));
        assert!(read.is_worth_completing());

        let half = incoming_chunk(1);
        half.write(2 << 20, &bytes).unwrap();
        half.write((2 << 20) + (1 << 20), &bytes).unwrap();
        assert!(half.is_worth_completing());
        let half = Arc::new(half);
        let claim = half.claim(FetchId::Coordinated(1)).unwrap();
        assert!(!half.is_worth_completing(), "somebody brings the rest");
        drop(claim);
        assert!(half.is_worth_completing());
    }

    /// The blocks are punched without the map's lock: a fetch that arrives meanwhile waits for the
    /// punch, and begins the chunk again after it.
    #[test]
    fn a_chunk_that_is_given_up_is_begun_anew_only_behind_the_punch() {
        let (_dir, _store, file) = a_file();
        let incoming = IncomingChunks::default().of(&file);
        let first = incoming.incoming_chunk(0).unwrap();
        first.write(0, &[7; 512]).unwrap();
        assert!(first.begin_abandoning());
        let still = incoming.incoming_chunk(0).unwrap();
        assert!(Arc::ptr_eq(&first, &still), "no second one beside it");
        assert!(still.claim(FetchId::Coordinated(1)).is_none());
        assert!(matches!(still.find(0), ByteState::Nothing));
        assert!(!still.write(512, &[7; 512]).unwrap());
        first.finish_abandoning();
        let anew = incoming.incoming_chunk(0).unwrap();
        assert!(!Arc::ptr_eq(&first, &anew));
        assert!(anew.claim(FetchId::Coordinated(1)).is_some());
        assert!(matches!(anew.find(0), ByteState::Nothing));
    }

    #[tokio::test]
    async fn a_second_whole_stream_of_an_entry_waits_for_the_first() {
        let (_dir, _store, file) = a_file();
        let incoming = IncomingChunks::default().of(&file);
        let stream = incoming.begin_whole_stream().unwrap();
        assert!(incoming.begin_whole_stream().is_none());
        let ended = incoming.whole_stream_ended();
        tokio::pin!(ended);
        assert!(futures_pending(ended.as_mut()).await);
        drop(stream);
        ended.await;
        assert!(incoming.begin_whole_stream().is_some());
    }

    async fn futures_pending(future: impl Future<Output = ()>) -> bool {
        let soon = std::time::Duration::from_millis(5);
        tokio::time::timeout(soon, future).await.is_err()
    }
}
