//! Stored bytes are checked, claimed ones cost nothing, and unused entries are forgotten.

use chunkcache_proto::ByteRange;

use super::{
    real::{commit_and_reap, data_file, journal_file},
    *,
};

/// Four bytes change on the disk of a running process: readers of their block get an error, and the
/// neighbouring blocks are still served.
#[test]
fn a_block_that_changed_on_the_disk_is_not_given() {
    use std::os::unix::fs::FileExt;
    const SIZE: u64 = 3 << 20;
    const LARGE: u32 = 2 << 20;
    let id = Uuid::from_u128(5);
    let place = (2 << 20) + (300 << 10);
    for reopened in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open_stepped(options(dir.path()));
        let (mut description, _) = description(id, SIZE);
        description.chunk_size = LARGE;
        let geometry = Geometry::new(SIZE, LARGE).unwrap();
        let entry = store.put_entry(&description, geometry).unwrap();
        (0..2).for_each(|chunk| write_chunk(&entry, chunk).unwrap());
        commit::commit_group(store.shared());
        drop(entry);
        if reopened {
            drop(store);
            store = open_stepped(options(dir.path()));
        }
        let mut lost = store.take_corrupt();
        let entry = store.entry(&id).unwrap();
        let file = fs::OpenOptions::new()
            .write(true)
            .open(data_file(dir.path(), id))
            .unwrap();
        file.write_all_at(&[0; 4], place).unwrap();
        assert!(entry.bring_in(ByteRange::new(0, LARGE.into())).unwrap());
        let before = entry.read_block(place - (256 << 10)).unwrap().unwrap();
        assert_eq!(before.range.end, (2 << 20) + (256 << 10));
        assert_eq!(before.bytes, content(&entry, 1)[..256 << 10]);
        let pin = entry.pin(1).unwrap();
        assert!(
            !entry
                .bring_in(ByteRange::new(place + 9, place + 10))
                .unwrap()
        );
        assert!(!entry.is_present(1) && entry.is_present(0));
        assert_eq!(lost.try_recv().map(|it| it.chunks).ok(), Some(vec![1]));
        assert!(entry.read_block(place).unwrap().is_none());
        // The same for a reader that held it before.
        assert!(!entry.bring_in(ByteRange::new(place, place + 1)).unwrap());
        drop(pin);
    }
}

/// An object that claims petabytes costs only what is stored of it.
#[test]
fn a_claim_costs_nothing() {
    const PETABYTES: u64 = 8_000_000_000_000_000;
    let dir = tempfile::tempdir().unwrap();
    let store = open_stepped(options(dir.path()));
    let (mut description, _) = description(Uuid::from_u128(5), CHUNK);
    (description.size, description.chunk_size) = (PETABYTES, 2 << 20);
    let geometry = Geometry::new(PETABYTES, 2 << 20).unwrap();
    let begun = Instant::now();
    let entry = store.put_entry(&description, geometry).unwrap();
    let all = ByteRange::new(0, PETABYTES);
    assert!(entry.present_runs(all, 8).is_empty());
    assert_eq!(entry.first_missing(0, geometry.chunk_count()), Some(0));
    let reservation = entry.reserve(2 << 20).unwrap();
    let bytes = vec![7; 2 << 20];
    let start = geometry.chunk_range(1_000_000).start;
    match entry.write_at(start, &bytes) {
        Ok(()) => {
            entry.finish_chunk(1_000_000, ChunkDigest::of(start, &bytes), reservation);
            let run = ByteRange::new(start, start + (2 << 20));
            assert_eq!(entry.present_runs(all, 8), [run]);
            let mut read = vec![0; bytes.len()];
            entry.read_at(start, &mut read).unwrap();
            assert!(read == bytes);
        }
        // This file system's files are shorter, which affects only this object.
        Err(_) => {
            assert_eq!(store.degraded(), None);
            drop(reservation);
            write_chunk(&entry_of(&store, 6, CHUNK), 0).unwrap();
        }
    }
    commit::commit_group(store.shared());
    reclaim::Search::new(store.shared()).run(store.shared());
    assert!(begun.elapsed() < Duration::from_secs(1));
}

/// The file is removed with its last chunk; every entry without chunks is forgotten.
#[test]
fn what_is_not_stored_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_stepped(options(dir.path()));
    let mut forgotten = store.take_forgotten();
    let files = || walk(dir.path()).len();
    let ids: Vec<_> = (0..10).map(|id| entry_of(&store, id, CHUNK).id()).collect();
    for id in &ids[..5] {
        let entry = store.entry(id).unwrap();
        write_chunk(&entry, 0).unwrap();
    }
    commit_and_reap(&store);
    assert_eq!((store.entry_count(), files()), (10, 5));
    for id in &ids[..4] {
        store.drop_chunks(id, &[0]);
    }
    commit_and_reap(&store);
    assert_eq!((store.entry_count(), files()), (10, 1));
    let journal_length = fs::metadata(journal_file(dir.path())).unwrap().len();
    let held = store.entry(&ids[9]).unwrap();
    let later = |seconds| Instant::now() + Duration::from_secs(seconds);
    idle::forget(store.shared(), later(10));
    assert_eq!(store.entry_count(), 10, "it is too soon");
    // Entries that were looked up since are kept for another round.
    idle::forget(store.shared(), later(300));
    idle::forget(store.shared(), later(600));
    commit_and_reap(&store);
    assert_eq!(
        (store.entry_count(), files()),
        (2, 1),
        "one is stored, one in use"
    );
    drop(held);
    idle::forget(store.shared(), later(900));
    idle::forget(store.shared(), later(1200));
    assert_eq!((store.entry_count(), store.shared().idle.len()), (1, 0));
    let mut told = Vec::new();
    while let Ok(entry) = forgotten.try_recv() {
        told.push(entry.id.parse::<EntryId>().unwrap());
    }
    told.sort_unstable();
    let mut expected = [&ids[..4], &ids[5..]].concat();
    expected.sort_unstable();
    assert_eq!(told, expected, "each is told, once");
    commit_and_reap(&store);
    drop(store);
    let grown = fs::metadata(journal_file(dir.path())).unwrap().len() - journal_length;
    assert!(
        grown < 300,
        "{grown} bytes for nine entries that are no more"
    );
    let store = open_stepped(options(dir.path()));
    assert_eq!(store.entry_count(), 1);
    let again = entry_of(&store, 0, CHUNK);
    assert!(again.number() > 10, "numbers are not used twice");
}

/// Ten thousand small entries are removed within a second, with few syncs and no file left.
#[test]
fn eviction_of_small_entries_is_batched() {
    const ENTRIES: u128 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let store = open_stepped(options(dir.path()));
    for id in 0..ENTRIES {
        write_chunk(&entry_of(&store, id, 100), 0).unwrap();
    }
    commit_and_reap(&store);
    assert_eq!(walk(dir.path()).len() as u128, ENTRIES);
    let begun = Instant::now();
    let victims = store.victims(u64::MAX, usize::MAX);
    assert_eq!(victims.len() as u128, ENTRIES);
    for Victims { entry, chunks } in victims {
        store.drop_chunks(&entry, &chunks);
    }
    let withdrawn = begun.elapsed();
    commit_and_reap(&store);
    println!(
        "{ENTRIES} withdrawn in {withdrawn:?}, gone in {:?}",
        begun.elapsed()
    );
    assert_eq!((walk(dir.path()).len(), store.bytes_used()), (0, 0));
    assert_eq!(store.victims(u64::MAX, 5).len(), 0);
}

#[test]
fn nobody_else_reads_what_is_stored() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let store = Store::open(options(&data)).unwrap();
    write_chunk(&entry_of(&store, 1, CHUNK), 0).unwrap();
    store.close();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for file in walk(&data)
        .iter()
        .chain([&journal_file(&data), &data.join("STORE")])
    {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    assert_eq!((mode(&data), mode(&data.join(ENTRIES_DIR))), (0o700, 0o700));
    assert_eq!(mode(&data.join(JOURNAL_DIR)), 0o700);
}

/// Files below the directory of entries.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut directories = vec![dir.join(ENTRIES_DIR)];
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for item in fs::read_dir(directory).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files
}
