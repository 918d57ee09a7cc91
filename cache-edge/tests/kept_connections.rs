//! A connection caches the resolution of its last target. Its next request must get the same answer
//! as one on a new connection.
#![allow(clippy::unwrap_used)]

mod support;

use cache_edge::control::notes;
use chunkcache_proto::v1;
use std::sync::{Arc, atomic::Ordering};
use support::{Act, Answer, MIB, Origin, TestEdge, content, request};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SIZE: u64 = 4 * MIB;
const PATH: &str = "/films/a.mp4";

/// One connection that is kept open.
struct KeptConnection(TcpStream);

impl KeptConnection {
    async fn open(edge: &TestEdge) -> Self {
        Self(TcpStream::connect(edge.address).await.unwrap())
    }

    async fn get(&mut self, path: &str, lines: &str) -> Answer {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: edge\r\nRange: bytes=1000-1999\r\n{lines}\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let mut part = [0; 4096];
        loop {
            if let Some(end) = all.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8(all[..end].to_vec()).unwrap();
                let headers: Vec<(String, String)> = head
                    .split("\r\n")
                    .filter_map(|line| line.split_once(": "))
                    .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                    .collect();
                let mut answer = Answer {
                    status: head[9..12].parse().unwrap(),
                    headers,
                    body: all[end + 4..].to_vec(),
                    aborted: false,
                };
                let length: usize = answer.header("content-length").parse().unwrap();
                if answer.body.len() >= length {
                    answer.body.truncate(length);
                    return answer;
                }
            }
            let read = self.0.read(&mut part).await.unwrap();
            assert!(read > 0, "closed: {}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&part[..read]);
        }
    }

    /// Fetches all of it; then resolves it once more, which caches it.
    async fn get_remembered(&mut self, edge: &TestEdge, header: Option<(&str, &str)>) {
        let headers: Vec<(&str, &str)> = header.into_iter().collect();
        let whole = request(edge.address, "GET", PATH, None, &headers).await;
        whole.assert_bytes(200, &content(1, 0..SIZE));
        let line = header.map_or_else(String::new, |(name, value)| format!("{name}: {value}\r\n"));
        for _ in 0..2 {
            let hit = self.get(PATH, &line).await;
            hit.assert_bytes(206, &content(1, 1000..2000));
            let status = hit.header("cache-status");
            assert!(status.ends_with("; hit"), "{status}");
        }
    }
}

fn key() -> v1::Key {
    v1::Key {
        source: "films".into(),
        path: "a.mp4".into(),
        ..v1::Key::default()
    }
}

/// An edge that has the object cached on a connection.
async fn remembered() -> (tempfile::TempDir, Arc<Origin>, TestEdge, KeptConnection) {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(SIZE).await;
    let edge = TestEdge::start(directory.path(), Some(&origin)).await;
    let mut kept = KeptConnection::open(&edge).await;
    kept.get_remembered(&edge, None).await;
    (directory, origin, edge, kept)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_that_goes_is_not_served_from_memory() {
    let (_directory, origin, edge, mut kept) = remembered().await;

    origin.version.store(2, Ordering::SeqCst);
    edge.edge.objects.parts().bindings.unbind(&key());
    let answer = kept.get(PATH, "").await;
    answer.assert_bytes(206, &content(2, 1000..2000));
    assert_eq!(answer.header("etag"), "\"v2\"");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_target_on_the_connection_is_another_object() {
    let (_directory, origin, edge, mut kept) = remembered().await;
    origin.version.store(2, Ordering::SeqCst);
    let other = kept.get("/films/b.mp4", "").await;
    other.assert_bytes(206, &content(2, 1000..2000));
    let with_query = kept.get("/films/a.mp4?v=2", "").await;
    with_query.assert_bytes(206, &content(2, 1000..2000));
    let first = kept.get(PATH, "").await;
    first.assert_bytes(206, &content(1, 1000..2000));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_removed_is_gone_at_once() {
    let (_directory, _origin, edge, mut kept) = remembered().await;
    let _ = notes::set_sources(&edge.edge.store, &edge.edge.catalogue, Vec::new());
    assert_eq!(kept.get(PATH, "").await.status, 404);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_was_purged_is_made_anew() {
    let (_directory, _origin, edge, mut kept) = remembered().await;
    let parts = edge.edge.objects.parts();
    let id = parts.bindings.get(&key()).unwrap().id;
    parts.store.remove_entry(&id);
    let answer = kept.get(PATH, "").await;
    answer.assert_bytes(206, &content(1, 1000..2000));
    assert!(parts.store.entry(&id).is_some(), "nothing of it is kept");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_changed_at_its_origin_is_asked_for_again() {
    let (_directory, origin, edge, mut kept) = remembered().await;
    let parts = edge.edge.objects.parts();
    let bound = parts.bindings.get(&key()).unwrap();
    let file = parts.store.entry(&bound.id).unwrap();
    // As a fetch would find out.
    parts.incoming.of(&file).set_changed();
    let asked = origin.requests();
    kept.get(PATH, "")
        .await
        .assert_bytes(206, &content(1, 1000..2000));
    assert!(origin.requests() > asked, "the origin was asked");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_go_to_the_origin_whatever_is_remembered() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(SIZE).await;
    let edge = TestEdge::start_with(directory.path(), Some(&origin), |_, source| {
        source.forward_credentials = true;
    })
    .await;
    let mut kept = KeptConnection::open(&edge).await;
    kept.get_remembered(&edge, None).await;
    let asked = origin.requests();
    let private = kept.get(PATH, "Authorization: Basic eDp5\r\n").await;
    assert!(
        private.header("cache-status").contains("bypass"),
        "{}",
        private.header("cache-status")
    );
    assert!(origin.requests() > asked, "the origin was asked");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_variant_on_the_connection_is_another_object() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start(SIZE).await;
    origin.script(|_, _| {
        Act::With(vec![
            "ETag: \"v1\"".into(),
            "Cache-Control: max-age=60".into(),
            "Vary: Accept-Language".into(),
        ])
    });
    let edge = TestEdge::start_with(directory.path(), Some(&origin), |_, source| {
        source.forward_headers = vec!["accept-language".into()];
    })
    .await;
    let mut kept = KeptConnection::open(&edge).await;
    kept.get_remembered(&edge, Some(("Accept-Language", "en")))
        .await;
    let asked = origin.requests();
    kept.get(PATH, "Accept-Language: de\r\n").await;
    assert!(
        origin.requests() > asked,
        "the origin was asked for the other language"
    );
    edge.stop().await;
}
