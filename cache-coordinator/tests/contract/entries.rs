//! Sources, entries, keys.

use super::*;

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
        ObservationEffect {
            created: true,
            key_changed: true,
            previous: None
        }
    );
    let observed = one.writer.write(observe(&first, 2_000)).await.unwrap();
    assert_eq!(
        observed.value,
        ObservationEffect {
            created: false,
            key_changed: false,
            previous: None
        }
    );
    let second = entry(2, "a.mp4", 5);
    let observed = one.writer.write(observe(&second, 3_000)).await.unwrap();
    assert_eq!(
        observed.value,
        ObservationEffect {
            created: true,
            key_changed: true,
            previous: Some(first.id)
        }
    );
    // An observation from while the coordinator was away does not undo later ones.
    let replayed = ObserveEntry {
        observation: Observation::Replayed,
        ..observe(&first, 2_500)
    };
    let observed = one.writer.write(replayed).await.unwrap();
    assert_eq!(
        observed.value,
        ObservationEffect {
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
        entry: cache_coordinator::db::EntryRecord {
            source: "none".into(),
            ..entry(3, "b", 1)
        },
        ..observe(&first, 1)
    };
    let error = one.writer.write(nowhere).await.unwrap_err();
    assert_eq!(
        error,
        DatabaseError::NotFound {
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
    assert!(matches!(missing, Err(DatabaseError::NotFound { .. })));

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
        Err(DatabaseError::NotFound { .. })
    ));

    let key = one.database.secret("peer", b"abc").await.unwrap();
    assert_eq!(one.database.secret("peer", b"other").await.unwrap(), key);
}
