//! Origins that speak HTTP/2, frame by frame: how their bodies end.
#![allow(clippy::unwrap_used)]

mod support;

use std::{net::SocketAddr, sync::Arc};

use chunkcache_proto::v1;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use support::{Origin, TestEdge};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
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

/// An origin that sends these bytes for each request, and the requests that it got.
async fn origin(answer: Answer) -> (SocketAddr, Arc<Mutex<usize>>) {
    service_kit::tls::install_provider();
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
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
    let unused = Origin::start(1).await;
    let edge = TestEdge::start_with(directory.path(), Some(&unused), |_, source| {
        source.base_url = format!("https://{address}/library");
        source.connection = Some(v1::OriginConnection {
            ca_pem: CERTIFICATE.into(),
            ..v1::OriginConnection::default()
        });
    })
    .await;
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
