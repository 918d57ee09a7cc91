//! Sends one request to a source, up to the head of its answer.
//!
//! Tries the source's origins in order, and follows redirects that the source allows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chunkcache_proto::{Level, v1};
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::Empty;
use hyper_util::client::legacy::Error as ClientError;
use service_kit::telemetry;
use tracing::Instrument as _;
use url::Url;

use super::{
    OriginError, Source, answer,
    connections::PermitSlot,
    hedging::{self, Hedges, RequestKind},
    loops::LoopMarks,
    origin,
    quota::{ConnectionPermit, RequestClass},
    redirect::{self, Redirect},
    response::{Reading, Response},
    signatures,
    source::OriginSet,
    transport::{Dialing, Proxy, Transport},
};
use crate::clock::now_ms;

/// Redirects followed for one request.
const MAX_REDIRECTS: usize = 5;
/// An origin that sends no byte for this long counts as stalled.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// An HTTP client for origins or peers. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Client {
    transport: Transport,
    tls: Arc<rustls::ClientConfig>,
    stall: Duration,
    /// Requests to origins.
    asked: Arc<AtomicU64>,
    pub(super) hedges: Arc<Hedges>,
    marks: Option<Arc<LoopMarks>>,
}

impl Client {
    /// For requests to other edges. `tls`: roots and an optional client certificate.
    #[must_use]
    pub fn new(tls: rustls::ClientConfig) -> Self {
        let dialing = Dialing {
            proxy: Proxy::None,
            http2: false,
            ..origin::dialing(&v1::Source::default())
        };
        Self::with_dialing(tls, dialing)
    }

    /// For requests to origins: through the environment's proxies, with HTTP/2 if it is offered,
    /// and with marks that show that a request came through this edge.
    #[must_use]
    pub fn toward_origins(tls: rustls::ClientConfig, marks: LoopMarks) -> Self {
        let dialing = origin::dialing(&v1::Source::default());
        Self {
            marks: Some(Arc::new(marks)),
            ..Self::with_dialing(tls, dialing)
        }
    }

    fn with_dialing(tls: rustls::ClientConfig, dialing: Dialing) -> Self {
        Self {
            transport: Transport::new(tls.clone(), dialing),
            tls: Arc::new(tls),
            stall: STALL_TIMEOUT,
            asked: Arc::default(),
            hedges: Arc::default(),
            marks: None,
        }
    }

    /// Whether a request came through this edge before.
    #[must_use]
    pub fn sees_loop(&self, headers: &HeaderMap) -> bool {
        self.marks
            .as_ref()
            .is_some_and(|marks| marks.are_in(headers))
    }

    /// Marks a request that another edge makes on behalf of this one.
    pub fn mark(&self, headers: &mut HeaderMap) {
        if let Some(marks) = &self.marks {
            marks.add_id_to(headers);
        }
    }

    /// Requests to origins so far, by all clones.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// State of second requests to origins, shared by all clones.
    #[must_use]
    pub fn hedges(&self) -> &Hedges {
        &self.hedges
    }

    /// Changes the stall time-out, for tests and for peers.
    #[must_use]
    pub fn with_stall_timeout(mut self, stall: Duration) -> Self {
        self.stall = stall;
        self
    }

    /// Requests an object from the source. `headers` are added to those of the source and to the
    /// headers of every request.
    pub async fn get(
        &self,
        source: &Arc<Source>,
        url: Url,
        headers: &HeaderMap,
        class: RequestClass,
    ) -> Result<Response, OriginError> {
        self.ask(Method::GET, source, url, headers, class).await
    }

    /// Like [`get`](Self::get), with GET or HEAD.
    pub async fn ask(
        &self,
        method: Method,
        source: &Arc<Source>,
        url: Url,
        headers: &HeaderMap,
        class: RequestClass,
    ) -> Result<Response, OriginError> {
        let question = Question {
            method,
            kind: RequestKind::of_object(&url),
            url,
            headers,
            class,
            is_presigned: false,
            skip: OriginSet::default(),
        };
        self.ask_origins(source, &question).await
    }

    /// Asks the origins in order until one answers: dead ones last, those in `skip` not at all.
    pub async fn ask_origins(
        &self,
        source: &Arc<Source>,
        question: &Question<'_>,
    ) -> Result<Response, OriginError> {
        let limited = source.config.max_connections > 0;
        // Holds the permit until there is an answer; then the answer's connection holds it.
        let mut unanswered = Unanswered::new(self, source);
        if limited {
            unanswered.permit = Some(source.quota.acquire(question.class).await?);
        }
        let order = source.order(&question.skip);
        self.try_dead_ones(source, question);
        let mut passed_over: Option<OriginError> = None;
        for (nth, &index) in order.iter().enumerate() {
            let is_last = nth + 1 == order.len();
            let other = source.first_alive(&order[nth + 1..]);
            let (index, answer) = self
                .ask_in_time(source, (index, other), question, &mut unanswered)
                .await;
            source.judge(index, &answer);
            let mut response = match answer {
                Ok(response) if is_last || !source.fails_over(response.status) => response,
                Err(error) if is_last || !error.is_transient() => return Err(error),
                failed => {
                    passed_over = hedging::passed_over(failed);
                    tracing::debug!(
                        error = ?passed_over,
                        source = source.name(),
                        origin = index,
                        "asking the next origin"
                    );
                    continue;
                }
            };
            response.origin = index;
            response.passed_over = response.passed_over.or(passed_over);
            let permit = unanswered.permit.take();
            response.has_permit = permit.as_ref().is_some_and(ConnectionPermit::is_leased);
            if let (Some(slot), Some(permit)) = (response.permit_slot.take(), permit) {
                slot.put(permit);
            }
            let level = match question.class {
                RequestClass::Foreground => Level::Critical,
                RequestClass::Assigned | RequestClass::Import => Level::High,
                RequestClass::Background => Level::Low,
            };
            let origin = source.origins().get(index);
            response.reading = Some(Reading {
                quota: source.quota.clone(),
                level: Arc::new(AtomicU8::new(level as u8)),
                link: origin.map(|it| it.link.clone()).unwrap_or_default(),
                stream: None,
            });
            return Ok(response);
        }
        Err(passed_over.unwrap_or(OriginError::Changed))
    }

    /// Tries dead origins whose pause is over, in parallel with the question.
    fn try_dead_ones(&self, source: &Arc<Source>, question: &Question<'_>) {
        for index in source.due_trials() {
            let (client, source) = (self.clone(), source.clone());
            let (url, is_presigned) = (question.url.clone(), question.is_presigned);
            tokio::spawn(async move {
                let mut unanswered = Unanswered::new(&client, &source);
                if source.config.max_connections > 0 {
                    match source.quota.acquire(RequestClass::Background).await {
                        Ok(permit) => unanswered.permit = Some(permit),
                        Err(_) => return,
                    }
                }
                let mut headers = HeaderMap::new();
                headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
                let trial = Question {
                    method: Method::GET,
                    url,
                    headers: &headers,
                    class: RequestClass::Background,
                    kind: RequestKind::Object,
                    is_presigned,
                    skip: OriginSet::default(),
                };
                let answer = client.ask_origin(&source, index, &trial).await;
                source.judge(index, &answer);
            });
        }
    }

    /// Asks one origin, and follows its redirects.
    pub(super) async fn ask_origin(
        &self,
        source: &Arc<Source>,
        index: usize,
        question: &Question<'_>,
    ) -> Result<Response, OriginError> {
        let outside = || OriginError::Protocol("the path leaves the source".into());
        let origin = source.origins().get(index).ok_or_else(outside)?;
        let mut url = source.target(origin, &question.url).ok_or_else(outside)?;
        if question.is_presigned {
            let _ = url.set_username("");
            let _ = url.set_password(None);
        }
        let mut is_own = true;
        // Lifetimes of redirects also limit the lifetime of the object that they lead to.
        let mut lifetimes = Vec::new();
        for _ in 0..=MAX_REDIRECTS {
            // The second part of a fetch uses the connection of the first, not an additional one.
            self.closed(source).await;
            let mut headers = question.headers.clone();
            if is_own {
                let is_sent = |name| !question.is_presigned || !signatures::is_right(name);
                let own = || source.headers.iter().filter(|(name, _)| is_sent(name));
                for (name, _) in own() {
                    headers.remove(name);
                }
                // Several may have one name.
                for (name, value) in own() {
                    headers.append(name, value.clone());
                }
            } else {
                headers.remove(header::AUTHORIZATION);
                headers.remove(header::COOKIE);
            }
            if source.config.max_connections > 0 {
                // Kept idle, the connection would be one too many for another edge.
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            if let Some(marks) = &self.marks {
                marks.add_to(&mut headers);
            }
            let is_signed = is_own && !question.is_presigned;
            let signer = source.signer.as_ref().filter(|_| is_signed);
            let transport = if is_own {
                origin.transport().unwrap_or(&self.transport)
            } else {
                source.elsewhere.get_or_init(|| {
                    Transport::new(self.tls.as_ref().clone(), origin::dialing(&source.config))
                })
            };
            let first_byte = source.first_byte_timeout(self.stall);
            let mut response = loop {
                let mut request = request(question.method.clone(), &url, headers.clone())?;
                if let Some(signer) = signer {
                    signer.sign(&mut request).await?;
                }
                self.asked.fetch_add(1, Ordering::Relaxed);
                let response = self.send_over(transport, request, &url, first_byte).await?;
                if !signer.is_some_and(|signer| signer.renew(response.status)) {
                    break response;
                }
            };
            response.stall = source.idle_timeout(self.stall);
            let (status, head) = (response.status, &response.headers);
            let named = &source.config.redirect_hosts;
            match redirect::read(status, head, &url, origin, named)? {
                Some(Redirect::Own(next)) => (is_own, url) = (true, next),
                Some(Redirect::Named(next)) => (is_own, url) = (false, next),
                // Passed on unchanged.
                Some(Redirect::Refused) | None => {
                    for lifetime in lifetimes {
                        response.headers.append(header::CACHE_CONTROL, lifetime);
                    }
                    return Ok(response);
                }
            }
            lifetimes.extend(head.get_all(header::CACHE_CONTROL).iter().cloned());
        }
        Err(OriginError::Protocol(format!(
            "more than {MAX_REDIRECTS} redirects"
        )))
    }

    /// Returns when a source with a connection limit has no unused open connection. Await it before
    /// a fetch is reported as ended.
    pub async fn closed(&self, source: &Source) {
        if source.config.max_connections == 0 {
            return;
        }
        for origin in source.origins() {
            let transport = origin.transport().unwrap_or(&self.transport);
            transport.connections.closed(origin.authority()).await;
        }
    }

    /// Sends one request without redirects or a source: for peers.
    pub async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<Response, OriginError> {
        let request = request(method, url, headers)?;
        self.send_over(&self.transport, request, url, self.stall)
            .await
    }

    async fn send_over(
        &self,
        transport: &Transport,
        mut request: Request<Empty<Bytes>>,
        url: &Url,
        first_byte: Duration,
    ) -> Result<Response, OriginError> {
        let span = if tracing::Span::current().is_none() {
            tracing::Span::none()
        } else {
            // Without the query, which may be signed.
            tracing::info_span!(
                "ask",
                otel.kind = "client",
                method = %request.method(),
                host = url.host_str(),
                path = url.path()
            )
        };
        telemetry::inject(&span, request.headers_mut());
        let asked_ms = now_ms();
        let asked = transport.request(request).instrument(span);
        let name = url.host_str().unwrap_or_default();
        let turn = transport.names.turn(name);
        let answered = tokio::time::timeout(first_byte, asked)
            .await
            .map_err(|_| OriginError::TimedOut(first_byte))
            .and_then(|answered| answered.map_err(|error| failed(&error)))
            .inspect_err(|_| transport.names.failed(name, turn));
        let (response, used) = answered?;
        let (mut head, body) = response.into_parts();
        if answer::is_coded_for_transfer(&head.headers) {
            let text = "it sends a transfer coding that was not asked for";
            return Err(OriginError::Protocol(text.into()));
        }
        Ok(Response {
            status: head.status,
            headers: head.headers,
            asked_ms,
            body,
            is_http2: head.version == http::Version::HTTP_2,
            blocks: None,
            origin: 0,
            passed_over: None,
            stall: self.stall,
            _used: used,
            permit_slot: head.extensions.remove::<PermitSlot>(),
            reading: None,
            has_permit: false,
        })
    }
}

/// A question to a source.
pub struct Question<'a> {
    pub method: Method,
    /// Below the source's base URL.
    pub url: Url,
    pub headers: &'a HeaderMap,
    pub class: RequestClass,
    pub kind: RequestKind,
    /// It is asked on behalf of a client: with the signature in its URL, and not with the source's
    /// own right.
    pub is_presigned: bool,
    pub skip: OriginSet,
}

fn request(
    method: Method,
    url: &Url,
    headers: HeaderMap,
) -> Result<Request<Empty<Bytes>>, OriginError> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = method;
    let mut target = url.clone();
    // Credentials of the base URL go into a header, never into the request line.
    let _ = target.set_username("");
    let _ = target.set_password(None);
    *request.uri_mut() = target
        .as_str()
        .parse()
        .map_err(|_| OriginError::Protocol(format!("{} is no URL to ask", target.path())))?;
    *request.headers_mut() = headers;
    let headers = request.headers_mut();
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    );
    if !headers.contains_key(header::USER_AGENT) {
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("cache-edge/", env!("CARGO_PKG_VERSION"))),
        );
    }
    if !url.username().is_empty() && !headers.contains_key(header::AUTHORIZATION) {
        headers.insert(header::AUTHORIZATION, basic_credentials(url)?);
    }
    Ok(request)
}

/// A request's permit until its answer arrives: released when its connection is closed.
pub(super) struct Unanswered<'a> {
    client: &'a Client,
    source: &'a Arc<Source>,
    pub(super) permit: Option<ConnectionPermit>,
}

impl<'a> Unanswered<'a> {
    pub(super) fn new(client: &'a Client, source: &'a Arc<Source>) -> Self {
        Self {
            client,
            source,
            permit: None,
        }
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let (Some(permit), Ok(runtime)) =
            (self.permit.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (client, source) = (self.client.clone(), self.source.clone());
        runtime.spawn(async move {
            client.closed(&source).await;
            drop(permit);
        });
    }
}

fn basic_credentials(url: &Url) -> Result<HeaderValue, OriginError> {
    use base64::Engine;
    let decode = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    let mut pair = decode(url.username());
    pair.push(b':');
    pair.extend(decode(url.password().unwrap_or("")));
    let text = format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(pair)
    );
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| OriginError::Protocol("its credentials can not be sent".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Classifies the failure: the origin was not reached, or it was reached and its answer was not
/// understood. The connector fails with an `io::Error` only in a TLS handshake; earlier errors,
/// from the name look-up to the connection, have types of their own.
fn failed(error: &ClientError) -> OriginError {
    let cause = std::error::Error::source(error);
    let in_handshake = cause.is_some_and(|cause| cause.is::<std::io::Error>());
    let mut text = chain(error);
    if cause.is_some_and(is_for_another_name) {
        // Players must not see the requested name or the names in the certificate.
        tracing::debug!(error = text, "an origin's certificate is refused");
        "its certificate is for another name".clone_into(&mut text);
    }
    if error.is_connect() && !in_handshake {
        OriginError::Unreachable(text)
    } else {
        OriginError::NoAnswer(text)
    }
}

fn is_for_another_name(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(
            error,
            rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })
        );
    }
    // The inner error of an `io::Error` is not among its sources.
    let inner = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    inner.is_some_and(|inner| is_for_another_name(inner))
}

/// An error and its causes on one line, because hyper puts the useful part into the last cause.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use service_kit::tls::{self, ClientFiles};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_server_that_answers_nothing_is_not_the_first_one_any_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/a", listener.local_addr().unwrap());
        let url = Url::parse(&url).unwrap();
        let closing = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let tls = tls::client(ClientFiles::default()).unwrap();
        let client = Client::new((*tls.current()).clone());
        let answer = client.send(Method::GET, &url, HeaderMap::new()).await;
        assert!(answer.is_err());
        assert_eq!(client.transport.names.turn("127.0.0.1"), 1);
        closing.abort();
    }
}
