//! The `health` verb of both binaries: requests `/livez` from the process configured here, for
//! containers' health checks, so that an image needs no HTTP client.
//!
//! It reads the options of `serve` from the same sources, and uses only the listener's address and
//! whether it has TLS. A container's health check sees the environment and the file, but not the
//! flags of `serve`: repeat those for `health`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgMatches, Command};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::{self, Options};
use crate::tls;

/// Shorter than the three seconds after which the images' health checks time out.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Only the status line is read.
const STATUS_LINE_LIMIT: usize = 256;
const REQUEST: &[u8] = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// Why a process is not known to be alive.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    #[error("no answer from {address} in time")]
    TimedOut { address: SocketAddr },
    #[error("{address} can not be asked: {source}")]
    Unreachable {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("{address} answered {status_line:?}")]
    NotLive {
        address: SocketAddr,
        status_line: String,
    },
    #[error("the port of {address} is chosen at start: name the one in use")]
    UnknownPort { address: SocketAddr },
    #[error("tls can not be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// The listener that answers `/livez`, in terms of the binary's options.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// The id of the option with its address.
    pub address: &'static str,
    /// The id of the option that enables TLS.
    pub tls_cert: &'static str,
}

/// The verb, with every option of `serve`.
pub fn command<O: Options>(listener: Listener) -> Command {
    // `serve` reports all other errors: a health check need not know the secrets.
    let used = [listener.address, listener.tls_cert, "config"];
    config::command::<O>("health")
        .about(
            "Asks /livez of the process configured here and exits 0 or 1; takes the options of \
             serve, the environment and --config FILE, and uses the listener's address only",
        )
        .mut_args(|arg| match used.contains(&arg.get_id().as_str()) {
            true => arg,
            false => config::unjudged(arg),
        })
}

/// Runs the verb. 0: alive, 1: not known to be.
pub fn run(arguments: &ArgMatches, listener: Listener) -> ExitCode {
    let Some(address) = arguments.get_one::<SocketAddr>(listener.address).copied() else {
        eprintln!("no address is configured");
        return ExitCode::FAILURE;
    };
    let uses_tls = arguments.contains_id(listener.tls_cert);
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("can not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(check(address, uses_tls, TIMEOUT)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Succeeds if the process that listens at `listen` answers `/livez` with 200 in time.
async fn check(listen: SocketAddr, uses_tls: bool, timeout: Duration) -> Result<(), HealthError> {
    let address = reachable(listen)?;
    let status_line = tokio::time::timeout(timeout, ask(address, uses_tls))
        .await
        .map_err(|_| HealthError::TimedOut { address })??;
    if status_line.split_whitespace().nth(1) == Some("200") {
        return Ok(());
    }
    Err(HealthError::NotLive {
        address,
        status_line,
    })
}

/// The address to connect to: loopback for a listener on every address.
fn reachable(listen: SocketAddr) -> Result<SocketAddr, HealthError> {
    if listen.port() == 0 {
        return Err(HealthError::UnknownPort { address: listen });
    }
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    Ok(SocketAddr::new(ip, listen.port()))
}

async fn ask(address: SocketAddr, uses_tls: bool) -> Result<String, HealthError> {
    let unreachable = |source| HealthError::Unreachable { address, source };
    let stream = TcpStream::connect(address).await.map_err(unreachable)?;
    if !uses_tls {
        return status_line(stream).await.map_err(unreachable);
    }
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls_config()?));
    let name = ServerName::IpAddress(address.ip().into());
    let stream = connector.connect(name, stream).await.map_err(unreachable)?;
    status_line(stream).await.map_err(unreachable)
}

async fn status_line(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<String> {
    stream.write_all(REQUEST).await?;
    let mut head = Vec::with_capacity(STATUS_LINE_LIMIT);
    let mut limited = stream.take(STATUS_LINE_LIMIT as u64);
    while !head.contains(&b'\n') {
        if limited.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&head);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn tls_config() -> Result<ClientConfig, rustls::Error> {
    let provider = tls::provider();
    Ok(ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth())
}

/// Accepts any certificate: the listener's contains a public name instead of this address, nothing
/// secret is sent, and the answer only says that the process is alive.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection with these bytes and keeps it open; no bytes: it only accepts.
    async fn answering(bytes: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(bytes).await.unwrap();
            std::future::pending::<()>().await;
        });
        address
    }

    #[tokio::test]
    async fn two_hundred_is_alive() {
        let address = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        check(address, false, TIMEOUT).await.unwrap();
    }

    #[tokio::test]
    async fn anything_else_is_not() {
        let address = answering(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
        let error = check(address, false, TIMEOUT).await.unwrap_err();
        assert!(matches!(error, HealthError::NotLive { .. }), "{error}");
        let address = answering(b"2000 x 200 y\r\n").await;
        assert!(check(address, false, TIMEOUT).await.is_err());
    }

    #[tokio::test]
    async fn silence_ends_in_time() {
        let address = answering(b"").await;
        let error = check(address, false, Duration::from_millis(20))
            .await
            .unwrap_err();
        assert!(matches!(error, HealthError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn nobody_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = check(address, false, TIMEOUT).await.unwrap_err();
        assert!(matches!(error, HealthError::Unreachable { .. }), "{error}");
    }

    #[tokio::test]
    async fn over_tls_whatever_the_certificate_is_called() {
        let fixture = |name| {
            std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("tests/tls")
                .join(name)
        };
        let server = tls::server(tls::ServerFiles {
            cert: fixture("server-a.pem"),
            key: fixture("server-a.key"),
            client_ca: None,
            alpn: Vec::new(),
        })
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(server.current());
            let mut stream = acceptor.accept(stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            stream.flush().await.unwrap();
            std::future::pending::<()>().await;
        });
        check(address, true, TIMEOUT).await.unwrap();
    }

    #[test]
    fn every_address_is_asked_on_loopback() {
        let ask = |listen: &str| reachable(listen.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(ask("0.0.0.0:7401").unwrap(), "127.0.0.1:7401");
        assert_eq!(ask("[::]:7401").unwrap(), "[::1]:7401");
        assert_eq!(ask("10.0.0.7:7401").unwrap(), "10.0.0.7:7401");
        assert!(ask("0.0.0.0:0").is_err());
    }
}
