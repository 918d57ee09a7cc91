//! Connections, and one request at a time over them.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpSocket,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use super::Content;

const READ_BYTES: usize = 256 << 10;
const HEAD_LIMIT: usize = 16 << 10;
/// No answer for so long is an error.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// Connections from one loopback address: below what servers allow one client.
const CONNECTIONS_PER_ADDRESS: u64 = 200;

/// Where to connect, and how.
pub struct Client {
    address: SocketAddr,
    tls: Option<TlsConnector>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A keep-alive connection.
pub struct Connection {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

/// One request.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
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
    /// So many bytes of the body.
    Bytes(u64),
}

pub struct Timing {
    pub first_byte: Duration,
    pub whole: Duration,
    pub bytes: u64,
    pub wrong_bytes: u64,
    /// All of it was read; else the connection can not be used again.
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
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
                Box::new(tls.connect(name, stream).await?)
            }
        };
        Ok(Connection {
            stream,
            buffer: Vec::new(),
        })
    }
}

impl Connection {
    /// Asks, reads and compares.
    pub async fn get(&mut self, asked: Asked<'_>, until: Until) -> io::Result<Timing> {
        self.buffer.resize(READ_BYTES, 0);
        let one = self.get_whole(asked, until);
        tokio::time::timeout(STALL_LIMIT, one)
            .await
            .map_err(|_| io::Error::from(ErrorKind::TimedOut))?
    }

    /// Idle connections need no buffer.
    pub fn forget_buffer(&mut self) {
        self.buffer = Vec::new();
    }

    async fn get_whole(&mut self, asked: Asked<'_>, until: Until) -> io::Result<Timing> {
        let bad = |text: String| io::Error::new(ErrorKind::InvalidData, text);
        let Connection { stream, buffer } = self;
        let (range, status) = match asked.range {
            Some((start, end)) => (format!("Range: bytes={start}-{}\r\n", end - 1), "206"),
            None => (String::new(), "200"),
        };
        let head = format!(
            "GET {} HTTP/1.1\r\nHost: bench\r\n{range}\r\n",
            asked.target
        );
        let began = Instant::now();
        stream.write_all(head.as_bytes()).await?;
        stream.flush().await?;
        let mut filled = 0;
        let body_at = loop {
            let read = stream.read(&mut buffer[filled..]).await?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            filled += read;
            if let Some(at) = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if filled > HEAD_LIMIT {
                return Err(bad("a response head over 16 KiB".into()));
            }
        };
        if buffer.get(9..12) != Some(status.as_bytes()) {
            let line = &buffer[..filled.min(64)];
            return Err(bad(String::from_utf8_lossy(line).into_owned()));
        }
        let (start, end) = asked.range.unwrap_or((0, asked.content.size()));
        let mut timing = Timing {
            first_byte: Duration::ZERO,
            whole: Duration::ZERO,
            bytes: 0,
            wrong_bytes: 0,
            ended: true,
        };
        let mut part = body_at..filled;
        loop {
            if !part.is_empty() {
                if timing.bytes == 0 {
                    timing.first_byte = began.elapsed();
                }
                let bytes = &buffer[part.clone()];
                timing.wrong_bytes += asked.content.wrong_bytes(start + timing.bytes, bytes);
                timing.bytes += bytes.len() as u64;
            }
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
            let want = (left as usize).min(buffer.len());
            let read = stream.read(&mut buffer[..want]).await?;
            if read == 0 {
                return Err(bad(format!("the body ended {left} bytes short")));
            }
            part = 0..read;
        }
        timing.whole = began.elapsed();
        Ok(timing)
    }
}

/// The certificates under measurement are made for the run.
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
