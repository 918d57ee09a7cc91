//! Answers stay within what gRPC clients take by default, 4 MiB, and what waits for a client is
//! bounded.

use chunkcache_proto::v1;
use tonic::Code;
use v1::watch_cluster_response::Event;

use super::{
    BASE,
    api_support::{
        WAIT, coordinator,
        fake_edge::{FakeEdge, entry},
    },
};

/// A certificate among this much text that is none, which is skipped.
const TEXT: usize = 200 << 10;

/// Every second chunk of long objects, so that each chunk is a range of its own.
const HELD: &str = "INSERT INTO cache_chunks (entry_id, edge_id, start_byte, end_byte, checksum)
    SELECT e.id, d.id, n * 4194304, n * 4194304 + 2097152, 0
    FROM cache_entries e, edges d, generate_series(1::bigint, 5999) n";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_before_it_is_too_long_for_a_message() {
    const ENTRIES: u64 = 60;
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let mut edge = FakeEdge::join(&coordinator, "edge-1").await;
    for number in 0..ENTRIES {
        let film = entry("films", BASE, &format!("{number}"), 12_000, "\"1\"");
        edge.observe(&film).await;
        edge.store(number + 1, &film.id, &[0]).await;
    }
    let connect = tokio_postgres::connect(&coordinator.database_url, tokio_postgres::NoTls);
    let (database, connection) = connect.await.unwrap();
    tokio::spawn(connection);
    database.batch_execute(HELD).await.unwrap();
    let mut client = coordinator.cache().await;
    let (mut found, mut pages, mut page_token) = (0, 0, String::new());
    loop {
        let request = v1::ListEntriesRequest {
            page_token,
            ..Default::default()
        };
        let page = client.list_entries(request).await.unwrap().into_inner();
        (found, pages) = (found + page.entries.len() as u64, pages + 1);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, ENTRIES);
    assert!(pages > 1, "{pages}");
}

/// A source with a certificate and this much text beside it.
fn put(number: usize, text: usize) -> v1::PutSourceRequest {
    let authority = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../crates/service-kit/tests/tls/ca.pem"
    );
    let authority = std::fs::read_to_string(authority).unwrap();
    v1::PutSourceRequest {
        validate_only: false,
        check: false,
        source: Some(v1::Source {
            name: format!("films-{number}"),
            base_url: BASE.into(),
            connection: Some(v1::OriginConnection {
                ca_pem: format!("{}\n{authority}", "#".repeat(text)),
                ..Default::default()
            }),
            ..Default::default()
        }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_can_always_be_told_all_sources() {
    let coordinator = coordinator().await;
    let mut client = coordinator.cache().await;
    let mut count = 0;
    let refused = loop {
        match client.put_source(put(count, TEXT)).await {
            Ok(_) => count += 1,
            Err(refused) => break refused,
        }
        assert!(count < 30, "any number of sources is taken");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(count > 10, "{count}");
    let edge = FakeEdge::join(&coordinator, "edge-1").await;
    assert_eq!(edge.welcome.sources.len(), count);
    let listed = client
        .list_sources(v1::ListSourcesRequest {})
        .await
        .unwrap();
    assert_eq!(listed.get_ref().sources.len(), count);
    // Present sources can be changed, and one that takes less makes room for another.
    client.put_source(put(0, 1)).await.unwrap();
    client.put_source(put(count, TEXT)).await.unwrap();
    assert!(client.put_source(put(0, TEXT)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_that_do_not_read_keep_little_waiting() {
    const WATCHERS: usize = 20;
    let coordinator = coordinator().await;
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let mut client = coordinator.cache().await;
        let watch = client.watch_cluster(v1::WatchClusterRequest::default());
        watchers.push(watch.await.unwrap().into_inner());
    }
    let mut client = coordinator.cache().await;
    let before = resident_bytes();
    for number in 0..60 {
        let mut change = put(0, TEXT);
        let source = change.source.as_mut().unwrap();
        source.base_url = format!("{BASE}/{number}");
        client.put_source(change).await.unwrap();
    }
    let more = resident_bytes().saturating_sub(before);
    assert!(more < WATCHERS * 30 * TEXT, "{more} more bytes");
    // Each still gets to the last change.
    let last = format!("{BASE}/59");
    for watcher in &mut watchers {
        let told = async {
            loop {
                let message = watcher.message().await.unwrap().unwrap();
                if let Some(Event::Source(source)) = message.event
                    && source.base_url == last
                {
                    return;
                }
            }
        };
        tokio::time::timeout(WAIT, told).await.unwrap();
    }
}

/// The memory of this process, in which the coordinator runs.
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let resident: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    resident * 4096
}
