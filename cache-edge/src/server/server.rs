//! The listener for players: accepts, limits, speaks HTTP/1.1 and HTTP/2, and drains.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    os::fd::{AsRawFd as _, RawFd},
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, Request, Response, StatusCode, header, request::Parts};
use http_body::Body as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use service_kit::open_files::AcceptFailures;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    access_log::{self, AccessLog},
    body::Delivery,
    buffers::BufferPool,
    connection::{Activity, Client, Timeouts},
    connection_cache::ConnectionCache,
    cors::Cors,
    edge_body::EdgeBody,
    file_slices::FileSlices,
    handler::{self, PeerHandler},
    limits::{Limits, RateLimiter, Share, Shares, client_number},
    metrics::{Metrics, Refusal},
    next_objects::NextObjects,
    paced_io::PacedIo,
    proxies::{self, Proxies},
    response::CACHE_STATUS,
    sendfile_io::SendfileIo,
    signing_keys::SigningKeys,
    socket,
    steering::Steering,
};
use crate::{resolve::ports::Objects, system_calls, worker_pool::WorkerPool};
use http_rules::cache_status::{CacheStatus, Forward};

/// Buffers of 256 KiB for TLS and HTTP/2: at most 128 MiB, and only while that many are being sent.
const MAX_LARGE_BUFFERS: u32 = 512;
/// The part of them that one client may use.
const LARGE_BUFFERS_OF_CLIENT: u32 = 64;

/// Limit of readers with missing bytes ahead of them. Beyond it, new ones get only bytes that are
/// here; running ones continue.
const MAX_READERS: u32 = 8_192;

/// Requests, readers of missing bytes, and streams of a connection that a client may always have.
const LEAST_OF_CLIENT: u32 = 4;

/// Number of a client's connections that may have all streams. Each further connection gets fewer
/// than the one before.
const CONNECTIONS_WITH_ALL_STREAMS: u32 = 10;

/// Bytes of an HTTP/2 stream that wait for the client, in addition to the body's last read.
const MAX_STREAM_SEND_BYTES: usize = 64 << 10;

/// How long a connection without progress may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(1);

/// Limit for a connection's own future: a thousand readers must fit into some tens of MiB.
const MAX_CONNECTION_FUTURE_BYTES: usize = 2048;

/// Pause after the process ran out of file descriptors: long enough not to spin, short enough not
/// to be noticed.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Sent on a best-effort basis before a surplus connection is closed.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\
 Connection: close\r\nContent-Length: 0\r\n\r\n";

/// Returns the present TLS configuration; called at each handshake, so that a reloaded certificate
/// takes effect at once.
pub type TlsConfig = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// The operator's settings.
#[derive(Clone)]
pub struct Settings {
    /// Used in `Cache-Status`.
    pub edge_name: String,
    pub cors: Cors,
    /// Whether responses carry CMSD.
    pub cmsd: bool,
    /// `None`: requests are not logged.
    pub access_log: Option<Arc<AccessLog>>,
    /// If set, only signed URLs are answered.
    pub signed_urls: Option<SigningKeys>,
    pub steering: Steering,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub proxies: Proxies,
    /// How long running bodies may continue after the shutdown began.
    pub drain_grace: Duration,
    /// Its ALPN must offer `h2` and `http/1.1`, so that both can be spoken.
    pub tls: Option<TlsConfig>,
}

impl Settings {
    /// The defaults of `CACHE_DESIGN.md`.
    #[must_use]
    pub fn new(edge_name: impl Into<String>) -> Self {
        Self {
            edge_name: edge_name.into(),
            cors: Cors::default(),
            cmsd: false,
            access_log: None,
            signed_urls: None,
            steering: Steering::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            proxies: Proxies::default(),
            drain_grace: Duration::from_secs(30),
            tls: None,
        }
    }
}

/// The state that all requests share.
pub struct Server<O> {
    pub(super) objects: Arc<O>,
    pub(super) settings: Settings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) peer: Option<Arc<dyn PeerHandler>>,
    pub(super) rate_limiter: Option<RateLimiter>,
    pub(super) next_objects: Arc<NextObjects<O>>,
    hit: HeaderValue,
    buffers: Arc<BufferPool>,
    connections: Arc<Shares>,
    /// Requests over HTTP/2; over HTTP/1.1 there are at most as many as connections.
    requests: Arc<Shares>,
    readers: Arc<Shares>,
}

impl<O: Objects> Server<O> {
    #[must_use]
    pub fn new(
        objects: Arc<O>,
        settings: Settings,
        metrics: Arc<Metrics>,
        peer: Option<Arc<dyn PeerHandler>>,
    ) -> Arc<Self> {
        let hit = render(&CacheStatus::default(), &settings.edge_name);
        let limits = settings.limits;
        // As many requests as connections, and a single connection may use all its streams.
        let of_client = limits.connections_per_client + limits.http2_streams;
        let of_all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
        let of_all = of_all.saturating_add(2 * limits.http2_streams);
        Arc::new(Self {
            next_objects: NextObjects::new(Arc::clone(&objects), Arc::clone(&metrics)),
            rate_limiter: settings.limits.request_rate.map(RateLimiter::new),
            objects,
            settings,
            metrics,
            peer,
            hit,
            buffers: BufferPool::new(MAX_LARGE_BUFFERS, LARGE_BUFFERS_OF_CLIENT),
            connections: Shares::new(u32::MAX, limits.connections_per_client, 0),
            requests: Shares::new(of_all, of_client, LEAST_OF_CLIENT),
            readers: Shares::new(MAX_READERS, of_client, LEAST_OF_CLIENT),
        })
    }

    /// The field value; the most frequent one is made once.
    pub(super) fn cache_status(&self, status: &CacheStatus) -> HeaderValue {
        if *status == CacheStatus::default() {
            self.hit.clone()
        } else {
            render(status, &self.settings.edge_name)
        }
    }

    /// Serves until `shutdown`, then lets running responses finish within the grace period, cuts
    /// the rest, and returns. Not cancel safe: if dropped, it leaves connections running.
    ///
    /// # Errors
    ///
    /// The serving threads cannot be started.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        // One per processor that this process may use.
        let count = std::thread::available_parallelism().map_or(1, NonZero::get);
        let workers = WorkerPool::start("serve", count)?;
        let tasks = TaskTracker::new();
        let cut = CancellationToken::new();
        let mut failures = AcceptFailures::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    let open = tasks.len();
                    let Some(admission) = self.admit(&stream, address, open) else {
                        // Not tracked: it counts towards no limit, and no shutdown waits for it.
                        tokio::spawn(socket::close_refused(stream));
                        continue;
                    };
                    socket::tune(&stream, open);
                    let Ok(stream) = stream.into_std() else {
                        continue;
                    };
                    // Separate tokens, because waiting on a shared one locks it at each poll of the
                    // connection.
                    let (shutdown, cut) = (shutdown.child_token(), cut.child_token());
                    let streams = self.streams(admission.as_ref());
                    let connection =
                        Arc::clone(&self).connection(stream, address, streams, shutdown);
                    debug_assert!(size_of_val(&connection) <= MAX_CONNECTION_FUTURE_BYTES);
                    workers.workers().spawn(tasks.track_future(async move {
                        tokio::select! {
                            () = cut.cancelled() => {}
                            () = connection => {}
                        }
                        drop(admission);
                    }));
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    failures.report(&error);
                    tokio::select! {
                        () = shutdown.cancelled() => break,
                        () = tokio::time::sleep(ACCEPT_RETRY) => {}
                    }
                }
            }
        }
        // The kernel refuses new connections from here on, so that a balancer uses another edge.
        drop(listener);
        tasks.close();
        if tokio::time::timeout(self.settings.drain_grace, tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                connections = tasks.len(),
                "the drain grace is over; connections are cut"
            );
        }
        cut.cancel();
        tasks.wait().await;
        Ok(())
    }

    /// The client's share; `Some(None)` for a proxy, whose clients are not known yet.
    fn admit(&self, stream: &TcpStream, address: SocketAddr, open: usize) -> Option<Option<Share>> {
        if open >= self.settings.limits.connections {
            self.refuse(stream, Refusal::TotalConnections);
            return None;
        }
        if self.settings.proxies.are_shared(address.ip()) {
            return Some(None);
        }
        self.admit_client(stream, address.ip()).map(Some)
    }

    fn admit_client(&self, stream: &TcpStream, client: IpAddr) -> Option<Share> {
        let admission = self.connections.take(client);
        if admission.is_none() {
            self.refuse(stream, Refusal::ClientConnections);
        }
        admission
    }

    /// The answer to a client that has used up its share of requests. It has no body, because its
    /// stream would wait for a client that reads nothing.
    fn refuse_request(&self) -> Response<EdgeBody> {
        self.metrics.count_refusal(Refusal::Requests);
        let status = CacheStatus {
            forward: Some(Forward::Bypass),
            detail: Some("too-many-requests-at-a-time".to_owned()),
            ..CacheStatus::default()
        };
        let mut response = Response::new(EdgeBody::empty());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(CACHE_STATUS, self.cache_status(&status));
        response
    }

    /// A share of the readers of missing bytes; `None`: the client has used up its share.
    pub(super) fn place_of_reader(&self, client: IpAddr) -> Option<Share> {
        let share = self.share_of(&self.readers, client);
        if share.is_none() {
            self.metrics.count_refusal(Refusal::Readers);
        }
        share
    }

    /// The client whose share of the questions to origins a request uses; none for a proxy, which
    /// asks for many.
    pub(super) fn asker(&self, client: IpAddr) -> Option<u128> {
        let is_proxy = self.settings.proxies.trusted.contains(client);
        (!is_proxy).then(|| client_number(client))
    }

    pub(super) fn share_of(&self, shares: &Arc<Shares>, client: IpAddr) -> Option<Share> {
        if self.settings.proxies.trusted.contains(client) {
            shares.take_for_many(client)
        } else {
            shares.take(client)
        }
    }

    fn refuse(&self, stream: &TcpStream, refusal: Refusal) {
        self.metrics.count_refusal(refusal);
        if self.settings.tls.is_none() {
            let _ = stream.try_write(TOO_MANY);
        }
    }

    /// The client behind a proxy's connection, and its share of the connections; `None`: refused.
    async fn identify(
        &self,
        stream: &mut TcpStream,
        address: SocketAddr,
    ) -> Option<(IpAddr, Option<Share>)> {
        let peer = address.ip();
        if !self.settings.proxies.expect_header(peer) {
            return Some((peer, None));
        }
        match proxies::read_header(stream, self.settings.timeouts.request_head).await {
            // A health check by the proxy itself.
            Ok(None) => Some((peer, None)),
            Ok(Some(client)) if self.settings.proxies.trusted.contains(client) => {
                Some((client, None))
            }
            Ok(Some(client)) => Some((client, Some(self.admit_client(stream, client)?))),
            Err(error) => {
                self.metrics.count_refusal(Refusal::NoProxyHeader);
                tracing::debug!(%error, %address, "a connection without a PROXY header");
                None
            }
        }
    }

    /// Kept small, because it is wrapped several times and each wrapper stores it twice: large
    /// parts are boxed.
    async fn connection(
        self: Arc<Self>,
        stream: std::net::TcpStream,
        address: SocketAddr,
        mut streams: u32,
        shutdown: CancellationToken,
    ) {
        // Moves the socket from the acceptor's event loop to this thread's.
        let Ok(mut stream) = TcpStream::from_std(stream) else {
            return;
        };
        let _open = self.metrics.connection_opened();
        let identified = tokio::select! {
            () = shutdown.cancelled() => return,
            identified = Box::pin(self.identify(&mut stream, address)) => identified,
        };
        let Some((peer, admission)) = identified else {
            return Box::pin(socket::close_refused(stream)).await;
        };
        if admission.is_some() {
            streams = self.streams(admission.as_ref());
        }
        let _admission = admission;
        let address = SocketAddr::new(peer, address.port());
        let activity = Activity::new();
        let socket = stream.as_raw_fd();
        let Some(tls) = &self.settings.tls else {
            let slices = Arc::new(FileSlices::default());
            let io = SendfileIo::new(stream, Arc::clone(&slices), Arc::clone(&self.metrics));
            let conversation = self.converse(
                io,
                Some(slices),
                streams,
                address,
                activity,
                socket,
                shutdown,
            );
            return Box::pin(conversation).await;
        };
        let acceptor = tokio_rustls::TlsAcceptor::from(tls());
        let handshake = tokio::time::timeout(
            self.settings.timeouts.request_head,
            Box::pin(acceptor.accept(stream)),
        );
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = handshake => accepted,
        };
        match accepted {
            Ok(Ok(stream)) => {
                let io = TokioIo::new(stream);
                Box::pin(self.converse(io, None, streams, address, activity, socket, shutdown))
                    .await;
            }
            Ok(Err(error)) => tracing::debug!(%error, %address, "TLS handshake failed"),
            Err(_) => tracing::debug!(%address, "TLS handshake took too long"),
        }
    }

    /// Speaks HTTP until the client is done, the shutdown ends it, or a time-out expires.
    #[allow(clippy::too_many_arguments)] // what one connection is made of
    async fn converse<I>(
        self: Arc<Self>,
        io: I,
        slices: Option<Arc<FileSlices>>,
        streams: u32,
        address: SocketAddr,
        activity: Arc<Activity>,
        socket: RawFd,
        shutdown: CancellationToken,
    ) where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let memory = Arc::new(ConnectionCache::<O::Open>::new());
        let builder = self.protocols(streams);
        let io = PacedIo::new(io, self.settings.limits.client_rate, Arc::clone(&activity));
        let service = service_fn(|request: Request<Incoming>| {
            let server = Arc::clone(&self);
            let memory = Arc::clone(&memory);
            let active = activity.request_begun();
            let activity = Arc::clone(&activity);
            let slices = slices.clone();
            // Here, and not in the future: the connection is polled, so the socket is open.
            let transport = self.settings.cmsd.then(|| system_calls::transport(socket));
            async move {
                // The body is dropped unread: hyper reads the little that is already there, or
                // closes.
                let (mut parts, _) = request.into_parts();
                let trusted = &server.settings.proxies.trusted;
                let client = trusted.client(address.ip(), &parts.headers);
                let is_stream = parts.version >= http::Version::HTTP_2;
                let delivery = match slices {
                    Some(slices) if !is_stream => Delivery::Sendfile(slices),
                    _ => Delivery::Copy {
                        pool: Arc::clone(&server.buffers),
                        client,
                        is_stream,
                    },
                };
                let client = Client {
                    address: client,
                    delivery,
                    transport: transport.flatten(),
                };
                let requests = &server.requests;
                let place = is_stream.then(|| server.share_of(requests, client.address));
                let log = server.settings.access_log.as_ref();
                let line = log.map(|log| access_log::Pending::new(log, &parts, client.address));
                let mut response = match place {
                    Some(None) => server.refuse_request(),
                    _ => handler::handle(&*server, &client, &memory, &parts).await,
                };
                if let Some(mut line) = line {
                    let is_tls = server.settings.tls.is_some();
                    line.answered(&response, is_tls);
                    response.body_mut().log(line);
                }
                if ends_with_its_connection(&parts, &response) {
                    // As long as the connection is polled, the socket is open.
                    system_calls::reset_on_close(socket, true);
                    activity.note_open_ended();
                }
                if parts.uri.path().starts_with("/_peer/") && response.status().is_success() {
                    activity.note_peer();
                }
                let guard = server
                    .metrics
                    .request_answered(&parts.method, response.status());
                response.body_mut().watch(guard, active, place.flatten());
                memory.recycle(std::mem::take(&mut parts.headers));
                Ok::<_, Infallible>(response)
            }
        });
        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
        let mut draining = false;
        loop {
            let patience = match activity.patience(&self.settings.timeouts) {
                Some(patience) => patience,
                None if draining => {
                    tracing::debug!(%address, "nothing moved on the connection for too long");
                    return;
                }
                // A client of HTTP/2 learns that a request under way now is not answered.
                None => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                    FAREWELL
                }
            };
            // Most wake-ups are the connection's, so it is polled first.
            tokio::select! {
                biased;
                result = connection.as_mut() => {
                    match result {
                        Err(error) => tracing::debug!(%error, %address, "connection ended"),
                        Ok(()) if activity.is_open_ended() => {
                            system_calls::reset_on_close(socket, false);
                        }
                        Ok(()) => {}
                    }
                    return;
                }
                () = shutdown.cancelled(), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = tokio::time::sleep(patience) => {}
            }
        }
    }

    /// Limit of streams of a connection: each of many connections of one client has fewer.
    fn streams(&self, place: Option<&Share>) -> u32 {
        let most = self.settings.limits.http2_streams;
        let all = most * CONNECTIONS_WITH_ALL_STREAMS;
        place.map_or(most, |place| {
            (all / place.nth()).clamp(LEAST_OF_CLIENT, most)
        })
    }

    fn protocols(&self, streams: u32) -> auto::Builder<TokioExecutor> {
        let (limits, timeouts) = (&self.settings.limits, &self.settings.timeouts);
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            // Also limits what hyper queues for writing; a piece is always taken as a whole.
            .max_buf_size(limits.request_head_bytes)
            // The connection's watchdog limits slow heads too. A timer of hyper's would be created
            // and removed for each request, under the lock of all timers.
            .header_read_timeout(None);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(streams)
            // A player that scrubs opens and cancels as many streams as it may in one packet. More
            // than that, cancelled before they were handled, end the connection.
            .max_pending_accept_reset_streams(limits.http2_streams as usize)
            .max_send_buf_size(MAX_STREAM_SEND_BYTES)
            .max_header_list_size(u32::try_from(limits.request_head_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(timeouts.keep_alive)
            .adaptive_window(false);
        builder
    }
}

/// Whether only the end of the connection tells the client where the body ends: HTTP/1.0, and no
/// length. If the body breaks off, the connection must be reset, because a closed one would be a
/// clean end (RFC 9112, 8).
fn ends_with_its_connection(request: &Parts, response: &Response<EdgeBody>) -> bool {
    request.version < http::Version::HTTP_11
        && !response.headers().contains_key(header::CONTENT_LENGTH)
        && response.body().size_hint().exact().is_none()
}

fn render(status: &CacheStatus, edge_name: &str) -> HeaderValue {
    // The structured field is ASCII without control characters, so this cannot fail.
    HeaderValue::try_from(status.render(edge_name)).unwrap_or(HeaderValue::from_static("edge"))
}

/// Errors of `accept` that concern the connection and not the listener (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
