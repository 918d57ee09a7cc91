//! The repository's contract, on a real PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::{Duration, Instant};

use cache_coordinator::{
    events::{Event, Filter},
    repository::{
        ChangeKind, Digest, EdgeStatus, EntryCursor, Health, JobStatus, Leadership, LogPage,
        MigrateMode, RepositoryError, SchemaError, migrations, statements, writer::*,
    },
};
use chunkcache_proto::{ByteRange, EntryId, Level, v1};
use support::{
    CHUNK, checksum, coordinator, database, entry, leader, migrated, observe,
    postgres::{Server, client},
    sums,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

fn range(first_chunk: u64, end_chunk: u64) -> ByteRange {
    ByteRange::new(first_chunk * CHUNK, end_chunk * CHUNK)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_fits_the_schema() {
    let server = Server::shared();
    let url = server.create_database().await;
    migrated(&url).await;
    let client = client(&url).await;
    for statement in statements::ALL {
        client
            .prepare(statement.sql)
            .await
            .unwrap_or_else(|error| panic!("{}: {error:?}", statement.name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_migrate_one_at_a_time_and_refuse_a_newer_schema() {
    let server = Server::shared();
    let url = server.create_database().await;
    let (one, two) = (database(&url), database(&url));
    let cancel = CancellationToken::new();
    let waits_for_somebody_elses_migration = database(&url);
    let pending = {
        let cancel = cancel.clone();
        tokio::spawn(async move {
            waits_for_somebody_elses_migration
                .wait_ready(MigrateMode::CheckOnly, &cancel)
                .await
        })
    };
    let (a, b) = tokio::join!(
        one.wait_ready(MigrateMode::Apply, &cancel),
        two.wait_ready(MigrateMode::Apply, &cancel)
    );
    assert_eq!((a, b), (Ok(Some(())), Ok(Some(()))));
    assert_eq!(pending.await.unwrap(), Ok(Some(())));
    assert_eq!(one.health().await, Health::Ready);

    let client = client(&url).await;
    let known = migrations().last().unwrap().version;
    let rows = client
        .query("SELECT version FROM schema_migrations", &[])
        .await
        .unwrap();
    assert_eq!(rows.len(), migrations().len());
    client
        .batch_execute("UPDATE schema_migrations SET checksum = 'x' WHERE version = 1")
        .await
        .unwrap();
    let changed = database(&url).wait_ready(MigrateMode::Apply, &cancel).await;
    assert!(
        matches!(changed, Err(SchemaError::Changed { version: 1, .. })),
        "{changed:?}"
    );
    client
        .batch_execute("INSERT INTO schema_migrations VALUES (999, 'later', 'x')")
        .await
        .unwrap();
    for mode in [MigrateMode::Apply, MigrateMode::CheckOnly] {
        let newer = database(&url).wait_ready(mode, &cancel).await;
        assert_eq!(newer, Err(SchemaError::Newer { found: 999, known }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_there_yet_is_waited_for() {
    let server = Server::prepare();
    let database = database(&server.url("postgres"));
    let cancel = CancellationToken::new();
    assert!(matches!(database.health().await, Health::NotReady(_)));
    let waiting = {
        let (database, cancel) = (database.clone(), cancel.clone());
        tokio::spawn(async move { database.wait_ready(MigrateMode::Apply, &cancel).await })
    };
    tokio::task::spawn_blocking(move || {
        server.start();
        server
    })
    .await
    .map(|server| async move {
        assert_eq!(waiting.await.unwrap(), Ok(Some(())));
        assert_eq!(database.health().await, Health::Ready);
        drop(server);
        assert!(matches!(database.health().await, Health::NotReady(_)));
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        assert_eq!(
            database.wait_ready(MigrateMode::Apply, &cancelled).await,
            Ok(None)
        );
    })
    .unwrap()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_entries_and_keys() {
    let (_server, _url, one) = leader().await;
    let source = v1::Source {
        name: "films".into(),
        base_url: "http://origin".into(),
        headers: vec![v1::Header {
            name: "X-Key".into(),
            value: "secret".into(),
        }],
        mode: v1::SourceMode::Serve.into(),
        ..Default::default()
    };
    let put = one
        .writer
        .write(PutSource {
            source: source.clone(),
        })
        .await
        .unwrap();
    assert_eq!(put.value.revision, put.revision);
    assert_eq!(
        one.database.source("films").await.unwrap(),
        Some(put.value.clone())
    );
    assert_eq!(one.database.sources().await.unwrap(), vec![put.value]);
    let again = one.writer.write(PutSource { source }).await.unwrap();
    assert!(again.value.revision > put.revision);

    let first = entry(1, "a.mp4", 4);
    let observed = one.writer.write(observe(&first, 1_000)).await.unwrap();
    assert_eq!(
        observed.value,
        Observed {
            created: true,
            key_changed: true,
            previous: None
        }
    );
    let observed = one.writer.write(observe(&first, 2_000)).await.unwrap();
    assert_eq!(
        observed.value,
        Observed {
            created: false,
            key_changed: false,
            previous: None
        }
    );
    let second = entry(2, "a.mp4", 5);
    let observed = one.writer.write(observe(&second, 3_000)).await.unwrap();
    assert_eq!(
        observed.value,
        Observed {
            created: true,
            key_changed: true,
            previous: Some(first.id)
        }
    );
    // What was seen while the coordinator was away does not undo what was seen since.
    let replayed = ObserveEntry {
        observation: Observation::Replayed,
        ..observe(&first, 2_500)
    };
    let observed = one.writer.write(replayed).await.unwrap();
    assert_eq!(
        observed.value,
        Observed {
            created: false,
            key_changed: false,
            previous: None
        }
    );

    let binding = one.database.binding(&first.key()).await.unwrap().unwrap();
    assert_eq!(binding.entry.id, second.id);
    assert_eq!(
        binding.freshness.as_ref().unwrap(),
        &observe(&second, 3_000).freshness
    );
    assert_eq!(
        one.database.binding_of_entry(second.id).await.unwrap(),
        Some(binding.clone())
    );
    assert_eq!(
        one.database
            .binding_of_entry(first.id)
            .await
            .unwrap()
            .unwrap()
            .freshness,
        None
    );
    assert_eq!(
        one.database
            .bindings_of_path("films", "a.mp4", "")
            .await
            .unwrap(),
        vec![binding]
    );
    assert_eq!(
        one.database.entry(EntryId::from_u128(99)).await.unwrap(),
        None
    );

    let nowhere = ObserveEntry {
        entry: cache_coordinator::repository::EntryRecord {
            source: "none".into(),
            ..entry(3, "b", 1)
        },
        ..observe(&first, 1)
    };
    let error = one.writer.write(nowhere).await.unwrap_err();
    assert_eq!(
        error,
        RepositoryError::NotFound {
            what: "source",
            name: "none".into()
        }
    );

    one.writer
        .write(SetPinned {
            entry: second.id,
            pinned: true,
        })
        .await
        .unwrap();
    assert!(one.database.entry(second.id).await.unwrap().unwrap().pinned);
    let missing = one
        .writer
        .write(SetPinned {
            entry: EntryId::from_u128(99),
            pinned: true,
        })
        .await;
    assert!(matches!(missing, Err(RepositoryError::NotFound { .. })));

    for number in 10..35 {
        one.entry(number, &format!("list/{number}"), 1).await;
    }
    for source in ["", "films"] {
        let (mut cursor, mut seen) = (EntryCursor::default(), Vec::new());
        loop {
            let page = one.database.entries(source, &cursor, 7).await.unwrap();
            let Some(last) = page.last() else { break };
            cursor = EntryCursor::decode(&last.cursor().encode()).unwrap();
            seen.extend(page.iter().map(|entry| entry.id));
        }
        assert_eq!(seen.len(), 27);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 27);
    }

    let gone = one
        .writer
        .write(InvalidateEntry {
            entry: second.id,
            purge: false,
        })
        .await
        .unwrap();
    assert_eq!(gone.value.keys, vec![second.key()]);
    assert_eq!(one.database.binding(&second.key()).await.unwrap(), None);
    one.writer.remove_source("films").await.unwrap();
    assert_eq!(one.database.entry(second.id).await.unwrap(), None);
    assert!(matches!(
        one.writer.remove_source("films").await,
        Err(RepositoryError::NotFound { .. })
    ));

    let key = one.database.secret("peer", b"abc").await.unwrap();
    assert_eq!(one.database.secret("peer", b"other").await.unwrap(), key);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_stored_found_and_reconciled() {
    let (_server, _url, one) = leader().await;
    one.source("films").await;
    let film = one.entry(1, "a.mp4", 10).await;
    let (a, b) = (one.edge("a", 1).await.edge, one.edge("b", 2).await.edge);
    let store = |edge: &cache_coordinator::repository::EdgeRecord, indexes: Vec<u32>| StoreChunks {
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

    let reconcile = ReconcileEntry {
        edge: a.id,
        epoch: a.epoch,
        entry: film.id,
        chunks: sums([1, 2, 5]),
    };
    let reconciled = one.writer.write(reconcile.clone()).await.unwrap();
    assert_eq!(
        reconciled.value,
        Reconciled {
            rows_deleted: 1,
            rows_written: 1
        }
    );
    let again = one.writer.write(reconcile).await.unwrap();
    assert_eq!(again.value, Reconciled::default());
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
    };
    one.writer.write(job.clone()).await.unwrap();
    one.writer.write(job.clone()).await.unwrap();
    let stored = one.database.job(job.id).await.unwrap().unwrap();
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
    let anywhere = cache_coordinator::repository::JobRecord {
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
    assert_eq!(
        one.database.holdings(film.id).await.unwrap()[0].ranges,
        vec![range(0, 2)]
    );
    assert_eq!(
        one.writer.write(store(first.epoch)).await,
        Err(RepositoryError::Fenced)
    );
    let old = RemoveChunks {
        edge: first.id,
        epoch: first.epoch,
        entry: film.id,
        indexes: vec![0],
    };
    assert_eq!(one.writer.write(old).await, Err(RepositoryError::Fenced));
    let old = ReconcileEntry {
        edge: first.id,
        epoch: first.epoch,
        entry: film.id,
        chunks: vec![],
    };
    assert_eq!(one.writer.write(old).await, Err(RepositoryError::Fenced));
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
        Err(RepositoryError::Fenced)
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
        Err(RepositoryError::Fenced)
    );
    assert!(matches!(
        one.writer.forget_edge("a").await,
        Err(RepositoryError::NotFound { .. })
    ));
}

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
                matches!(answer, Err(RepositoryError::NotFound { what: "entry", .. })),
                "{answer:?}"
            ),
            6 => assert!(
                matches!(answer, Err(RepositoryError::Invalid { .. })),
                "{answer:?}"
            ),
            _ => assert!(answer.is_ok(), "{index}: {answer:?}"),
        }
    }
    let poison = poison.await;
    assert!(
        matches!(poison, Err(RepositoryError::Invalid { .. })),
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
async fn watchers_resume_without_gap_or_repeat() {
    let (_server, url, one) = leader().await;
    one.source("films").await;
    let film = one.entry(1, "a.mp4", 5_000).await;
    let other = one.entry(2, "b.mp4", 5_000).await;
    let edge = one.edge("a", 1).await.edge;
    let snapshot = one.database.entry_snapshot(film.id).await.unwrap();
    assert_eq!(snapshot.holdings, vec![]);
    let mut early = one
        .log
        .subscribe(snapshot.revision, Filter::Entry(film.id))
        .unwrap();
    let mut all = one.log.subscribe(0, Filter::Cluster).unwrap();

    let count = 1_500;
    let writer = one.writer.clone();
    let (film_id, other_id) = (film.id, other.id);
    let writing = tokio::spawn(async move {
        for index in 0..count {
            for entry in [film_id, other_id] {
                let store = StoreChunks {
                    edge: edge.id,
                    epoch: edge.epoch,
                    entry,
                    chunks: sums([index]),
                };
                // Some batches of one, some of many.
                match index % 10 {
                    0 => drop(writer.write(store).await.unwrap()),
                    _ => drop(writer.enqueue(store).await.unwrap()),
                }
            }
        }
        writer
            .write(SetPinned {
                entry: film_id,
                pinned: true,
            })
            .await
            .unwrap()
            .revision
    });
    let mut bytes = 0;
    let (mut last, mut resumed_at, mut pinned) = (snapshot.revision, None, false);
    // The pin may come before reports of the same batch: it commutes with them.
    while !pinned || bytes < u64::from(count) * CHUNK {
        let Event::Change(change) = early.next().await.unwrap().unwrap() else {
            panic!("the log is long enough")
        };
        assert!(change.revision > last);
        last = change.revision;
        match change.kind {
            ChangeKind::Stored {
                ranges,
                entry,
                edge,
            } => {
                assert_eq!((entry, edge.as_str()), (film.id, "a"));
                bytes += ranges.iter().map(|range| range.len()).sum::<u64>();
            }
            ChangeKind::Entry { .. } => pinned = true,
            other => panic!("{other:?}"),
        }
        // Leave in the middle, come back from the last revision seen.
        if resumed_at.is_none() && bytes > 500 * CHUNK {
            resumed_at = Some(last);
            early = one.log.subscribe(last, Filter::Entry(film.id)).unwrap();
        }
    }
    let end = writing.await.unwrap();
    assert_eq!(bytes, u64::from(count) * CHUNK);
    assert!(last <= end && resumed_at.is_some());

    // Revisions have no holes, and the log and the broadcast tell the same.
    let mut expected = 1;
    while expected <= end {
        let Event::Change(change) = all.next().await.unwrap().unwrap() else {
            panic!("nothing was pruned")
        };
        assert_eq!(change.revision, expected);
        expected += 1;
    }
    let page = one.database.changes_after(0, None, 10).await.unwrap();
    assert!(
        matches!(page, LogPage::Changes { ref changes, through: 10 } if changes.len() == 10),
        "{page:?}"
    );

    let pruned = one
        .database
        .prune_changes(Duration::from_secs(3_600), 5, 1_000_000)
        .await
        .unwrap();
    assert_eq!(pruned, end - 5);
    client(&url)
        .await
        .batch_execute("UPDATE cache_changes SET changed_at = now() - interval '1 day'")
        .await
        .unwrap();
    assert_eq!(
        one.database
            .prune_changes(Duration::from_secs(3_600), 1_000, 2)
            .await
            .unwrap(),
        2
    );
    assert_eq!(
        one.database
            .prune_changes(Duration::from_secs(3_600), 1_000, 100)
            .await
            .unwrap(),
        2
    );
    assert_eq!(
        one.database.latest_revision().await.unwrap(),
        end,
        "the newest stays"
    );
    let mut late = one.log.subscribe(3, Filter::Entry(film.id)).unwrap();
    assert_eq!(late.next().await.unwrap().unwrap(), Event::SnapshotNeeded);
    assert!(late.next().await.is_none());
    let mut future = one.log.subscribe(end + 9, Filter::Cluster).unwrap();
    assert_eq!(future.next().await.unwrap().unwrap(), Event::SnapshotNeeded);
    let cluster = one.database.cluster_snapshot().await.unwrap();
    assert_eq!(
        (cluster.revision, cluster.edges.len(), cluster.sources.len()),
        (end, 1, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_down_hands_over_within_a_second_and_old_terms_are_fenced() {
    let (_server, url, one) = leader().await;
    one.source("films").await;
    let two = coordinator(&url, "http://two", WriterConfig::default()).await;
    let mut standby = two.leadership.clone();
    let named = standby
        .wait_for(|now| {
            matches!(
                now,
                Leadership::Standby {
                    leader_address: Some(_)
                }
            )
        })
        .await
        .unwrap()
        .clone();
    assert_eq!(
        named,
        Leadership::Standby {
            leader_address: Some("http://one".into())
        }
    );
    let refused = two
        .writer
        .write(DrainEdge {
            name: "a".into(),
            draining: true,
        })
        .await;
    assert_eq!(
        refused,
        Err(RepositoryError::NotLeader {
            leader: Some("http://one".into())
        })
    );
    assert!(two.log.subscribe(0, Filter::Cluster).is_err());
    let mut watching = one.log.subscribe(0, Filter::Cluster).unwrap();
    assert!(watching.next().await.unwrap().is_ok());

    let began = Instant::now();
    one.step_down.step_down().await;
    two.leads().await;
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert!(matches!(
        watching.next().await,
        Some(Err(RepositoryError::NotLeader { .. }))
    ));
    let first = one.database.latest_revision().await.unwrap();
    let film = two.entry(1, "a.mp4", 1).await;
    let refused = one
        .writer
        .write(SetPinned {
            entry: film.id,
            pinned: true,
        })
        .await;
    assert!(matches!(refused, Err(RepositoryError::NotLeader { .. })));
    assert_eq!(
        two.database.latest_revision().await.unwrap(),
        first + 2,
        "revisions go on where they were"
    );

    // A leader that was paused believes in a term that is over: the row says otherwise.
    let (_send, belief) = tokio::sync::watch::channel(Leadership::Leader { term: 1 });
    let (paused, task) = WriterTask::new(
        one.database.clone(),
        one.holder,
        belief,
        WriterConfig::default(),
    );
    let cancel = CancellationToken::new();
    tokio::spawn(task.run(cancel.clone()));
    let fenced = paused
        .write(SetPinned {
            entry: film.id,
            pinned: true,
        })
        .await;
    assert!(
        matches!(fenced, Err(RepositoryError::NotLeader { .. })),
        "{fenced:?}"
    );
    assert!(!one.database.entry(film.id).await.unwrap().unwrap().pinned);
    cancel.cancel();
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
            Err(RepositoryError::NotLeader { .. } | RepositoryError::Unavailable { .. }) => {
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

#[tokio::test(flavor = "multi_thread")]
async fn hot_statements_use_the_primary_key() {
    let (_server, url, one) = leader().await;
    one.source("films").await;
    let client = client(&url).await;
    // 4 edges, 50 entries, 1,000 chunks each: 200,000 rows.
    client
        .batch_execute(
            "INSERT INTO edges (name, url, store_id) SELECT 'e' || n, 'http://e', gen_random_uuid() FROM generate_series(1, 4) n;
             INSERT INTO cache_entries (id, source, path, validator, size, chunk_size)
             SELECT lpad(to_hex(n), 32, '0')::uuid, 'films', 'p' || n, 'v', 1000 * 65536, 65536 FROM generate_series(1, 50) n;
             INSERT INTO cache_chunks (entry_id, edge_id, start_byte, end_byte, checksum)
             SELECT e.id, d.id, c * 65536::bigint, (c + 1) * 65536::bigint, c FROM edges d, cache_entries e, generate_series(0, 999) c;
             INSERT INTO cache_entries (id, source, path, validator, size, chunk_size)
             SELECT gen_random_uuid(), 'films', 'more' || n, 'v', 65536, 65536 FROM generate_series(1, 5000) n;
             INSERT INTO cache_keys (source, path, entry_id, validated_at, fresh_until)
             SELECT source, path, id, now(), now() FROM cache_entries;
             ANALYZE",
        )
        .await
        .unwrap();
    let id = "'00000000-0000-0000-0000-000000000007'::uuid";
    let edge = "(SELECT id FROM edges WHERE name = 'e2')";
    let cases = [
        (
            statements::CHUNK_MISSING,
            vec![
                id,
                "655360",
                "1310720",
                "65536",
                "ARRAY(SELECT id FROM edges)",
                "1000",
            ],
            "cache_chunks_pkey",
        ),
        (
            statements::CHUNK_HOLDINGS,
            vec!["ARRAY['00000000-0000-0000-0000-000000000007'::uuid]"],
            "cache_chunks_pkey",
        ),
        // Either index has both columns first.
        (statements::CHUNK_DIGEST, vec![id, edge], "cache_chunks_"),
        (statements::CHUNK_LIST, vec![id, edge], "cache_chunks_"),
        (
            statements::CHUNK_HOLDERS,
            vec![id, "655360", "1310720", "65536"],
            "cache_chunks_pkey",
        ),
        (
            statements::BINDING_GET,
            vec!["'films'", "'p7'", "''", "''"],
            "cache_keys_pkey",
        ),
        (
            statements::ENTRY_PAGE_OF_SOURCE,
            vec!["'films'", "'p7'", "''", id, "10"],
            "cache_entries_by_path",
        ),
    ];
    // Where an entry table is tiny the planner rightly reads all of it; the question is which index would serve.
    client
        .batch_execute("SET enable_seqscan = off")
        .await
        .unwrap();
    for (statement, arguments, index) in cases {
        let types: String = client
            .prepare(statement.sql)
            .await
            .unwrap()
            .params()
            .iter()
            .map(|kind| kind.to_string())
            .collect::<Vec<_>>()
            .join(", ");
        let arguments: Vec<String> = arguments
            .iter()
            .map(|argument| format!("({argument})"))
            .collect();
        client
            .batch_execute(&format!(
                "SET plan_cache_mode = force_generic_plan; PREPARE hot ({types}) AS {}",
                statement.sql
            ))
            .await
            .unwrap_or_else(|error| panic!("{}: {error:?}", statement.name));
        let plan: String = explain(&client, &arguments, types.split(", ").collect()).await;
        assert!(plan.contains(index), "{}:\n{plan}", statement.name);
        assert!(
            !plan.contains("Seq Scan on cache_chunks"),
            "{}:\n{plan}",
            statement.name
        );
        client.batch_execute("DEALLOCATE hot").await.unwrap();
    }
    let began = Instant::now();
    let digests = one
        .database
        .digests(
            client
                .query_one("SELECT id FROM edges WHERE name = 'e2'", &[])
                .await
                .unwrap()
                .get(0),
        )
        .await
        .unwrap();
    assert_eq!(digests.len(), 50);
    assert!(began.elapsed() < Duration::from_secs(2));
}

async fn explain(
    client: &tokio_postgres::Client,
    arguments: &[String],
    types: Vec<&str>,
) -> String {
    // EXECUTE takes no subquery: values are evaluated first.
    let mut values = Vec::new();
    for (argument, kind) in arguments.iter().zip(types) {
        let kind = match kind.strip_prefix('_') {
            Some(element) => format!("{element}[]"),
            None => kind.to_owned(),
        };
        let row = client
            .query_one(&format!("SELECT ({argument})::{kind}::text"), &[])
            .await
            .unwrap();
        values.push(format!("'{}'::{kind}", row.get::<_, String>(0)));
    }
    let messages = client
        .simple_query(&format!("EXPLAIN EXECUTE hot ({})", values.join(", ")))
        .await
        .unwrap();
    messages
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect::<Vec<_>>()
        .join("\n")
}
