//! Quotas of sources, and fair shares of a full disk.

use std::collections::HashMap;

use chunkcache_proto::v1::Key;

use super::{real::commit_and_reap, *};

/// An entry of a source, with its first `chunks` chunks stored.
fn stored(store: &Store, source: &str, id: u128, chunks: u32) -> Arc<EntryFile> {
    let size = u64::from(chunks) * CHUNK;
    let (mut entry, geometry) = description(Uuid::from_u128(id), size);
    entry.key = Some(Key {
        source: source.into(),
        ..Key::default()
    });
    let entry = store.put_entry(&entry, geometry).unwrap();
    (0..chunks).for_each(|chunk| write_chunk(&entry, chunk).unwrap());
    commit::commit_group(store.shared());
    entry
}

fn set_quota(store: &Store, source: &str, chunks: u64) {
    store.set_quotas(&HashMap::from([(source.to_owned(), chunks * CHUNK)]));
}

fn used(store: &Store, source: &str) -> u64 {
    let uses = store.source_uses();
    let found = uses.iter().find(|it| &*it.source == source);
    found.map_or(0, |it| it.used_bytes / CHUNK)
}

/// Drops the proposed chunks and returns the proposal.
fn evict(store: &Store, bytes: u64) -> Vec<Victims> {
    let victims = store.victims(bytes, usize::MAX);
    for it in &victims {
        store.drop_chunks(&it.entry, &it.chunks);
    }
    commit_and_reap(store);
    victims
}

#[test]
fn a_source_stays_below_its_quota_at_its_own_cost() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_stepped(options(dir.path()));
    let others = stored(&store, "others", 1, 30);
    set_quota(&store, "films", 16);
    let films = stored(&store, "films", 2, 14);
    assert!(!store.is_over_quota(), "an eighth is kept free");
    let more = stored(&store, "films", 3, 2);
    assert!(store.is_over_quota() && store.pressure() == 0);
    assert!(!films.has_room() && others.has_room());
    let refused = films.reserve(CHUNK).map(|it| it.bytes());
    assert!(matches!(refused, Err(StoreError::OverQuota(_))));
    assert_eq!(store.degraded(), None, "the disk has room");
    let victims = evict(&store, 0);
    assert!(victims.iter().all(|it| it.entry != others.id()));
    assert_eq!((used(&store, "films"), used(&store, "others")), (14, 30));
    assert!(films.has_room() && more.reserve(CHUNK).is_ok());
    assert_eq!(evict(&store, 0), [], "and not again");
}

/// The part of a small disk, or of a small quota, that is kept free may be less than one chunk.
/// Then a chunk that finds no space makes some; otherwise nothing new would ever be stored
/// (DingoCache 83).
#[test]
fn a_refused_chunk_makes_space_however_small_the_space_is() {
    let half = CHUNK / 2;
    for is_quota in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let store = open_stepped(StoreOptions {
            max_bytes: (!is_quota).then_some(3 * CHUNK + half),
            ..options(dir.path())
        });
        if is_quota {
            store.set_quotas(&HashMap::from([("films".to_owned(), 3 * CHUNK + half)]));
        }
        let films = stored(&store, "films", 1, 3);
        let is_pressed = || store.is_over_quota() || store.pressure() > 0;
        assert!(!is_pressed(), "nobody wants more");
        assert!(films.reserve(CHUNK).is_err() && is_pressed());
        evict(&store, store.pressure());
        assert_eq!(used(&store, "films"), 2, "one is enough");
        assert!(films.reserve(CHUNK).is_ok() && !is_pressed());
        assert!(
            films.reserve(4 * CHUNK).is_err() && !is_pressed(),
            "in vain"
        );
    }
}

#[test]
fn a_changed_quota_holds_at_once_and_spares_what_is_read_or_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open_stepped(options(dir.path()));
    stored(&store, "films", 1, 20);
    let kept = stored(&store, "films", 2, 5);
    kept.set_pinned(true);
    commit::commit_group(store.shared());
    drop(kept);
    drop(store);
    store = open_stepped(options(dir.path()));
    assert_eq!(used(&store, "films"), 25, "the journal says so");
    let films = store.entry(&Uuid::from_u128(1)).unwrap();
    let pins: Vec<_> = [3, 4, 5].map(|chunk| films.pin(chunk).unwrap()).into();
    set_quota(&store, "films", 0);
    evict(&store, 0);
    assert_eq!(used(&store, "films"), 8);
    assert!((3..6).all(|chunk| films.is_present(chunk)));
    let kept = store.entry(&Uuid::from_u128(2)).unwrap();
    assert_eq!(kept.present_chunks().len(), 5);
    drop(pins);
    evict(&store, 0);
    assert_eq!(used(&store, "films"), 5);
    store.set_quotas(&HashMap::new());
    assert!(films.has_room() && !store.is_over_quota());
}

#[test]
fn sources_over_their_share_give_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_stepped(options(dir.path()));
    stored(&store, "small", 1, 10);
    stored(&store, "large", 2, 60);
    stored(&store, "middle", 3, 30);
    evict(&store, 20 * CHUNK);
    let now = || ["small", "middle", "large"].map(|source| used(&store, source));
    assert_eq!(now(), [10, 30, 40]);
    evict(&store, 40 * CHUNK);
    assert_eq!(
        now(),
        [10, 17, 13],
        "the share is 13: the largest excess first"
    );
    evict(&store, 40 * CHUNK);
    assert_eq!(now(), [0, 0, 0], "nothing is spared where all has to go");
}

#[test]
fn a_source_nobody_reads_has_no_share() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_stepped(options(dir.path()));
    stored(&store, "old", 1, 10);
    (0..6_000).for_each(|_| store.shared().advance_tick());
    let read = stored(&store, "read", 2, 40);
    drop(read.pin(0));
    evict(&store, 8 * CHUNK);
    assert_eq!((used(&store, "old"), used(&store, "read")), (2, 40));
}

/// The cost of enforcing a quota does not grow with the number of stored chunks.
#[test]
fn a_quota_over_many_entries_is_cheap() {
    const ENTRIES: u128 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let store = open_stepped(options(dir.path()));
    for id in 0..ENTRIES {
        let entry = entry_of(&store, id, 1);
        write_chunk(&entry, 0).unwrap();
        if id % 500 == 0 {
            commit::commit_group(store.shared());
        }
    }
    commit::commit_group(store.shared());
    let mut quota = ENTRIES as u64 * 8 / 7;
    let before = policy::LOOKS.get();
    for _ in 0..1_000 {
        quota -= 1;
        store.set_quotas(&HashMap::from([(String::new(), quota)]));
        drop(store.victims(0, usize::MAX));
    }
    let looks = policy::LOOKS.get() - before;
    assert!(looks < 8_000, "{looks} looks: all entries each time");
}
