//! Metrics of the HTTP server. Every label has a fixed, small set of values. Every counter is
//! created at the start, so counting is one atomic addition without a lock.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::sent_bytes::{ByteSource, SentBySource};
use crate::resolve::ports::ReadError;

/// Why a body ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    ClientLeft,
    TimedOut,
    Changed,
    Origin,
    Disk,
}

impl Abort {
    /// The label of an error.
    #[must_use]
    pub fn of(error: &ReadError) -> Self {
        match error {
            ReadError::TimedOut { .. } => Self::TimedOut,
            ReadError::Changed => Self::Changed,
            ReadError::Origin(_) => Self::Origin,
            ReadError::Disk(_) => Self::Disk,
        }
    }
}

type Labels = [(&'static str, &'static str); 1];
type TwoLabels = [(&'static str, &'static str); 2];

const METHODS: [&str; 4] = ["GET", "HEAD", "OPTIONS", "other"];
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];
const ABORTS: [&str; 5] = ["client_left", "timed_out", "changed", "origin", "disk"];
const FIRST_BYTE_SECONDS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0,
];
const REFUSALS: [&str; 6] = [
    "total",
    "per_client",
    "rate",
    "no_proxy_header",
    "requests",
    "readers",
];

/// Why a connection or request was refused before it was parsed.
#[derive(Clone, Copy, Debug)]
pub enum Refusal {
    TotalConnections,
    ClientConnections,
    Rate,
    NoProxyHeader,
    /// Simultaneous requests over HTTP/2.
    Requests,
    /// Readers of missing bytes.
    Readers,
}

const NEXT_OBJECTS: [&str; 6] = [
    "fetched", "present", "repeated", "outside", "refused", "failed",
];

/// The fate of an object that a viewer was expected to request next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextObjectResult {
    Fetched,
    /// Its first bytes were here.
    Present,
    /// It was expected a moment ago already.
    Repeated,
    /// It is in another source, or not covered by the viewer's signature.
    Outside,
    /// The client has its share.
    Refused,
    /// Not found, not stored in chunks, or not in time.
    Failed,
}

/// The HTTP server's metrics.
pub struct Metrics {
    requests: [[Counter; CLASSES.len()]; METHODS.len()],
    /// Bytes of bodies by source.
    pub sent: SentBySource,
    aborts: [Counter; ABORTS.len()],
    refusals: [Counter; REFUSALS.len()],
    next_objects: [Counter; NEXT_OBJECTS.len()],
    first_byte_seconds: Histogram,
    seek_first_byte_seconds: Histogram,
    stalls: Counter,
    player_stalls: Counter,
    stall_seconds: Counter<f64, std::sync::atomic::AtomicU64>,
    connections: Gauge,
    requests_active: Gauge,
    sendfile_bytes: Counter,
}

impl Metrics {
    /// Registers all metrics, under the registry's prefix.
    pub fn new(registry: &mut Registry) -> Arc<Self> {
        let requests = Family::<TwoLabels, Counter>::default();
        registry.register(
            "http_requests",
            "Requests by method and class of status",
            requests.clone(),
        );
        let first_byte_seconds = Histogram::new(FIRST_BYTE_SECONDS);
        registry.register(
            "http_first_byte_seconds",
            "From the request's head to the first byte of the object being at hand",
            first_byte_seconds.clone(),
        );
        let seek_first_byte_seconds = Histogram::new(FIRST_BYTE_SECONDS);
        registry.register(
            "http_seek_first_byte_seconds",
            "The same, of requests that begin within the object",
            seek_first_byte_seconds.clone(),
        );
        let mut counter = |name: &str, help: &str| {
            let counter: Counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let stalls = counter(
            "http_stalls",
            "Waits of 100 ms and more for bytes, once a body had begun",
        );
        let player_stalls = counter(
            "http_player_stalls",
            "Requests whose player reports that its buffer ran empty (CMCD `bs`)",
        );
        let sendfile_bytes = counter(
            "http_sendfile_bytes",
            "Bytes that went from file to socket in the kernel",
        );
        let stall_seconds = Counter::<f64, std::sync::atomic::AtomicU64>::default();
        registry.register(
            "http_stall_seconds",
            "Time spent in such waits",
            stall_seconds.clone(),
        );
        let connections = Gauge::default();
        registry.register("http_connections", "Open connections", connections.clone());
        let requests_active = Gauge::default();
        registry.register(
            "http_requests_active",
            "Requests whose body has not ended",
            requests_active.clone(),
        );
        Arc::new(Self {
            requests: METHODS.map(|method| {
                CLASSES.map(|class| {
                    requests.get_or_create_owned(&[("method", method), ("status", class)])
                })
            }),
            sent: SentBySource::new(registry),
            aborts: family(
                registry,
                "http_aborted_bodies",
                "Bodies that ended short",
                "reason",
                ABORTS,
            ),
            refusals: family(
                registry,
                "http_refused",
                "Refused by a limit",
                "limit",
                REFUSALS,
            ),
            next_objects: family(
                registry,
                "next_objects",
                "Objects that viewers were expected to ask for next, by what became of them",
                "result",
                NEXT_OBJECTS,
            ),
            first_byte_seconds,
            seek_first_byte_seconds,
            stalls,
            player_stalls,
            stall_seconds,
            connections,
            requests_active,
            sendfile_bytes,
        })
    }

    /// For tests and tools that do not read metrics.
    #[must_use]
    pub fn unregistered() -> Arc<Self> {
        Self::new(&mut Registry::default())
    }

    pub fn count_stall(&self, waited: Duration) {
        self.stalls.inc();
        self.stall_seconds.inc_by(waited.as_secs_f64());
    }

    pub fn count_player_stall(&self) {
        self.player_stalls.inc();
    }

    pub fn count_refusal(&self, refusal: Refusal) {
        self.refusals[refusal as usize].inc();
    }

    pub fn count_next_objects(&self, result: NextObjectResult, count: u64) {
        self.next_objects[result as usize].inc_by(count);
    }

    pub fn count_sendfile(&self, bytes: u64) {
        self.sendfile_bytes.inc_by(bytes);
    }

    /// Bytes sent by `sendfile` so far.
    #[must_use]
    pub fn sendfile_bytes(&self) -> u64 {
        self.sendfile_bytes.get()
    }

    /// Bodies that ended early for this reason so far.
    #[must_use]
    pub fn aborted(&self, reason: Abort) -> u64 {
        self.aborts[reason as usize].get()
    }

    /// Bytes sent from this source so far.
    #[must_use]
    pub fn sent_bytes(&self, source: ByteSource) -> u64 {
        self.sent.total(source)
    }

    /// Bodies that have not ended.
    #[must_use]
    pub fn requests_active(&self) -> i64 {
        self.requests_active.get()
    }

    /// Stalls of all bodies so far.
    #[must_use]
    pub fn stalls(&self) -> u64 {
        self.stalls.get()
    }

    /// Records the time to the first byte. `is_seek`: the request begins within the object, not at
    /// its first byte.
    pub fn observe_first_byte(&self, since: Instant, is_seek: bool) {
        let took = since.elapsed().as_secs_f64();
        self.first_byte_seconds.observe(took);
        if is_seek {
            self.seek_first_byte_seconds.observe(took);
        }
    }

    /// Counts a connection as open until the result is dropped.
    #[must_use]
    pub fn connection_opened(self: &Arc<Self>) -> ConnectionGuard {
        self.connections.inc();
        ConnectionGuard(Arc::clone(self))
    }

    /// Counts a request as active until its body has ended.
    #[must_use]
    pub fn request_answered(self: &Arc<Self>, method: &Method, status: StatusCode) -> RequestGuard {
        let method = METHODS
            .iter()
            .position(|name| *name == method.as_str())
            .unwrap_or(METHODS.len() - 1);
        let class = usize::from(status.as_u16() / 100)
            .saturating_sub(2)
            .min(CLASSES.len() - 1);
        self.requests[method][class].inc();
        self.requests_active.inc();
        RequestGuard {
            metrics: Arc::clone(self),
            ended: false,
        }
    }
}

fn family<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    values: [&'static str; N],
) -> [Counter; N] {
    let family = Family::<Labels, Counter>::default();
    registry.register(name, help, family.clone());
    values.map(|value| family.get_or_create_owned(&[(label, value)]))
}

/// An open connection.
pub struct ConnectionGuard(Arc<Metrics>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// A running response. If it is dropped before its end was recorded, the client left.
pub struct RequestGuard {
    metrics: Arc<Metrics>,
    ended: bool,
}

impl RequestGuard {
    pub fn finished(&mut self) {
        self.ended = true;
    }

    pub fn aborted(&mut self, reason: Abort) {
        if !self.ended {
            self.ended = true;
            self.metrics.aborts[reason as usize].inc();
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.aborted(Abort::ClientLeft);
        self.metrics.requests_active.dec();
    }
}
