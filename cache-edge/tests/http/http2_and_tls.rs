//! HTTP/2 by prior knowledge and by ALPN, and HTTPS.

use std::{sync::Arc, time::Duration};

use cache_edge::{resolve::ports::ReadError, server::metrics::Abort};
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Bytes, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::objects::{CHUNK, Edge, bytes_of};

const CERTIFICATE: &[u8] = include_bytes!("test-cert.pem");
const KEY: &[u8] = include_bytes!("test-key.pem");

type Sender = http2::SendRequest<Empty<Bytes>>;

async fn http2<T>(io: T) -> Sender
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn get(range: &str) -> Request<Empty<Bytes>> {
    Request::get("http://edge/films/a")
        .header("range", format!("bytes={range}"))
        .body(Empty::new())
        .unwrap()
}

async fn tls_edge() -> (Edge, rustls::ClientConfig) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE).unwrap();
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.clone()],
            PrivateKeyDer::from_pem_slice(KEY).unwrap(),
        )
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let server = Arc::new(server);
    let edge =
        Edge::start_with(|settings| settings.tls = Some(Arc::new(move || Arc::clone(&server))))
            .await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (edge, client)
}

async fn tls(
    edge: &Edge,
    mut config: rustls::ClientConfig,
    protocol: &[u8],
) -> tokio_rustls::client::TlsStream<TcpStream> {
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(edge.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap()
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let edge = Edge::start().await;
    edge.warm("a", 20 * CHUNK);
    let mut sender = http2(TcpStream::connect(edge.address).await.unwrap()).await;
    let whole = sender.send_request(get("1-"));
    let part = sender.send_request(get("100-70000"));
    let (whole, part) = (whole.await.unwrap(), part.await.unwrap());
    assert_eq!(
        (part.status(), part.version()),
        (StatusCode::PARTIAL_CONTENT, Version::HTTP_2)
    );
    let (whole, part) = tokio::join!(whole.into_body().collect(), part.into_body().collect());
    assert!(whole.unwrap().to_bytes() == bytes_of(1..20 * CHUNK));
    assert!(part.unwrap().to_bytes() == bytes_of(100..70_001));
    assert_eq!(
        edge.metrics.sendfile_bytes(),
        0,
        "frames have heads: nothing to send by sendfile"
    );
}

#[tokio::test]
async fn a_short_body_resets_its_stream_and_no_other() {
    let edge = Edge::start().await;
    let object = edge.cold("a", 2 * CHUNK);
    object.land(0);
    let mut sender = http2(TcpStream::connect(edge.address).await.unwrap()).await;
    let response = sender.send_request(get("0-")).await.unwrap();
    object.fail_at(1, ReadError::Origin("cut".to_owned()));
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(edge.metrics.aborted(Abort::Origin), 1);
    let response = sender.send_request(get("0-9")).await.unwrap();
    assert!(response.into_body().collect().await.unwrap().to_bytes() == bytes_of(0..10));
}

/// The head is already sent, and the failure is there before anything else can be.
#[tokio::test]
async fn a_body_that_fails_right_after_its_head_is_no_end() {
    let edge = Edge::start().await;
    let object = edge.cold("a", 2 * CHUNK);
    object.land(0);
    object.fail_at(1, ReadError::Origin("cut".to_owned()));
    let mut sender = http2(TcpStream::connect(edge.address).await.unwrap()).await;
    let range = format!("{}-", CHUNK - 1);
    let response = sender.send_request(get(&range)).await.unwrap();
    assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(edge.metrics.aborted(Abort::Origin), 1);
}

#[tokio::test]
async fn https_with_http2_by_alpn() {
    let (edge, config) = tls_edge().await;
    edge.warm("a", 20 * CHUNK);
    let stream = tls(&edge, config, b"h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let response = http2(stream).await.send_request(get("7-")).await.unwrap();
    assert!(response.into_body().collect().await.unwrap().to_bytes() == bytes_of(7..20 * CHUNK));
}

#[tokio::test]
async fn https_with_http1() {
    let (edge, config) = tls_edge().await;
    edge.warm("a", 20 * CHUNK);
    let mut stream = tls(&edge, config, b"http/1.1").await;
    let request =
        "GET /films/a HTTP/1.1\r\nHost: edge\r\nRange: bytes=7-\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let body = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap()
        + 4;
    assert!(answer[body..] == bytes_of(7..20 * CHUNK));
    assert_eq!(edge.metrics.sendfile_bytes(), 0);
}

/// A client of HTTP/2 answers pings whether or not anybody uses it.
#[tokio::test]
async fn what_answers_pings_and_takes_nothing_is_cut_in_the_end() {
    let edge = Edge::start_with(|settings| {
        settings.timeouts.keep_alive = Duration::from_millis(100);
        settings.timeouts.no_progress = Duration::from_millis(300);
    })
    .await;
    edge.warm("a", 512 * CHUNK);
    let within = |closed| tokio::time::timeout(Duration::from_secs(10), closed);

    let stream = TcpStream::connect(edge.address).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let closed = tokio::spawn(connection);
    let answer = sender.send_request(get("0-9")).await.unwrap();
    answer.into_body().collect().await.unwrap();
    let ended = within(closed).await.expect("an idle connection ends");
    ended.unwrap().expect("it is ended with a GOAWAY");

    let stream = TcpStream::connect(edge.address).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let closed = tokio::spawn(connection);
    let unread = sender.send_request(get("0-")).await.unwrap();
    let ended = within(closed)
        .await
        .expect("a stream that is not read ends");
    assert!(ended.unwrap().is_err() || unread.into_body().collect().await.is_err());
}
