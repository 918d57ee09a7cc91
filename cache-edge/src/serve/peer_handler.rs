//! Chunks for other edges: what is here or arriving, streamed behind the fetch that brings it; never fetched for them.

use std::{pin::Pin, sync::Arc, time::Duration};

use http::{HeaderValue, Response, StatusCode, header, request::Parts as RequestParts};

use super::objects::EdgeObjects;
use crate::{
    availability::{DemandRegistry, ReaderFactory},
    core::range::{self, Selection},
    http::{Client, EdgeBody, Metrics, ObjectBody, Part, PeerHandler, problem::Problem},
    origin::{
        peer::{CHECKSUMS, PEER_PREFIX, PeerKeys},
        run::now_ms,
    },
    store::EntryFile,
};

/// The asking edge goes to the origin by itself after about a second without a byte.
const PEER_WAIT: Duration = Duration::from_secs(2);

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
            .and_then(|id| id.parse().ok());
        let parts = self.objects.parts();
        let file = id
            .and_then(|id| parts.store.entry(&id))
            .ok_or(StatusCode::NOT_FOUND)?;
        let size = file.geometry().size();
        let ranges = request
            .headers
            .get(header::RANGE)
            .and_then(|value| range::parse(value.as_bytes()));
        let Some(Selection::Single(range)) = ranges.map(|ranges| ranges.resolve(size)) else {
            return Err(StatusCode::RANGE_NOT_SATISFIABLE);
        };
        let flights = parts.flights.of(&file);
        let chunks = file.geometry().chunks_covering(range);
        let is_coming = |chunk| {
            flights
                .existing(chunk)
                .is_some_and(|flight| flight.is_claimed())
        };
        if !chunks
            .clone()
            .all(|chunk| file.is_present(chunk) || is_coming(chunk))
        {
            return Err(StatusCode::NOT_FOUND);
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
            [Part::Range(range)],
            client.delivery.clone(),
            self.metrics.clone(),
        )
        .for_peer();
        body.prime()
            .await
            .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
        let checksums = checksums(&file, chunks);
        let mut response = Response::new(EdgeBody::object(body));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.len()));
        for (name, text) in [
            (header::CONTENT_RANGE, range::content_range(range, size)),
            (CHECKSUMS, checksums),
        ] {
            headers.insert(
                name,
                HeaderValue::from_str(&text).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?,
            );
        }
        Ok(response)
    }
}

fn checksums(file: &EntryFile, chunks: std::ops::Range<u32>) -> String {
    let known: std::collections::HashMap<u32, u64> = file
        .present_chunks()
        .into_iter()
        .filter(|(chunk, _)| chunks.contains(chunk))
        .collect();
    let texts: Vec<String> = chunks
        .map(|chunk| {
            known
                .get(&chunk)
                .map_or_else(|| "-".to_owned(), |sum| format!("{sum:016x}"))
        })
        .collect();
    texts.join(",")
}
