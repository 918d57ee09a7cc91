//! The first question about a key: the useful range itself.
//!
//! Its 206 tells size, validator and type; its body goes into the store and to the reader as it
//! lands. One origin round trip, no HEAD.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::{ByteRange, EntryIdentity, Geometry, Level, v1};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    bindings::{Bound, Moment},
    objects::EdgeObjects,
    pass_through, patience,
    ports::{FirstBytes, Freshness, ObjectRequest, ServeError},
};
use crate::upstream::{
    Order, OriginError, Response, Source, Turn,
    answer::{self, Part},
    run::{Opened, now_ms},
};
use http_rules::content_range::{self, ContentRange};
use http_rules::freshness;

/// As the coordinator's requests for a lookahead.
const PROBE_STEP_CHUNKS: u64 = 4;

/// What a question found.
#[derive(Clone, Debug)]
pub enum Found {
    Object(Arc<Bound>, Freshness),
    Negative(u16),
    Unstorable(&'static str),
}

impl Found {
    /// As one who may have waited for another's question tells it.
    #[must_use]
    pub fn waited_for(self, collapsed: bool) -> Self {
        match self {
            Self::Object(bound, Freshness::Probed { status, .. }) => {
                Self::Object(bound, Freshness::Probed { collapsed, status })
            }
            Self::Object(bound, Freshness::Revalidated { status, .. }) => {
                Self::Object(bound, Freshness::Revalidated { collapsed, status })
            }
            other => other,
        }
    }
}

/// What of the object is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    From(ByteRange),
    Last(u64),
    /// One byte, for what the answer's head tells.
    Head,
    /// Without a range: an empty object has none.
    Plain,
}

/// Asks the origin, again behind the held request where that may help.
pub async fn probe(
    objects: &EdgeObjects,
    source: &Arc<Source>,
    key: &v1::Key,
    request: &ObjectRequest,
) -> Result<Found, ServeError> {
    let counters = &objects.parts().downloads.fetcher().counters;
    let attempt = || attempts(objects, source, key, request);
    patience::ask(source, counters, attempt)
        .await
        .map_err(|error| pass_through::serve_error(&error))
}

/// One question, and those its answer makes necessary.
async fn attempts(
    objects: &EdgeObjects,
    source: &Arc<Source>,
    key: &v1::Key,
    request: &ObjectRequest,
) -> Result<Found, OriginError> {
    let since = objects.parts().bindings.now();
    let mut ask = first_ask(objects, request);
    loop {
        match attempt(objects, source, key, request, ask, since).await? {
            Next::Found(found) => return Ok(found),
            Next::AskAgain(other) if other != ask => ask = other,
            Next::AskAgain(_) => {
                return Err(OriginError::Protocol(
                    "it refuses every range of the object".into(),
                ));
            }
        }
    }
}

enum Next {
    Found(Found),
    AskAgain(Ask),
}

fn first_ask(objects: &EdgeObjects, request: &ObjectRequest) -> Ask {
    let parts = objects.parts();
    let chunk_size = u64::from(parts.chunk_size.load(std::sync::atomic::Ordering::Relaxed));
    match request.first_bytes {
        _ if request.head_only => Ask::Head,
        FirstBytes::From { start, .. } if start > i64::MAX as u64 => Ask::Head,
        FirstBytes::From { start, end } => {
            let chunk = start / chunk_size;
            // To the end of a whole request, as the lookahead that goes on from there.
            let ahead_end = (chunk + 1 + u64::from(parts.lookahead_chunks))
                .next_multiple_of(PROBE_STEP_CHUNKS)
                .saturating_mul(chunk_size);
            // A range with an end is fetched to the end of its last chunk, no further.
            let end = end.map_or(ahead_end, |end| {
                end.max(start + 1)
                    .div_ceil(chunk_size)
                    .saturating_mul(chunk_size)
            });
            Ask::From(ByteRange::new(start, end.min(ahead_end)))
        }
        FirstBytes::Last(count) => Ask::Last(count.clamp(chunk_size, 8 * chunk_size)),
    }
}

async fn attempt(
    objects: &EdgeObjects,
    source: &Arc<Source>,
    key: &v1::Key,
    request: &ObjectRequest,
    ask: Ask,
    since: Moment,
) -> Result<Next, OriginError> {
    let held_off = source.held_off_for_ms(now_ms());
    if held_off > 0 {
        return Err(OriginError::Busy {
            retry_after: Duration::from_millis(held_off),
        });
    }
    let url = source
        .url(&key.path, &key.query)
        .ok_or_else(|| OriginError::Protocol("the path leaves the source".into()))?;
    let mut headers = pass_through::allowed_headers(source, &request.headers);
    let range = match ask {
        Ask::From(range) => Some(format!("bytes={}-{}", range.start, range.end - 1)),
        Ask::Last(count) => Some(format!("bytes=-{count}")),
        Ask::Head => Some("bytes=0-0".to_owned()),
        Ask::Plain => None,
    };
    if let Some(value) = range.and_then(|text| HeaderValue::from_str(&text).ok()) {
        headers.insert(header::RANGE, value);
    }
    let client = &objects.parts().client;
    let response = client.get(source, url, &headers, Turn::Viewer).await?;
    match response.status {
        StatusCode::PARTIAL_CONTENT => ranged(objects, source, key, request, ask, since, response),
        StatusCode::OK => Ok(Next::Found(adopt(
            objects,
            source,
            key,
            request,
            since,
            response,
            Part::Whole,
        )?)),
        StatusCode::RANGE_NOT_SATISFIABLE => {
            Ok(Next::AskAgain(match unsatisfied_size(&response.headers) {
                Some(0) | None => Ask::Plain,
                Some(_) if ask == Ask::Head => Ask::Plain,
                Some(_) => Ask::Head,
            }))
        }
        // With its challenge, which is not the edge's to make up (RFC 9110, 15.5.2).
        StatusCode::UNAUTHORIZED => Ok(Next::Found(Found::Unstorable("unauthorized"))),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => Err(OriginError::Protocol(
            "it asks for credentials as a proxy does".into(),
        )),
        status if pass_through::is_redirect(status) => {
            Ok(Next::Found(Found::Unstorable("redirect")))
        }
        status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
            // The origin that is asked first may have it.
            if let Some(error) = response.passed_over() {
                return Err(error.clone());
            }
            match answer::status_error(status, &response.headers, now_ms()).into() {
                OriginError::Refused { status } => {
                    Ok(Next::Found(refused(objects, source, key, since, status)?))
                }
                error => Err(error),
            }
        }
        status => Err(answer::status_error(status, &response.headers, now_ms()).into()),
    }
}

fn unsatisfied_size(headers: &HeaderMap) -> Option<u64> {
    match content_range::parse(headers.get(header::CONTENT_RANGE)?.to_str().ok()?)? {
        ContentRange::Unsatisfied { size } => Some(size),
        ContentRange::Satisfied { .. } => None,
    }
}

/// 404 and 410 are remembered for seconds; the others (401, 403, ...) concern this moment.
pub(super) fn refused(
    objects: &EdgeObjects,
    source: &Source,
    key: &v1::Key,
    since: Moment,
    status: u16,
) -> Result<Found, OriginError> {
    if matches!(status, 404 | 410) {
        let parts = objects.parts();
        let until_ms =
            now_ms() + i64::from(freshness::negative_ttl_seconds(&source.policy(&key.path))) * 1000;
        let remember = || {
            parts.bindings.unbind(key);
            parts.bindings.set_negative(key, status, until_ms);
            parts.announce.negative(key, status, until_ms);
        };
        parts
            .bindings
            .unless_invalidated(since, key, remember)
            .ok_or(OriginError::Overtaken)?;
    }
    Ok(Found::Negative(status))
}

fn ranged(
    objects: &EdgeObjects,
    source: &Arc<Source>,
    key: &v1::Key,
    request: &ObjectRequest,
    ask: Ask,
    since: Moment,
    response: Response,
) -> Result<Next, OriginError> {
    let (range, size) = answer::satisfied(&response.headers)?;
    let as_asked = match (ask, size) {
        (Ask::From(asked), Some(size)) => range == asked.intersect(ByteRange::new(0, size)),
        (Ask::Last(count), Some(size)) => range == ByteRange::new(size.saturating_sub(count), size),
        (Ask::Head, _) => range == ByteRange::new(0, 1),
        // Without a size nothing is stored; the client's own request is handed through.
        (Ask::From(_) | Ask::Last(_), None) => true,
        (Ask::Plain, _) => false,
    };
    if !as_asked
        || answer::content_length(&response.headers).is_some_and(|length| length != range.len())
    {
        return Err(OriginError::Protocol(
            "it sends another range than was asked for".into(),
        ));
    }
    Ok(Next::Found(adopt(
        objects,
        source,
        key,
        request,
        since,
        response,
        Part::Range(range),
    )?))
}

/// An answer worth storing becomes an entry, and its body a running fetch.
fn adopt(
    objects: &EdgeObjects,
    source: &Arc<Source>,
    key: &v1::Key,
    request: &ObjectRequest,
    since: Moment,
    response: Response,
    part: Part,
) -> Result<Found, OriginError> {
    let probed = Freshness::Probed {
        collapsed: false,
        status: response.status.as_u16(),
    };
    let value = |name: &str| {
        let value = request.headers.get(name);
        value.and_then(|value| value.to_str().ok())
    };
    let (status, headers) = (response.status, &response.headers);
    let bound = match register(objects, source, key, value, since, status, headers)? {
        Ok(bound) => bound,
        Err(why) => return Ok(Found::Unstorable(why)),
    };
    let file = objects
        .entry_file(&bound.entry)
        .map_err(|error| OriginError::Protocol(error.to_string()))?;
    let geometry = file.geometry();
    let (start, chunks) = match part {
        Part::Range(range) => (range.start, geometry.chunks_covering(range)),
        Part::Whole => (0, 0..geometry.chunk_count()),
    };
    // One byte of a HEAD is not worth a fetch.
    if !request.head_only && !chunks.is_empty() {
        let order = Order {
            id: objects.parts().downloads.local_id(),
            file,
            first_chunk: chunks.start,
            chunk_count: chunks.end - chunks.start,
            level: Level::Critical,
            deadline_in_ms: 0,
            start_at: start,
            peer: None,
            max_rate: 0,
        };
        objects
            .parts()
            .downloads
            .adopt(order, Opened { response, part });
    }
    Ok(Found::Object(bound, probed))
}

/// Makes the entry an answer describes and points the key to it; or says why it can not be stored.
pub(super) fn register<'a>(
    objects: &EdgeObjects,
    source: &Source,
    key: &v1::Key,
    value_of: impl Fn(&str) -> Option<&'a str>,
    since: Moment,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<Result<Arc<Bound>, &'static str>, OriginError> {
    let parts = objects.parts();
    let now = now_ms();
    let described = answer::describe(status, headers);
    let facts = answer::facts(headers, &described);
    let refuse = |why| {
        parts.bindings.unbind(key);
        parts.bindings.set_unstorable(key, why, now);
        Ok(Err(why))
    };
    if let Err(why) = freshness::storable(&facts) {
        return refuse(why);
    }
    let (Some(size), Some(validator)) = (described.size, described.validator) else {
        return refuse("no-validator");
    };
    let chunk_size = parts.chunk_size.load(std::sync::atomic::Ordering::Relaxed);
    if Geometry::new(size, chunk_size).is_err() {
        return refuse("too-large");
    }
    let variant = freshness::variant(&facts.vary, &source.config.forward_headers, value_of);
    let id = EntryIdentity {
        source: source.name(),
        base_url: source.base_url(),
        path: &key.path,
        query: &key.query,
        variant: &variant,
        validator: &validator,
        size_bytes: size,
        chunk_size_bytes: chunk_size,
    }
    .id();
    let entry = v1::Entry {
        id: id.to_string(),
        key: Some(v1::Key {
            variant,
            ..key.clone()
        }),
        size,
        chunk_size,
        validator,
        etag: described.etag,
        last_modified: described.last_modified,
        content_type: described.content_type,
        created_at_ms: now,
        pinned: false,
    };
    let fresh = freshness::freshness(&facts, &source.policy(&key.path), now);
    let take_in = || {
        parts.announce.observed(&entry, &fresh);
        if let Some(file) = parts.store.entry(&id) {
            parts.flights.of(&file).set_current();
        }
        parts.bindings.bind(entry, fresh)
    };
    let bound = parts.bindings.unless_invalidated(since, key, take_in);
    Ok(bound.ok_or(OriginError::Overtaken)?.ok_or("no-identity"))
}
