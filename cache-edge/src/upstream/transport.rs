//! How requests reach a server: the address, the proxy and the TLS settings.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, Uri, header, uri::Authority};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            Client as HyperClient, Error as ClientError,
            connect::{Connected, HttpConnector, capture_connection, proxy::Tunnel},
        },
        proxy::matcher::{Intercept, Matcher},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::net::TcpStream;
use tower_service::Service;

use super::{
    connections::{Connections, CountedStream, Counting},
    marked_stream::{Mark, MarkedStream},
    names::Names,
};

/// Idle connections kept to one host; most origins would close further ones.
const IDLE_PER_HOST: usize = 8;
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Size of one read from a connection. Readers get the first bytes while the rest arrives, and a
/// system call costs little compared with copying.
const READ_BYTES: usize = 128 << 10;

/// A connection that takes longer was made to another address than the first one, which is silent.
const SLOW_CONNECT: Duration = Duration::from_secs(1);

/// Why a connection was not made.
type ConnectError = Box<dyn std::error::Error + Send + Sync>;

/// The environment's settings: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`.
static ENVIRONMENT: LazyLock<Arc<Matcher>> = LazyLock::new(|| Arc::new(Matcher::from_env()));

/// The proxy that a request goes through.
#[derive(Clone, Default)]
pub enum Proxy {
    #[default]
    None,
    /// As set in the environment. Servers on this machine are never behind a proxy.
    Environment,
    Fixed(Arc<Matcher>),
}

impl Proxy {
    /// Sends everything through the proxy at the URL.
    #[must_use]
    pub fn fixed(url: &str) -> Self {
        Self::Fixed(Arc::new(Matcher::builder().all(url).build()))
    }

    fn intercept(&self, target: &Uri) -> Option<Intercept> {
        match self {
            Self::None => None,
            Self::Environment if is_this_machine(target) => None,
            Self::Environment => ENVIRONMENT.intercept(target),
            Self::Fixed(matcher) => matcher.intercept(target),
        }
    }
}

fn is_this_machine(target: &Uri) -> bool {
    let host = target.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Bytes that a stream of HTTP/2 may send before it is read. A paused fetch, or a client that takes
/// nothing, leaves so many unread, and that must not stop the other streams: the connection's
/// window is larger than those of all its streams.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;
/// Beyond so many answers at a time, further requests to an origin use HTTP/1.1: servers limit the
/// streams of a connection, and unread ones count.
const MAX_STREAMS: usize = 32;

/// How connections are made and kept.
#[derive(Clone, Default)]
pub struct Dialing {
    pub connect_timeout: Duration,
    /// A connection of this age takes no further request.
    pub max_age: Duration,
    /// Dialled instead of the address in the request.
    pub address: Option<Authority>,
    pub proxy: Proxy,
    /// HTTP/2 if the server offers it.
    pub http2: bool,
}

type Http = HyperClient<Counting<HttpsConnector<Dialer>>, Empty<Bytes>>;

/// A client with its connections. Cheap to clone; clones share them.
#[derive(Clone)]
pub struct Transport {
    http1: Http,
    /// Offers both versions.
    http2: Option<Http>,
    pub(super) connections: Connections,
    pub(super) names: Names,
    dialing: Arc<Dialing>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

impl Transport {
    /// `tls`: roots and perhaps a client certificate; no ALPN.
    #[must_use]
    pub fn new(tls: rustls::ClientConfig, dialing: Dialing) -> Self {
        // Tries all addresses of a name, both families in parallel (RFC 8305), and resolves the
        // name again for each connection.
        let names = Names::default();
        let mut tcp = HttpConnector::new_with_resolver(names.clone());
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(dialing.connect_timeout));
        tcp.set_nodelay(true);
        let dialing = Arc::new(dialing);
        let dialer = Dialer {
            tcp,
            names: names.clone(),
            dialing: dialing.clone(),
        };
        let https = || {
            let builder = HttpsConnectorBuilder::new().with_tls_config(tls.clone());
            builder.https_or_http().enable_http1()
        };
        let connections = Connections::default();
        let mut http = HyperClient::builder(TokioExecutor::new());
        http.pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .pool_idle_timeout(IDLE_TIMEOUT.min(dialing.max_age))
            .http1_max_headers(128)
            // Accept what servers send in practice: `X-Foo : bar`, folded lines, lines that are no
            // field. The edge writes its own head, so nothing of this reaches a client unparsed.
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_ignore_invalid_headers_in_responses(true)
            .http1_read_buf_exact_size(READ_BYTES)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(Duration::from_secs(10));
        let client = |inner: HttpsConnector<Dialer>| {
            http.build(Counting {
                inner,
                connections: connections.clone(),
            })
        };
        let http2 = dialing
            .http2
            .then(|| client(https().enable_http2().wrap_connector(dialer.clone())));
        let http1 = client(https().wrap_connector(dialer));
        Self {
            http1,
            http2,
            connections,
            names,
            dialing,
        }
    }

    /// The answer's head, and a guard that marks the connection as used until it is dropped.
    pub async fn request(
        &self,
        mut request: Request<Empty<Bytes>>,
    ) -> Result<(Response<Incoming>, CountedStream), ClientError> {
        if request.uri().scheme() == Some(&http::uri::Scheme::HTTP)
            && let Some(proxy) = self
                .dialing
                .proxy
                .intercept(&self.dialing.target(request.uri()))
            && let Some(credentials) = proxy.basic_auth()
        {
            let headers = request.headers_mut();
            headers.insert(header::PROXY_AUTHORIZATION, sensitive(credentials));
        }
        let connection = capture_connection(&mut request);
        let used = self.connections.used(request.uri());
        let is_tls = request.uri().scheme() == Some(&http::uri::Scheme::HTTPS);
        let few = |_: &&Http| is_tls && used.at_a_time() <= MAX_STREAMS;
        let http = self.http2.as_ref().filter(few).unwrap_or(&self.http1);
        let response = http.request(request).await?;
        let since = response.extensions().get::<Since>();
        if since.is_some_and(|since| since.0.elapsed() >= self.dialing.max_age)
            && let Some(connection) = connection.connection_metadata().as_ref()
        {
            connection.poison();
        }
        Ok((response, used))
    }
}

fn sensitive(value: &HeaderValue) -> HeaderValue {
    let mut value = value.clone();
    value.set_sensitive(true);
    value
}

impl Dialing {
    /// The URI whose host and port are dialled.
    fn target(&self, uri: &Uri) -> Uri {
        let Some(address) = &self.address else {
            return uri.clone();
        };
        let mut parts = uri.clone().into_parts();
        parts.authority = Some(address.clone());
        Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
    }
}

/// When a connection was made.
#[derive(Clone, Copy, Debug)]
struct Since(Instant);

/// Makes connections.
#[derive(Clone)]
struct Dialer {
    tcp: HttpConnector<Names>,
    names: Names,
    dialing: Arc<Dialing>,
}

impl Service<Uri> for Dialer {
    type Response = MarkedStream<TokioIo<TcpStream>, Dialed>;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Self::Response, ConnectError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Service::<Uri>::poll_ready(&mut self.tcp, context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let target = self.dialing.target(&uri);
        let mut tcp = self.tcp.clone();
        let proxy = self.dialing.proxy.intercept(&target);
        let names = self.names.clone();
        Box::pin(async move {
            let dialed = |stream, is_proxied| {
                let since = Since(Instant::now());
                let mark = Dialed { is_proxied, since };
                MarkedStream { stream, mark }
            };
            let Some(proxy) = proxy else {
                let name = target.host().unwrap_or_default().to_owned();
                let (turn, begun) = (names.turn(&name), Instant::now());
                let stream = tcp.call(target).await?;
                if begun.elapsed() > SLOW_CONNECT {
                    names.failed(&name, turn);
                }
                return Ok(dialed(stream, false));
            };
            if target.scheme() != Some(&http::uri::Scheme::HTTPS) {
                return Ok(dialed(tcp.call(proxy.uri().clone()).await?, true));
            }
            let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
            if let Some(credentials) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(credentials.clone());
            }
            Ok(dialed(tunnel.call(target).await?, false))
        })
    }
}

/// How a connection was made.
struct Dialed {
    /// The connection goes to a proxy, so requests contain their server's name.
    is_proxied: bool,
    since: Since,
}

impl Mark for Dialed {
    fn mark(&self, connected: Connected) -> Connected {
        connected.proxy(self.is_proxied).extra(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_proxy_takes_all_and_the_environments_nothing_of_this_machine() {
        let fixed = Proxy::fixed("http://user:secret@proxy:3128");
        let target = Uri::from_static("https://127.0.0.1:8443/");
        let through = fixed.intercept(&target);
        assert!(
            through.is_some_and(|it| it.uri().host() == Some("proxy") && it.basic_auth().is_some())
        );
        assert!(Proxy::None.intercept(&target).is_none());
        for here in [
            "http://localhost:80/",
            "http://127.9.9.9/",
            "http://[::1]:80/",
        ] {
            assert!(is_this_machine(&Uri::from_static(here)), "{here}");
        }
        assert!(!is_this_machine(&Uri::from_static("http://10.0.0.1/")));
    }
}
