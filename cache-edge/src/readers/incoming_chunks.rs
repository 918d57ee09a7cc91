//! All incoming chunks, by entry.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use chunkcache_proto::{ChunkIndex, EntryId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    incoming_chunk::{ByteState, IncomingChunk},
    miss_history::MissHistory,
    unread::UnreadChunks,
};
use chunk_store::EntryFile;

/// A partial chunk without a fetch or waiting readers keeps its space for this long, because
/// seeking back is common.
const IDLE_LIMIT_MS: u128 = 15_000;

/// The incoming chunks of one entry.
pub struct EntryIncoming {
    file: Arc<EntryFile>,
    chunks: Mutex<HashMap<ChunkIndex, Arc<IncomingChunk>>>,
    /// One response body brings the whole object, because its origin ignores ranges.
    whole_stream: AtomicBool,
    whole_stream_ended: Notify,
    ignores_ranges: AtomicBool,
    changed_at_origin: AtomicBool,
    /// Shared by all entries.
    changes: Arc<AtomicU64>,
    history: Arc<MissHistory>,
    hinted: AtomicBool,
    last_error: Mutex<Option<String>>,
    fatal: Mutex<Option<(Instant, String)>>,
}

impl EntryIncoming {
    #[must_use]
    pub fn file(&self) -> &Arc<EntryFile> {
        &self.file
    }

    /// The incoming chunk, created if there is none. `None`: the chunk is present.
    #[must_use]
    pub fn incoming_chunk(&self, chunk: ChunkIndex) -> Option<Arc<IncomingChunk>> {
        let mut chunks = self.chunks.lock();
        if let Some(incoming_chunk) = chunks.get(&chunk) {
            if !incoming_chunk.is_over() {
                return Some(incoming_chunk.clone());
            }
            chunks.remove(&chunk);
        }
        if self.file.is_present(chunk) {
            return None;
        }
        let incoming_chunk = Arc::new(IncomingChunk::new(self.file.clone(), chunk));
        chunks.insert(chunk, incoming_chunk.clone());
        Some(incoming_chunk)
    }

    /// The incoming chunk, if there is one.
    #[must_use]
    pub fn existing(&self, chunk: ChunkIndex) -> Option<Arc<IncomingChunk>> {
        self.chunks.lock().get(&chunk).cloned()
    }

    /// Whether the byte is here, in a chunk that is present or still arriving.
    #[must_use]
    pub fn has(&self, offset: u64) -> bool {
        let chunk = self.file.geometry().chunk_of(offset);
        let is_here = |incoming_chunk: Arc<IncomingChunk>| {
            let found = incoming_chunk.find(offset);
            matches!(found, ByteState::Written(_) | ByteState::Present)
        };
        // In this order, because an incoming chunk is forgotten once it is present.
        self.existing(chunk).is_some_and(is_here) || self.file.is_present(chunk)
    }

    /// The partial chunks among `chunks` that no fetch brings and that are worth completing.
    #[must_use]
    pub fn partial_chunks(&self, chunks: Range<ChunkIndex>) -> Vec<ChunkIndex> {
        let incoming = self.chunks.lock();
        let is_worth = |chunk: &ChunkIndex| {
            let incoming_chunk = incoming.get(chunk);
            incoming_chunk.is_some_and(|it| it.is_worth_completing())
        };
        chunks.filter(is_worth).collect()
    }

    /// Forgets an incoming chunk that is over.
    pub fn landed(&self, chunk: ChunkIndex) {
        let mut chunks = self.chunks.lock();
        if chunks
            .get(&chunk)
            .is_some_and(|incoming_chunk| incoming_chunk.is_over())
        {
            chunks.remove(&chunk);
        }
    }

    /// Begins the only stream of an origin without ranges; it ends when the guard is dropped.
    pub fn begin_whole_stream(self: &Arc<Self>) -> Option<WholeStream> {
        self.ignores_ranges.store(true, Ordering::Release);
        (!self.whole_stream.swap(true, Ordering::AcqRel)).then(|| WholeStream(self.clone()))
    }

    /// Waits for the end of the whole stream, if there is one. Cancel safe.
    pub async fn whole_stream_ended(&self) {
        while let Some(ended) = {
            let ended = self.whole_stream_ended.notified();
            self.has_whole_stream().then_some(ended)
        } {
            ended.await;
        }
    }

    #[must_use]
    pub fn has_whole_stream(&self) -> bool {
        self.whole_stream.load(Ordering::Acquire)
    }

    pub fn set_ignores_ranges(&self) {
        self.ignores_ranges.store(true, Ordering::Release);
    }

    /// Whether the origin's answers showed that it ignores ranges.
    #[must_use]
    pub fn ignores_ranges(&self) -> bool {
        self.ignores_ranges.load(Ordering::Acquire)
    }

    /// Records that the origin has another version, so missing chunks of this one can no longer be
    /// fetched.
    pub fn set_changed(&self) {
        self.changed_at_origin.store(true, Ordering::Release);
        self.changes.fetch_add(1, Ordering::Release);
        if let Some(key) = &self.file.description().key {
            self.history.note_replaced(key);
        }
        for incoming_chunk in self.chunks.lock().values() {
            incoming_chunk.wake();
        }
    }

    /// Records that the origin has this version, still or again.
    pub fn set_current(&self) {
        self.changed_at_origin.store(false, Ordering::Release);
    }

    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.changed_at_origin.load(Ordering::Acquire)
    }

    /// Why the last fetch of the entry failed, for waiting readers.
    pub fn set_last_error(&self, error: Option<String>) {
        *self.last_error.lock() = error;
    }

    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// Records a final refusal by the origin, which ends the waits of present readers.
    pub fn set_fatal(&self, error: String) {
        *self.fatal.lock() = Some((Instant::now(), error));
        for incoming_chunk in self.chunks.lock().values() {
            incoming_chunk.wake();
        }
    }

    /// The final refusal, if it came after `since`.
    #[must_use]
    pub fn fatal_since(&self, since: Instant) -> Option<String> {
        self.fatal
            .lock()
            .as_ref()
            .filter(|(at, _)| *at >= since)
            .map(|(_, error)| error.clone())
    }

    /// True for the first caller, which looks for the container's index.
    #[must_use]
    pub fn take_hint_turn(&self) -> bool {
        !self.hinted.swap(true, Ordering::AcqRel)
    }

    /// Abandons chunks that were idle for too long, or all idle ones under pressure. Blocking.
    fn sweep(&self, under_pressure: bool) -> bool {
        // Chunks of a replaced version cannot be completed: the origin no longer has it.
        let at_once = under_pressure || self.is_changed();
        let abandoned: Vec<_> = {
            let chunks = self.chunks.lock();
            let idle = chunks.values().filter(|incoming_chunk| {
                // One of the references is the map's.
                let used = Arc::strong_count(incoming_chunk) > 1 || incoming_chunk.is_claimed();
                !used && (at_once || incoming_chunk.idle_ms() > IDLE_LIMIT_MS)
            });
            // Decided under the lock, so that no fetch takes the chunk up in between. The chunk
            // stays in the map until its blocks are punched, so that no fetch begins it again
            // before that.
            idle.filter(|incoming_chunk| incoming_chunk.begin_abandoning())
                .cloned()
                .collect()
        };
        for incoming_chunk in abandoned {
            incoming_chunk.finish_abandoning();
        }
        let mut chunks = self.chunks.lock();
        chunks.retain(|_, incoming_chunk| !incoming_chunk.is_over());
        chunks.is_empty()
    }
}

/// See [`EntryIncoming::begin_whole_stream`].
pub struct WholeStream(Arc<EntryIncoming>);

impl Drop for WholeStream {
    fn drop(&mut self) {
        self.0.whole_stream.store(false, Ordering::Release);
        self.0.whole_stream_ended.notify_waiters();
    }
}

/// The incoming chunks of all entries.
#[derive(Default)]
pub struct IncomingChunks {
    entries: Mutex<HashMap<EntryId, Arc<EntryIncoming>>>,
    /// Chunks that were fetched ahead of readers.
    pub unread: UnreadChunks,
    changes: Arc<AtomicU64>,
    history: Arc<MissHistory>,
}

impl IncomingChunks {
    /// Records of chunks that are no longer here.
    #[must_use]
    pub fn history(&self) -> &MissHistory {
        &self.history
    }

    /// How often an entry was found changed at its origin. Read it before
    /// [`is_changed`](Self::is_changed): while it stays the same, unchanged entries stay unchanged.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The incoming chunks of an entry, created if there are none. A removed and re-created entry
    /// starts with none.
    #[must_use]
    pub fn of(&self, file: &Arc<EntryFile>) -> Arc<EntryIncoming> {
        let mut entries = self.entries.lock();
        if let Some(found) = entries.get(&file.id())
            && Arc::ptr_eq(&found.file, file)
        {
            return found.clone();
        }
        let made = Arc::new(EntryIncoming {
            file: file.clone(),
            chunks: Mutex::default(),
            whole_stream: AtomicBool::new(false),
            whole_stream_ended: Notify::new(),
            ignores_ranges: AtomicBool::new(false),
            changed_at_origin: AtomicBool::new(false),
            changes: self.changes.clone(),
            history: self.history.clone(),
            hinted: AtomicBool::new(false),
            last_error: Mutex::default(),
            fatal: Mutex::default(),
        });
        entries.insert(file.id(), made.clone());
        made
    }

    /// Whether the entry, which may have no incoming chunks, was replaced at its origin.
    #[must_use]
    pub fn is_changed(&self, file: &EntryFile) -> bool {
        let entries = self.entries.lock();
        entries
            .get(&file.id())
            .is_some_and(|incoming| incoming.is_changed())
    }

    /// Sweeps periodically. Blocking.
    pub fn sweep(&self, under_pressure: bool) {
        let all: Vec<_> = self.entries.lock().values().cloned().collect();
        for entry in all {
            let empty = entry.sweep(under_pressure);
            let mut entries = self.entries.lock();
            // The map's reference and ours; a replaced entry is remembered while it has readers.
            if empty && Arc::strong_count(&entry) == 2 {
                entries.remove(&entry.file.id());
            }
        }
    }
}
