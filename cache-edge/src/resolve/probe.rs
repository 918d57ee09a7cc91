//! The first request for a key, which asks for the needed range itself.
//!
//! The 206 gives size, validator and type; its body goes into the store and to the reader as it
//! lands. One origin round trip, no HEAD.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::{ByteRange, EntryIdentity, Geometry, Level, v1};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    bindings::{Bound, InvalidationEpoch},
    objects::EdgeObjects,
    pass_through, patience,
    ports::{FirstBytes, Freshness, ObjectRequest, ServeError},
    whole::Whole,
    whole_answer::AS_A_WHOLE,
    whole_store::MAX_OBJECT_BYTES,
};
use crate::clock::now_ms;
use crate::core::lookahead::NEXT_OBJECT_CHUNKS;
use crate::fetch::{Assignment, run::OpenAnswer};
use crate::upstream::{
    OriginError, RequestClass, Response, Source,
    answer::{self, Part},
};
use http_rules::content_range::{self, ContentRange};
use http_rules::{fields, freshness};

/// The result of asking the cluster or the origin about a key.
#[derive(Clone, Debug)]
pub enum Finding {
    Object(Arc<Bound>, Freshness),
    /// The answer itself, which is stored as a whole while it arrives.
    Whole {
        whole: Arc<Whole>,
        collapsed: bool,
    },
    /// Another edge keeps the answer as a whole, or is asking the origin.
    Kept(Arc<v1::Keeper>),
    Negative(u16),
    Unstorable(&'static str),
}

impl Finding {
    /// Marks the result for a request that may have waited for another one's question.
    #[must_use]
    pub fn waited_for(self, collapsed: bool) -> Self {
        match self {
            Self::Object(bound, Freshness::Probed { status, .. }) => {
                Self::Object(bound, Freshness::Probed { collapsed, status })
            }
            Self::Object(bound, Freshness::Revalidated { status, .. }) => {
                Self::Object(bound, Freshness::Revalidated { collapsed, status })
            }
            Self::Whole { whole, .. } => Self::Whole { whole, collapsed },
            other => other,
        }
    }
}

/// The requested part of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    From(ByteRange),
    Last(u64),
    /// One byte, for the answer's head.
    Head,
    /// Without a range: an empty object has none.
    Plain,
}

/// Asks the origin, and retries where that may help while the client's request is held.
pub async fn probe(
    objects: &EdgeObjects,
    source: &Arc<Source>,
    key: &v1::Key,
    request: &ObjectRequest,
) -> Result<Finding, ServeError> {
    let counters = &objects.parts().downloads.fetcher().counters;
    let attempt = || attempts(objects, source, key, request);
    patience::ask(source, counters, attempt)
        .await
        .map_err(|error| pass_through::serve_error(&error))
}

/// Makes one request, and further ones if its answer makes them necessary.
async fn attempts(
    objects: &EdgeObjects,
    source: &Arc<Source>,
    key: &v1::Key,
    request: &ObjectRequest,
) -> Result<Finding, OriginError> {
    let since = objects.parts().bindings.now();
    let mut ask = first_ask(objects, request);
    loop {
        match attempt(objects, source, key, request, ask, since).await? {
            ProbeStep::Found(found) => return Ok(found),
            ProbeStep::AskAgain(other) if other != ask => ask = other,
            ProbeStep::AskAgain(_) => {
                return Err(OriginError::Protocol(
                    "it refuses every range of the object".into(),
                ));
            }
        }
    }
}

enum ProbeStep {
    Found(Finding),
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
            // As many as the lookahead of a reader that has consumed nothing yet.
            let chunks = match request.ahead {
                Some(_) => NEXT_OBJECT_CHUNKS,
                None => 1 + parts.start_chunks,
            };
            let ahead_end = (chunk + u64::from(chunks)).saturating_mul(chunk_size);
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
    since: InvalidationEpoch,
) -> Result<ProbeStep, OriginError> {
    let held_off = source.held_off_for_ms(now_ms());
    if held_off > 0 {
        return Err(OriginError::Busy {
            retry_after: Duration::from_millis(held_off),
        });
    }
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
    let (catalogue, client) = (&objects.parts().catalogue, &objects.parts().client);
    let get = |url| client.get(source, url, &headers, RequestClass::Foreground);
    let response = catalogue.ask_signed(source, key, get).await?;
    match response.status {
        StatusCode::PARTIAL_CONTENT => {
            let found = ranged(objects, source, key, request, ask, since, response);
            match (found, ask) {
                // Some servers repeat a range that ends behind the object.
                (Err(OriginError::Protocol(_)), Ask::From(_) | Ask::Last(_)) => {
                    Ok(ProbeStep::AskAgain(Ask::Head))
                }
                (found, _) => found,
            }
        }
        StatusCode::OK => Ok(ProbeStep::Found(adopt(
            objects,
            source,
            key,
            request,
            since,
            response,
            Part::Whole,
        )?)),
        StatusCode::RANGE_NOT_SATISFIABLE => Ok(ProbeStep::AskAgain(
            match unsatisfied_size(&response.headers) {
                Some(0) | None => Ask::Plain,
                Some(_) if ask == Ask::Head => Ask::Plain,
                Some(_) => Ask::Head,
            },
        )),
        status
            if answer::may_refuse_range(status) && matches!(ask, Ask::From(_) | Ask::Last(_)) =>
        {
            Ok(ProbeStep::AskAgain(Ask::Head))
        }
        // Perhaps the object exists, and only ranges do not. The client may not have asked for one.
        StatusCode::BAD_REQUEST | StatusCode::NOT_ACCEPTABLE if ask == Ask::Head => {
            Ok(ProbeStep::Found(Finding::Unstorable("no-ranges")))
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => Err(OriginError::Protocol(
            "it asks for credentials as a proxy does".into(),
        )),
        status if pass_through::is_redirect(status) => {
            Ok(ProbeStep::Found(Finding::Unstorable("redirect")))
        }
        status if pass_through::is_refusal(status) => {
            // An origin that was passed over may have it.
            if let Some(error) = response.passed_over() {
                return Err(error.clone());
            }
            let asked = &request.headers;
            let answer = (status, &response.headers);
            let is_early = request.ahead.is_some();
            let found = refused(objects, source, key, asked, since, answer, is_early)?;
            Ok(ProbeStep::Found(found))
        }
        // An answer, but not an object in chunks; the answer to a range says nothing about it.
        status if status.is_success() || status == StatusCode::MULTIPLE_CHOICES => {
            Ok(ProbeStep::Found(Finding::Unstorable(AS_A_WHOLE)))
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

/// Handles a refusal. 404, 410 and 451 end the object and are remembered for seconds, or for the
/// lifetime they give. Others (403, 405, …) apply to this moment only, unless they give a lifetime.
/// A 401 is passed through with its challenge, which the edge cannot construct (RFC 9110, 15.5.2).
/// `is_early`: no client has asked for it yet. Then the refusal is not remembered: the next segment
/// of a live title may exist by the time when a client does.
pub(super) fn refused(
    objects: &EdgeObjects,
    source: &Source,
    key: &v1::Key,
    request: &HeaderMap,
    since: InvalidationEpoch,
    (status, headers): (StatusCode, &HeaderMap),
    is_early: bool,
) -> Result<Finding, OriginError> {
    if status == StatusCode::UNAUTHORIZED {
        return Ok(Finding::Unstorable("unauthorized"));
    }
    let (parts, now, status) = (objects.parts(), now_ms(), status.as_u16());
    let facts = answer::facts(
        headers,
        &answer::describe(StatusCode::NOT_FOUND, headers, now),
    );
    let ahead_ms = parts.downloads.fetcher().counters.clock_ahead_ms();
    let facts = facts.on_clock_ahead(ahead_ms);
    let is_end = matches!(status, 404 | 410 | 451);
    let is_explicit = freshness::freshness_of_whole(status, &facts, &source.policy(&key.path), now);
    if is_end || is_explicit.is_some() {
        let lifetime_ms = match is_early {
            true => 0,
            false => freshness::negative_lifetime_ms(&facts, &source.policy(&key.path), now),
        };
        let until_ms = now.saturating_add(lifetime_ms);
        // It answers requests with these headers, and no others (RFC 9111, 4.1).
        let mut refused = key.clone();
        let variant = freshness::variant(&facts.vary, &source.config.forward_headers, request);
        if !variant.is_empty() {
            refused.variant = variant;
        }
        let remember = || {
            if is_end {
                parts.bindings.unbind(&refused);
                // Other edges ask for their own clients' headers.
                let is_for_all = refused == *key;
                let until_ms = if is_for_all { until_ms } else { now };
                parts.announce.negative(key, status, until_ms);
            }
            parts.bindings.set_vary(key, &facts.vary);
            parts.bindings.set_negative(&refused, status, until_ms, now);
        };
        parts
            .bindings
            .unless_invalidated(since, key, remember)
            .ok_or(OriginError::Overtaken)?;
    }
    Ok(Finding::Negative(status))
}

fn ranged(
    objects: &EdgeObjects,
    source: &Arc<Source>,
    key: &v1::Key,
    request: &ObjectRequest,
    ask: Ask,
    since: InvalidationEpoch,
    response: Response,
) -> Result<ProbeStep, OriginError> {
    let (range, size) = answer::satisfied(&response.headers)?;
    let as_asked = match (ask, size) {
        (Ask::From(asked), Some(size)) => {
            let asked = asked.intersect(ByteRange::new(0, size));
            range == asked || answer::is_shorter(range, asked)
        }
        (Ask::Last(count), Some(size)) => range == ByteRange::new(size.saturating_sub(count), size),
        (Ask::Head, _) => range == ByteRange::new(0, 1),
        // Nothing is stored without a size, so the client's own request is passed through.
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
    Ok(ProbeStep::Found(adopt(
        objects,
        source,
        key,
        request,
        since,
        response,
        Part::Range(range),
    )?))
}

/// Turns an answer worth storing into an entry, and its body into a running fetch.
fn adopt(
    objects: &EdgeObjects,
    source: &Arc<Source>,
    key: &v1::Key,
    request: &ObjectRequest,
    since: InvalidationEpoch,
    mut response: Response,
    part: Part,
) -> Result<Finding, OriginError> {
    let probed = Freshness::Probed {
        collapsed: false,
        status: response.status.as_u16(),
    };
    let bound = match register(objects, source, key, &request.headers, since, &response)? {
        Ok(bound) => bound,
        // The whole is here already, and is not requested again.
        Err(AS_A_WHOLE) if is_complete(part, &response.headers) => {
            response.status = StatusCode::OK;
            response.headers.remove(header::CONTENT_RANGE);
            let kept = objects.keep_whole(source, key, request, since, response);
            return Ok(kept.unwrap_or(Finding::Unstorable(AS_A_WHOLE)));
        }
        Err(why) => return Ok(Finding::Unstorable(why)),
    };
    let file = objects
        .entry_file(&bound.entry)
        .map_err(|error| OriginError::Protocol(error.to_string()))?;
    let geometry = file.geometry();
    let (start, chunks) = match part {
        Part::Range(range) => (range.start, geometry.chunks_covering(range)),
        Part::Whole => (0, 0..geometry.chunk_count()),
    };
    // The single byte of a HEAD is not worth a fetch.
    if !request.head_only && !chunks.is_empty() {
        let (level, deadline_in_ms) = match request.ahead {
            Some(due) => (
                Level::High,
                u32::try_from(due.as_millis()).unwrap_or(u32::MAX),
            ),
            None => (Level::Critical, 0),
        };
        let order = Assignment {
            id: objects.parts().downloads.local_id(),
            file,
            first_chunk: chunks.start,
            chunk_count: chunks.end - chunks.start,
            level,
            deadline_in_ms,
            start_at: start,
            peer: None,
            reader: 0,
        };
        objects
            .parts()
            .downloads
            .adopt(order, OpenAnswer::new(response, part));
    }
    Ok(Finding::Object(bound, probed))
}

/// Whether the answer has all bytes of the object: the origin ignores ranges, or the object is not
/// longer than the range.
fn is_complete(part: Part, headers: &HeaderMap) -> bool {
    match part {
        Part::Whole => true,
        Part::Range(range) => answer::satisfied(headers)
            .is_ok_and(|(_, size)| size == Some(range.len()) && range.start == 0),
    }
}

/// Creates the entry that an answer describes and binds the key to it, or returns why it cannot be
/// stored.
pub(super) fn register(
    objects: &EdgeObjects,
    source: &Source,
    key: &v1::Key,
    request: &HeaderMap,
    since: InvalidationEpoch,
    response: &Response,
) -> Result<Result<Arc<Bound>, &'static str>, OriginError> {
    let parts = objects.parts();
    let (now, headers) = (now_ms(), &response.headers);
    let described = answer::describe(response.status, headers, now);
    let ahead_ms = parts.downloads.fetcher().counters.clock_ahead_ms();
    let mut facts = answer::facts(headers, &described).on_clock_ahead(ahead_ms);
    let refuse = |why| {
        parts.bindings.unbind(key);
        parts.bindings.set_unstorable(key, why, now);
        Ok(Err(why))
    };
    if let Err(why) = freshness::storable(&facts) {
        let is_small = facts
            .size
            .is_none_or(|size| size <= MAX_OBJECT_BYTES as u64);
        let in_one = is_small && matches!(why, "no-validator" | "unknown-length");
        let fresh = freshness::freshness_of_whole(200, &facts, &source.policy(&key.path), now);
        return refuse(if in_one && fresh.is_some() {
            AS_A_WHOLE
        } else {
            why
        });
    }
    let (Some(size), Some(validator)) = (described.size, described.validator) else {
        return refuse("no-validator");
    };
    let chunk_size = parts.chunk_size.load(std::sync::atomic::Ordering::Relaxed);
    if Geometry::new(size, chunk_size).is_err() {
        return refuse("too-large");
    }
    let forwarded = &source.config.forward_headers;
    parts
        .bindings
        .add_known_vary(key, forwarded, &mut facts.vary);
    let variant = freshness::variant(&facts.vary, forwarded, request);
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
    facts.response_delay_ms = now - response.asked_ms;
    let mut fresh = freshness::freshness(&facts, &source.policy(&key.path), now);
    fresh.fields = fields::kept(headers);
    let take_in = || {
        parts.announce.observed(&entry, &fresh);
        if let Some(file) = parts.store.entry(&id) {
            parts.incoming.of(&file).set_current();
        }
        parts.bindings.bind(entry, fresh)
    };
    let bound = parts.bindings.unless_invalidated(since, key, take_in);
    Ok(bound.ok_or(OriginError::Overtaken)?.ok_or("no-identity"))
}
