//! The state of an open connection: its client, its protocol, and when it last made progress.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::body::Delivery;
use crate::system_calls::Transport;

/// HTTP/2 frames that fit are no progress: any client answers pings, and may ask for answers to its
/// own, without ever reading a response.
const CONTROL_BYTES: usize = 64;

/// Shared by the connection's I/O, its requests and its watchdog.
#[derive(Debug)]
pub struct Activity {
    opened: Instant,
    last_ms: AtomicU64,
    requests_begun: AtomicU64,
    requests_active: AtomicU32,
    /// Another edge uses it to read chunks.
    of_a_peer: AtomicBool,
    /// The end of the connection is the end of a body.
    open_ended: AtomicBool,
}

impl Activity {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            last_ms: AtomicU64::new(0),
            requests_begun: AtomicU64::new(0),
            requests_active: AtomicU32::new(0),
            of_a_peer: AtomicBool::new(false),
            open_ended: AtomicBool::new(false),
        })
    }

    /// Records that the client took a part of a response, or sent a request.
    fn progressed(&self) {
        let since = self.opened.elapsed().as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.last_ms.store(since, Ordering::Relaxed);
    }

    /// Records that the connection took bytes.
    pub fn written(&self, bytes: usize) {
        if bytes > CONTROL_BYTES {
            self.progressed();
        }
    }

    /// Records that a request of another edge was answered: this is not a player's connection.
    pub fn note_peer(&self) {
        self.of_a_peer.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_of_a_peer(&self) -> bool {
        self.of_a_peer.load(Ordering::Relaxed)
    }

    /// Records that a body ends with the connection.
    pub fn note_open_ended(&self) {
        self.open_ended.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_open_ended(&self) -> bool {
        self.open_ended.load(Ordering::Relaxed)
    }

    /// Records that a request has arrived completely.
    pub fn request_begun(self: &Arc<Self>) -> ActiveRequest {
        self.progressed();
        self.requests_begun.fetch_add(1, Ordering::Relaxed);
        self.requests_active.fetch_add(1, Ordering::Relaxed);
        ActiveRequest(Arc::clone(self))
    }

    /// When to check again whether the connection has been without progress for too long; `None`:
    /// it has. Never later than the shortest time-out, because another time-out may apply by then.
    #[must_use]
    pub fn patience(&self, timeouts: &Timeouts) -> Option<Duration> {
        let last = self.opened + Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        let allowed = if self.requests_begun.load(Ordering::Relaxed) == 0 {
            timeouts.request_head
        } else if self.requests_active.load(Ordering::Relaxed) == 0 {
            timeouts.keep_alive
        } else {
            timeouts.no_progress
        };
        let left = (last + allowed).saturating_duration_since(Instant::now());
        let shortest = timeouts
            .request_head
            .min(timeouts.keep_alive)
            .min(timeouts.no_progress);
        if left.is_zero() {
            None
        } else {
            Some(left.min(shortest))
        }
    }
}

/// Ends when the response's body ends, in whatever way.
#[derive(Debug)]
pub struct ActiveRequest(Arc<Activity>);

impl ActiveRequest {
    /// Records that a piece of the response was given to the connection, which takes none for a
    /// client that takes none.
    pub fn progressed(&self) {
        self.0.progressed();
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.progressed();
        self.0.requests_active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long a connection may keep the edge waiting.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a request's head, and for the TLS handshake: slow senders are cut.
    pub request_head: Duration,
    /// Between requests.
    pub keep_alive: Duration,
    /// While a body is being sent and the client takes none of it. Long, because that is what a
    /// paused player does.
    pub no_progress: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request_head: Duration::from_secs(30),
            keep_alive: Duration::from_secs(75),
            no_progress: Duration::from_secs(15 * 60),
        }
    }
}

/// The parts of a connection that its requests inherit.
#[derive(Clone)]
pub struct Client {
    pub address: IpAddr,
    pub delivery: Delivery,
    /// Figures of its connection. `None`: they are not reported to clients.
    pub transport: Option<Transport>,
}
