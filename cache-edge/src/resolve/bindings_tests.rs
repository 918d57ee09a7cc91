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

fn store(directory: &std::path::Path) -> Store {
    Store::open(chunk_store::StoreOptions {
        data_dir: directory.to_owned(),
        max_bytes: None,
        min_free: chunk_store::MinFree::Bytes(0),
        group_sync_window: std::time::Duration::from_millis(1),
    })
    .unwrap()
}

#[tokio::test]
async fn keys_nobody_asks_for_are_forgotten_a_bite_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
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

#[tokio::test]
async fn a_key_goes_with_its_entry() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let bindings = Bindings::load(store.clone());
    let bound = entry("a");
    let key = bound.key.clone().unwrap();
    bindings
        .bind(bound.clone(), v1::Freshness::default())
        .unwrap();

    let replaced = v1::Entry {
        id: EntryId::from_u128(7).to_string(),
        ..bound.clone()
    };
    bindings.forget_entry(&replaced);
    assert!(bindings.peek(&key).is_some(), "it is bound to another one");
    bindings.forget_entry(&bound);
    assert!(bindings.peek(&key).is_none());
    assert_eq!(Bindings::load(store).key_count(), 0, "its note went, too");
}

#[tokio::test]
async fn our_own_look_is_no_use() {
    let directory = tempfile::tempdir().unwrap();
    let bindings = Bindings::load(store(directory.path()));
    let bound = entry("a");
    let key = bound.key.clone().unwrap();
    bindings.bind(bound, v1::Freshness::default()).unwrap();
    assert!(bindings.forget_unused(4));
    bindings.peek(&key).unwrap();
    assert!(bindings.forget_unused(4));
    assert!(bindings.get(&key).is_none());
}

#[tokio::test]
async fn what_is_decoded_again_is_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let freshness = v1::Freshness {
        fresh_until_ms: 5,
        vary: vec!["accept-language".into()],
        fields: vec![v1::Header {
            name: "content-language".into(),
            value: "de".into(),
        }],
        ..v1::Freshness::default()
    };
    let bound = Bindings::load(store.clone())
        .bind(entry("a"), freshness)
        .unwrap();
    let bindings = Bindings::load(store);
    let again = bindings.get(&entry("a").key.unwrap()).unwrap();
    assert_eq!(
        (&again.id, &again.entry, &again.freshness, &again.fields),
        (&bound.id, &bound.entry, &bound.freshness, &bound.fields)
    );
}
