use super::*;

fn entry(path: &str) -> v1::Entry {
    v1::Entry {
        id: EntryId::nil().to_string(),
        key: Some(v1::Key {
            source: "films".into(),
            path: path.into(),
            ..v1::Key::default()
        }),
        ..v1::Entry::default()
    }
}

#[tokio::test]
async fn keys_nobody_asks_for_are_forgotten_a_bite_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(chunk_store::StoreOptions {
        data_dir: directory.path().to_owned(),
        max_bytes: None,
        min_free: chunk_store::MinFree::Bytes(0),
        group_sync_window: std::time::Duration::from_millis(1),
    })
    .unwrap();
    let bindings = Bindings::load(store.clone());
    for number in 0..10 {
        let entry = entry(&number.to_string());
        bindings.bind(entry, v1::Freshness::default()).unwrap();
    }
    assert!(bindings.forget_unused(4), "all were asked for just now");
    let asked = entry("7").key.unwrap();
    bindings.get(&asked).unwrap();
    assert!(!bindings.forget_unused(4));
    assert!(!bindings.forget_unused(4));
    assert!(bindings.forget_unused(4));
    assert_eq!(bindings.key_count(), 1);
    assert!(bindings.get(&asked).is_some());
    assert_eq!(
        Bindings::load(store).key_count(),
        1,
        "their notes went, too"
    );
}
