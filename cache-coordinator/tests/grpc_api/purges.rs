//! The order of a purge: rows before bytes.

use chunkcache_proto::v1;
use v1::{
    purge_selector::Objects, session_request::Message as Ask, session_response::Message as Say,
};

use super::{
    BASE,
    api_support::{
        coordinator,
        fake_edge::{FakeEdge, entry},
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_gone_before_an_edge_is_told_to_drop_their_bytes() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let mut edge = FakeEdge::join(&coordinator, "edge-1").await;
    for number in 0..20 {
        let film = entry("films", BASE, &format!("{number}.mp4"), 4, "\"1\"");
        edge.observe(&film).await;
        edge.store(number + 1, &film.id, &[0, 1]).await;
    }
    let mut client = coordinator.cache().await;
    let request = v1::PurgeEntriesRequest {
        selector: Some(v1::PurgeSelector {
            source: "films".into(),
            objects: Some(Objects::All(true)),
        }),
        soft: false,
    };
    let purging = tokio::spawn(async move { client.purge_entries(request).await });
    let told = edge.expect(|message| match message {
        Say::Purge(purge) => Some(purge),
        _ => None,
    });
    let told = told.await;
    let mut client = coordinator.cache().await;
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap();
    assert_eq!(status.get_ref().chunks, 0);
    edge.say(Ask::InvalidateAck(v1::InvalidateAck {
        sequence: told.sequence,
        objects: 0,
    }))
    .await;
    let done = purging.await.unwrap().unwrap().into_inner();
    assert_eq!(
        (done.purged, done.confirmed_edges),
        (20, vec!["edge-1".to_owned()])
    );
}
