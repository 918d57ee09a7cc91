//! Batches: poison, order, a crashing database.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_change_does_not_fail_its_batch() {
    let (_server, _url, one) = leader().await;
    one.source("films").await;
    let film = one.entry(1, "a.mp4", 100).await;
    let edge = one.edge("a", 1).await.edge;
    let mut answers = Vec::new();
    for index in 0..40_u32 {
        let entry = if index == 5 {
            EntryId::from_u128(404)
        } else {
            film.id
        };
        let chunks = if index == 6 {
            sums([100])
        } else {
            sums([index])
        };
        answers.push(
            one.writer
                .enqueue(StoreChunks {
                    edge: edge.id,
                    epoch: edge.epoch,
                    entry,
                    chunks,
                })
                .await
                .unwrap(),
        );
    }
    // PostgreSQL refuses NUL in text: an error in the middle of the transaction.
    let poison = one
        .writer
        .enqueue(observe(&entry(2, "bad\0path", 1), 1))
        .await
        .unwrap();
    let after = one
        .writer
        .enqueue(observe(&entry(3, "good", 1), 1))
        .await
        .unwrap();
    for (index, answer) in answers.into_iter().enumerate() {
        let answer = answer.await;
        match index {
            5 => assert!(
                matches!(answer, Err(DatabaseError::NotFound { what: "entry", .. })),
                "{answer:?}"
            ),
            6 => assert!(
                matches!(answer, Err(DatabaseError::Invalid { .. })),
                "{answer:?}"
            ),
            _ => assert!(answer.is_ok(), "{index}: {answer:?}"),
        }
    }
    let poison = poison.await;
    assert!(
        matches!(poison, Err(DatabaseError::Invalid { .. })),
        "{poison:?}"
    );
    assert!(after.await.unwrap().value.created);
    assert_eq!(
        one.database
            .digest(edge.id, film.id)
            .await
            .unwrap()
            .chunk_count,
        38
    );
    // Order holds within a batch although reports are gathered.
    let store = StoreChunks {
        edge: edge.id,
        epoch: edge.epoch,
        entry: film.id,
        chunks: sums([50]),
    };
    let remove = RemoveChunks {
        edge: edge.id,
        epoch: edge.epoch,
        entry: film.id,
        indexes: vec![50],
    };
    let stored = one.writer.enqueue(store).await.unwrap();
    let removed = one.writer.enqueue(remove).await.unwrap();
    stored.await.unwrap();
    removed.await.unwrap();
    assert_eq!(
        one.database
            .digest(edge.id, film.id)
            .await
            .unwrap()
            .chunk_count,
        38
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_crashes_under_load_and_every_change_is_applied_once() {
    let server = Server::prepare();
    server.start();
    let url = server.create_database().await;
    let one = coordinator(&url, "http://one", WriterConfig::default()).await;
    one.leads().await;
    one.source("films").await;
    let film = one.entry(1, "a.mp4", 5_000).await;
    let edge = one.edge("a", 1).await.edge;
    let mut answers = Vec::new();
    for index in 0..2_000 {
        let store = StoreChunks {
            edge: edge.id,
            epoch: edge.epoch,
            entry: film.id,
            chunks: sums([index]),
        };
        answers.push((index, one.writer.enqueue(store).await.unwrap()));
        if index == 1_000 {
            server.crash();
            server.start();
        }
    }
    let mut committed = 0;
    for (index, answer) in answers {
        match answer.await {
            Ok(_) => committed += 1,
            // The lease may run out while the database is away; then the edge replays.
            Err(DatabaseError::NotLeader { .. } | DatabaseError::Unavailable { .. }) => {
                one.leads().await;
                let again = StoreChunks {
                    edge: edge.id,
                    epoch: edge.epoch,
                    entry: film.id,
                    chunks: sums([index]),
                };
                one.writer.write(again).await.unwrap();
                committed += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(committed, 2_000);
    assert_eq!(
        one.database
            .digest(edge.id, film.id)
            .await
            .unwrap()
            .chunk_count,
        2_000
    );
    let rows = client(&url)
        .await
        .query_one("SELECT count(*), max(revision) FROM cache_changes", &[])
        .await
        .unwrap();
    assert_eq!(
        rows.get::<_, i64>(0),
        rows.get::<_, i64>(1),
        "no hole in the revisions"
    );
}
