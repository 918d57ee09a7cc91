//! Answers stored as a whole, from one request: those without a validator or a length, and those
//! with other statuses, for their explicit lifetime (RFC 9111, 4.2).
//!
//! Requests during an arrival get what has arrived and the rest as it comes. `whole_store` keeps
//! them.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use chunkcache_proto::v1;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

use super::ports::{PassBody, ReadError};

/// Bytes that may be buffered for the readers of an answer that is not stored.
pub(super) const WINDOW_BYTES: usize = 256 << 10;
/// How long a reader of an answer that is not stored may block the others.
const SLOWEST_FOR: Duration = Duration::from_secs(10);

/// The head of an answer.
pub struct WholeDescription {
    pub key: v1::Key,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub freshness: v1::Freshness,
}

/// One answer, arrived or arriving.
pub struct Whole {
    pub described: WholeDescription,
    progress: Mutex<Progress>,
    changed: Notify,
}

#[derive(Default)]
struct Progress {
    /// In order of arrival. Pieces that every reader has passed are dropped if nobody can need them
    /// again.
    pieces: VecDeque<Bytes>,
    dropped: usize,
    bytes: usize,
    end: Option<Result<(), String>>,
    /// The complete body, in one piece.
    body: Option<Bytes>,
    /// It is too large: nobody may join any longer, and passed pieces are dropped.
    is_left: bool,
    /// The next piece of each reader.
    readers: HashMap<u64, usize>,
    next_reader: u64,
}

impl Progress {
    /// Drops the pieces if the body is complete in one piece and has no reader of pieces left.
    fn let_pieces_go(&mut self) {
        if self.body.is_some() && self.readers.is_empty() {
            self.pieces = VecDeque::new();
        }
    }

    fn trim(&mut self) {
        let least = self.readers.values().min().copied();
        let least = least.unwrap_or(self.dropped + self.pieces.len());
        while self.dropped < least
            && let Some(piece) = self.pieces.pop_front()
        {
            self.dropped += 1;
            self.bytes -= piece.len();
        }
    }
}

/// A reader's position. Dropping it releases the pieces that it has not read.
struct Reader {
    whole: Arc<Whole>,
    number: u64,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut progress = self.whole.progress.lock();
        progress.readers.remove(&self.number);
        if progress.is_left {
            progress.trim();
        }
        progress.let_pieces_go();
        drop(progress);
        self.whole.changed.notify_waiters();
    }
}

impl Reader {
    /// The next piece; `None` at the end.
    async fn next(&self) -> Result<Option<Bytes>, String> {
        loop {
            let mut changed = std::pin::pin!(self.whole.changed.notified());
            changed.as_mut().enable();
            {
                let mut guard = self.whole.progress.lock();
                let progress = &mut *guard;
                let Some(at) = progress.readers.get_mut(&self.number) else {
                    return Err("it was read too slowly".into());
                };
                if let Some(piece) = progress.pieces.get(*at - progress.dropped).cloned() {
                    *at += 1;
                    if progress.is_left {
                        progress.trim();
                        drop(guard);
                        self.whole.changed.notify_waiters();
                    }
                    return Ok(Some(piece));
                }
                if let Some(end) = &progress.end {
                    return end.clone().map(|()| None);
                }
            }
            changed.await;
        }
    }
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Whole")
            .field("key", &self.described.key)
            .finish()
    }
}

impl Whole {
    pub(super) fn new(described: WholeDescription) -> Self {
        Self {
            described,
            progress: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Bytes of the pieces that it buffers.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.progress.lock().bytes
    }

    /// The body, if it is complete.
    pub fn body(&self) -> Option<Bytes> {
        self.progress.lock().body.clone()
    }

    /// Waits until it is complete; `None`: it never will be.
    pub async fn arrived(&self) -> Option<Bytes> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let progress = self.progress.lock();
                if progress.body.is_some() || progress.end.is_some() || progress.is_left {
                    return progress.body.clone();
                }
            }
            changed.await;
        }
    }

    /// The pieces that have arrived, and the rest as it comes; `None`: nobody can join any longer.
    pub fn stream(self: &Arc<Self>) -> Option<PassBody> {
        let mut progress = self.progress.lock();
        if progress.is_left || matches!(progress.end, Some(Err(_))) {
            return None;
        }
        if let Some(body) = &progress.body {
            return Some(full(body.clone()));
        }
        let number = progress.next_reader;
        progress.next_reader += 1;
        let first = progress.dropped;
        progress.readers.insert(number, first);
        drop(progress);
        let reader = Reader {
            whole: Arc::clone(self),
            number,
        };
        // A part of a live ladder has a thousand readers at a time: each takes the pieces on its
        // own connection's worker, without a task between.
        let frames = futures_util::stream::try_unfold(reader, |reader| async move {
            let piece = reader.next().await.map_err(ReadError::Origin)?;
            Ok(piece.map(|piece| (Frame::data(piece), reader)))
        });
        Some(Box::pin(StreamBody::new(frames)))
    }

    pub(super) fn push(&self, piece: Bytes) -> usize {
        let mut progress = self.progress.lock();
        progress.bytes += piece.len();
        progress.pieces.push_back(piece);
        let bytes = progress.bytes;
        drop(progress);
        self.changed.notify_waiters();
        bytes
    }

    pub(super) fn leave(&self) {
        let mut progress = self.progress.lock();
        progress.is_left = true;
        progress.trim();
        drop(progress);
        self.changed.notify_waiters();
    }

    pub(super) fn end(&self, end: Result<(), String>) {
        let mut progress = self.progress.lock();
        if end.is_ok() && !progress.is_left {
            let mut all = BytesMut::with_capacity(progress.bytes);
            progress.pieces.iter().for_each(|piece| all.extend(piece));
            progress.body = Some(all.freeze());
        }
        progress.let_pieces_go();
        progress.end = Some(end);
        drop(progress);
        self.changed.notify_waiters();
    }

    /// Waits until buffered pieces are read. False: there are no readers.
    pub(super) async fn drained(&self) -> bool {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let progress = self.progress.lock();
                if progress.readers.is_empty() {
                    return false;
                }
                if progress.bytes < WINDOW_BYTES {
                    return true;
                }
            }
            if timeout(SLOWEST_FOR, changed).await.is_err() {
                let mut progress = self.progress.lock();
                let slowest = progress.readers.iter().min_by_key(|(_, at)| **at);
                let slowest = slowest.map(|(number, _)| *number);
                slowest.and_then(|number| progress.readers.remove(&number));
                progress.trim();
                drop(progress);
                self.changed.notify_waiters();
            }
        }
    }
}

/// A body that is in memory.
pub(super) fn full(bytes: Bytes) -> PassBody {
    Box::pin(Full::new(bytes).map_err(|never| match never {}))
}

pub(super) type PumpFuture = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
