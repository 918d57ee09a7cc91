//! The change log: resume, prune, snapshot.

use super::*;

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

    // Revisions have no gaps, and the log and the broadcast agree.
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

    let old_term = one
        .database
        .prune_changes(0, Duration::from_secs(3_600), 5, 1_000_000);
    assert_eq!(
        old_term.await.unwrap(),
        0,
        "a term that is over prunes nothing"
    );
    let pruned = one
        .database
        .prune_changes(1, Duration::from_secs(3_600), 5, 1_000_000)
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
            .prune_changes(1, Duration::from_secs(3_600), 1_000, 2)
            .await
            .unwrap(),
        2
    );
    assert_eq!(
        one.database
            .prune_changes(1, Duration::from_secs(3_600), 1_000, 100)
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
