//! Origins that speak HTTP/2: how their bodies end, frame by frame, and that one body does not stop
//! others.
#![allow(clippy::unwrap_used)]

mod support;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use chunkcache_proto::v1;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use support::{Origin, TestEdge};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const CERTIFICATE: &str = include_str!("http/test-cert.pem");
const KEY: &str = include_str!("http/test-key.pem");

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const NO_ERROR: [u8; 4] = [0; 4];
const CANCEL: [u8; 4] = [0, 0, 0, 8];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A 200 with this lifetime and without a length.
fn head(stream: u32, lifetime: &str) -> Vec<u8> {
    let literal = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let field = [vec![0], literal("cache-control"), literal(lifetime)].concat();
    let block = [vec![0x88], field].concat();
    frame(HEADERS, END_HEADERS, stream, &block)
}

type Answer = Arc<Mutex<Box<dyn Fn(u32) -> Vec<u8> + Send>>>;

fn acceptor(protocols: &[&str]) -> tokio_rustls::TlsAcceptor {
    service_kit::tls::install_provider();
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let protocols = protocols.iter().map(|name| name.as_bytes().to_vec());
    config.alpn_protocols = protocols.collect();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

async fn edge_of(directory: &std::path::Path, address: SocketAddr) -> TestEdge {
    let unused = Origin::start(1).await;
    TestEdge::start_with(directory, Some(&unused), |_, source| {
        source.base_url = format!("https://{address}/library");
        source.connection = Some(v1::OriginConnection {
            ca_pem: CERTIFICATE.into(),
            ..v1::OriginConnection::default()
        });
    })
    .await
}

/// An origin that sends these bytes for each request, and the requests that it got.
async fn origin(answer: Answer) -> (SocketAddr, Arc<Mutex<usize>>) {
    let acceptor = acceptor(&["h2"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, requests) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(0)));
    let counted = requests.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.ok()?;
                stream.read_exact(&mut [0; 24]).await.ok()?;
                stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.ok()?;
                loop {
                    let mut head = [0; 9];
                    stream.read_exact(&mut head).await.ok()?;
                    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                    let mut payload = vec![0; length as usize];
                    stream.read_exact(&mut payload).await.ok()?;
                    if head[3] != HEADERS {
                        continue;
                    }
                    let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    *counted.lock() += 1;
                    let bytes = (answer.lock())(number);
                    stream.write_all(&bytes).await.ok()?;
                    stream.flush().await.ok()?;
                }
                #[allow(unreachable_code)]
                Some(())
            });
        }
    });
    (address, requests)
}

/// Servers break a body off by a reset, or a GOAWAY, that names no error (envoy 36200), and hyper
/// takes that for its end (hyper 3681).
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_reset_without_an_error_is_no_end() {
    let directory = tempfile::tempdir().unwrap();
    let answer: Answer = Arc::new(Mutex::new(Box::new(|_| Vec::new())));
    let (address, requests) = origin(answer.clone()).await;
    let edge = edge_of(directory.path(), address).await;
    type End = fn(u32) -> Vec<u8>;
    let ends: [(&str, End, bool); 5] = [
        ("end", |id| frame(DATA, END_STREAM, id, b"!"), false),
        (
            "end-and-reset",
            |id| {
                let reset = frame(RST_STREAM, 0, id, &NO_ERROR);
                [frame(DATA, END_STREAM, id, b"!"), reset].concat()
            },
            false,
        ),
        ("reset", |id| frame(RST_STREAM, 0, id, &NO_ERROR), true),
        ("cancel", |id| frame(RST_STREAM, 0, id, &CANCEL), true),
        (
            "goaway",
            |_| frame(GOAWAY, 0, 0, &[[0; 4], NO_ERROR].concat()),
            true,
        ),
    ];
    for lifetime in ["no-store", "max-age=60"] {
        for (name, end, is_cut) in ends {
            *answer.lock() = Box::new(move |id| {
                [head(id, lifetime), frame(DATA, 0, id, b"hello"), end(id)].concat()
            });
            let path = format!("/films/{name}/{lifetime}");
            let first = edge.get(&path, None).await;
            assert_eq!(
                first.status == 200 && !first.aborted,
                !is_cut,
                "{path} {first:?}"
            );
            let asked = *requests.lock();
            let second = edge.get(&path, None).await;
            assert_eq!(second.status == 200 && !second.aborted, !is_cut, "{path}");
            let is_kept = *requests.lock() == asked;
            assert_eq!(is_kept, !is_cut && lifetime != "no-store", "{path}");
        }
    }
    edge.stop().await;
}

type Body = StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// A body without an end for `/library/endless…`, else a short one.
async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let piece = || Ok(Frame::data(Bytes::from_static(&[7; 16 << 10])));
    let is_endless = request.uri().path().starts_with("/library/endless");
    let (lifetime, body): (_, stream::BoxStream<'static, _>) = match is_endless {
        true => ("no-store", Box::pin(stream::repeat_with(piece))),
        false => ("max-age=60", Box::pin(stream::once(async move { piece() }))),
    };
    let answer = Response::builder().header("Cache-Control", lifetime);
    Ok(answer.body(StreamBody::new(body)).unwrap())
}

/// Clients that take nothing leave streams unread, more than the origin allows on one connection.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_nobody_reads_stop_no_others() {
    const STREAMS: usize = 50;
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = acceptor(&["h2", "http/1.1"]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let versions = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, versions) = (acceptor.clone(), versions.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.ok()?;
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    versions.lock().push(request.version());
                    answer(request)
                });
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http2().max_concurrent_streams(STREAMS as u32);
                let served = builder.serve_connection(TokioIo::new(stream), service);
                served.await.ok()
            });
        }
    });
    let edge = edge_of(directory.path(), address).await;
    let mut unread = Vec::new();
    for number in 0..STREAMS + 5 {
        let mut client = TcpStream::connect(edge.address).await.unwrap();
        let request = format!("GET /films/endless{number} HTTP/1.1\r\nHost: a\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        client.readable().await.unwrap();
        unread.push(client);
        if [0, 1, STREAMS - 1].contains(&number) {
            // The first ones' windows are full.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let path = format!("/films/short{number}");
            let got = edge.get(&path, None);
            let got = tokio::time::timeout(Duration::from_secs(5), got)
                .await
                .unwrap();
            assert_eq!((got.status, got.body.len()), (200, 16 << 10), "{number}");
        }
    }
    let got = edge.get("/films/last", None).await;
    assert_eq!(got.status, 200);
    let seen = seen.lock();
    for version in [http::Version::HTTP_2, http::Version::HTTP_11] {
        assert!(seen.contains(&version), "{version:?}");
    }
}
