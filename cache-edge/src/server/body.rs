//! Bodies: parts of an object as a reader delivers them.
//!
//! A body that cannot be completed ends with an error, which makes hyper close the connection (or
//! reset the stream) short of its length; it never ends cleanly.

use std::{
    collections::VecDeque,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use chunkcache_proto::ByteRange;
use http_body::{Body, Frame, SizeHint};
use tokio_util::sync::ReusableBoxFuture;

use super::{
    buffers::{BufferPool, LARGE_BYTES, PooledBuf},
    file_slices::{FilePart, FileSlice, FileSlices, MAX_SLICE_BYTES},
    limits::Share,
    metrics::Metrics,
    pace::Pacer,
    sent_bytes::{ByteSource, SentBytes},
};
use crate::core::consumption::PlayerReport;
use crate::resolve::ports::{OpenReader, Piece, ReadBytes, ReadError};

/// A longer wait within a body is a stall that a viewer may notice.
const STALL: Duration = Duration::from_millis(100);
/// So much of a rate that a player asks for is sent at once: its player starts to play what it
/// gets.
const PACED_BURST: Duration = Duration::from_secs(1);

/// One frame's bytes.
pub enum BodyData {
    Memory(Bytes),
    /// Sent by `sendfile`; must not be read.
    File(FileSlice),
    Pooled(PooledBuf),
}

impl Buf for BodyData {
    fn remaining(&self) -> usize {
        match self {
            Self::Memory(data) => data.remaining(),
            Self::File(data) => data.remaining(),
            Self::Pooled(data) => data.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Memory(data) => data.chunk(),
            Self::File(data) => data.chunk(),
            Self::Pooled(data) => data.chunk(),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Memory(data) => data.advance(count),
            Self::File(data) => data.advance(count),
            Self::Pooled(data) => data.advance(count),
        }
    }
}

/// How the bytes of a file reach this connection.
#[derive(Clone)]
pub enum Delivery {
    /// A plain HTTP/1.1 socket: by `sendfile`.
    Sendfile(Arc<FileSlices>),
    /// TLS or HTTP/2: through reused buffers.
    Copy {
        pool: Arc<BufferPool>,
        client: IpAddr,
        /// It is one of many streams of its connection, and may wait for its client for ever, so it
        /// has a buffer only while its client takes bytes.
        is_stream: bool,
    },
}

/// One element of a body's plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Literal bytes: the heads of a multipart body.
    Literal(Bytes),
    /// Bytes of the object.
    Range(ByteRange),
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::Literal(bytes) => bytes.len() as u64,
            Self::Range(range) => range.len(),
        }
    }
}

/// The parts to send, in order. Most bodies are one part, which needs no allocation.
pub struct BodyPlan {
    first: Option<Part>,
    rest: VecDeque<Part>,
}

impl BodyPlan {
    #[must_use]
    pub fn new(parts: impl IntoIterator<Item = Part>) -> Self {
        let mut parts = parts.into_iter().filter(|part| part.len() > 0);
        Self {
            first: parts.next(),
            rest: parts.collect(),
        }
    }

    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.first.iter().chain(&self.rest)
    }

    fn pop(&mut self) -> Option<Part> {
        self.first.take().or_else(|| self.rest.pop_front())
    }

    /// The next part, if it is a literal.
    fn pop_literal(&mut self) -> Option<Bytes> {
        let Part::Literal(bytes) = self.parts().next()? else {
            return None;
        };
        let bytes = bytes.clone();
        self.pop();
        Some(bytes)
    }
}

/// Walks through the plan. Moved into the future of each step and back.
struct Cursor<O: OpenReader> {
    opener: O,
    plan: BodyPlan,
    player: PlayerReport,
    reader: Option<O::Reader>,
    /// The rest of the last piece, which did not fit into its buffer.
    rest: Option<Piece>,
    /// Fetched before the response's head is made: the bytes before the first range, and its first
    /// bytes.
    head: Option<Bytes>,
    primed: Option<BodyData>,
    delivery: Delivery,
    /// No piece is longer.
    max_piece: u64,
    sent: Arc<SentBytes>,
}

impl<O: OpenReader> Cursor<O> {
    /// The next bytes of the plan; `None` at its end.
    async fn advance(&mut self) -> Result<Option<BodyData>, ReadError> {
        if let Some(data) = self.at_hand() {
            return Ok(Some(data));
        }
        loop {
            if self.reader.is_some() {
                if let Some(data) = self.read().await? {
                    return Ok(Some(data));
                }
                self.reader = None;
            }
            match self.plan.pop() {
                None => return Ok(None),
                Some(Part::Literal(bytes)) => return Ok(Some(BodyData::Memory(bytes))),
                Some(Part::Range(range)) => {
                    self.reader = Some(self.opener.open(range, self.player));
                }
            }
        }
    }

    async fn prime(&mut self) -> Result<(), ReadError> {
        let mut head = BytesMut::new();
        while let Some(bytes) = self.plan.pop_literal() {
            head.extend_from_slice(&bytes);
        }
        self.head = (!head.is_empty()).then(|| head.freeze());
        if let Some(Part::Range(range)) = self.plan.pop() {
            self.reader = Some(self.opener.open(range, self.player));
            if let Delivery::Copy {
                is_stream: true, ..
            } = self.delivery
            {
                self.rest = self.next_piece().await?;
                if let Some(piece) = &self.rest {
                    bring_in(piece).await?;
                }
            } else {
                self.primed = self.read().await?;
            }
        }
        Ok(())
    }

    /// The bytes that [`prime`](Self::prime) fetched. Often they are the whole body, so that no
    /// future is ever made.
    fn at_hand(&mut self) -> Option<BodyData> {
        let head = self.head.take().map(BodyData::Memory);
        head.or_else(|| self.primed.take())
    }

    async fn read(&mut self) -> Result<Option<BodyData>, ReadError> {
        let piece = match self.rest.take() {
            Some(piece) => Some(piece),
            None => self.next_piece().await?,
        };
        match piece {
            Some(piece) => self.deliver(piece).await.map(Some),
            None => Ok(None),
        }
    }

    async fn next_piece(&mut self) -> Result<Option<Piece>, ReadError> {
        let max_len = match self.delivery {
            Delivery::Sendfile(_) => MAX_SLICE_BYTES as u64,
            Delivery::Copy { .. } => LARGE_BYTES as u64,
        };
        match &mut self.reader {
            Some(reader) => reader.next(max_len.min(self.max_piece)).await,
            None => Ok(None),
        }
    }

    /// Used if no slice is available.
    async fn read_into_memory(
        &mut self,
        mut piece: Piece,
        source: ByteSource,
    ) -> Result<BodyData, ReadError> {
        let (file, start) = (Arc::clone(&piece.file), piece.range.start);
        let len = piece.range.len().min(LARGE_BYTES as u64) as usize;
        let bytes = off_the_worker(move || {
            let mut bytes = vec![0; len];
            file.read_at(start, &mut bytes).map(|()| bytes)
        })
        .await?
        .map_err(disk)?;
        self.sent.count(source, len as u64);
        piece.range = ByteRange::new(start + len as u64, piece.range.end);
        if !piece.range.is_empty() {
            self.rest = Some(piece);
        }
        Ok(BodyData::Memory(bytes.into()))
    }

    async fn deliver(&mut self, mut piece: Piece) -> Result<BodyData, ReadError> {
        if let Some(bytes) = piece.unstored.take() {
            self.sent.count(ByteSource::Origin, bytes.len() as u64);
            return Ok(BodyData::Memory(bytes));
        }
        let source = if piece.pin.is_some() {
            ByteSource::Hit
        } else {
            ByteSource::InFlight
        };
        bring_in(&piece).await?;
        match &self.delivery {
            Delivery::Sendfile(slices) => {
                let part = FilePart {
                    file: piece.file.stored_file().map_err(disk)?,
                    offset: piece.range.start,
                };
                let len = piece.range.len() as usize;
                let Some(slice) = slices.add(part, len) else {
                    return self.read_into_memory(piece, source).await;
                };
                self.sent.count(source, piece.range.len());
                Ok(BodyData::File(slice.with_pin(piece.pin)))
            }
            Delivery::Copy { pool, client, .. } => {
                let mut buffer = pool.take(piece.range.len(), *client);
                let (file, start) = (Arc::clone(&piece.file), piece.range.start);
                file.read_at(start, buffer.as_mut_slice()).map_err(disk)?;
                let read = buffer.len() as u64;
                self.sent.count(source, read);
                piece.range = ByteRange::new(start + read, piece.range.end);
                if !piece.range.is_empty() {
                    self.rest = Some(piece);
                }
                Ok(BodyData::Pooled(buffer))
            }
        }
    }
}

/// Waits until the piece is in memory, because sending it would otherwise block this worker and
/// every connection that it serves. Bytes from the disk are checked on their way.
async fn bring_in(piece: &Piece) -> Result<(), ReadError> {
    if piece.unstored.is_some() || piece.file.is_resident(piece.range) {
        return Ok(());
    }
    let (file, range) = (Arc::clone(&piece.file), piece.range);
    let checked = off_the_worker(move || file.bring_in(range)).await?;
    if checked.map_err(disk)? {
        Ok(())
    } else {
        Err(disk("it gave other bytes than were stored"))
    }
}

fn disk(error: impl std::fmt::Display) -> ReadError {
    ReadError::Disk(error.to_string())
}

async fn off_the_worker<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReadError> {
    tokio::task::spawn_blocking(work).await.map_err(disk)
}

type Step<O> = (Cursor<O>, Result<Option<BodyData>, ReadError>);

async fn step<O: OpenReader>(mut cursor: Cursor<O>) -> Step<O> {
    let result = cursor.advance().await;
    (cursor, result)
}

/// Sends parts of one object. The future of each step reuses the previous one's allocation.
pub struct ObjectBody<O: OpenReader> {
    cursor: Option<Cursor<O>>,
    step: Option<ReusableBoxFuture<'static, Step<O>>>,
    waiting_since: Option<Instant>,
    remaining: u64,
    /// At which its player asked to be sent it.
    pace: Option<Pacer>,
    metrics: Arc<Metrics>,
    /// The client's share of the readers of missing bytes.
    _place: Option<Share>,
}

/// Nothing in it is pinned: cursors are moved, and futures are boxed.
impl<O: OpenReader> Unpin for ObjectBody<O> {}

impl<O: OpenReader> ObjectBody<O> {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(
        opener: O,
        plan: BodyPlan,
        player: PlayerReport,
        delivery: Delivery,
        metrics: Arc<Metrics>,
        sent: Arc<SentBytes>,
    ) -> Self {
        let remaining = plan.parts().map(Part::len).sum();
        let cursor = Cursor {
            opener,
            plan,
            player,
            reader: None,
            rest: None,
            head: None,
            primed: None,
            delivery,
            max_piece: u64::MAX,
            sent,
        };
        Self {
            cursor: Some(cursor),
            step: None,
            waiting_since: None,
            remaining,
            pace: None,
            metrics,
            _place: None,
        }
    }

    /// Limits the rate of the body, after a burst of one second.
    #[must_use]
    pub(super) fn paced(mut self, bytes_per_second: Option<u64>) -> Self {
        let pace = bytes_per_second.map(|rate| Pacer::new(rate, PACED_BURST));
        if let (Some(pace), Some(cursor)) = (&pace, &mut self.cursor) {
            cursor.max_piece = pace.part_bytes();
        }
        self.pace = pace;
        self
    }

    /// Keeps the client's share of the readers of missing bytes until the body ends.
    #[must_use]
    pub(super) fn with_place(mut self, place: Option<Share>) -> Self {
        self._place = place;
        self
    }

    fn poll_pace(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.pace {
            Some(pace) => pace.poll_ready(context),
            None => Poll::Ready(()),
        }
    }

    /// Counts data that is passed on.
    fn count(&mut self, data: &BodyData) {
        let bytes = data.remaining();
        self.remaining = self.remaining.saturating_sub(bytes as u64);
        if let Some(pace) = &mut self.pace {
            pace.sent(bytes);
        }
    }

    /// Waits for the first bytes of the object, so that an error can still become a status.
    pub async fn prime(&mut self) -> Result<(), ReadError> {
        match self.cursor.as_mut() {
            Some(cursor) => cursor.prime().await,
            None => Ok(()),
        }
    }
}

impl<O: OpenReader> Body for ObjectBody<O> {
    type Data = BodyData;
    type Error = ReadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<BodyData>, ReadError>>> {
        let this = self.get_mut();
        // Before the next piece is read, as one that is read is kept from eviction.
        if this.cursor.is_some() && this.remaining > 0 {
            ready!(this.poll_pace(context));
        }
        if let Some(data) = this.cursor.as_mut().and_then(Cursor::at_hand) {
            this.count(&data);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(cursor) = this.cursor.take() {
            match &mut this.step {
                Some(future) => future.set(step(cursor)),
                None => this.step = Some(ReusableBoxFuture::new(step(cursor))),
            }
        }
        // Neither cursor nor step: the body has ended with an error before.
        let Some(future) = &mut this.step else {
            return Poll::Ready(None);
        };
        let Poll::Ready((cursor, result)) = future.poll(context) else {
            this.waiting_since.get_or_insert_with(Instant::now);
            return Poll::Pending;
        };
        if let Some(since) = this.waiting_since.take() {
            let waited = since.elapsed();
            if waited >= STALL {
                this.metrics.count_stall(waited);
            }
        }
        match result {
            Ok(Some(data)) => {
                this.cursor = Some(cursor);
                this.count(&data);
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Ok(None) if this.remaining == 0 => {
                this.cursor = Some(cursor);
                Poll::Ready(None)
            }
            Ok(None) => {
                this.step = None;
                let error =
                    ReadError::Disk(format!("the reader ended {} bytes short", this.remaining));
                Poll::Ready(Some(Err(error)))
            }
            Err(error) => {
                this.step = None;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}
