//! Serves chunks to other edges. Present chunks are sent, and arriving ones are streamed behind the
//! fetch that brings them; no chunk is fetched for a peer. Also serves the answers that this edge
//! keeps as a whole (see `keeper`).
//!
//! Blocks are sent with the hash that their bytes had on arrival, and are compared with it when
//! they are read. So bytes that changed on this disk are detected here, and their chunk is
//! withdrawn.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use chunkcache_proto::{ByteRange, EntryId, Level, checksum::chunk_checksum};
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts as RequestParts};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::{sync::mpsc, time::Instant};
use tracing::{Instrument as _, Span};

use super::{keeper, objects::EdgeObjects, pass_through::ChannelBody};
use crate::clock::now_ms;
use crate::fetch::{Downloads, downloads::Coverage};
use crate::{
    readers::{EntryIncoming, IncomingChunk},
    resolve::ports::ReadError,
    server::{Client, EdgeBody, Metrics, PeerHandler, problem::Problem, sent_bytes::ByteSource},
    upstream::{
        peer::{self, KEEPER_PREFIX, MISMATCH, PEER_PREFIX, PeerKeys},
        peer_blocks::{CONTENT_TYPE, block_header, empty_block},
    },
};
use chunk_store::{EntryFile, StoreError};
use http_rules::range::{self, Selection};

/// How long another edge's request is held for the bytes of one block.
const PEER_WAIT: Duration = Duration::from_secs(4);
/// Interval of the empty blocks that are sent while bytes are awaited: the other edge gives up a
/// peer that is silent for a second.
pub(super) const BEAT: Duration = Duration::from_millis(300);
/// Pieces of an answer on their way to one edge.
const FRAMES: usize = 8;

/// The coordinator assigns both edges their fetches at the same time, so the other edge's request
/// may arrive before this edge's assignment.
const ORDER_WAIT: Duration = Duration::from_millis(500);

/// See [`PeerHandler`].
pub struct Peers {
    pub objects: EdgeObjects,
    pub keys: Arc<PeerKeys>,
    pub metrics: Arc<Metrics>,
}

impl PeerHandler for Peers {
    fn handle<'a>(
        &'a self,
        request: &'a RequestParts,
        _: &'a Client,
    ) -> Pin<Box<dyn Future<Output = Response<EdgeBody>> + Send + 'a>> {
        Box::pin(async move {
            self.answer(request).await.unwrap_or_else(|status| {
                Problem::new(status, "this edge does not serve that to peers").into_response()
            })
        })
    }
}

impl Peers {
    async fn answer(&self, request: &RequestParts) -> Result<Response<EdgeBody>, StatusCode> {
        let seconds = u64::try_from(now_ms() / 1000).unwrap_or(0);
        if !self
            .keys
            .accepts(request.uri.path(), &request.headers, seconds)
        {
            return Err(StatusCode::UNAUTHORIZED);
        }
        if request.uri.path().starts_with(KEEPER_PREFIX) {
            return self.answer_whole(request).await;
        }
        let id = request
            .uri
            .path()
            .strip_prefix(PEER_PREFIX)
            .and_then(|id| id.parse::<EntryId>().ok());
        let parts = self.objects.parts();
        let id = id.ok_or(StatusCode::NOT_FOUND)?;
        let selected = request
            .headers
            .get(header::RANGE)
            .and_then(|value| range::parse(value.as_bytes()))
            .ok_or(StatusCode::RANGE_NOT_SATISFIABLE)?;
        let deadline = Instant::now() + ORDER_WAIT;
        let (file, range) = loop {
            let ordered = parts.downloads.ordered();
            tokio::pin!(ordered);
            ordered.as_mut().enable();
            if let Some(file) = parts.store.entry(&id) {
                let Selection::Single(range) = selected.resolve(file.geometry().size()) else {
                    return Err(StatusCode::RANGE_NOT_SATISFIABLE);
                };
                if self.has_or_expects(&file, range) {
                    break (file, range);
                }
            }
            if tokio::time::timeout_at(deadline, ordered).await.is_err() {
                return Err(StatusCode::NOT_FOUND);
            }
        };
        if request.headers.contains_key(MISMATCH) {
            check_again(&file, range).await;
        }
        let mut response = Response::new(EdgeBody::empty());
        if request.method != Method::HEAD {
            let sent = self.metrics.sent.of(file.source());
            let mut blocks = Blocks {
                incoming: parts.incoming.of(&file),
                downloads: parts.downloads.clone(),
                file,
                left: range,
                level: peer::level(&request.headers),
                until: Instant::now() + PEER_WAIT,
                bytes: None,
            };
            // Read it before the head is sent, so that a failure can still become a status.
            let first = blocks.next().await.map_err(|error| {
                tracing::debug!(%error, "a peer gets nothing");
                StatusCode::SERVICE_UNAVAILABLE
            })?;
            let frames = futures_util::stream::try_unfold((first, blocks), next_frame);
            let body = Box::pin(StreamBody::new(frames));
            *response.body_mut() = EdgeBody::streamed(body, sent, ByteSource::Peer);
        }
        let content_type = HeaderValue::from_static(CONTENT_TYPE);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        Ok(response)
    }

    /// Streams an answer that is kept as a whole, here or from now on.
    async fn answer_whole(&self, request: &RequestParts) -> Result<Response<EdgeBody>, StatusCode> {
        let asked = peer::keeper_request(request.uri.path()).ok_or(StatusCode::BAD_REQUEST)?;
        let source = asked.key.as_ref().map(|key| key.source.clone());
        let sent = self.metrics.sent.of(&source.unwrap_or_default());
        let objects = self.objects.clone();
        let mut found = Box::pin(async move { objects.whole_for_peer(asked).await });
        // A refusal can still become a status now.
        let at_once = match tokio::time::timeout(BEAT, found.as_mut()).await {
            Ok(None) => return Err(StatusCode::NOT_FOUND),
            Ok(Some(whole)) => Some(whole),
            Err(_) => None,
        };
        let found = async move {
            match at_once {
                Some(whole) => Some(whole),
                None => found.await,
            }
        };
        let (sender, receiver) = mpsc::channel(FRAMES);
        let sending = keeper::send(found, sender);
        let workers = self.objects.parts().downloads.workers();
        workers.spawn(sending.instrument(Span::current()));
        let body = Box::pin(ChannelBody::new(receiver));
        let mut response = Response::new(EdgeBody::streamed(body, sent, ByteSource::Peer));
        let content_type = HeaderValue::from_static(CONTENT_TYPE);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        Ok(response)
    }

    /// Whether all of the range is here, arriving, or about to be fetched.
    fn has_or_expects(&self, file: &Arc<EntryFile>, range: ByteRange) -> bool {
        let parts = self.objects.parts();
        let geometry = file.geometry();
        let incoming = parts.incoming.of(file);
        geometry.chunks_covering(range).all(|chunk| {
            let start = geometry.chunk_range(chunk).start;
            file.is_present(chunk)
                || incoming
                    .existing(chunk)
                    .is_some_and(|incoming_chunk| incoming_chunk.is_claimed())
                || parts.downloads.coverage(file.id(), chunk, start) != Coverage::None
        })
    }
}

async fn next_frame(
    (next, mut blocks): (Option<Bytes>, Blocks),
) -> Result<Option<(Frame<Bytes>, (Option<Bytes>, Blocks))>, ReadError> {
    let Some(bytes) = next else { return Ok(None) };
    let next = match blocks.bytes.take() {
        Some(bytes) => Some(bytes),
        None => blocks.next().await?,
    };
    Ok(Some((Frame::data(bytes), (next, blocks))))
}

/// The blocks that cover a range, as they become available.
struct Blocks {
    file: Arc<EntryFile>,
    incoming: Arc<EntryIncoming>,
    downloads: Downloads,
    left: ByteRange,
    /// The level at which the other edge wants it.
    level: Level,
    /// When the wait for the next block ends.
    until: Instant,
    /// Bytes of the block whose header was returned last.
    bytes: Option<Bytes>,
}

impl Blocks {
    /// Returns the next block's header and leaves its bytes in `self.bytes`; `None` at the end. If
    /// no block becomes available for a while, returns an empty block.
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        let beat = Instant::now() + BEAT;
        let mut is_raised = false;
        while !self.left.is_empty() {
            let chunk = self.file.geometry().chunk_of(self.left.start);
            if self.file.is_present(chunk) {
                let (file, offset) = (self.file.clone(), self.left.start);
                let read = off_the_worker(move || file.read_block(offset)).await?;
                match read {
                    Some(block) => {
                        return Ok(Some(self.give(block.range, block.hash, block.bytes)));
                    }
                    // It was corrupt or evicted meanwhile, so it is no longer present.
                    None => continue,
                }
            }
            let Some(incoming_chunk) = self.incoming.incoming_chunk(chunk) else {
                continue;
            };
            let changed = incoming_chunk.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some((range, hash)) = incoming_chunk.proved(self.left.start)
                && let Some(bytes) = self.read_piece(&incoming_chunk, range, hash).await?
            {
                return Ok(Some(self.give(range, hash, bytes)));
            }
            if self.file.is_present(chunk) {
                continue;
            }
            if !std::mem::replace(&mut is_raised, true) {
                self.downloads
                    .raise_for_peer(self.file.id(), chunk, self.left.start, self.level);
            }
            if tokio::time::timeout_at(beat, changed).await.is_err() {
                if beat < self.until {
                    return Ok(Some(empty_block()));
                }
                return Err(ReadError::TimedOut {
                    chunk,
                    waited: PEER_WAIT,
                    detail: "it is not here".into(),
                });
            }
        }
        Ok(None)
    }

    /// Reads part of an arriving chunk; `None`: the chunk is being abandoned.
    async fn read_piece(
        &self,
        incoming_chunk: &Arc<IncomingChunk>,
        range: ByteRange,
        hash: u64,
    ) -> Result<Option<Vec<u8>>, ReadError> {
        let Some(hold) = self.file.hold_unfinished(incoming_chunk.chunk()) else {
            return Ok(None);
        };
        let file = self.file.clone();
        let bytes = off_the_worker(move || {
            let _hold = hold;
            let mut bytes = vec![0; range.len() as usize];
            file.read_at(range.start, &mut bytes).map(|()| bytes)
        })
        .await?;
        if chunk_checksum(range.start, &bytes) == hash {
            return Ok(Some(bytes));
        }
        // It was abandoned between the check and the pin, or changed on the disk since it arrived.
        match incoming_chunk.proved(range.start) {
            Some(_) => Err(ReadError::Disk("arriving bytes changed on the disk".into())),
            None => Ok(None),
        }
    }

    fn give(&mut self, range: ByteRange, hash: u64, bytes: Vec<u8>) -> Bytes {
        self.left = ByteRange::new(range.end.min(self.left.end), self.left.end);
        self.bytes = Some(bytes.into());
        self.until = Instant::now() + PEER_WAIT;
        block_header(range, hash)
    }
}

async fn off_the_worker<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ReadError> {
    let disk = |error: &dyn std::fmt::Display| ReadError::Disk(error.to_string());
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| disk(&error))?
        .map_err(|error| disk(&error))
}

/// Checks a chunk again after another edge received wrong bytes: a corrupt one is withdrawn now
/// instead of at the next scrub.
async fn check_again(file: &EntryFile, range: ByteRange) {
    for chunk in file.geometry().chunks_covering(range) {
        if !file.is_present(chunk) {
            continue;
        }
        match file.verify_again(chunk).await {
            Ok(good) => {
                tracing::warn!(
                    entry = %file.id(),
                    chunk,
                    good,
                    "a peer got other bytes of a chunk"
                );
            }
            Err(error) => {
                tracing::warn!(%error, entry = %file.id(), chunk, "a chunk could not be checked");
            }
        }
    }
}
