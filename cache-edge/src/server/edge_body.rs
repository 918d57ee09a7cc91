//! The only body type of this server's responses: an object's parts, the origin's own body, or a
//! few bytes.
//!
//! It records its end in the metrics, and never ends cleanly when bytes are missing.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use http_body::{Body, Frame, SizeHint};

use super::{
    access_log::Pending,
    body::{BodyData, ObjectBody},
    connection::ActiveRequest,
    limits::Share,
    metrics::{Abort, RequestGuard},
    sent_bytes::{ByteSource, SentBytes},
};
use crate::resolve::ports::{OpenReader, PassBody, ReadError};

/// The body of every response of this server.
pub struct EdgeBody {
    kind: Kind,
    /// Records its end in the metrics.
    guard: Option<RequestGuard>,
    /// Keeps the connection's watchdog patient.
    active: Option<ActiveRequest>,
    /// The client's share of the requests.
    place: Option<Share>,
    /// The line of the access log, written when the body is dropped.
    log: Option<Pending>,
    /// An error that is returned by the next poll: hyper flushes before it, so that the correct
    /// bytes so far (above all the head) reach the client.
    error: Option<ReadError>,
}

enum Kind {
    Full(Option<Bytes>),
    Object(Pin<Box<dyn Body<Data = BodyData, Error = ReadError> + Send>>),
    Pass {
        body: PassBody,
        sent: Arc<SentBytes>,
        counted_as: ByteSource,
    },
}

impl EdgeBody {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            guard: None,
            active: None,
            place: None,
            log: None,
            error: None,
        }
    }

    #[must_use]
    pub fn empty() -> Self {
        Self::new(Kind::Full(None))
    }

    #[must_use]
    pub fn full(bytes: Bytes) -> Self {
        Self::new(Kind::Full((!bytes.is_empty()).then_some(bytes)))
    }

    #[must_use]
    pub fn object<O: OpenReader>(body: ObjectBody<O>) -> Self
    where
        O::Reader: Send,
    {
        Self::new(Kind::Object(Box::pin(body)))
    }

    /// A body that does not come from a reader.
    #[must_use]
    pub fn streamed(body: PassBody, sent: Arc<SentBytes>, counted_as: ByteSource) -> Self {
        Self::new(Kind::Pass {
            body,
            sent,
            counted_as,
        })
    }

    /// Writes `line` when the body ends or is dropped.
    pub(super) fn log(&mut self, mut line: Pending) {
        if self.kind.is_end() {
            line.finished();
        }
        self.log = Some(line);
    }

    /// Counts the request until the body ends or is dropped.
    pub(super) fn watch(
        &mut self,
        mut guard: RequestGuard,
        active: ActiveRequest,
        place: Option<Share>,
    ) {
        if self.kind.is_end() {
            guard.finished();
        }
        self.guard = Some(guard);
        self.active = Some(active);
        self.place = place;
    }
}

impl Body for EdgeBody {
    type Data = BodyData;
    type Error = ReadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<BodyData>, ReadError>>> {
        let this = self.get_mut();
        if let Some(error) = this.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = match &mut this.kind {
            Kind::Full(bytes) => bytes
                .take()
                .map(|bytes| Ok(Frame::data(BodyData::Memory(bytes)))),
            Kind::Object(body) => ready!(body.as_mut().poll_frame(context)),
            Kind::Pass {
                body,
                sent,
                counted_as,
            } => ready!(body.as_mut().poll_frame(context)).map(|frame| {
                frame.map(|frame| {
                    frame.map_data(|bytes| {
                        sent.count(*counted_as, bytes.len() as u64);
                        BodyData::Memory(bytes)
                    })
                })
            }),
        };
        let ended = frame.is_none() || this.kind.is_end();
        if let Some(active) = &this.active {
            active.progressed();
        }
        if let Some(line) = &mut this.log {
            if let Some(Ok(frame)) = &frame
                && let Some(data) = frame.data_ref()
            {
                line.sent(data.remaining() as u64);
            }
            if ended && !matches!(frame, Some(Err(_))) {
                line.finished();
            }
        }
        if let Some(guard) = &mut this.guard {
            match &frame {
                Some(Err(error)) => guard.aborted(Abort::of(error)),
                _ if ended => guard.finished(),
                _ => {}
            }
        }
        if let Some(Err(error)) = frame {
            tracing::warn!(%error, "body aborted");
            this.error = Some(error);
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.kind.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Kind::Object(body) => body.size_hint(),
            Kind::Pass { body, .. } => body.size_hint(),
        }
    }
}

impl Kind {
    fn is_end(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Object(body) => body.is_end_stream(),
            Self::Pass { body, .. } => body.is_end_stream(),
        }
    }
}
