//! Listeners: bound first, served later; TLS with reloaded certificates. A leaf both servers use.
//!
//! Handshakes run beside the accept loop, bounded in number and time, so that a silent client holds
//! nobody up.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::{ServerConfig, pki_types::CertificateDer};
use service_kit::tls::Reloading;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// Handshakes at a time.
const HANDSHAKES: usize = 256;
/// For one handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that wait to be served.
const WAITING: usize = 64;
/// After an accept that failed: out of descriptors, most likely, which time mends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Plain or TLS.
pub enum Connection {
    /// In the clear.
    Plain(TcpStream),
    /// After its handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

/// What a connection proves of who is at its other end.
#[derive(Clone)]
pub struct Peer {
    /// Verified against the clients' authority; none where none is asked for.
    pub certificate: Option<Arc<CertificateDer<'static>>>,
}

/// Accepts until `shutdown`. The receiver yields connections that are ready to be served.
pub fn accept(
    listener: TcpListener,
    tls: Option<Arc<Reloading<ServerConfig>>>,
    shutdown: CancellationToken,
) -> (
    impl Future<Output = anyhow::Result<()>> + Send + 'static,
    mpsc::Receiver<Connection>,
) {
    let (ready, receiver) = mpsc::channel(WAITING);
    let accepting = async move {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Small messages are the rule; a failure leaves them slower, not wrong.
            let _ = stream.set_nodelay(true);
            match &tls {
                None => {
                    if ready.send(Connection::Plain(stream)).await.is_err() {
                        shutdown.cancelled().await;
                        return Ok(());
                    }
                }
                Some(tls) => {
                    let acceptor = TlsAcceptor::from(tls.current());
                    let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
                        continue;
                    };
                    let ready = ready.clone();
                    tokio::spawn(async move {
                        let shaken = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
                        drop(permit);
                        match shaken {
                            Ok(Ok(stream)) => {
                                // A server that is gone serves nobody.
                                let _ = ready.send(Connection::Tls(Box::new(stream))).await;
                            }
                            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                            Err(_) => tracing::debug!("a TLS handshake took too long"),
                        }
                    });
                }
            }
        }
    };
    (accepting, receiver)
}

/// Connections for axum.
pub struct Accepted {
    connections: mpsc::Receiver<Connection>,
    address: SocketAddr,
}

impl Accepted {
    /// Of a listener bound to `address`.
    #[must_use]
    pub fn new(connections: mpsc::Receiver<Connection>, address: SocketAddr) -> Self {
        Self {
            connections,
            address,
        }
    }
}

impl axum::serve::Listener for Accepted {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.connections.recv().await {
            Some(connection) => {
                let peer = connection.tcp().peer_addr().unwrap_or(self.address);
                (connection, peer)
            }
            // The accept loop ended with the process's shutdown, which ends this server too.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

impl Connection {
    /// As agreed with the client; in the clear it is not asked.
    #[must_use]
    pub fn is_http2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let chain = match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.peer_certificates(),
        };
        let certificate = chain.and_then(|chain| chain.first());
        Peer {
            certificate: certificate.map(|it| Arc::new(it.clone().into_owned())),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
