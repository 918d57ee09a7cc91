//! Handles one request: from its head to a response whose first bytes are ready.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use chunkcache_proto::ByteRange;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header, request::Parts};
use service_kit::telemetry;
use tracing::{Instrument as _, Span, field};

use super::{
    body::{BodyPlan, ObjectBody, Part},
    cmsd,
    connection::Client,
    connection_cache::{CachedResolution, ConnectionCache},
    edge_body::EdgeBody,
    host,
    metrics::Refusal,
    multipart, next_objects, players,
    problem::Problem,
    response::{self, CACHE_STATUS},
    sent_bytes::ByteSource,
    server::Server,
};
use crate::resolve::ports::{
    FirstBytes, ObjectName, ObjectRequest, Objects, OpenReader, PassThrough, Presence, ReadError,
    Resolution, ServeError,
};
use http_rules::cache_status::{CacheStatus, Forward, Missing};
use http_rules::conditional::{self, Verdict};
use http_rules::credential;
use http_rules::fields;
use http_rules::path::{self, Target};
use http_rules::range::{self, RangeSet, RangeSpec, Selection};
use http_rules::steering::Question;

/// Answers `/_peer/…`, the requests of other edges.
pub trait PeerHandler: Send + Sync + 'static {
    /// The response. `client.delivery` must be passed to [`ObjectBody::new`].
    fn handle<'a>(
        &'a self,
        request: &'a Parts,
        client: &'a Client,
    ) -> Pin<Box<dyn Future<Output = Response<EdgeBody>> + Send + 'a>>;
}

/// How often an object may change between the head and its first byte before the client gets an
/// error; the last attempt bypasses the cache.
const MAX_CHANGES: u32 = 3;

const ALLOWED_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// Never fails: errors become problem+json.
pub(super) async fn handle<O: Objects>(
    server: &Server<O>,
    client: &Client,
    memory: &ConnectionCache<O::Open>,
    request: &Parts,
) -> Response<EdgeBody> {
    let received = server.settings.cmsd.then(Instant::now);
    let span = trace_of(request);
    let answered = answer(server, client, memory, request).instrument(span.clone());
    let mut response = match answered.await {
        Ok(response) => response,
        Err(mut problem) => {
            if problem.status.is_server_error() {
                // Without the query, which may be signed.
                span.in_scope(|| {
                    tracing::warn!(
                        path = %credential::redact_path(request.uri.path()),
                        status = problem.status.as_u16(),
                        detail = problem.detail,
                        "refused"
                    );
                });
            }
            let cache_status = problem.cache_status.take();
            let mut response = problem.into_response();
            if let Some(status) = cache_status {
                let value = server.cache_status(&status);
                response.headers_mut().insert(CACHE_STATUS, value);
            }
            response
        }
    };
    if response.status() == StatusCode::BAD_REQUEST && request.version < Version::HTTP_2 {
        // The sender may frame the next request differently than we do.
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    server
        .settings
        .cors
        .decorate(&request.headers, response.headers_mut());
    if let Some(received) = received
        && response.status().is_success()
    {
        cmsd::decorate(&server.settings, client, received, response.headers_mut());
    }
    let status = response.status().as_u16();
    span.record("status", status);
    // In the span, which names the request.
    span.in_scope(|| tracing::debug!(status, "answered"));
    if request.method == Method::HEAD {
        *response.body_mut() = EdgeBody::empty();
    }
    if server.settings.access_log.is_some()
        && !span.is_none()
        && let Some(ids) = telemetry::span_context(&span)
    {
        response.extensions_mut().insert(ids);
    }
    response
}

/// The span for requests to the coordinator and the origin. It joins the trace of the client, if
/// there is one. Otherwise a trace begins if traces are exported; if not, it costs nothing.
fn trace_of(request: &Parts) -> Span {
    if !request.headers.contains_key("traceparent") && !telemetry::exports() {
        return Span::none();
    }
    let span = tracing::info_span!(
        "request",
        otel.kind = "server",
        method = %request.method,
        path = %credential::redact_path(request.uri.path()),
        status = field::Empty,
        trace_id = field::Empty
    );
    telemetry::set_parent(&span, &request.headers);
    span
}

async fn answer<O: Objects>(
    server: &Server<O>,
    client: &Client,
    memory: &ConnectionCache<O::Open>,
    request: &Parts,
) -> Result<Response<EdgeBody>, Problem> {
    let began = Instant::now();
    host::check(memory, request)?;
    if let Some(limiter) = &server.rate_limiter
        && let Err(wait) = limiter.take(client.address, began)
    {
        server.metrics.count_refusal(Refusal::Rate);
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "this client asks too often");
        return Err(problem.retry_after(wait));
    }
    match request.method {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => return Ok(server.settings.cors.preflight(&request.headers)),
        _ => {
            let problem = Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET, HEAD and OPTIONS are answered",
            );
            let mut response = problem.into_response();
            response
                .headers_mut()
                .insert(header::ALLOW, ALLOWED_METHODS);
            return Ok(response);
        }
    }
    let ranges = range::requested(&request.headers);
    if let Some((known, age_seconds)) = memory.recall(request) {
        let answered = answer_object(
            server,
            client,
            memory,
            request,
            ranges.as_ref(),
            &known,
            age_seconds,
            began,
        );
        match answered.await {
            Ok(response) => return Ok(response),
            Err(Failure::Changed) => memory.forget(),
            Err(Failure::Problem(problem)) => return Err(problem),
        }
    }
    // Boxed, because it is large and a hit does not need it: the future is moved, and kept for as
    // long as the connection.
    Box::pin(answer_resolved(
        server, client, memory, request, ranges, began,
    ))
    .await
}

/// Answers after a look-up, which may ask the coordinator or the origin.
async fn answer_resolved<O: Objects>(
    server: &Server<O>,
    client: &Client,
    memory: &ConnectionCache<O::Open>,
    request: &Parts,
    ranges: Option<RangeSet>,
    began: Instant,
) -> Result<Response<EdgeBody>, Problem> {
    if let Some(question) = Question::parse(request.uri.path(), request.uri.query())? {
        return server.settings.steering.answer(&question).await;
    }
    // The word is a signature only if signatures are required.
    let (path, word) = match server.settings.signed_urls {
        Some(_) => credential::split_path(request.uri.path()),
        None => (request.uri.path(), None),
    };
    let word = word.or_else(|| credential::cookie(&request.headers));
    let target = path::parse(path, request.uri.query())?;
    let name = match (target, &server.peer) {
        (Target::Peer, Some(peer)) => return Ok(peer.handle(request, client).await),
        (Target::Peer, None) => {
            return Err(Problem::new(
                StatusCode::NOT_FOUND,
                "this edge serves no peers",
            ));
        }
        (
            Target::Key {
                source,
                path,
                query,
            },
            _,
        ) => {
            let signed = || format!("/{source}/{path}");
            let query = check_signature(server, client, signed, query, word)?;
            ObjectName::Key {
                source,
                path,
                query,
            }
        }
        (Target::Entry { id, query }, _) => {
            check_signature(server, client, || format!("/v1/entries/{id}"), query, word)?;
            ObjectName::Entry(id)
        }
    };

    let mut object_request = ObjectRequest {
        name,
        first_bytes: first_bytes(ranges.as_ref()),
        only_if_cached: only_if_cached(&request.headers),
        headers: fields::end_to_end(&request.headers),
        head_only: request.method == Method::HEAD,
        past_the_cache: false,
        asker: server.asker(client.address),
        ahead: None,
    };
    let mut attempts_left = MAX_CHANGES;
    loop {
        let resolution = server.objects.resolve(&object_request).await;
        let object = match resolution.map_err(|error| Problem::from(&error))? {
            Resolution::Object(object) => Arc::new(CachedResolution::new(object, &server.metrics)),
            Resolution::PassThrough(mut pass) => {
                next_objects::follow_passed(server, client, request, &mut pass);
                return Ok(answer_pass_through(server, pass));
            }
            Resolution::Negative { status, remembered } => {
                return Ok(answer_negative(server, status, remembered));
            }
        };
        let age_seconds = object.age_seconds;
        let answered = answer_object(
            server,
            client,
            memory,
            request,
            ranges.as_ref(),
            &object,
            age_seconds,
            began,
        );
        match answered.await {
            Ok(response) => {
                // A signature must be checked each time.
                if server.settings.signed_urls.is_none() {
                    memory.remember(request, &object);
                }
                return Ok(response);
            }
            // No byte of it was sent yet, so the client does not notice.
            Err(Failure::Changed) if attempts_left > 0 => {
                attempts_left -= 1;
                object_request.past_the_cache = attempts_left == 0;
            }
            Err(Failure::Changed) => return Err(Problem::from(&ReadError::Changed)),
            Err(Failure::Problem(problem)) => return Err(problem),
        }
    }
}

/// Why an object could not be sent.
enum Failure {
    /// It is no longer this version.
    Changed,
    Problem(Problem),
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Changed => Self::Changed,
            error => Self::Problem(Problem::from(&error)),
        }
    }
}

#[allow(clippy::too_many_arguments)] // what one request is made of
async fn answer_object<O: OpenReader>(
    server: &Server<impl Objects<Open = O>>,
    client: &Client,
    memory: &ConnectionCache<O>,
    request: &Parts,
    ranges: Option<&RangeSet>,
    object: &CachedResolution<O>,
    age_seconds: u64,
    began: Instant,
) -> Result<Response<EdgeBody>, Failure> {
    let freshness = object.freshness;
    let description = &object.description;
    let size = object.entry.geometry().size();

    let validators = response::validators(description, age_seconds);
    let ignore_range = match conditional::evaluate(&request.headers, validators) {
        Verdict::Proceed { ignore_range } => ignore_range,
        verdict => {
            // The answer needs no bytes of the object, so nothing was missing.
            let status = response::cache_status(freshness, Presence::All, || None);
            let mut head = HeaderMap::new();
            object.head.insert(&mut head, age_seconds);
            head.insert(CACHE_STATUS, server.cache_status(&status));
            if verdict == Verdict::PreconditionFailed {
                return Ok(problem_of_object(another_object(), head));
            }
            object.head.append_kept(&mut head);
            let mut response = Response::new(EdgeBody::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            *response.headers_mut() = head;
            return Ok(response);
        }
    };

    // RFC 9110, 14.2 defines ranges for GET alone. A HEAD is answered with the head that a GET
    // would get (9.3.2), like common static servers do, because players probe with it.
    let selection = match ranges {
        Some(ranges) if !ignore_range => ranges.resolve(size),
        _ => Selection::Whole,
    };
    let mut head = memory.take_headers();
    object.head.insert(&mut head, age_seconds);
    let (status, plan, length) = match selection {
        Selection::NotSatisfiable => {
            let cache_status = response::cache_status(freshness, Presence::All, || None);
            head.insert(CACHE_STATUS, server.cache_status(&cache_status));
            response::insert_text(
                &mut head,
                header::CONTENT_RANGE,
                range::unsatisfied_range(size),
            );
            return Ok(problem_of_object(no_such_range(), head));
        }
        Selection::Whole => {
            head.insert(header::CONTENT_TYPE, object.head.content_type());
            (StatusCode::OK, one(ByteRange::new(0, size)), size)
        }
        Selection::Single(range) => {
            head.insert(header::CONTENT_TYPE, object.head.content_type());
            let text = range::content_range(range, size);
            response::insert_text(&mut head, header::CONTENT_RANGE, text);
            (StatusCode::PARTIAL_CONTENT, one(range), range.len())
        }
        Selection::Several(ranges) => {
            let media_type = response::content_type(description);
            let (parts, boundary) = multipart::plan(&ranges, size, media_type, rand::random());
            let value = format!("multipart/byteranges; boundary={boundary}");
            response::insert_text(&mut head, header::CONTENT_TYPE, value);
            let length = multipart::length(&parts);
            (StatusCode::PARTIAL_CONTENT, BodyPlan::new(parts), length)
        }
    };
    object.head.append_kept(&mut head);
    let presence = presence_of(&*object.readers, &plan);
    let mut cache_status =
        response::cache_status(freshness, presence, || missing_of(&*object.readers, &plan));
    cache_status.stored &= presence == Presence::All || object.readers.can_store();
    head.insert(CACHE_STATUS, server.cache_status(&cache_status));
    head.insert(header::CONTENT_LENGTH, HeaderValue::from(length));

    let body = if request.method == Method::HEAD {
        EdgeBody::empty()
    } else {
        let place = match presence {
            Presence::All => None,
            _ => Some(server.place_of_reader(client.address).ok_or_else(|| {
                let busy = ServeError::Overloaded("readers wait for bytes");
                Failure::Problem(Problem::from(&busy))
            })?),
        };
        let is_seek = matches!(plan.parts().next(), Some(Part::Range(range)) if range.start > 0);
        let cmcd = players::read(&server.metrics, request);
        let report = cmcd
            .as_ref()
            .map(|cmcd| players::report_of(cmcd, client.address));
        let report = report.unwrap_or_default();
        let mut body = ObjectBody::new(
            Arc::clone(&object.readers),
            plan,
            report,
            client.delivery.clone(),
            Arc::clone(&server.metrics),
            Arc::clone(&object.sent),
        )
        .paced(cmcd.as_ref().and_then(players::rate_of))
        .with_place(place);
        body.prime().await?;
        server.metrics.observe_first_byte(began, is_seek);
        if let Some(cmcd) = &cmcd {
            next_objects::follow_player(server, client, request, cmcd);
        }
        next_objects::follow_links(server, client, request, object.head.kept(), cmcd.as_ref());
        next_objects::follow_manifests(server, client, request, object, cmcd.as_ref());
        EdgeBody::object(body)
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = head;
    Ok(response)
}

fn another_object() -> Problem {
    let detail = "the object is another than the request wants";
    Problem::new(StatusCode::PRECONDITION_FAILED, detail)
}

fn no_such_range() -> Problem {
    let detail = "no byte of the range is in the object";
    Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, detail)
}

/// A problem with the fields of its object. It keeps its own `no-store`: a cache in front would
/// otherwise give it, for the object's lifetime, to requests without this range or condition.
fn problem_of_object(problem: Problem, mut head: HeaderMap) -> Response<EdgeBody> {
    let mut response = problem.into_response();
    for name in response.headers().keys() {
        head.remove(name);
    }
    response.headers_mut().extend(head);
    response
}

fn one(range: ByteRange) -> BodyPlan {
    BodyPlan::new([Part::Range(range)])
}

/// Returns `All` only if all bytes of each part are present.
fn presence_of<O: OpenReader>(readers: &O, plan: &BodyPlan) -> Presence {
    let mut ranges = plan.parts().filter_map(|part| match part {
        Part::Range(range) if !range.is_empty() => Some(readers.presence(*range)),
        _ => None,
    });
    let Some(first) = ranges.next() else {
        return Presence::All;
    };
    ranges.fold(first, |so_far, next| {
        if so_far == next {
            so_far
        } else {
            Presence::Some
        }
    })
}

/// Why the first part with missing bytes, or else the first part, is not all here.
fn missing_of<O: OpenReader>(readers: &O, plan: &BodyPlan) -> Option<Missing> {
    let ranges = plan.parts().filter_map(|part| match part {
        Part::Range(range) if !range.is_empty() => Some(*range),
        _ => None,
    });
    let ranges: Vec<ByteRange> = ranges.collect();
    let is_missing = |range: &&ByteRange| readers.presence(**range) != Presence::All;
    let range = ranges.iter().find(is_missing).or_else(|| ranges.first())?;
    readers.missing(*range)
}

fn answer_pass_through<O: Objects>(server: &Server<O>, pass: PassThrough) -> Response<EdgeBody> {
    let from = match &pass.status_words {
        None => ByteSource::Bypass,
        Some(words) if words.forward.is_none() => ByteSource::Hit,
        Some(_) => ByteSource::InFlight,
    };
    let is_own = pass.status_words.is_some();
    let status = pass.status_words.unwrap_or_else(|| CacheStatus {
        forward: Some(Forward::Bypass),
        forward_status: Some(pass.status.as_u16()),
        detail: Some(pass.why.to_owned()),
        ..CacheStatus::default()
    });
    let mut head = pass.headers;
    // After the members that caches nearer to the origin added (RFC 9211, 2).
    head.append(CACHE_STATUS, server.cache_status(&status));
    match pass.status {
        StatusCode::PRECONDITION_FAILED if is_own => problem_of_object(another_object(), head),
        StatusCode::RANGE_NOT_SATISFIABLE if is_own => problem_of_object(no_such_range(), head),
        status => {
            let sent = server.metrics.sent.of(&pass.source);
            let mut response = Response::new(EdgeBody::streamed(pass.body, sent, from));
            *response.status_mut() = status;
            *response.headers_mut() = head;
            response
        }
    }
}

fn answer_negative<O: Objects>(
    server: &Server<O>,
    status: StatusCode,
    remembered: bool,
) -> Response<EdgeBody> {
    let cache_status = if remembered {
        CacheStatus {
            detail: Some("negative".to_owned()),
            ..CacheStatus::default()
        }
    } else {
        CacheStatus {
            forward: Some(Forward::Miss),
            forward_status: Some(status.as_u16()),
            ..CacheStatus::default()
        }
    };
    let detail = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => "the origin has no such object".to_owned(),
        other => format!(
            "the origin refuses the object: it answered {}",
            other.as_u16()
        ),
    };
    let mut response = Problem::new(status, detail).into_response();
    response
        .headers_mut()
        .insert(CACHE_STATUS, server.cache_status(&cache_status));
    response
}

/// Removes the signature from the query, and verifies it if URLs must be signed.
pub(super) fn check_signature<O: Objects>(
    server: &Server<O>,
    client: &Client,
    path: impl FnOnce() -> String,
    query: String,
    word: Option<&str>,
) -> Result<String, Problem> {
    let Some(keys) = &server.settings.signed_urls else {
        return Ok(query);
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    Ok(keys.with(|signer| signer.verify(&path(), &query, word, client.address, now))?)
}

fn first_bytes(ranges: Option<&RangeSet>) -> FirstBytes {
    match ranges.map(RangeSet::first) {
        None => FirstBytes::From {
            start: 0,
            end: None,
        },
        Some(RangeSpec::From { first, last }) => FirstBytes::From {
            start: first,
            end: last.map(|last| last.saturating_add(1)),
        },
        Some(RangeSpec::Suffix(length)) => FirstBytes::Last(length),
    }
}

fn only_if_cached(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value
                .split(',')
                .any(|directive| directive.trim().eq_ignore_ascii_case("only-if-cached"))
        })
}
