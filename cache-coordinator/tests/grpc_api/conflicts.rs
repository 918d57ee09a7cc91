//! Two edges that hold different bytes for one chunk.

use chunkcache_proto::v1;
use v1::{session_request::Message as Ask, session_response::Message as Say};

use super::{
    BASE,
    api_support::{
        Coordinator, coordinator,
        fake_edge::{FakeEdge, chunk, entry},
    },
    has,
};

/// Other bytes than those of [`chunk`].
fn other(index: u32) -> v1::Chunk {
    let checksum = chunk(index).checksum ^ 1;
    v1::Chunk { index, checksum }
}

async fn is_told_to_drop(edge: &mut FakeEdge, entry: &v1::Entry) {
    let purge = edge.expect(|message| match message {
        Say::Invalidate(it) if it.entry_ids == [entry.id.clone()] => Some(it.purge),
        _ => None,
    });
    assert!(purge.await, "{} keeps its bytes", edge.name);
}

async fn is_gone(coordinator: &Coordinator, entry: &v1::Entry) {
    coordinator.until(|status| status.chunks == 0).await;
    assert!(!has(coordinator, &entry.id, 0..1).await);
}

async fn first_edge(coordinator: &Coordinator, film: &v1::Entry) -> FakeEdge {
    let mut edge = FakeEdge::join(coordinator, "edge-1").await;
    edge.observe(film).await;
    edge.store(1, &film.id, &[0, 1]).await;
    edge
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_contradicts_another_edge_drops_the_entry_everywhere() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let film = entry("films", BASE, "film.mp4", 4, "\"1\"");
    let mut first = first_edge(&coordinator, &film).await;
    let mut second = FakeEdge::join(&coordinator, "edge-22").await;
    second.store(1, &film.id, &[0]).await;
    assert!(has(&coordinator, &film.id, 0..2).await, "they agree");
    let stored = v1::ChunksStored {
        sequence: 2,
        entry_id: film.id.clone(),
        chunks: vec![other(1)],
        origin_bytes: 0,
    };
    second.say(Ask::ChunksStored(stored)).await;
    is_told_to_drop(&mut first, &film).await;
    is_told_to_drop(&mut second, &film).await;
    is_gone(&coordinator, &film).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inventory_that_contradicts_another_edge_drops_the_entry_everywhere() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", BASE).await;
    let film = entry("films", BASE, "film.mp4", 4, "\"1\"");
    let mut first = first_edge(&coordinator, &film).await;
    let mut second = FakeEdge::hello(&coordinator, "edge-22").await;
    let digest = v1::InventoryDigest {
        entry_id: film.id.clone(),
        chunk_count: 1,
        checksum_xor: other(1).checksum,
    };
    second
        .say(Ask::InventoryDigests(v1::InventoryDigests {
            digests: vec![digest],
        }))
        .await;
    second.complete().await;
    second
        .expect(|message| matches!(message, Say::InventoryRequest(_)).then_some(()))
        .await;
    let inventory = v1::InventoryEntry {
        entry: Some(film.clone()),
        chunks: vec![other(1)],
        ..v1::InventoryEntry::default()
    };
    second.say(Ask::InventoryEntry(inventory)).await;
    second.complete().await;
    is_told_to_drop(&mut first, &film).await;
    is_told_to_drop(&mut second, &film).await;
    is_gone(&coordinator, &film).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_was_not_asked_for_ends_the_session() {
    let coordinator = coordinator().await;
    let mut edge = FakeEdge::join(&coordinator, "edge-1").await;
    edge.complete().await;
    edge.end().await;
}
