//! Sessions of edges and their fence.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn edges_join_drain_and_are_fenced() {
    let (_server, _url, one) = leader().await;
    one.source("films").await;
    let film = one.entry(1, "a.mp4", 10).await;
    let first = one.edge("a", 1).await.edge;
    let store = |epoch| StoreChunks {
        edge: first.id,
        epoch,
        entry: film.id,
        chunks: sums([0, 1]),
    };
    one.writer.write(store(first.epoch)).await.unwrap();
    let second = one.edge("a", 1).await.edge;
    assert_eq!((second.id, second.epoch), (first.id, first.epoch + 1));
    // A session takes no id: 2^31 of them would be the last.
    assert_eq!(one.edge("b", 2).await.edge.id, first.id + 1);
    assert_eq!(
        one.database.holdings(film.id).await.unwrap()[0].ranges,
        vec![range(0, 2)]
    );
    assert_eq!(
        one.writer.write(store(first.epoch)).await,
        Err(DatabaseError::Fenced)
    );
    let old = RemoveChunks {
        edge: first.id,
        epoch: first.epoch,
        entry: film.id,
        indexes: vec![0],
    };
    assert_eq!(one.writer.write(old).await, Err(DatabaseError::Fenced));
    let old = ReconcileEntries {
        edge: first.id,
        epoch: first.epoch,
        entries: vec![InventoryItem {
            id: film.id,
            adopt: None,
            chunks: vec![],
        }],
    };
    assert_eq!(one.writer.write(old).await, Err(DatabaseError::Fenced));
    let status = EdgeStatus {
        bytes_used: 5,
        bytes_allowed: 6,
    };
    let touch = |epoch| TouchEdge {
        edge: first.id,
        epoch,
        status,
    };
    assert_eq!(
        one.writer.write(touch(first.epoch)).await,
        Err(DatabaseError::Fenced)
    );
    one.writer.write(touch(second.epoch)).await.unwrap();
    assert_eq!(one.database.edge("a").await.unwrap().unwrap().bytes_used, 5);
    assert_eq!(
        one.database
            .digest(first.id, film.id)
            .await
            .unwrap()
            .chunk_count,
        2
    );

    let state = |epoch, state| SetEdgeState {
        edge: first.id,
        epoch,
        state,
    };
    assert!(
        !one.writer
            .write(state(first.epoch, v1::EdgeState::Suspect))
            .await
            .unwrap()
            .value
    );
    assert!(
        one.writer
            .write(state(second.epoch, v1::EdgeState::Suspect))
            .await
            .unwrap()
            .value
    );
    assert!(
        one.writer
            .write(state(0, v1::EdgeState::Lost))
            .await
            .unwrap()
            .value
    );
    one.writer
        .write(DrainEdge {
            name: "a".into(),
            draining: true,
        })
        .await
        .unwrap();
    let third = one.edge("a", 1).await.edge;
    assert_eq!(third.state, v1::EdgeState::Draining);

    // Another disk: nothing of the old one is left.
    let fourth = one.edge("a", 7).await.edge;
    assert!(fourth.epoch > third.epoch);
    assert_eq!(fourth.store_id, Uuid::from_u128(7));
    assert_eq!(one.database.holdings(film.id).await.unwrap(), vec![]);

    one.writer.write(store(fourth.epoch)).await.unwrap();
    assert_eq!(one.writer.forget_edge("a").await.unwrap().value, 2);
    assert_eq!(one.database.edge("a").await.unwrap(), None);
    assert_eq!(
        one.writer.write(store(fourth.epoch)).await,
        Err(DatabaseError::Fenced)
    );
    assert!(matches!(
        one.writer.forget_edge("a").await,
        Err(DatabaseError::NotFound { .. })
    ));
}
