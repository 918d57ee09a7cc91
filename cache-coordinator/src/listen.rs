//! Listeners: bound first, served later; TLS with reloaded certificates. A leaf that both servers
//! use.
//!
//! Handshakes run in parallel with the accept loop, which waits for none. They are limited in time,
//! and in number, both per client address and in total. If there are too many, the oldest one of
//! the address with the most is ended, so that silent clients block nobody.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use rustls::{ServerConfig, pki_types::CertificateDer};
use service_kit::{open_files::AcceptFailures, tls::Reloading};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::AbortHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// Maximum number of handshakes.
const HANDSHAKES: usize = 1_024;
/// The same per client address (for IPv6, its first 64 bits).
const HANDSHAKES_OF_ADDRESS: usize = 64;
/// Time limit for one handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that wait to be served.
const WAITING: usize = 64;
/// Pause after a failed accept: the process is probably out of descriptors, which passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Plain or TLS.
pub enum Connection {
    /// In the clear.
    Plain(TcpStream),
    /// After its handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

/// The verified identity of a connection's other end.
#[derive(Clone)]
pub struct Peer {
    /// Verified against the clients' authority; none if no certificate is required.
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
        let handshakes = Arc::new(Mutex::new(Handshakes::default()));
        let mut failures = AcceptFailures::default();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    failures.report(&error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Most messages are small; a failure makes them slower, not wrong.
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
                    let (ready, ended) = (ready.clone(), Arc::clone(&handshakes));
                    // Locked until the handshake is recorded, so that it cannot end before that.
                    let mut handshakes = handshakes.lock();
                    let number = handshakes.next_number();
                    let shaking = tokio::spawn(async move {
                        let shaken = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
                        ended.lock().remove(address.ip(), number);
                        match shaken {
                            Ok(Ok(stream)) => {
                                // If the server has ended, nobody serves the connection.
                                let _ = ready.send(Connection::Tls(Box::new(stream))).await;
                            }
                            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                            Err(_) => tracing::debug!("a TLS handshake took too long"),
                        }
                    });
                    let too_many = handshakes.insert(address.ip(), number, shaking.abort_handle());
                    if let Some(oldest) = too_many {
                        oldest.abort();
                    }
                }
            }
        }
    };
    (accepting, receiver)
}

/// Running handshakes, by client address, the oldest first.
#[derive(Debug)]
struct Handshakes<T = AbortHandle> {
    by_address: HashMap<IpAddr, VecDeque<(u64, T)>>,
    count: usize,
    last_number: u64,
}

impl<T> Default for Handshakes<T> {
    fn default() -> Self {
        Self {
            by_address: HashMap::new(),
            count: 0,
            last_number: 0,
        }
    }
}

impl<T> Handshakes<T> {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Adds a handshake; returns the one to end if there are too many.
    fn insert(&mut self, address: IpAddr, number: u64, handshake: T) -> Option<T> {
        let address = client_of(address);
        let of_address = self.by_address.entry(address).or_default();
        of_address.push_back((number, handshake));
        self.count += 1;
        let crowded = if of_address.len() > HANDSHAKES_OF_ADDRESS {
            address
        } else if self.count > HANDSHAKES {
            let most = self.by_address.iter().max_by_key(|(_, list)| list.len());
            most.map(|(address, _)| *address)?
        } else {
            return None;
        };
        let (_, oldest) = self.by_address.get_mut(&crowded)?.pop_front()?;
        self.removed(crowded);
        Some(oldest)
    }

    fn remove(&mut self, address: IpAddr, number: u64) {
        let address = client_of(address);
        let Some(list) = self.by_address.get_mut(&address) else {
            return;
        };
        if let Some(index) = list.iter().position(|(other, _)| *other == number) {
            list.remove(index);
            self.removed(address);
        }
    }

    fn removed(&mut self, address: IpAddr) {
        self.count -= 1;
        if self
            .by_address
            .get(&address)
            .is_some_and(VecDeque::is_empty)
        {
            self.by_address.remove(&address);
        }
    }
}

/// The client behind an address: a client may use all addresses of an IPv6 network of 64 bits.
fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(network.into())
        }
        address => address,
    }
}

/// Connections for axum.
pub struct AcceptedConnection {
    connections: mpsc::Receiver<Connection>,
    address: SocketAddr,
}

impl AcceptedConnection {
    /// For a listener bound to `address`.
    #[must_use]
    pub fn new(connections: mpsc::Receiver<Connection>, address: SocketAddr) -> Self {
        Self {
            connections,
            address,
        }
    }
}

impl axum::serve::Listener for AcceptedConnection {
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
    /// Whether HTTP/2 was negotiated; never in clear.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn an_address_with_too_many_handshakes_loses_its_oldest() {
        let mut handshakes = Handshakes::default();
        for number in 0..HANDSHAKES_OF_ADDRESS as u64 {
            assert_eq!(handshakes.insert(address(1), number, number), None);
        }
        assert_eq!(handshakes.insert(address(2), 1_000, 1_000), None);
        assert_eq!(handshakes.insert(address(1), 1_001, 1_001), Some(0));
        handshakes.remove(address(1), 1);
        assert_eq!(handshakes.insert(address(1), 1_002, 1_002), None);
    }

    #[test]
    fn where_there_are_too_many_in_all_the_busiest_address_loses_one() {
        let mut handshakes = Handshakes::default();
        let mut number = 0;
        while handshakes.count < HANDSHAKES {
            let host = if number % 3 == 0 {
                1
            } else {
                number / 20 % 200 + 2
            };
            let of_address = u8::try_from(host).unwrap_or(1);
            handshakes.insert(address(of_address), number, of_address);
            number += 1;
        }
        let busiest = handshakes.by_address.values().map(VecDeque::len).max();
        let ended = handshakes.insert(address(255), number, 255);
        let list = &handshakes.by_address[&address(ended.unwrap_or_default())];
        assert_eq!(Some(list.len() + 1), busiest);
        assert_eq!(handshakes.count, HANDSHAKES);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let at = |text: &str| client_of(text.parse::<IpAddr>().unwrap_or(address(1)));
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:192.0.2.7"), address(7));
    }
}
