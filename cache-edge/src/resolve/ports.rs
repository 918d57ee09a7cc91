//! The interface between the HTTP server and the rest of the edge: an object for a request, and its
//! bytes.
//!
//! `resolve::objects` implements it; tests of the HTTP server use an implementation in memory.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use chunkcache_proto::ByteRange;

use crate::core::consumption::PlayerReport;
use chunk_store::{ChunkPin, EntryFile};
use http_rules::cache_status::{CacheStatus, Missing};

/// A request for an object, as parsed by the HTTP server.
#[derive(Clone, Debug)]
pub struct ObjectRequest {
    /// The requested object.
    pub name: ObjectName,
    /// The part that is read first. For a cold key, the first request to the origin is for this
    /// range itself, not a HEAD.
    pub first_bytes: FirstBytes,
    /// `only-if-cached` is obeyed. `Cache-Control: no-cache` or `Pragma: no-cache` in the request
    /// does not bypass the cache, because players and proxies send it needlessly.
    pub only_if_cached: bool,
    /// The client's headers; only those that the source allows are ever forwarded.
    pub headers: http::HeaderMap,
    /// GET, or HEAD (which must not fetch bodies).
    pub head_only: bool,
    /// The object changed during each attempt to serve it, so the origin's answer is passed
    /// through: a single answer is consistent.
    pub past_the_cache: bool,
    /// Set for an object that a client is expected to request after this time. Unless it is stored,
    /// it is not passed through.
    pub ahead: Option<Duration>,
    /// The client, whose share of the running questions this may use; `None`: not bounded, because
    /// the cluster asks, or a proxy for many clients.
    pub asker: Option<u128>,
}

/// The two forms of URL that an edge answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ObjectName {
    /// `/{source}/{path}?{query}`, normalised by `core::path`.
    Key {
        source: String,
        path: String,
        query: String,
    },
    /// `/v1/entries/{id}`.
    Entry(uuid::Uuid),
}

/// The part a client needs first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// From this offset on, up to `end` (exclusive) if the client gave an end.
    From { start: u64, end: Option<u64> },
    /// The last N bytes (`bytes=-N`).
    Last(u64),
}

/// The result of resolving a request.
pub enum Resolution<R> {
    /// An object with a validator and a length; its bytes come through readers.
    Object(Object<R>),
    /// Not storable, or the source's mode forbids it: the origin's own answer, streamed.
    PassThrough(PassThrough),
    /// The origin has no such object (404, 410, ...).
    Negative {
        status: http::StatusCode,
        remembered: bool,
    },
}

/// An object that can be read.
pub struct Object<R> {
    /// The store's entry: geometry, validators, type.
    pub entry: Arc<EntryFile>,
    /// `Age` in seconds now.
    pub age_seconds: u64,
    /// For `Cache-Status` before any byte was read.
    pub freshness: Freshness,
    /// The origin's directives, for caches nearer to the client (RFC 9111, 5.2); empty if there
    /// were none.
    pub cache_control: String,
    /// Other fields of the origin's answer, for clients.
    pub fields: Arc<http::HeaderMap>,
    /// Opens a reader over a range of it. Dropping the reader withdraws its demand.
    pub readers: R,
    /// Lets the next request for the same target on the same connection skip the resolution;
    /// `None`: it must be resolved again.
    pub standing: Option<Box<dyn Standing>>,
}

/// Whether a resolved target would still resolve to the same object, whatever the request's headers
/// are.
pub trait Standing: Send + Sync + 'static {
    /// Its `Age` in seconds, if so. Takes no lock, because it is called for each hit.
    fn age_seconds(&self) -> Option<u64>;
}

/// How the binding of key and entry was confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Within its lifetime; the origin was not asked.
    Fresh,
    /// The key was unknown, and this request (`fwd=miss`) or another one that it waited for
    /// (`collapsed`) asked the origin for it. `status`: the origin's.
    Probed { collapsed: bool, status: u16 },
    /// The binding was stale, and the origin has just answered with the same object or another one
    /// (`fwd=stale; fwd-status=304`).
    Revalidated { collapsed: bool, status: u16 },
    /// The origin was asked and could not answer; served under stale-if-error.
    StaleOnError,
    /// Served while the origin is asked, under stale-while-revalidate.
    StaleMeanwhile,
}

impl Freshness {
    /// Whether the origin's answer to this request is on its way.
    #[must_use]
    pub fn is_own_answer(self) -> bool {
        matches!(self, Self::Probed { collapsed, .. } if !collapsed)
    }
}

/// Opens readers of one object.
pub trait OpenReader: Send + Sync + 'static {
    type Reader: ReadBytes;
    fn open(&self, range: ByteRange, player: PlayerReport) -> Self::Reader;
    /// How much of the range is present now (for `Cache-Status: hit` against `fwd=partial`).
    fn presence(&self, range: ByteRange) -> Presence;
    /// The known reasons why parts of the range are missing; `None`: nothing is remembered.
    fn missing(&self, _range: ByteRange) -> Option<Missing> {
        None
    }
    /// Whether missing bytes can be stored at the moment.
    fn can_store(&self) -> bool {
        true
    }
    /// Wants the range for a reader that is expected, and returns whether its bytes are here.
    /// Dropping the future withdraws the demand.
    fn fetch_ahead(
        &self,
        range: ByteRange,
        player: PlayerReport,
    ) -> impl Future<Output = bool> + Send;
}

impl<O: OpenReader> OpenReader for Arc<O> {
    type Reader = O::Reader;

    fn open(&self, range: ByteRange, player: PlayerReport) -> O::Reader {
        (**self).open(range, player)
    }

    fn presence(&self, range: ByteRange) -> Presence {
        (**self).presence(range)
    }

    fn missing(&self, range: ByteRange) -> Option<Missing> {
        (**self).missing(range)
    }

    fn can_store(&self) -> bool {
        (**self).can_store()
    }

    async fn fetch_ahead(&self, range: ByteRange, player: PlayerReport) -> bool {
        (**self).fetch_ahead(range, player).await
    }
}

/// How much of a range is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    All,
    Some,
    None,
}

/// A cursor over a range of an entry.
pub trait ReadBytes: Send + 'static {
    /// The next bytes at the cursor, at most `max_len` and never past a chunk's end; waits for
    /// missing bytes, at most the chunk wait time-out. `None` at the end of the range. Cancel safe.
    fn next(
        &mut self,
        max_len: u64,
    ) -> impl Future<Output = Result<Option<Piece>, ReadError>> + Send;
}

/// Bytes that are in the sparse file and stay there while this is held; or bytes in memory.
pub struct Piece {
    pub file: Arc<EntryFile>,
    pub range: ByteRange,
    /// Keeps the chunk from being evicted; `None` if the chunk is still arriving, because its fetch
    /// holds it.
    pub pin: Option<ChunkPin>,
    /// Bytes that are not in the file yet (the first of an answer) or at all (no space); they are
    /// sent from memory.
    pub unstored: Option<Bytes>,
}

/// Why a reader cannot continue. Once a body has begun, each of these aborts the connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    #[error("chunk {chunk} did not come within {waited:?}: {detail}")]
    TimedOut {
        chunk: u32,
        waited: Duration,
        detail: String,
    },
    #[error("the origin no longer has this version of the object")]
    Changed,
    #[error("origin: {0}")]
    Origin(String),
    #[error("disk: {0}")]
    Disk(String),
}

/// An answer of the origin that is passed through.
pub struct PassThrough {
    /// The name of the object's source.
    pub source: String,
    pub status: http::StatusCode,
    /// Hop-by-hop headers removed.
    pub headers: http::HeaderMap,
    pub body: PassBody,
    /// For `Cache-Status` `detail`.
    pub why: &'static str,
    /// `Cache-Status` of an answer that is or will be stored; `None`: it bypasses the cache.
    pub status_words: Option<CacheStatus>,
}

/// Ends with an error if the origin's body ended early, so that the client's body does too.
pub type PassBody =
    std::pin::Pin<Box<dyn http_body::Body<Data = Bytes, Error = ReadError> + Send + 'static>>;

/// Why a request failed. Mapped to problem+json in one place (`server::problem`).
#[derive(Clone, Debug, thiserror::Error)]
pub enum ServeError {
    #[error("no source named {0:?} is registered")]
    UnknownSource(String),
    #[error("no entry {0}")]
    UnknownEntry(uuid::Uuid),
    #[error("not in the cache, and the request said only-if-cached")]
    OnlyIfCached,
    /// 502
    #[error("the origin answered wrongly: {0}")]
    BadOrigin(String),
    /// 504, or 503 if it is known to be down
    #[error("the origin can not be reached: {0}")]
    OriginUnreachable(String),
    /// 503 with Retry-After
    #[error("the origin asks to wait: {message}")]
    OriginBusy {
        message: String,
        retry_after: Duration,
    },
    /// 508
    #[error("the source leads back to this edge")]
    Loop,
    /// 503 with Retry-After
    #[error("too much at once: {0}")]
    Overloaded(&'static str),
    /// For a request ahead of a client's.
    #[error("nothing of it can be fetched ahead")]
    NotAhead,
    #[error("the edge: {0}")]
    Internal(String),
}

/// Finds objects.
pub trait Objects: Send + Sync + 'static {
    type Open: OpenReader;
    fn resolve(
        &self,
        request: &ObjectRequest,
    ) -> impl Future<Output = Result<Resolution<Self::Open>, ServeError>> + Send;
    /// The object that an origin's reference names in its answer for another one of the source;
    /// none: it is not in the source.
    fn resolve_link(&self, _source: &str, _path: &str, _reference: &str) -> Option<ObjectName> {
        None
    }
}
