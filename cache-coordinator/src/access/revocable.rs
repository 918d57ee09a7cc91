//! Answers that end when the token of their caller is taken back: a stream may last for days.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// Completes when a caller's token is taken back.
pub type Revoked = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A body that ends early, with trailers, when the token of its reader is taken back.
pub struct RevocableBody<B> {
    body: B,
    /// `None`: it has ended.
    revoked: Option<Revoked>,
    trailers: HeaderMap,
}

impl<B> RevocableBody<B> {
    /// `trailers` end it if it ends early; without any it just ends.
    pub fn new(body: B, revoked: Revoked, trailers: HeaderMap) -> Self {
        Self {
            body,
            revoked: Some(revoked),
            trailers,
        }
    }
}

impl<B: Body + Unpin> Body for RevocableBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Some(revoked) = &mut self.revoked else {
            return Poll::Ready(None);
        };
        if revoked.as_mut().poll(cx).is_pending() {
            return Pin::new(&mut self.body).poll_frame(cx);
        }
        self.revoked = None;
        let trailers = std::mem::take(&mut self.trailers);
        Poll::Ready((!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.revoked.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
