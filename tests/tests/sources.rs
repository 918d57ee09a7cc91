//! Sources that operators change while their objects are cached.

#![allow(clippy::unwrap_used)]

use chunkcache_proto::v1::cache_service_client::CacheServiceClient;
use chunkcache_proto::v1::{PutSourceRequest, Source};
use chunkcache_tests::cluster::Cluster;
use chunkcache_tests::http::Call;
use chunkcache_tests::{CHUNK, Object, Origin, content};
use tonic::transport::Endpoint;

const SIZE: u64 = 3 * CHUNK;
/// The worst case: another library with the same path, size and ETag, but other bytes.
const ETAG: &str = "\"same\"";

#[test]
fn a_source_pointed_elsewhere_never_mixes_two_libraries() {
    let cluster = Cluster::start();
    let edge = cluster.edge();
    let other = Origin::start();
    let target = cluster.put("/film.mp4", Object::generated(1, SIZE).etag(Some(ETAG)));
    other.put("/film.mp4", Object::generated(2, SIZE).etag(Some(ETAG)));

    let first = Call::get(&target)
        .range(0, CHUNK)
        .send(edge.http)
        .expect(206);
    assert_eq!(first.body, content::bytes(1, 0, CHUNK));
    let id = cluster.postgres.query("SELECT id FROM cache_entries")[0][0].clone();
    cluster.wait_recorded("/film.mp4", &[(0, CHUNK)]);

    let moved = cluster
        .coordinator
        .cli(&["source", "add", "media", &other.url()]);
    assert!(
        moved.status.success(),
        "{}",
        String::from_utf8_lossy(&moved.stderr)
    );

    let whole = Call::get(&target).send(edge.http).expect(200);
    assert_eq!(
        whole.body,
        content::bytes(2, 0, SIZE),
        "the new library's bytes, every one"
    );

    // The old entry keeps its chunks, and gets none from the new library.
    let by_id = format!("/v1/entries/{id}");
    let kept = Call::get(&by_id)
        .range(0, CHUNK)
        .send(edge.http)
        .expect(206);
    assert_eq!(kept.body, content::bytes(1, 0, CHUNK));
    let missing = Call::get(&by_id).range(CHUNK, 2 * CHUNK).send(edge.http);
    assert!(
        missing.status >= 400 || !missing.complete,
        "bytes of the old object can not be had any more: {} {:?}",
        missing.status,
        missing.headers
    );
}

#[test]
fn a_source_added_again_elsewhere_begins_anew() {
    let mut cluster = Cluster::start();
    let other = Origin::start();
    let target = cluster.put("/film.mp4", Object::generated(1, SIZE).etag(Some(ETAG)));
    other.put("/film.mp4", Object::generated(2, SIZE).etag(Some(ETAG)));
    Call::get(&target).send(cluster.edge().http).expect(200);

    let run = |arguments: &[&str]| {
        let output = cluster.coordinator.cli(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(&["source", "remove", "media"]);
    Call::get(&target).send(cluster.edge().http).expect(404);
    run(&["source", "add", "media", &other.url()]);
    let again = Call::get(&target).send(cluster.edge().http).expect(200);
    assert_eq!(again.body, content::bytes(2, 0, SIZE));

    // Also after a restart of the edge, from its own notes.
    cluster.edge_mut().terminate();
    cluster.edge_mut().start();
    let after = Call::get(&target).send(cluster.edge().http).expect(200);
    assert_eq!(after.body, content::bytes(2, 0, SIZE));
}

/// Edges receive the whole set each time: the last message must be the newest.
#[tokio::test(flavor = "multi_thread")]
async fn sources_added_at_once_are_all_known() {
    let cluster = tokio::task::block_in_place(|| Cluster::with_edges(1));
    cluster.origin.put("/x", Object::generated(1, 10));
    let endpoint = format!("http://{}", cluster.coordinator.grpc);
    let channel = Endpoint::new(endpoint).unwrap().connect().await.unwrap();
    let client = CacheServiceClient::new(channel);
    let names: Vec<String> = (0..128).map(|number| format!("s{number}")).collect();
    for some in names.chunks(16) {
        let mut adding = tokio::task::JoinSet::new();
        for name in some {
            let source = Source {
                name: name.clone(),
                base_url: cluster.origin.url(),
                ..Source::default()
            };
            let mut client = client.clone();
            adding.spawn(async move {
                let request = PutSourceRequest {
                    validate_only: false,
                    check: false,
                    source: Some(source),
                };
                client.put_source(request).await.unwrap();
            });
        }
        adding.join_all().await;
        tokio::task::block_in_place(|| {
            for name in some {
                let answer = Call::get(&format!("/{name}/x")).send(cluster.edge().http);
                assert_eq!(answer.status, 200, "{name}: {}", answer.text());
            }
        });
    }
}
