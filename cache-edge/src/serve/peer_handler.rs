//! Chunks for other edges: what is here or arriving, streamed behind the fetch that brings it;
//! never fetched for them.

use std::{pin::Pin, sync::Arc, time::Duration};

use chunkcache_proto::{ByteRange, EntryId};
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts as RequestParts};

use super::objects::EdgeObjects;
use crate::{
    availability::{DemandRegistry, ReaderFactory},
    http::{Client, EdgeBody, Metrics, ObjectBody, Part, PeerHandler, Plan, problem::Problem},
    upstream::{
        downloads::Coverage,
        peer::{CHECKSUMS, MISMATCH, PEER_PREFIX, PeerKeys},
        run::now_ms,
    },
};
use chunk_store::EntryFile;
use http_rules::range::{self, Selection};

/// The asking edge goes to the origin by itself after about a second without a byte.
const PEER_WAIT: Duration = Duration::from_secs(4);

/// The coordinator tells both edges at the same time; the other's request may overtake this one's
/// order.
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
        client: &'a Client,
    ) -> Pin<Box<dyn Future<Output = Response<EdgeBody>> + Send + 'a>> {
        Box::pin(async move {
            self.answer(request, client).await.unwrap_or_else(|status| {
                Problem::new(status, "this edge does not serve that to peers").into_response()
            })
        })
    }
}

impl Peers {
    async fn answer(
        &self,
        request: &RequestParts,
        client: &Client,
    ) -> Result<Response<EdgeBody>, StatusCode> {
        let seconds = u64::try_from(now_ms() / 1000).unwrap_or(0);
        if !self
            .keys
            .accepts(request.uri.path(), &request.headers, seconds)
        {
            return Err(StatusCode::UNAUTHORIZED);
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
        let deadline = tokio::time::Instant::now() + ORDER_WAIT;
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
        let size = file.geometry().size();
        let chunks = file.geometry().chunks_covering(range);
        if request.headers.contains_key(MISMATCH) {
            check_again(&file, chunks.clone()).await;
        }
        if request.method == Method::HEAD {
            self.wait_present(&file, chunks.clone()).await;
            return head(range, size, &checksums(&file, chunks), EdgeBody::empty());
        }
        let readers = ReaderFactory {
            file: file.clone(),
            flights: parts.flights.clone(),
            // A registry of its own: a peer's wait is no demand of this edge's viewers.
            demand: Arc::new(DemandRegistry::default()),
            direct: parts.direct.clone(),
            chunk_wait_timeout: PEER_WAIT,
        };
        let mut body = ObjectBody::new(
            readers,
            Plan::new([Part::Range(range)]),
            client.delivery.clone(),
            self.metrics.clone(),
        )
        .for_peer();
        body.prime()
            .await
            .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
        let checksums = checksums(&file, chunks);
        head(range, size, &checksums, EdgeBody::object(body))
    }

    /// A chunk's checksum is known when it is whole: a moment after its last byte was sent on.
    async fn wait_present(&self, file: &Arc<EntryFile>, chunks: std::ops::Range<u32>) {
        let flights = self.objects.parts().flights.of(file);
        let deadline = tokio::time::Instant::now() + PEER_WAIT;
        for chunk in chunks {
            while let Some(flight) = flights.existing(chunk) {
                let changed = flight.changed();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if file.is_present(chunk)
                    || flight.is_over()
                    || tokio::time::timeout_at(deadline, changed).await.is_err()
                {
                    break;
                }
            }
        }
    }

    /// All of it is here, arriving, or ordered.
    fn has_or_expects(&self, file: &Arc<EntryFile>, range: ByteRange) -> bool {
        let parts = self.objects.parts();
        let geometry = file.geometry();
        let flights = parts.flights.of(file);
        geometry.chunks_covering(range).all(|chunk| {
            let start = geometry.chunk_range(chunk).start;
            file.is_present(chunk)
                || flights
                    .existing(chunk)
                    .is_some_and(|flight| flight.is_claimed())
                || parts.downloads.coverage(file.id(), chunk, start) != Coverage::None
        })
    }
}

fn head(
    range: ByteRange,
    size: u64,
    checksums: &str,
    body: EdgeBody,
) -> Result<Response<EdgeBody>, StatusCode> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.len()));
    for (name, text) in [
        (
            header::CONTENT_RANGE,
            range::content_range(range, size).as_str(),
        ),
        (CHECKSUMS, checksums),
    ] {
        let value = HeaderValue::from_str(text);
        headers.insert(name, value.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?);
    }
    Ok(response)
}

/// Another edge got bytes that are not what the checksum says: a chunk that is wrong on this disk
/// is withdrawn now, and not by the scrub.
async fn check_again(file: &EntryFile, chunks: std::ops::Range<u32>) {
    for chunk in chunks {
        if !file.is_present(chunk) {
            continue;
        }
        match file.verify_again(chunk).await {
            Ok(good) => {
                tracing::warn!(entry = %file.id(), chunk, good, "a peer got other bytes of a chunk");
            }
            Err(error) => {
                tracing::warn!(%error, entry = %file.id(), chunk, "a chunk could not be checked");
            }
        }
    }
}

fn checksums(file: &EntryFile, chunks: std::ops::Range<u32>) -> String {
    let texts: Vec<String> = chunks
        .map(|chunk| {
            file.checksum(chunk)
                .map_or_else(|| "-".to_owned(), |sum| format!("{sum:016x}"))
        })
        .collect();
    texts.join(",")
}
