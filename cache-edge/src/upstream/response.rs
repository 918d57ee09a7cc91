//! An answer to a request: its head, and its body, whose bytes must arrive in time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chunkcache_proto::{ByteRange, Level};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};

use super::{
    OriginError,
    client::chain,
    connections::{CountedStream, PermitSlot},
    link::{LinkStream, OriginLink},
    peer_blocks::BlockDecoder,
    quota::Quota,
};

/// An answer whose head has arrived.
#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// When it was requested: it may be as old.
    pub asked_ms: i64,
    pub(super) body: Incoming,
    pub(super) is_http2: bool,
    /// For a peer's answer: decodes the body's blocks.
    pub(super) blocks: Option<Box<BlockDecoder>>,
    /// The index of the source's origin that sent it.
    pub(super) origin: usize,
    /// Why an earlier origin's answer was not used.
    pub(super) passed_over: Option<OriginError>,
    pub(super) stall: Duration,
    pub(super) _used: CountedStream,
    pub(super) permit_slot: Option<PermitSlot>,
    /// Its source, and how urgently it is read; `None`: it comes from a peer.
    pub(super) reading: Option<Reading>,
    /// It holds a permit of this edge's lease.
    pub(super) has_permit: bool,
}

/// Limits reads of an origin's answer to the source's rate, more urgent ones first.
#[derive(Debug)]
pub struct Reading {
    pub(super) quota: Quota,
    pub(super) level: Arc<AtomicU8>,
    pub(super) link: OriginLink,
    /// `None`: a client's pace decides how fast it is read, so it says nothing about the link.
    pub(super) stream: Option<LinkStream>,
}

impl Reading {
    fn level(&self) -> Level {
        Level::ALL[usize::from(self.level.load(Ordering::Relaxed)).min(3)]
    }
}

impl Response {
    /// The index of the source's origin that sent it.
    #[must_use]
    pub fn origin(&self) -> usize {
        self.origin
    }

    /// Why an earlier origin's answer was not used.
    #[must_use]
    pub fn passed_over(&self) -> Option<&OriginError> {
        self.passed_over.as_ref()
    }

    /// How many of its pieces to keep for a client: they are frames of 16 KiB over HTTP/2, else up
    /// to 128 KiB.
    #[must_use]
    pub fn pieces_ahead(&self) -> usize {
        if self.is_http2 { 16 } else { 2 }
    }

    /// Whether it holds a permit of this edge's lease.
    #[must_use]
    pub fn has_permit(&self) -> bool {
        self.has_permit
    }

    /// Whether a viewer or another edge waits for a permit like the one that this holds.
    #[must_use]
    pub fn is_in_the_way(&self) -> bool {
        self.has_permit && self.reading.as_ref().is_some_and(|it| it.quota.is_wanted())
    }

    /// Sets the level of its reads, which is shared. They are those of a fetch.
    pub fn set_level(&mut self, level: Arc<AtomicU8>) {
        if let Some(reading) = &mut self.reading {
            reading.level = level;
            reading.stream = Some(reading.link.stream());
        }
    }

    /// Expects a body of a peer's blocks: [`chunk`](Self::chunk) returns the bytes of this range,
    /// checked.
    pub fn expect_blocks(&mut self, range: ByteRange) {
        self.blocks = Some(Box::new(BlockDecoder::new(range)));
    }

    /// The next bytes; `None` at the body's clean end. Cancel safe.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, OriginError> {
        loop {
            if let Some(blocks) = &mut self.blocks
                && let Some(bytes) = blocks.next_bytes()?
            {
                return Ok(Some(bytes));
            }
            let received = self.next_frame().await?;
            match (&mut self.blocks, received) {
                // Ignore bytes after the range.
                (Some(blocks), Some(_)) if blocks.is_done() => {}
                (Some(blocks), Some(bytes)) => blocks.push(&bytes),
                (_, received) => return Ok(received),
            }
        }
    }

    async fn next_frame(&mut self) -> Result<Option<Bytes>, OriginError> {
        loop {
            if let Some(reading) = &self.reading {
                reading.quota.ready(|| reading.level()).await;
            }
            let frame = tokio::time::timeout(self.stall, self.body.frame())
                .await
                .map_err(|_| OriginError::Stalled(self.stall))?;
            match frame {
                // hyper takes a reset or a GOAWAY that names no error for the end of the body, and
                // servers break bodies off so.
                None if self.is_http2 && !self.body.is_end_stream() => {
                    return Err(OriginError::Short {
                        received: 0,
                        expected: 0,
                        detail: "its stream was reset".into(),
                    });
                }
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(OriginError::Short {
                        received: 0,
                        expected: 0,
                        detail: chain(&error),
                    });
                }
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data()
                        && !bytes.is_empty()
                    {
                        if let Some(reading) = &self.reading {
                            reading.quota.took(bytes.len(), reading.level());
                            if let Some(stream) = &reading.stream {
                                stream.took(bytes.len());
                            }
                        }
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// One header as text.
    #[must_use]
    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}
