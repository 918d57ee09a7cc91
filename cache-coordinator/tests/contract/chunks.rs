//! Chunk rows, missing ranges, digests, jobs.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_stored_found_and_reconciled() {
    let (_server, _url, one) = leader().await;
    one.source("films").await;
    let film = one.entry(1, "a.mp4", 10).await;
    let (a, b) = (one.edge("a", 1).await.edge, one.edge("b", 2).await.edge);
    let store = |edge: &cache_coordinator::db::EdgeRecord, indexes: Vec<u32>| StoreChunks {
        edge: edge.id,
        epoch: edge.epoch,
        entry: film.id,
        chunks: sums(indexes),
    };
    one.writer.write(store(&a, vec![0, 1, 2, 9])).await.unwrap();
    one.writer.write(store(&b, vec![2, 3])).await.unwrap();
    one.writer.write(store(&b, vec![3, 3])).await.unwrap();

    let held = one.database.holdings(film.id).await.unwrap();
    assert_eq!(held.len(), 2);
    assert_eq!(
        held[0].ranges,
        vec![range(0, 3), ByteRange::new(9 * CHUNK, 10 * CHUNK - 10)]
    );
    assert_eq!(held[1].ranges, vec![range(2, 4)]);

    let missing = |from, to, edges: Vec<i32>| {
        let (database, film) = (one.database.clone(), film.clone());
        async move {
            database
                .missing(
                    film.id,
                    film.geometry,
                    ByteRange::new(from, to),
                    &edges,
                    1_000,
                )
                .await
                .unwrap()
        }
    };
    let anywhere = async |start, end| {
        let asked = ByteRange::new(start, end);
        one.database
            .missing_anywhere(film.id, film.geometry, asked, 1_000)
            .await
            .unwrap()
    };
    for (start, end) in [(5, 4 * CHUNK), (0, u64::MAX), (CHUNK + 7, CHUNK + 9)] {
        assert_eq!(
            anywhere(start, end).await,
            missing(start, end, vec![a.id, b.id]).await
        );
    }
    assert_eq!(missing(5, 3 * CHUNK, vec![a.id]).await, vec![]);
    assert_eq!(missing(5, 4 * CHUNK, vec![a.id]).await, vec![range(3, 4)]);
    assert_eq!(missing(5, 4 * CHUNK, vec![a.id, b.id]).await, vec![]);
    assert_eq!(
        missing(0, u64::MAX, vec![a.id, b.id]).await,
        vec![range(4, 9)]
    );
    assert_eq!(
        missing(2 * CHUNK + 7, 2 * CHUNK + 8, vec![b.id]).await,
        vec![]
    );
    assert_eq!(
        missing(CHUNK + 7, CHUNK + 9, vec![b.id]).await,
        vec![ByteRange::new(CHUNK + 7, CHUNK + 9)]
    );
    assert_eq!(missing(0, CHUNK, vec![]).await, vec![range(0, 1)]);

    let xor = [0, 1, 2, 9].into_iter().map(checksum).fold(0, |x, y| x ^ y);
    let digest = Digest {
        chunk_count: 4,
        checksum_xor: xor,
    };
    assert_eq!(one.database.digest(a.id, film.id).await.unwrap(), digest);
    assert_eq!(one.database.digests(a.id).await.unwrap()[&film.id], digest);
    assert_eq!(
        one.database
            .digest(a.id, EntryId::from_u128(9))
            .await
            .unwrap(),
        Digest::default()
    );
    assert_eq!(
        one.database.chunks(a.id, film.id).await.unwrap()[3].checksum,
        checksum(9)
    );

    one.writer
        .write(RemoveChunks {
            edge: a.id,
            epoch: a.epoch,
            entry: film.id,
            indexes: vec![9, 8],
        })
        .await
        .unwrap();
    assert_eq!(
        one.database
            .digest(a.id, film.id)
            .await
            .unwrap()
            .chunk_count,
        3
    );

    let reconcile = ReconcileEntries {
        edge: a.id,
        epoch: a.epoch,
        entries: vec![InventoryItem {
            id: film.id,
            adopt: None,
            chunks: sums([1, 2, 5]),
        }],
    };
    let reconciled = one.writer.write(reconcile.clone()).await.unwrap();
    assert_eq!(
        reconciled.value,
        [Reconciled {
            rows_deleted: 1,
            rows_written: 1,
            ..Reconciled::default()
        }]
    );
    let again = one.writer.write(reconcile).await.unwrap();
    assert_eq!(again.value, [Reconciled::default()]);
    assert_eq!(
        again.revision, reconciled.revision,
        "nothing changed, nothing is logged"
    );

    let incomplete = one
        .database
        .incomplete_entries(a.id, EntryId::nil(), 10)
        .await
        .unwrap();
    assert_eq!((incomplete.len(), incomplete[0].held_bytes), (1, 3 * CHUNK));
    let totals = one.database.totals().await.unwrap();
    assert_eq!(
        (
            totals.entries,
            totals.chunks,
            totals.edges_total,
            totals.estimated
        ),
        (1, 5, 2, false)
    );
    assert_eq!(totals.bytes_cached, 5 * CHUNK);

    let job = AddJob {
        id: Uuid::new_v4(),
        entry: film.id,
        ranges: vec![range(4, 6), range(0, 2)],
        edges: vec!["a".into()],
        level: Level::Medium,
        timing: JobTiming {
            window: Some(JobWindow {
                start: 60,
                end: 0,
                time_zone: "Europe/Berlin".into(),
            }),
            max_rate: 1 << 20,
        },
    };
    one.writer.write(job.clone()).await.unwrap();
    one.writer.write(job.clone()).await.unwrap();
    let stored = one.database.job(job.id).await.unwrap().unwrap();
    assert_eq!(stored.timing, job.timing);
    assert_eq!(
        (stored.bytes_total(), stored.status),
        (4 * CHUNK, JobStatus::Running)
    );
    assert_eq!(
        one.database
            .job_bytes_done(&stored, film.geometry)
            .await
            .unwrap(),
        2 * CHUNK
    );
    let anywhere = cache_coordinator::db::JobRecord {
        edges: vec![],
        ranges: vec![range(1, 4)],
        ..stored
    };
    assert_eq!(
        one.database
            .job_bytes_done(&anywhere, film.geometry)
            .await
            .unwrap(),
        3 * CHUNK
    );
    let end = EndJob {
        id: job.id,
        status: JobStatus::Cancelled,
        error: String::new(),
    };
    assert!(one.writer.write(end.clone()).await.unwrap().value);
    assert!(!one.writer.write(end).await.unwrap().value);
    assert_eq!(one.database.jobs(false, 10).await.unwrap(), vec![]);
    assert_eq!(one.database.jobs(true, 10).await.unwrap().len(), 1);
    // Each entry keeps the jobs that ended last.
    let mut last = job.id;
    for _ in 0..1_001 {
        last = Uuid::new_v4();
        let next = AddJob {
            id: last,
            ..job.clone()
        };
        drop(one.writer.enqueue(next).await.unwrap());
        let end = EndJob {
            id: last,
            status: JobStatus::Done,
            error: String::new(),
        };
        drop(one.writer.enqueue(end).await.unwrap());
    }
    one.writer.write(job.clone()).await.unwrap();
    assert_eq!(one.database.jobs(true, 2_000).await.unwrap().len(), 1_001);
    assert!(one.database.job(last).await.unwrap().is_some());
    let running = one.database.jobs(false, 10).await.unwrap();
    assert_eq!(running.len(), 1);

    let purged = one
        .writer
        .write(InvalidateEntry {
            entry: film.id,
            purge: true,
        })
        .await
        .unwrap();
    assert_eq!(purged.value.chunks_removed, 5);
    assert_eq!(one.database.holdings(film.id).await.unwrap(), vec![]);
}
