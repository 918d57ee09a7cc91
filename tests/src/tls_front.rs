//! TLS in front of an origin, with all its possible faults. Decrypted bytes are passed to the
//! origin's own port.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::authority::Identity;
use crate::ports;

/// How connections are handled.
#[derive(Debug, Clone)]
pub enum Handshake {
    /// With this certificate, valid or not.
    With(Identity),
    /// Acts as an HTTP server without TLS: answers in clear text.
    PlainHttp,
    /// Closes after the client's first message.
    Close,
    /// Closes in the middle of its own first message.
    CloseWithin,
    /// Sends nothing.
    Stall,
}

#[derive(Debug)]
pub struct TlsFront {
    address: SocketAddr,
    /// Connections of an earlier mode are cut.
    handshake: watch::Sender<Handshake>,
    connections: Arc<Mutex<usize>>,
    _runtime: Runtime,
}

impl TlsFront {
    pub fn start(origin: SocketAddr, handshake: Handshake) -> TlsFront {
        let address = ports::reserve();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .expect("TLS listens on a reserved port");
        let (handshake, watched) = watch::channel(handshake);
        let connections = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&connections);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *counted.lock().expect("a counter") += 1;
                let mut watched = watched.clone();
                let way = watched.borrow_and_update().clone();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = watched.changed() => {}
                        () = meet(stream, origin, way) => {}
                    }
                });
            }
        });
        TlsFront {
            address,
            handshake,
            connections,
            _runtime: runtime,
        }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Sets the mode. Open connections are cut.
    pub fn set(&self, handshake: Handshake) {
        self.handshake.send_replace(handshake);
    }

    /// Number of accepted connections so far.
    pub fn connections(&self) -> usize {
        *self.connections.lock().expect("a counter")
    }
}

async fn meet(mut client: TcpStream, origin: SocketAddr, way: Handshake) {
    let identity = match way {
        Handshake::With(identity) => identity,
        Handshake::Stall => return std::future::pending().await,
        Handshake::PlainHttp | Handshake::Close | Handshake::CloseWithin => {
            let _ = client.read(&mut [0; 4096]).await;
            let answer: &[u8] = match way {
                Handshake::PlainHttp => {
                    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\nConnection: close\r\n\r\n\
                     no\n"
                }
                // A record of 122 bytes, of which only a few are sent.
                Handshake::CloseWithin => b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03",
                _ => b"",
            };
            let _ = client.write_all(answer).await;
            let _ = client.shutdown().await;
            // Reads the client's bytes first, so that closing does not cause a reset.
            while matches!(client.read(&mut [0; 4096]).await, Ok(1..)) {}
            return;
        }
    };
    // A client that refuses the certificate ends the handshake.
    if let Ok(mut client) = acceptor(&identity).accept(client).await
        && let Ok(mut origin) = TcpStream::connect(origin).await
    {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut origin).await;
    }
}

fn acceptor(identity: &Identity) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(&identity.cert)
        .expect("a certificate")
        .collect::<Result<Vec<_>, _>>()
        .expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(&identity.key).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate and its key");
    TlsAcceptor::from(Arc::new(config))
}
