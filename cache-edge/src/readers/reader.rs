//! A cursor over a range of an entry: returns present bytes at once and arriving bytes as they
//! land, and waits for the rest.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use chunkcache_proto::{ByteRange, ChunkIndex};
use tokio::time::Instant;

use super::{
    ahead,
    demand::{DemandRegistry, ReaderState},
    incoming_chunk::ByteState,
    incoming_chunks::{EntryIncoming, IncomingChunks},
};
use crate::{
    core::{consumption::PlayerReport, container},
    resolve::ports::{OpenReader, Piece, Presence, ReadBytes, ReadError},
};
use chunk_store::{ChunkPin, EntryFile};
use http_rules::cache_status::Missing;

/// A reader of a longer range is reported to the cluster even if all its bytes are here.
const TELL_ALWAYS_BYTES: u64 = 16 << 20;

/// Chunks read past the store before it is checked again whether chunks can be stored.
const DIRECT_CHUNKS: u32 = 16;

/// Bytes that bypass the store when there is no space: from the origin, checked against the entry.
pub trait DirectBytes: Send + Sync + 'static {
    fn open(
        &self,
        file: Arc<EntryFile>,
        range: ByteRange,
    ) -> tokio::sync::mpsc::Receiver<Result<Bytes, ReadError>>;
}

/// Bytes of a container's head that are needed to find out where its index is.
const MIN_HEAD_BYTES: u64 = 4_096;

/// Opens readers of one entry.
#[derive(Clone)]
pub struct ReaderFactory {
    pub file: Arc<EntryFile>,
    pub incoming: Arc<IncomingChunks>,
    pub demand: Arc<DemandRegistry>,
    pub direct: Arc<dyn DirectBytes>,
    pub chunk_wait_timeout: Duration,
    /// The answer to the question for this object brings the reader's first chunk.
    pub is_under_way: bool,
}

impl OpenReader for ReaderFactory {
    type Reader = Reader;

    fn open(&self, range: ByteRange, player: PlayerReport) -> Reader {
        let range = range.intersect(ByteRange::new(0, self.file.geometry().size()));
        let told = range.len() > TELL_ALWAYS_BYTES || self.presence(range) != Presence::All;
        let mut reader = Reader {
            factory: self.clone(),
            cursor: range.start,
            end: range.end,
            player,
            demand: None,
            incoming: None,
            direct: None,
            last_chunk: None,
            answered_to: if self.is_under_way {
                let geometry = self.file.geometry();
                geometry.chunk_range(geometry.chunk_of(range.start)).end
            } else {
                0
            },
            looks_for_index: range.start == 0 && !self.file.seems_complete(),
        };
        if told {
            reader.told();
        }
        reader
    }

    fn presence(&self, range: ByteRange) -> Presence {
        let chunks = self.file.geometry().chunks_covering(range);
        match self.file.first_missing(chunks.start, chunks.end) {
            None => Presence::All,
            Some(missing) if missing > chunks.start => Presence::Some,
            Some(missing) => match self.file.first_present(missing, chunks.end) {
                Some(_) => Presence::Some,
                None => Presence::None,
            },
        }
    }

    fn missing(&self, range: ByteRange) -> Option<Missing> {
        let geometry = self.file.geometry();
        let chunks = geometry.chunks_covering(range);
        let first = self.file.first_missing(chunks.start, chunks.end);
        let holds_other = self.file.first_present(0, geometry.chunk_count()).is_some();
        let place = (self.file.id(), first);
        let history = self.incoming.history();
        Some(history.missing(&self.file.description(), place, holds_other))
    }

    fn can_store(&self) -> bool {
        self.file.can_store()
    }

    async fn fetch_ahead(&self, range: ByteRange, player: PlayerReport) -> bool {
        ahead::fetch(self, range, player).await
    }
}

impl ReaderFactory {
    /// Pins a chunk that is present and verified.
    fn verified(&self, chunk: ChunkIndex) -> Option<ChunkPin> {
        let pin = self.file.pin(chunk)?;
        self.file.is_verified(chunk).then_some(pin)
    }
}

/// See [`ReadBytes`]. Dropping it withdraws its demand.
pub struct Reader {
    factory: ReaderFactory,
    cursor: u64,
    end: u64,
    player: PlayerReport,
    demand: Option<Arc<ReaderState>>,
    incoming: Option<Arc<EntryIncoming>>,
    direct: Option<tokio::sync::mpsc::Receiver<Result<Bytes, ReadError>>>,
    /// The chunk of the last returned bytes.
    last_chunk: Option<ChunkIndex>,
    /// End of the bytes that the answer to the question itself brings.
    answered_to: u64,
    /// It began at the first byte of an incomplete entry, and has not located the container's index
    /// yet.
    looks_for_index: bool,
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(state) = &self.demand {
            self.factory.demand.close(state.id);
        }
    }
}

impl ReadBytes for Reader {
    async fn next(&mut self, max_len: u64) -> Result<Option<Piece>, ReadError> {
        let max_len = max_len.max(1);
        if let Some(piece) = self.at_hand(max_len) {
            return Ok(Some(piece));
        }
        // Boxed, because it is large and a hit does not need it: the caller's future is moved, and
        // lives as long as its connection.
        Box::pin(self.step(max_len)).await
    }
}

impl Reader {
    async fn step(&mut self, max_len: u64) -> Result<Option<Piece>, ReadError> {
        let mut deadline = None;
        loop {
            if self.cursor >= self.end {
                return Ok(None);
            }
            if self.direct.is_some() {
                match self.next_direct().await? {
                    Some(piece) => return Ok(Some(piece)),
                    None => continue,
                }
            }
            if let Some(piece) = self.present(max_len).await {
                return Ok(Some(piece));
            }
            let incoming = self.incoming();
            let geometry = self.factory.file.geometry();
            let chunk = geometry.chunk_of(self.cursor);
            let Some(incoming_chunk) = incoming.incoming_chunk(chunk) else {
                continue;
            };
            let mut changed: Pin<Box<_>> = Box::pin(incoming_chunk.changed());
            changed.as_mut().enable();
            match incoming_chunk.find(self.cursor) {
                ByteState::Present => continue,
                ByteState::Written(_) => {
                    // Pin first and check again: if the chunk is abandoned meanwhile, its bytes are
                    // not punched before the pin ends.
                    if let Some(pin) = self.factory.file.hold_unfinished(chunk) {
                        if let ByteState::Written(end) = incoming_chunk.find(self.cursor) {
                            let end = end.min(self.end).min(self.cursor.saturating_add(max_len));
                            return Ok(Some(self.piece(end, Some(pin))));
                        }
                        continue;
                    }
                }
                ByteState::Refused(why) => {
                    self.read_past_the_store(&why);
                    continue;
                }
                ByteState::Nothing => {}
            }
            if incoming.is_changed() {
                return Err(ReadError::Changed);
            }
            let limit = self.factory.chunk_wait_timeout;
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + limit);
            if let Some(error) = incoming.fatal_since((deadline - limit).into_std()) {
                return Err(ReadError::Origin(error));
            }
            let state = self.told();
            if self.cursor < self.answered_to {
                self.factory.demand.wait_for_answer_at(&state, self.cursor);
            } else {
                self.factory.demand.wait_at(&state, self.cursor);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                let detail = incoming
                    .last_error()
                    .unwrap_or_else(|| "no answer from its origin".into());
                return Err(ReadError::TimedOut {
                    chunk,
                    waited: limit,
                    detail,
                });
            }
            // A refused chunk is forgotten at once: checking again would find a new one.
            if let ByteState::Refused(why) = incoming_chunk.find(self.cursor) {
                self.read_past_the_store(&why);
            }
        }
    }

    fn read_past_the_store(&mut self, why: &str) {
        let file = &self.factory.file;
        let chunk = file.geometry().chunk_of(self.cursor);
        tracing::debug!(entry = %file.id(), chunk, why, "reading past the store");
        let far = file.geometry().run_range(chunk, DIRECT_CHUNKS).end;
        let range = ByteRange::new(self.cursor, far.min(self.end));
        self.direct = Some(self.factory.direct.open(file.clone(), range));
    }

    /// Returns bytes of a stored chunk that was checked before.
    fn at_hand(&mut self, max_len: u64) -> Option<Piece> {
        if self.cursor >= self.end || self.direct.is_some() {
            return None;
        }
        let geometry = self.factory.file.geometry();
        let chunk = geometry.chunk_of(self.cursor);
        let pin = self.factory.verified(chunk)?;
        let chunk_end = geometry.chunk_range(chunk).end;
        let end = chunk_end
            .min(self.end)
            .min(self.cursor.saturating_add(max_len));
        Some(self.piece(end, Some(pin)))
    }

    /// Returns bytes of a stored chunk, checked before this process first serves them.
    async fn present(&mut self, max_len: u64) -> Option<Piece> {
        let file = self.factory.file.clone();
        let chunk = file.geometry().chunk_of(self.cursor);
        loop {
            if let Some(piece) = self.at_hand(max_len) {
                return Some(piece);
            }
            if !file.is_present(chunk) {
                return None;
            }
            match file.verify(chunk).await {
                Ok(true) => {}
                Ok(false) => return None,
                // These bytes cannot be checked, and the origin has them too.
                Err(error) => {
                    let why = error.to_string();
                    self.read_past_the_store(&why);
                    return None;
                }
            }
        }
    }

    async fn next_direct(&mut self) -> Result<Option<Piece>, ReadError> {
        let Some(direct) = &mut self.direct else {
            return Ok(None);
        };
        match direct.recv().await {
            Some(Ok(bytes)) => Ok(Some(self.piece_in_memory(bytes))),
            Some(Err(error)) => Err(error),
            None => {
                self.direct = None;
                Ok(None)
            }
        }
    }

    fn piece_in_memory(&mut self, bytes: Bytes) -> Piece {
        let start = self.cursor;
        let mut piece = self.advance(start + bytes.len() as u64, None);
        if start == 0 {
            self.looks_for_index = false;
            self.look_for_index(bytes.len(), |head| {
                head.copy_from_slice(&bytes[..head.len()]);
                true
            });
        }
        piece.unstored = Some(bytes);
        piece
    }

    fn piece(&mut self, end: u64, pin: Option<ChunkPin>) -> Piece {
        let piece = self.advance(end, pin);
        let head = ByteRange::new(0, end.min(container::HEAD_BYTES as u64));
        // Sending this piece reads cold bytes into memory, so they are resident for the next piece.
        if self.looks_for_index && end >= MIN_HEAD_BYTES && piece.file.is_resident(head) {
            self.looks_for_index = false;
            let len = usize::try_from(end).unwrap_or(usize::MAX);
            self.look_for_index(len, |head| piece.file.read_at(0, head).is_ok());
        }
        piece
    }

    fn advance(&mut self, end: u64, pin: Option<ChunkPin>) -> Piece {
        let range = ByteRange::new(self.cursor, end);
        let geometry = self.factory.file.geometry();
        let chunk = geometry.chunk_of(range.start);
        let moved_on = chunk != geometry.chunk_of(end);
        if self.last_chunk.replace(chunk) != Some(chunk) {
            let unread = &self.factory.incoming.unread;
            unread.read(self.factory.file.id(), chunk);
        }
        self.cursor = end;
        if let Some(state) = &self.demand {
            self.factory
                .demand
                .advance(state, end, range.len(), moved_on);
        }
        Piece {
            file: self.factory.file.clone(),
            range,
            pin,
            unstored: None,
        }
    }

    /// Finds the container's index from the first `len` bytes, so that it is fetched before the
    /// player requests it. A reader without missing bytes is reported because of its index.
    fn look_for_index(&mut self, len: usize, read: impl FnOnce(&mut [u8]) -> bool) {
        if (len as u64) < MIN_HEAD_BYTES || !self.incoming().take_hint_turn() {
            return;
        }
        let mut head = vec![0; container::HEAD_BYTES.min(len)];
        if !read(&mut head) {
            return;
        }
        let mut hints = container::index_hints(&head, self.factory.file.geometry().size());
        hints.retain(|hint| self.factory.presence(*hint) != Presence::All);
        if !hints.is_empty() {
            let state = self.told();
            self.factory.demand.hint(&state, hints);
        }
    }

    fn told(&mut self) -> Arc<ReaderState> {
        let range = ByteRange::new(self.cursor, self.end);
        let factory = &self.factory;
        let state = self
            .demand
            .get_or_insert_with(|| factory.demand.open(&factory.file, range, self.player))
            .clone();
        self.incoming();
        state
    }

    fn incoming(&mut self) -> Arc<EntryIncoming> {
        let factory = &self.factory;
        self.incoming
            .get_or_insert_with(|| factory.incoming.of(&factory.file))
            .clone()
    }
}
