//! Tracks which unused connections to an origin are still open.
//!
//! A limit on connections applies to the whole cluster: another edge is granted a connection when a
//! fetch here is reported as ended. The connection is closed by its own task, a moment after its
//! answer was dropped, so the report of the end waits for that moment.

use std::{
    collections::HashMap,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::Connected;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tower_service::Service;

use super::{
    marked_stream::{Mark, MarkedStream},
    quota::ConnectionPermit,
};

/// Closing takes microseconds, or milliseconds on a busy machine. A connection that hangs is not
/// waited for any longer than this.
const CLOSED_WITHIN: Duration = Duration::from_millis(250);

/// The connections of one client, by the origin's authority.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    counts: Mutex<HashMap<String, Count>>,
    closed: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    open: usize,
    used: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Open,
    Used,
}

/// A counted connection or request, until it is dropped.
#[derive(Debug)]
pub struct CountedStream {
    of: Arc<Inner>,
    authority: String,
    kind: Kind,
}

impl Connections {
    /// Counts a request to the URI's origin, until its answer is read or dropped.
    #[must_use]
    pub fn used(&self, uri: &Uri) -> CountedStream {
        self.count(uri, Kind::Used)
    }

    fn count(&self, uri: &Uri, kind: Kind) -> CountedStream {
        let authority = uri.authority().map_or("", |it| it.as_str()).to_owned();
        *self
            .0
            .counts
            .lock()
            .entry(authority.clone())
            .or_default()
            .of(kind) += 1;
        CountedStream {
            of: Arc::clone(&self.0),
            authority,
            kind,
        }
    }

    /// Returns when no unused connection to the authority (`host:port`) is open. Only for origins
    /// whose connections are not kept for further requests.
    pub async fn closed(&self, authority: &str) {
        let closing = |inner: &Inner| {
            let count = inner.counts.lock().get(authority).copied();
            count.is_some_and(|count| count.open > count.used)
        };
        let wait = async {
            loop {
                let closed = self.0.closed.notified();
                tokio::pin!(closed);
                // Register before the check.
                closed.as_mut().enable();
                if !closing(&self.0) {
                    return;
                }
                closed.await;
            }
        };
        let _ = tokio::time::timeout(CLOSED_WITHIN, wait).await;
    }
}

impl Count {
    fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Open => &mut self.open,
            Kind::Used => &mut self.used,
        }
    }
}

impl CountedStream {
    /// How many of its kind there are now, with this one.
    #[must_use]
    pub fn at_a_time(&self) -> usize {
        let mut counts = self.of.counts.lock();
        let count = counts.get_mut(&self.authority);
        count.map_or(0, |count| *count.of(self.kind))
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        let mut counts = self.of.counts.lock();
        if let Some(count) = counts.get_mut(&self.authority) {
            let number = count.of(self.kind);
            *number = number.saturating_sub(1);
            if count.open == 0 && count.used == 0 {
                counts.remove(&self.authority);
            }
        }
        drop(counts);
        self.of.closed.notify_waiters();
    }
}

/// A connector whose connections are counted.
#[derive(Clone, Debug)]
pub struct Counting<C> {
    pub inner: C,
    pub connections: Connections,
}

/// Counts a connection until it is closed.
#[derive(Debug)]
pub struct Tracking {
    _counted: CountedStream,
    closing: Closing,
}

/// Holds the permit of a connection until the connection is closed.
#[derive(Clone, Debug, Default)]
pub struct PermitSlot(Arc<Mutex<Slot>>);

#[derive(Debug, Default)]
struct Slot {
    permit: Option<ConnectionPermit>,
    is_closed: bool,
}

impl PermitSlot {
    /// Holds the permit until the connection is closed, or drops it if the connection is closed
    /// already.
    pub fn put(&self, permit: ConnectionPermit) {
        let mut slot = self.0.lock();
        if !slot.is_closed {
            slot.permit = Some(permit);
        }
    }
}

/// The connection's own handle of the slot for its permit.
#[derive(Debug, Default)]
struct Closing(PermitSlot);

impl Drop for Closing {
    fn drop(&mut self) {
        let mut slot = self.0.0.lock();
        slot.is_closed = true;
        let left = slot.permit.take();
        drop((slot, left));
    }
}

impl<C> Service<Uri> for Counting<C>
where
    C: Service<Uri>,
    C::Future: Send + 'static,
    C::Response: Send,
{
    type Response = MarkedStream<C::Response, Tracking>;
    type Error = C::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let counted = self.connections.count(&uri, Kind::Open);
        let connecting = self.inner.call(uri);
        Box::pin(async move {
            let mark = Tracking {
                _counted: counted,
                closing: Closing::default(),
            };
            let stream = connecting.await?;
            Ok(MarkedStream { stream, mark })
        })
    }
}

impl Mark for Tracking {
    fn mark(&self, connected: Connected) -> Connected {
        connected.extra(self.closing.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_open_and_unused_is_waited_for() {
        let connections = Connections::default();
        let uri = Uri::from_static("http://origin:80/film");
        let (open, used) = (connections.count(&uri, Kind::Open), connections.used(&uri));
        connections.closed("origin:80").await;
        drop(used);
        let closing = connections.closed("origin:80");
        tokio::pin!(closing);
        let early = tokio::time::timeout(Duration::from_millis(10), closing.as_mut()).await;
        assert!(early.is_err());
        drop(open);
        closing.await;
        assert!(connections.0.counts.lock().is_empty());
    }

    #[tokio::test]
    async fn a_connection_that_hangs_is_not_waited_for() {
        let connections = Connections::default();
        let _open = connections.count(&Uri::from_static("http://origin/"), Kind::Open);
        let begun = tokio::time::Instant::now();
        connections.closed("origin").await;
        assert!(begun.elapsed() >= CLOSED_WITHIN);
    }
}
