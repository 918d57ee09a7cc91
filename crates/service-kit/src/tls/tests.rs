#![allow(clippy::unwrap_used)]

use super::*;
use rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tls")
        .join(name)
}

fn server_files(client_ca: bool) -> ServerFiles {
    ServerFiles {
        cert: fixture("server-a.pem"),
        key: fixture("server-a.key"),
        client_ca: client_ca.then(|| fixture("ca.pem")),
        alpn: vec![b"h2".to_vec()],
    }
}

fn client_files(identity: bool) -> ClientFiles {
    ClientFiles {
        ca: Some(fixture("ca.pem")),
        identity: identity.then(|| (fixture("client.pem"), fixture("client.key"))),
        alpn: vec![b"h2".to_vec()],
    }
}

/// A handshake in memory, with a byte from the server: under TLS 1.3 a client learns of a refused
/// certificate only when it reads.
async fn handshake(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
) -> std::io::Result<Vec<u8>> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serve = async move {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_all(b"x").await?;
        stream.flush().await
    };
    let connect = async move {
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.read_exact(&mut [0]).await?;
        let (_, session) = stream.get_ref();
        assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
        Ok::<_, std::io::Error>(session.peer_certificates().unwrap()[0].to_vec())
    };
    let (served, connected) = tokio::join!(serve, connect);
    served.and(connected)
}

#[tokio::test]
async fn server_and_client_meet() {
    let server = server(server_files(false)).unwrap();
    let client = client(client_files(false)).unwrap();
    assert!(handshake(server.current(), client.current()).await.is_ok());
}

#[tokio::test]
async fn mutual_tls_wants_a_certificate() {
    let server = server(server_files(true)).unwrap();
    let without = client(client_files(false)).unwrap();
    assert!(
        handshake(server.current(), without.current())
            .await
            .is_err()
    );
    let with = client(client_files(true)).unwrap();
    assert!(handshake(server.current(), with.current()).await.is_ok());
}

#[tokio::test]
async fn changed_files_are_taken_up_and_broken_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let put = |from: &str, to: &str| {
        std::fs::copy(fixture(from), folder.path().join(to)).unwrap();
    };
    put("server-a.pem", "cert.pem");
    put("server-a.key", "key.pem");
    let files = ServerFiles {
        cert: folder.path().join("cert.pem"),
        key: folder.path().join("key.pem"),
        client_ca: None,
        alpn: vec![b"h2".to_vec()],
    };
    let server = server(files).unwrap();
    let client = client(client_files(false)).unwrap();
    let first = handshake(server.current(), client.current()).await.unwrap();
    assert!(!server.reload_if_changed().unwrap());

    put("server-b.pem", "cert.pem");
    let error = server.reload_if_changed().unwrap_err().to_string();
    assert!(
        error.contains("cert.pem") && error.contains("key.pem"),
        "{error}"
    );
    assert!(!server.reload_if_changed().unwrap());
    assert_eq!(
        handshake(server.current(), client.current()).await.unwrap(),
        first
    );

    put("server-b.key", "key.pem");
    assert!(server.reload_if_changed().unwrap());
    assert_ne!(
        handshake(server.current(), client.current()).await.unwrap(),
        first
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watch_reloads_and_ends_with_its_token() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::copy(fixture("ca.pem"), &ca).unwrap();
    let client = client(ClientFiles {
        ca: Some(ca.clone()),
        ..ClientFiles::default()
    })
    .unwrap();
    let before = client.current();
    std::fs::copy(fixture("server-a.pem"), &ca).unwrap();
    let cancel = CancellationToken::new();
    let watch = tokio::spawn(
        client
            .clone()
            .watch(std::time::Duration::from_millis(1), cancel.clone()),
    );
    while Arc::ptr_eq(&before, &client.current()) {
        tokio::task::yield_now().await;
    }
    cancel.cancel();
    watch.await.unwrap();
}

#[test]
fn errors_name_the_file() {
    let mut files = server_files(false);
    files.key = PathBuf::from("/nowhere/key.pem");
    let error = server(files.clone()).err().unwrap().to_string();
    assert!(
        error.starts_with("/nowhere/key.pem can not be read"),
        "{error}"
    );
    files.key = fixture("server-a.pem");
    let error = server(files.clone()).err().unwrap().to_string();
    assert!(
        error.ends_with("server-a.pem holds no private key in PEM form"),
        "{error}"
    );
    files.key = fixture("server-b.key");
    let error = server(files).err().unwrap().to_string();
    assert!(error.contains("do not fit"), "{error}");
    assert!(error.contains("own certificate first"), "{error}");
    // As OpenSSL writes them, with a header of PEM or as PKCS#8.
    for encrypted in [
        "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n\
         AAAA\n-----END EC PRIVATE KEY-----\n",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    ] {
        let error = files::private_key(Path::new("k"), encrypted.as_bytes());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("without a passphrase"), "{error}");
    }
}

#[test]
fn plain_listeners_stay_at_home() {
    let far = "0.0.0.0:7400".parse().unwrap();
    assert!(
        refuse_plain_listener("127.0.0.1:0".parse().unwrap(), "tls-cert", false, false).is_ok()
    );
    assert!(refuse_plain_listener("[::1]:0".parse().unwrap(), "tls-cert", false, false).is_ok());
    assert!(refuse_plain_listener(far, "tls-cert", true, false).is_ok());
    assert!(refuse_plain_listener(far, "tls-cert", false, true).is_ok());
    assert!(
        refuse_plain_listener(far, "tls-cert", false, false)
            .unwrap_err()
            .contains("--insecure-listen")
    );
}
