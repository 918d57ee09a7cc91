//! Connections, and one request at a time over them.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::net::RecvFlags;
use tokio::{
    io::{AsyncRead as _, AsyncWriteExt as _, Interest, ReadBuf},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use super::Content;

const READ_BYTES: usize = 256 << 10;
const HEAD_LIMIT: usize = 16 << 10;
/// A head and the first bytes of a body.
const FIRST_BYTES: u64 = 1 << 10;
/// A longer wait for an answer is an error.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// Connections from one loopback address: below the servers' limit for one client.
const CONNECTIONS_PER_ADDRESS: u64 = 200;

/// Where to connect, and how.
pub struct Client {
    address: SocketAddr,
    tls: Option<TlsConnector>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

thread_local! {
    /// Shared by all connections: bytes are compared before another connection reads. One buffer
    /// stays in the processor's cache, where one per connection would measure the memory's speed.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// A keep-alive connection.
pub struct Connection {
    stream: Stream,
    looks: Comparison,
}

/// How much of each body is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// All bytes are compared.
    All,
    /// The first bytes are compared; for the rest only the length counts, and the kernel discards
    /// it. As with a network card, receiving then costs a processor next to nothing, and the
    /// server's sending is measured. With TLS: like `All`.
    FirstBytes,
}

/// One request.
#[derive(Clone, Copy)]
pub struct RangeRequest<'a> {
    pub target: &'a str,
    /// Start and end (exclusive); none: the whole object.
    pub range: Option<(u64, u64)>,
    pub content: &'a Content,
}

/// When to stop reading, if not at the end.
#[derive(Clone, Copy)]
pub enum Until {
    End,
    Time(Instant),
    /// After this many bytes of the body.
    Bytes(u64),
}

pub struct Timing {
    pub first_byte: Duration,
    pub whole: Duration,
    pub bytes: u64,
    pub wrong_bytes: u64,
    /// The whole body was read; otherwise the connection cannot be reused.
    pub ended: bool,
}

impl Client {
    pub fn new(address: SocketAddr, tls: bool) -> Result<Client> {
        if !address.ip().is_loopback() {
            bail!("--address {address}: only loopback addresses are loaded");
        }
        let tls = tls.then(|| {
            let config = rustls::ClientConfig::builder()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate))
                .with_no_client_auth();
            TlsConnector::from(Arc::new(config))
        });
        Ok(Client { address, tls })
    }

    /// `number` spreads connections over client addresses, as no one client has thousands.
    pub async fn connect(&self, number: u64) -> io::Result<Connection> {
        let socket = TcpSocket::new_v4()?;
        let host = u32::try_from(number / CONNECTIONS_PER_ADDRESS).unwrap_or(0) % (1 << 16);
        if host > 0 && self.address.is_ipv4() {
            let from = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + host);
            socket.bind(SocketAddr::new(IpAddr::V4(from), 0))?;
        }
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = match &self.tls {
            None => Stream::Plain(stream),
            Some(tls) => {
                let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
                Stream::Tls(Box::new(tls.connect(name, stream).await?))
            }
        };
        Ok(Connection {
            stream,
            looks: Comparison::All,
        })
    }
}

impl Connection {
    /// Applies from the next answer on.
    #[must_use]
    pub fn looking(mut self, looks: Comparison) -> Self {
        self.looks = looks;
        self
    }

    /// Requests, reads and compares.
    pub async fn get(&mut self, asked: RangeRequest<'_>, until: Until) -> io::Result<Timing> {
        let one = self.get_whole(asked, until);
        tokio::time::timeout(STALL_LIMIT, one)
            .await
            .map_err(|_| io::Error::from(ErrorKind::TimedOut))?
    }

    /// Waits for bytes and passes them to `see`; none at the end.
    async fn read<T>(
        &mut self,
        at_most: u64,
        mut see: impl FnMut(&[u8]) -> io::Result<T>,
    ) -> io::Result<T> {
        poll_fn(|context| {
            BUFFER.with_borrow_mut(|buffer| {
                let room = usize::try_from(at_most).map_or(READ_BYTES, |most| most.min(READ_BYTES));
                let mut read = ReadBuf::new(&mut buffer[..room]);
                ready!(match &mut self.stream {
                    Stream::Plain(stream) => Pin::new(stream).poll_read(context, &mut read),
                    Stream::Tls(stream) => Pin::new(stream).poll_read(context, &mut read),
                })?;
                Poll::Ready(see(read.filled()))
            })
        })
        .await
    }

    /// Waits for bytes and discards them; returns how many. `None`: this connection must compare
    /// them.
    async fn discard(&mut self, at_most: u64) -> Option<io::Result<u64>> {
        let Stream::Plain(stream) = &self.stream else {
            return None;
        };
        if self.looks == Comparison::All {
            return None;
        }
        let room = usize::try_from(at_most).map_or(READ_BYTES, |most| most.min(READ_BYTES));
        let discarded = stream.async_io(Interest::READABLE, || {
            BUFFER.with_borrow_mut(|buffer| {
                let (_, count) = rustix::net::recv(stream, &mut buffer[..room], RecvFlags::TRUNC)?;
                Ok(count as u64)
            })
        });
        Some(discarded.await)
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes).await,
            Stream::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    async fn get_whole(&mut self, asked: RangeRequest<'_>, until: Until) -> io::Result<Timing> {
        let bad = |text: String| io::Error::new(ErrorKind::InvalidData, text);
        let (range, status) = match asked.range {
            Some((start, end)) => (format!("Range: bytes={start}-{}\r\n", end - 1), "206"),
            None => (String::new(), "200"),
        };
        let head = format!(
            "GET {} HTTP/1.1\r\nHost: bench\r\n{range}\r\n",
            asked.target
        );
        let began = Instant::now();
        self.send(head.as_bytes()).await?;
        let (start, end) = asked.range.unwrap_or((0, asked.content.size()));
        let mut timing = Timing {
            first_byte: Duration::ZERO,
            whole: Duration::ZERO,
            bytes: 0,
            wrong_bytes: 0,
            ended: true,
        };
        let compare = |timing: &mut Timing, bytes: &[u8]| {
            if timing.bytes == 0 && !bytes.is_empty() {
                timing.first_byte = began.elapsed();
            }
            timing.wrong_bytes += asked.content.wrong_bytes(start + timing.bytes, bytes);
            timing.bytes += bytes.len() as u64;
        };
        let at_first = match self.looks {
            Comparison::All => u64::MAX,
            Comparison::FirstBytes => FIRST_BYTES,
        };
        let mut head = Vec::new();
        let mut in_head = true;
        while in_head {
            in_head = self
                .read(at_first, |bytes| {
                    if bytes.is_empty() {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                    let before = head.len();
                    head.extend_from_slice(&bytes[..bytes.len().min(HEAD_LIMIT)]);
                    let Some(at) = head.windows(4).position(|w| w == b"\r\n\r\n") else {
                        if head.len() > HEAD_LIMIT {
                            return Err(bad("a response head over 16 KiB".into()));
                        }
                        return Ok(true);
                    };
                    if head.get(9..12) != Some(status.as_bytes()) {
                        let line = &head[..head.len().min(64)];
                        return Err(bad(String::from_utf8_lossy(line).into_owned()));
                    }
                    compare(&mut timing, &bytes[at + 4 - before..]);
                    Ok(false)
                })
                .await?;
        }
        loop {
            let left = (end - start).saturating_sub(timing.bytes);
            if left == 0 {
                break;
            }
            timing.ended = match until {
                Until::End => true,
                Until::Time(end) => Instant::now() < end,
                Until::Bytes(count) => timing.bytes < count,
            };
            if !timing.ended {
                break;
            }
            if let Some(discarded) = self.discard(left).await {
                let discarded = discarded?;
                if discarded == 0 {
                    return Err(bad(format!("the body ended {left} bytes short")));
                }
                if timing.bytes == 0 {
                    timing.first_byte = began.elapsed();
                }
                timing.bytes += discarded;
                continue;
            }
            self.read(left, |bytes| {
                if bytes.is_empty() {
                    return Err(bad(format!("the body ended {left} bytes short")));
                }
                compare(&mut timing, bytes);
                Ok(())
            })
            .await?;
        }
        timing.whole = began.elapsed();
        Ok(timing)
    }
}

/// Accepts any certificate: those under measurement are made for the run.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
