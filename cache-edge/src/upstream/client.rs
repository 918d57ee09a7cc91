//! One request to a source, and its answer's body as bytes that come in time.
//!
//! Redirects are followed inside the source only. Connections are kept alive and pooled.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chunkcache_proto::{ByteRange, Level};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HyperClient, Error as ClientError, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use service_kit::telemetry;
use tracing::Instrument as _;
use url::Url;

use super::{
    OriginError, Source,
    connections::{Connections, Counted, Counting, PermitSlot},
    peer_blocks::BlockDecoder,
    quota::{ConnectionPermit, Quota, RequestClass},
};

/// Redirects followed for one request.
const MAX_REDIRECTS: usize = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a byte for this long, an origin is taken as stalled.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections kept to one host; more would outlast most origins' patience.
const IDLE_PER_HOST: usize = 8;
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Bytes read from a connection at once. Readers get the first of them while the rest comes, and a
/// system call costs little beside copying them.
const READ_BYTES: usize = 128 << 10;

/// Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Client {
    http: HyperClient<Counting<HttpsConnector<HttpConnector>>, Empty<Bytes>>,
    connections: Connections,
    stall: Duration,
    /// Requests to origins.
    asked: Arc<AtomicU64>,
}

/// An answer whose head has come.
#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    /// Of a peer: takes the body's blocks apart.
    blocks: Option<Box<BlockDecoder>>,
    stall: Duration,
    _used: Counted,
    permit_slot: Option<PermitSlot>,
    /// Of its source, and how urgently it is read; none: a peer.
    reading: Option<Reading>,
    /// It holds a permit of this edge's lease.
    has_permit: bool,
}

/// Bytes of an origin's answer are read within the source's rate, more urgent ones first.
#[derive(Clone, Debug)]
pub struct Reading {
    quota: Quota,
    level: Arc<AtomicU8>,
}

impl Reading {
    fn level(&self) -> Level {
        Level::ALL[usize::from(self.level.load(Ordering::Relaxed)).min(3)]
    }
}

impl Client {
    /// `tls`: roots and perhaps a client certificate.
    #[must_use]
    pub fn new(tls: rustls::ClientConfig) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let connections = Connections::default();
        let http = HyperClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .http1_max_headers(128)
            .http1_read_buf_exact_size(READ_BYTES)
            .build(Counting {
                inner: connector,
                connections: connections.clone(),
            });
        Self {
            http,
            connections,
            stall: STALL_TIMEOUT,
            asked: Arc::default(),
        }
    }

    /// Requests to origins so far, of all clones.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Another patience, for tests and for peers.
    #[must_use]
    pub fn with_stall_timeout(mut self, stall: Duration) -> Self {
        self.stall = stall;
        self
    }

    /// Asks the source for an object. `headers` are added to the source's own and to those every
    /// request carries.
    pub async fn get(
        &self,
        source: &Source,
        url: Url,
        headers: &HeaderMap,
        class: RequestClass,
    ) -> Result<Response, OriginError> {
        self.ask(Method::GET, source, url, headers, class).await
    }

    /// As [`get`](Self::get), with GET or HEAD.
    pub async fn ask(
        &self,
        method: Method,
        source: &Source,
        url: Url,
        headers: &HeaderMap,
        class: RequestClass,
    ) -> Result<Response, OriginError> {
        let mut url = url;
        let limited = source.config.max_connections > 0;
        // Until there is an answer; then its connection has the permit.
        let mut unanswered = Unanswered {
            connections: &self.connections,
            source,
            permit: None,
        };
        if limited {
            unanswered.permit = Some(source.quota.acquire(class).await?);
        }
        for _ in 0..=MAX_REDIRECTS {
            // The second part of a fetch takes the connection of the first, not another beside it.
            self.closed(source).await;
            let mut all = headers.clone();
            for (name, value) in &source.headers {
                all.insert(name, value.clone());
            }
            if limited {
                // An idle connection here would be one too many for another edge.
                all.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            self.asked.fetch_add(1, Ordering::Relaxed);
            let asked = self.send(method.clone(), &url, all);
            let mut response = asked.await?;
            let Some(next) = redirect(&response, &url)? else {
                let permit = unanswered.permit.take();
                if let (Some(slot), Some(permit)) = (response.permit_slot.take(), permit) {
                    slot.put(permit);
                }
                response.has_permit = limited && class != RequestClass::Assigned;
                let level = match class {
                    RequestClass::Foreground => Level::Critical,
                    RequestClass::Assigned | RequestClass::Import => Level::High,
                    RequestClass::Background => Level::Low,
                };
                response.reading = Some(Reading {
                    quota: source.quota.clone(),
                    level: Arc::new(AtomicU8::new(level as u8)),
                });
                return Ok(response);
            };
            if !source.allows(&next) {
                return Err(OriginError::Protocol(
                    "it redirects outside its source".into(),
                ));
            }
            url = next;
        }
        Err(OriginError::Protocol(format!(
            "more than {MAX_REDIRECTS} redirects"
        )))
    }

    /// Returns when no connection is open to a source with a limit on them that nobody uses. Before
    /// a fetch is said to have ended.
    pub async fn closed(&self, source: &Source) {
        if source.config.max_connections > 0 {
            self.connections.closed(source.authority()).await;
        }
    }

    /// One request, no redirects, no source: for peers.
    pub async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<Response, OriginError> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method;
        let mut target = url.clone();
        // Of a base URL with credentials; they go into a header, never into the request line.
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
        let span = if tracing::Span::current().is_none() {
            tracing::Span::none()
        } else {
            // Without the query, which may be signed.
            tracing::info_span!("ask", otel.kind = "client", method = %request.method(), host = url.host_str(), path = url.path())
        };
        telemetry::inject(&span, request.headers_mut());
        let used = self.connections.used(request.uri());
        let asked = self.http.request(request).instrument(span);
        let response = tokio::time::timeout(self.stall, asked)
            .await
            .map_err(|_| OriginError::Unreachable(format!("no answer within {:?}", self.stall)))?
            .map_err(|error| failed(&error))?;
        let (mut head, body) = response.into_parts();
        Ok(Response {
            status: head.status,
            headers: head.headers,
            body,
            blocks: None,
            stall: self.stall,
            _used: used,
            permit_slot: head.extensions.remove::<PermitSlot>(),
            reading: None,
            has_permit: false,
        })
    }
}

/// A request's permit before its answer has come: given back when its connection is closed.
struct Unanswered<'a> {
    connections: &'a Connections,
    source: &'a Source,
    permit: Option<ConnectionPermit>,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let (Some(permit), Ok(runtime)) =
            (self.permit.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (connections, authority) =
            (self.connections.clone(), self.source.authority().to_owned());
        runtime.spawn(async move {
            connections.closed(&authority).await;
            drop(permit);
        });
    }
}

impl Response {
    /// It holds a permit of this edge's lease.
    #[must_use]
    pub fn has_permit(&self) -> bool {
        self.has_permit
    }

    /// A viewer waits for a permit like the one this holds.
    #[must_use]
    pub fn is_in_the_way(&self) -> bool {
        self.has_permit && self.reading.as_ref().is_some_and(|it| it.quota.is_wanted())
    }

    /// How urgently its bytes are wanted from now on.
    pub fn set_level(&mut self, level: Arc<AtomicU8>) {
        if let Some(reading) = &mut self.reading {
            reading.level = level;
        }
    }

    /// The body is made of a peer's blocks: [`chunk`](Self::chunk) gives the bytes of this range,
    /// checked.
    pub fn expect_blocks(&mut self, range: ByteRange) {
        self.blocks = Some(Box::new(BlockDecoder::new(range)));
    }

    /// The next bytes; `None` at the body's clean end. Cancel safe.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, OriginError> {
        loop {
            if let Some(blocks) = &mut self.blocks
                && let Some(bytes) = blocks.next_bytes()?
            {
                return Ok(Some(bytes));
            }
            let received = self.next_frame().await?;
            match (&mut self.blocks, received) {
                // What is behind the range is nobody's.
                (Some(blocks), Some(_)) if blocks.is_done() => {}
                (Some(blocks), Some(bytes)) => blocks.push(&bytes),
                (_, received) => return Ok(received),
            }
        }
    }

    async fn next_frame(&mut self) -> Result<Option<Bytes>, OriginError> {
        loop {
            if let Some(reading) = &self.reading {
                reading.quota.ready(reading.level()).await;
            }
            let frame = tokio::time::timeout(self.stall, self.body.frame())
                .await
                .map_err(|_| OriginError::Stalled(self.stall))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(OriginError::Short {
                        received: 0,
                        expected: 0,
                        detail: chain(&error),
                    });
                }
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data()
                        && !bytes.is_empty()
                    {
                        if let Some(reading) = &self.reading {
                            reading.quota.took(bytes.len(), reading.level());
                        }
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// One header as text.
    #[must_use]
    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Where the answer redirects to, if it does.
fn redirect(response: &Response, from: &Url) -> Result<Option<Url>, OriginError> {
    if !matches!(response.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response
        .header(header::LOCATION)
        .ok_or_else(|| OriginError::Protocol("it redirects without saying where".into()))?;
    let next = from
        .join(location)
        .map_err(|_| OriginError::Protocol("it redirects to no URL".into()))?;
    Ok(Some(next))
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

/// Not reached, or reached and not understood. The connector fails with an `io::Error` in a TLS
/// handshake only; what goes wrong before that, from the name to the connection, has a type of its
/// own.
fn failed(error: &ClientError) -> OriginError {
    let cause = std::error::Error::source(error);
    let in_handshake = cause.is_some_and(|cause| cause.is::<std::io::Error>());
    let mut text = chain(error);
    if cause.is_some_and(is_for_another_name) {
        // Whose names are asked for and shown is nothing for players.
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
    // What an `io::Error` holds is not among its sources.
    let inner = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    inner.is_some_and(|inner| is_for_another_name(inner))
}

/// An error and its causes in one line: hyper keeps the useful part in the last.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
