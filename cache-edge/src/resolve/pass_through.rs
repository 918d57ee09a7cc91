//! Passes the origin's own answer through.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body::Frame;
use tokio::{sync::mpsc, time::Instant};
use tracing::{Instrument as _, Span};

use super::{
    compare::Comparison,
    objects::Parts,
    patience,
    ports::{ObjectRequest, PassThrough, ReadError, ServeError},
    resume::{AnnouncedVersion, Asking, Body},
};
use crate::clock::now_ms;
use crate::upstream::{OriginError, RequestClass, Response, Source, answer, loops::CDN_LOOP};
use chunk_store::EntryFile;
use http_rules::{conditional::SELECTING, freshness};

/// How long an origin that refuses temporarily is retried while the client's request is held.
const REFUSALS_FOR: Duration = Duration::from_secs(2);

/// RFC 9110, 7.6.1, the fields that this edge sets itself, and `Alt-Svc`, which names other ports
/// of the origin's host: clients would look for them at this edge.
const NOT_PASSED_ON: [HeaderName; 9] = [
    header::ALT_SVC,
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::SERVER,
];

/// The client's headers that the source allows: those on its list, and credentials if enabled.
#[must_use]
pub fn allowed_headers(source: &Source, client: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let listed = source
        .config
        .forward_headers
        .iter()
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok());
    for name in listed {
        // This edge sets framing and routing itself.
        if matches!(
            name,
            header::HOST | header::CONTENT_LENGTH | header::ACCEPT_ENCODING
        ) || NOT_PASSED_ON.contains(&name)
        {
            continue;
        }
        let credential = matches!(name, header::AUTHORIZATION | header::COOKIE);
        // As one line, as requests for chunks have it: all requests for a variant are the same.
        if !credential
            && client.contains_key(&name)
            && let Ok(line) = HeaderValue::from_bytes(&freshness::one_line(client, &name))
        {
            headers.insert(name, line);
        }
    }
    if source.config.forward_credentials {
        copy(client, &mut headers, &header::AUTHORIZATION);
        // HTTP/2 clients split it, and many servers read one line alone (RFC 9113, 8.2.3).
        let crumbs = client.get_all(header::COOKIE).iter();
        let crumbs: Vec<&[u8]> = crumbs.map(HeaderValue::as_bytes).collect();
        headers.remove(header::COOKIE);
        if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
            && !crumbs.is_empty()
        {
            headers.insert(header::COOKIE, cookie);
        }
    }
    // The first edge in a loop of several edges detects it.
    copy(client, &mut headers, &CDN_LOOP);
    headers
}

fn copy(from: &HeaderMap, to: &mut HeaderMap, name: &HeaderName) {
    to.remove(name);
    for value in from.get_all(name) {
        to.append(name.clone(), value.clone());
    }
}

/// Whether this is a redirect. The client gets it if the source does not allow the edge to follow
/// it.
#[must_use]
pub fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Whether asking again would not change the answer.
#[must_use]
pub fn is_refusal(status: StatusCode) -> bool {
    let may_pass = matches!(status.as_u16(), 408 | 425 | 429);
    (status.is_client_error() && !may_pass) || status == StatusCode::NOT_IMPLEMENTED
}

/// Sends the client's request to the origin. `stored`: the entry to compare the answer with.
pub async fn pass_through(
    parts: &Parts,
    source: &Arc<Source>,
    url: url::Url,
    request: &ObjectRequest,
    why: &'static str,
    stored: Option<Arc<EntryFile>>,
) -> Result<PassThrough, ServeError> {
    let mut headers = allowed_headers(source, &request.headers);
    // These are safe to pass on to any source.
    for name in &SELECTING {
        copy(&request.headers, &mut headers, name);
    }
    let asking = asking(parts, source, url, headers);
    // A presigned URL is signed for GET. For a HEAD request, the body is then not read.
    let method = if request.head_only && !source.needs_signature() {
        Method::HEAD
    } else {
        Method::GET
    };
    let until = Instant::now() + REFUSALS_FOR;
    let asked = async move {
        let once = || ask_once(&asking, method.clone(), until);
        let response = patience::ask(&asking.source, &asking.counters, once).await;
        response.map(|response| (response, asking))
    };
    let asked = parts
        .downloads
        .workers()
        .spawn(asked.instrument(Span::current()));
    let asked = asked
        .await
        .map_err(|_| ServeError::Internal("the request to the origin was given up".into()))?;
    let (response, asking) = asked.map_err(|error| serve_error(&error))?;
    let status = response.status;
    if is_unasked(status, &request.headers) {
        return Err(ServeError::BadOrigin(format!(
            "it answered {status} to a request that did not ask for it"
        )));
    }
    Ok(hand_on(parts, asking, response, request, why, stored))
}

/// Converts an answer for passing on. `asking` describes its request, to resume a body that breaks
/// off.
pub(super) fn hand_on(
    parts: &Parts,
    asking: Asking,
    mut response: Response,
    request: &ObjectRequest,
    why: &'static str,
    stored: Option<Arc<EntryFile>>,
) -> PassThrough {
    let status = response.status;
    let source = asking.source.name().to_owned();
    let mut headers = std::mem::take(&mut response.headers);
    let announced = AnnouncedVersion::of(status, &headers);
    if answer::content_length(&headers).is_none() {
        headers.remove(header::CONTENT_LENGTH);
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect();
    for name in NOT_PASSED_ON.iter().chain(&named) {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    let comparison =
        stored.and_then(|file| Comparison::of(file, asking.counters.clone(), status, &headers));
    let (sender, receiver) = mpsc::channel(response.pieces_ahead());
    if !request.head_only {
        let body = Body::new(asking, response, announced);
        parts
            .downloads
            .workers()
            .spawn(send(body, sender, comparison).instrument(Span::current()));
    }
    PassThrough {
        source,
        status,
        headers,
        body: Box::pin(ChannelBody {
            receiver,
            ended: request.head_only,
        }),
        why,
        status_words: None,
    }
}

/// Describes a request for an object with these headers.
pub(super) fn asking(
    parts: &Parts,
    source: &Arc<Source>,
    url: url::Url,
    headers: HeaderMap,
) -> Asking {
    Asking {
        client: parts.client.clone(),
        source: source.clone(),
        catalogue: parts.catalogue.clone(),
        url,
        headers,
        patience: source.patience(parts.chunk_wait_timeout),
        counters: parts.downloads.fetcher().counters.clone(),
    }
}

/// Sends until the body ends or breaks off, or the client leaves.
async fn send(
    mut body: Body,
    sender: mpsc::Sender<Result<Bytes, ReadError>>,
    mut comparison: Option<Comparison>,
) {
    while let Some(slot) = body.reserve(&sender).await {
        let next = tokio::select! {
            biased;
            () = sender.closed() => return,
            next = body.next() => next,
        };
        let item = match next {
            Ok(Some(bytes)) => {
                if let Some(comparison) = &mut comparison {
                    comparison.take(&bytes);
                }
                Ok(bytes)
            }
            // Send the end explicitly: an aborted task sends nothing, which must not look like an
            // end.
            Ok(None) => Ok(Bytes::new()),
            Err(error) => {
                let received = body.received();
                tracing::debug!(
                    %error,
                    received,
                    "an origin's answer broke off while handed through"
                );
                Err(ReadError::Origin(error.to_string()))
            }
        };
        let is_last = item.as_ref().map_or(true, Bytes::is_empty);
        slot.send(item);
        if is_last {
            return;
        }
    }
}

/// Asks once. Until the given time a temporary refusal is an error, so that the origin is asked
/// again; after it, the refusal is an answer like any other.
async fn ask_once(
    asking: &Asking,
    method: Method,
    until: Instant,
) -> Result<Response, OriginError> {
    let Asking { source, url, .. } = asking;
    let asked = asking.client.ask(
        method,
        source,
        url.clone(),
        &asking.headers,
        RequestClass::Foreground,
    );
    let response = asked.await?;
    let refusal = OriginError::from(answer::status_error(
        response.status,
        &response.headers,
        now_ms(),
    ));
    let wait = refusal.retry_after().unwrap_or_default();
    let may_pass = matches!(refusal, OriginError::Unavailable { .. });
    if may_pass && Instant::now() + wait < until {
        return Err(refusal);
    }
    Ok(response)
}

/// Whether the answer is a 206 although no range was requested, or a 304 although there was no
/// condition: a client would misread it.
fn is_unasked(status: StatusCode, asked: &HeaderMap) -> bool {
    let has = |names: &[HeaderName]| names.iter().any(|name| asked.contains_key(name));
    match status {
        StatusCode::PARTIAL_CONTENT => !has(&[header::RANGE]),
        StatusCode::NOT_MODIFIED => !has(&[header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE]),
        _ => false,
    }
}

/// A body that comes through a channel. An empty piece ends it. If the sender disappears without
/// sending one, the body breaks off.
pub(super) struct ChannelBody {
    receiver: mpsc::Receiver<Result<Bytes, ReadError>>,
    ended: bool,
}

impl ChannelBody {
    pub fn new(receiver: mpsc::Receiver<Result<Bytes, ReadError>>) -> Self {
        Self {
            receiver,
            ended: false,
        }
    }
}

impl http_body::Body for ChannelBody {
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = std::task::ready!(self.receiver.poll_recv(cx));
        let given_up = || Err(ReadError::Origin("the request to it was given up".into()));
        match item.unwrap_or_else(given_up) {
            Ok(bytes) if bytes.is_empty() => {
                self.ended = true;
                Poll::Ready(None)
            }
            Ok(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Err(error) => {
                self.ended = true;
                Poll::Ready(Some(Err(error)))
            }
        }
    }
}

/// Maps an origin's failure to a client's error.
#[must_use]
pub fn serve_error(error: &OriginError) -> ServeError {
    match error {
        OriginError::Unreachable(text) => ServeError::OriginUnreachable(text.clone()),
        OriginError::TimedOut(after) => {
            ServeError::OriginUnreachable(format!("no answer within {after:?}"))
        }
        OriginError::Loop => ServeError::Loop,
        OriginError::Stalled(_) => ServeError::OriginUnreachable(error.to_string()),
        OriginError::Busy { retry_after } => ServeError::OriginBusy {
            message: "it answered 429".into(),
            retry_after: *retry_after,
        },
        OriginError::TooManyWaiting => ServeError::OriginBusy {
            message: error.to_string(),
            retry_after: error.retry_after().unwrap_or_default(),
        },
        OriginError::Unavailable {
            status,
            retry_after: Some(retry_after),
        } => ServeError::OriginBusy {
            message: format!("it answered {status}"),
            retry_after: *retry_after,
        },
        other => ServeError::BadOrigin(other.to_string()),
    }
}
