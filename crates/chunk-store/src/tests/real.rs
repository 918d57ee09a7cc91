//! On real directories.

use chunkcache_proto::ByteRange;

use super::*;

/// Waits for the events of `count` chunks.
fn await_durable(durable: &mut tokio::sync::mpsc::UnboundedReceiver<Durable>, count: usize) {
    let mut seen = 0;
    while seen < count {
        seen += durable
            .blocking_recv()
            .expect("the store lives")
            .chunks
            .len();
    }
}

#[test]
fn what_is_durable_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let size = 5 * CHUNK + 100;
    let (id, digest, store_id) = {
        let store = Store::open(options(dir.path())).unwrap();
        let mut durable = store.take_durable();
        let entry = entry_of(&store, 7, size);
        for chunk in [0, 3, 5] {
            write_chunk(&entry, chunk).unwrap();
        }
        assert!(entry.is_present(5) && entry.is_verified(5) && !entry.is_present(1));
        assert_eq!(entry.first_missing(3, 9), Some(4));
        await_durable(&mut durable, 3);
        store.put_note(b"a", Some(b"1".as_slice().into()));
        store.put_note(b"b", Some(b"2".as_slice().into()));
        store.put_note(b"a", None);
        store.close();
        (entry.id(), store.digest(&entry.id()), store.store_id())
    };
    // Without threads, because the scrub would check one of them by itself.
    let store = open_stepped(options(dir.path()));
    assert_eq!(store.store_id(), store_id);
    assert_eq!(store.notes(b""), [(b"b".to_vec(), b"2".as_slice().into())]);
    assert_eq!(store.notes(b"b"), store.notes(b""));
    assert_eq!(store.notes(b"c"), []);
    assert_eq!(store.note(b"b"), Some(b"2".as_slice().into()));
    assert_eq!(store.note(b"a"), None);
    let entry = store.entry(&id).unwrap();
    assert_eq!(store.digest(&id), digest);
    assert_eq!(digest.chunk_count, 3);
    assert_eq!(entry.present_chunks().len(), 3);
    assert_eq!(store.bytes_used(), 2 * CHUNK + 100);
    for chunk in [0, 3, 5] {
        assert_eq!(read_chunk(&entry, chunk), content(&entry, chunk));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        assert!(!entry.is_verified(chunk));
        assert!(runtime.block_on(entry.verify(chunk)).unwrap());
        assert!(entry.is_verified(chunk));
    }
    let range = entry.geometry().chunk_range(3);
    let part = ByteRange::new(range.start + 10, range.end - 10);
    assert!(entry.is_resident(part));
}

fn blocks_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    let mut directories = vec![dir.join(ENTRIES_DIR)];
    while let Some(directory) = directories.pop() {
        for item in fs::read_dir(directory).unwrap() {
            let item = item.unwrap();
            let metadata = item.metadata().unwrap();
            if metadata.is_dir() {
                directories.push(item.path());
            } else {
                bytes += metadata.blocks() * 512;
            }
        }
    }
    bytes
}

/// The only data file of a store with one entry.
pub(super) fn data_file(dir: &Path, id: Uuid) -> PathBuf {
    let directory = dir.join(ENTRIES_DIR).join(&id.to_string()[..2]);
    let names = fs::read_dir(directory).unwrap().map(|item| item.unwrap());
    let is_its = |item: &fs::DirEntry| {
        let name = item.file_name();
        name.to_str().unwrap().starts_with(&id.to_string())
    };
    let mut files: Vec<_> = names.filter(is_its).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0).path()
}

/// Does the work of the store's threads once.
pub(super) fn commit_and_reap(store: &Store) {
    commit::commit_group(store.shared());
    removal::reap(store.shared());
}

pub(super) fn journal_file(dir: &Path) -> PathBuf {
    let mut files: Vec<_> = fs::read_dir(dir.join(JOURNAL_DIR))
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.pop().unwrap()
}

/// Creates a closed store with durable chunks.
fn store_with_chunks(dir: &Path, chunks: &[u32]) -> Uuid {
    let store = Store::open(options(dir)).unwrap();
    let mut durable = store.take_durable();
    let entry = entry_of(&store, 9, 8 * CHUNK);
    chunks
        .iter()
        .for_each(|chunk| write_chunk(&entry, *chunk).unwrap());
    await_durable(&mut durable, chunks.len());
    store.close();
    entry.id()
}

/// The last block of an object belongs to no other chunk, so it is freed with its chunk.
#[test]
fn the_end_of_an_object_is_given_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    let mut durable = store.take_durable();
    let entry = entry_of(&store, 4, CHUNK + 12_345);
    for chunk in [0, 1] {
        write_chunk(&entry, chunk).unwrap();
    }
    await_durable(&mut durable, 2);
    assert!(blocks_bytes(dir.path()) >= CHUNK + 12_345);
    store.drop_chunks(&entry.id(), &[0, 1]);
    let begun = Instant::now();
    while blocks_bytes(dir.path()) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "blocks are left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An object may claim a length that no file can have: punching past it is not a disk fault.
#[test]
fn a_chunk_past_any_files_length_is_freed_without_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_stepped(options(dir.path()));
    let size = (16 << 40) + 1;
    let entry = entry_of(&store, 4, size);
    let last = entry.geometry().chunk_count() - 1;
    // Some file systems support files of that length: either outcome is fine.
    for offset in [0, size - 1] {
        let _ = entry.write_at(offset, &[1]);
    }
    entry.abandon_chunk(last);
    commit_and_reap(&store);
    assert_eq!(store.degraded(), None);
}

#[test]
fn a_directory_has_one_user() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    assert!(matches!(
        Store::open(options(dir.path())),
        Err(OpenError::Locked { .. })
    ));
    store.close();
    assert!(Store::open(options(dir.path())).is_ok());
}

#[test]
fn directories_that_can_not_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    // A file in place of a directory: refused even to root, to whom permissions do not apply.
    let Err(error @ OpenError::Unusable { .. }) = Store::open(options(&file)) else {
        panic!("opened a file")
    };
    assert!(error.to_string().contains(file.to_str().unwrap()));
    assert!(matches!(
        Store::open(options(Path::new("/proc/nothing/here"))),
        Err(OpenError::Unusable { .. })
    ));

    let newer = dir.path().join("newer");
    drop(Store::open(options(&newer)).unwrap());
    fs::write(
        newer.join("STORE"),
        "format 99\nstore 00000000-0000-0000-0000-000000000001\n",
    )
    .unwrap();
    assert!(matches!(
        Store::open(options(&newer)),
        Err(OpenError::NewerFormat { found: 99, .. })
    ));
    fs::write(newer.join("STORE"), "rubbish").unwrap();
    assert!(matches!(
        Store::open(options(&newer)),
        Err(OpenError::Unusable { .. })
    ));
}

#[test]
fn dropped_chunks_free_their_blocks_once_nobody_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_stepped(options(dir.path()));
    let entry = entry_of(&store, 9, 8 * CHUNK);
    (0..4).for_each(|chunk| write_chunk(&entry, chunk).unwrap());
    commit::commit_group(store.shared());
    let full = blocks_bytes(dir.path());
    assert!((4 * CHUNK..5 * CHUNK).contains(&full), "{full}");
    let pin = entry.pin(1).unwrap();
    store.drop_chunks(&entry.id(), &[0, 1]);
    assert!(!entry.is_present(1) && entry.pin(1).is_none());
    assert_eq!(
        store.digest(&entry.id()).chunk_count,
        2,
        "no inventory has them"
    );
    removal::reap(store.shared());
    assert_eq!(store.bytes_used(), 4 * CHUNK, "the journal has them still");
    commit_and_reap(&store);
    assert_eq!(read_chunk(&entry, 1), content(&entry, 1));
    assert_eq!(store.bytes_used(), 3 * CHUNK);
    drop(pin);
    removal::reap(store.shared());
    assert_eq!(store.bytes_used(), 2 * CHUNK);
    assert!(blocks_bytes(dir.path()) <= full - 2 * CHUNK);
    assert_eq!(store.digest(&entry.id()).chunk_count, 2);
    write_chunk(&entry, 1).unwrap();
    commit::commit_group(store.shared());
    assert_eq!(read_chunk(&entry, 1), content(&entry, 1));
}

#[test]
fn what_a_reader_has_of_an_unfinished_chunk_outlives_the_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_stepped(options(dir.path()));
    let entry = entry_of(&store, 7, 3 * CHUNK);
    let half = content(&entry, 1)[..CHUNK as usize / 2].to_vec();
    assert!(entry.hold_unfinished(1).is_none());
    entry.write_at(CHUNK, &half).unwrap();
    let hold = entry.hold_unfinished(1).unwrap();
    entry.abandon_chunk(1);
    commit_and_reap(&store);
    let mut read = vec![0; half.len()];
    entry.read_at(CHUNK, &mut read).unwrap();
    assert!(read == half, "a body under way would have holes");
    assert_eq!(store.bytes_used(), CHUNK, "its blocks count");
    drop(hold);
    removal::reap(store.shared());
    assert_eq!((store.bytes_used(), blocks_bytes(dir.path())), (0, 0));
    // The same if it is fetched again before the reader has left.
    entry.write_at(CHUNK, &half).unwrap();
    let hold = entry.hold_unfinished(1).unwrap();
    entry.abandon_chunk(1);
    write_chunk(&entry, 1).unwrap();
    drop(hold);
    commit_and_reap(&store);
    assert_eq!(store.bytes_used(), CHUNK);
    assert!(read_chunk(&entry, 1) == content(&entry, 1));
}

#[test]
fn a_large_sparse_entry_uses_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    let mut durable = store.take_durable();
    let size = 20 << 30;
    let entry = entry_of(&store, 9, size);
    let count = entry.geometry().chunk_count();
    let chunks: Vec<_> = (0..10)
        .map(|i| i * (count / 10))
        .chain([count - 1])
        .collect();
    chunks
        .iter()
        .for_each(|chunk| write_chunk(&entry, *chunk).unwrap());
    await_durable(&mut durable, chunks.len());
    assert_eq!(
        fs::metadata(data_file(dir.path(), entry.id()))
            .unwrap()
            .len(),
        size
    );
    let blocks = blocks_bytes(dir.path());
    assert!(
        blocks <= chunks.len() as u64 * CHUNK + (256 << 10),
        "{blocks}"
    );
    let range = entry.geometry().chunk_range(count - 1);
    let mut last = vec![0; range.len() as usize];
    entry.read_at(range.start, &mut last).unwrap();
    assert_eq!(last, content(&entry, count - 1));
}

#[test]
fn corrupt_bytes_are_found_withdrawn_and_told() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let id = store_with_chunks(dir.path(), &[2, 3]);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(data_file(dir.path(), id))
        .unwrap();
    file.write_all_at(&[0], 2 * CHUNK + 4321).unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    let mut corrupt = store.take_corrupt();
    let entry = store.entry(&id).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    assert!(!runtime.block_on(entry.verify(2)).unwrap());
    assert!(runtime.block_on(entry.verify(3)).unwrap());
    assert_eq!(
        corrupt.blocking_recv(),
        Some(Victims {
            entry: id,
            chunks: vec![2]
        })
    );
    assert!(!entry.is_present(2));
    drop((entry, corrupt));
    drop(store);
    let store = Store::open(options(dir.path())).unwrap();
    assert_eq!(store.digest(&id).chunk_count, 1);
}

#[test]
fn a_torn_journal_tail_is_cut_and_what_it_proved_is_reclaimed() {
    let dir = tempfile::tempdir().unwrap();
    let id = store_with_chunks(dir.path(), &[2]);
    let before = fs::metadata(journal_file(dir.path())).unwrap().len();
    let whole = {
        let store = Store::open(options(dir.path())).unwrap();
        let mut durable = store.take_durable();
        let entry = store.entry(&id).unwrap();
        write_chunk(&entry, 3).unwrap();
        await_durable(&mut durable, 1);
        store.close();
        fs::metadata(journal_file(dir.path())).unwrap().len()
    };
    assert!(whole > before);
    fs::OpenOptions::new()
        .write(true)
        .open(journal_file(dir.path()))
        .unwrap()
        .set_len(whole - 1)
        .unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    let entry = store.entry(&id).unwrap();
    assert!(entry.is_present(2) && !entry.is_present(3));
    reclaim::Search::new(store.shared()).run(store.shared());
    assert!(blocks_bytes(dir.path()) <= CHUNK + 8192);
}

#[test]
fn removed_entries_and_orphans_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let id = store_with_chunks(dir.path(), &[0, 1]);
    let store = open_stepped(options(dir.path()));
    let old = store.entry(&id).unwrap();
    store.remove_entry(&id);
    assert!(store.entry(&id).is_none());
    assert_eq!(read_chunk(&old, 1), content(&old, 1), "its readers finish");
    // Re-created while the old one is being read.
    let new = entry_of(&store, 9, 8 * CHUNK);
    assert!(!new.is_present(1));
    write_chunk(&new, 1).unwrap();
    assert_eq!(store.bytes_used(), 3 * CHUNK);
    commit::commit_group(store.shared());
    drop(old);
    removal::reap(store.shared());
    assert_eq!(store.bytes_used(), CHUNK);
    assert_eq!(read_chunk(&new, 1), content(&new, 1));
    let orphan = dir.path().join("entries/00");
    fs::create_dir_all(&orphan).unwrap();
    let orphan = orphan.join(format!("{}.chunks", Uuid::from_u128(77)));
    fs::write(&orphan, [1; 100]).unwrap();
    reclaim::Search::new(store.shared()).run(store.shared());
    assert!(!orphan.exists() && data_file(dir.path(), id).exists());
}

/// Searching a disk that lost many chunks takes long; closing the store does not wait for it.
#[test]
fn the_search_for_lost_chunks_ends_with_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let id = store_with_chunks(dir.path(), &[0, 1]);
    fs::File::create(data_file(dir.path(), id)).unwrap();
    let store = open_stepped(options(dir.path()));
    let entry = store.entry(&id).unwrap();
    let stop = |stopping| {
        let flag = &store.shared().stopping;
        flag.store(stopping, std::sync::atomic::Ordering::Release);
    };
    stop(true);
    reclaim::check_present(&entry, 0, 8);
    assert!(entry.is_present(0) && entry.is_present(1), "searched on");
    stop(false);
    reclaim::check_present(&entry, 0, 8);
    assert!(!entry.is_present(0) && !entry.is_present(1));
}

#[test]
fn the_limit_holds_and_victims_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let limited = StoreOptions {
        max_bytes: Some(10 * CHUNK),
        ..options(dir.path())
    };
    let store = Store::open(limited).unwrap();
    let mut durable = store.take_durable();
    let entry = entry_of(&store, 9, 100 * CHUNK);
    (10..20).for_each(|chunk| write_chunk(&entry, chunk).unwrap());
    await_durable(&mut durable, 10);
    assert!(matches!(entry.reserve(1), Err(StoreError::NoSpace(_))));
    assert!(store.pressure() > 0);
    let pin = entry.pin(10).unwrap();
    let victims = store.victims(store.pressure(), usize::MAX);
    assert_eq!(
        store.pressure(),
        0,
        "what is proposed is not asked for again"
    );
    assert!(
        victims.iter().all(|victims| !victims.chunks.contains(&10)),
        "held"
    );
    for victims in victims {
        store.drop_chunks(&victims.entry, &victims.chunks);
    }
    drop(pin);
    assert_eq!(store.pressure(), 0, "what leaves is not asked for again");
    let begun = Instant::now();
    let reservation = loop {
        match entry.reserve(CHUNK) {
            Ok(reservation) => break reservation,
            Err(_) => assert!(begun.elapsed() < Duration::from_secs(10), "no room is made"),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(entry.reserve(CHUNK).is_err());
    drop(reservation);
    assert!(entry.reserve(CHUNK).is_ok());
    assert!(store.bytes_used() <= store.bytes_allowed());
}

#[test]
fn free_space_others_took_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let greedy = StoreOptions {
        min_free: MinFree::Percent(100.0),
        ..options(dir.path())
    };
    let store = Store::open(greedy).unwrap();
    assert_eq!(store.bytes_allowed(), 0);
    let entry = entry_of(&store, 9, CHUNK);
    assert!(matches!(entry.reserve(CHUNK), Err(StoreError::NoSpace(_))));
}

#[test]
fn open_files_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let tuning = Tuning {
        max_open_files: 4,
        ..Tuning::default()
    };
    let store = Store::open_tuned(options(dir.path()), tuning).unwrap();
    let mut durable = store.take_durable();
    for id in 0..40 {
        write_chunk(&entry_of(&store, id, CHUNK), 0).unwrap();
        await_durable(&mut durable, 1);
    }
    let files: Vec<_> = store
        .entries()
        .iter()
        .map(|entry| entry.stored_file().unwrap())
        .collect();
    assert!(
        store.shared().files.open_count() <= 5,
        "{}",
        store.shared().files.open_count()
    );
    for (entry, file) in store.entries().iter().zip(files) {
        let mut bytes = vec![0; CHUNK as usize];
        rustix::io::pread(&file, &mut bytes, 0).unwrap();
        assert_eq!(bytes, content(entry, 0), "a file that is held stays open");
    }
}

#[test]
fn a_million_chunks_are_read_from_the_journal_alone() {
    const ENTRIES: u32 = 20;
    const CHUNKS_EACH: u32 = 50_000;
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open_stepped(options(dir.path()));
        let shared = store.shared();
        let mut journal = shared.journal.lock();
        let entries = (0..ENTRIES).flat_map(|number| {
            let (entry, _) = description(
                Uuid::from_u128(u128::from(number)),
                u64::from(CHUNKS_EACH) * CHUNK,
            );
            let chunks: Vec<_> = (0..CHUNKS_EACH)
                .map(|chunk| (chunk, u64::from(chunk * 7 + number)))
                .collect();
            let stored: Vec<_> = crate::journal_record::stored_records(number, &chunks).collect();
            let described = crate::journal_record::Record::Entry {
                number,
                description: entry.encode_to_vec(),
                naming: crate::journal_record::FileNaming::Id,
            };
            std::iter::once(described).chain(stored)
        });
        journal.rewrite(entries).unwrap();
    }
    let start = Instant::now();
    let store = open_stepped(options(dir.path()));
    println!(
        "opened {} chunks in {:?}",
        ENTRIES * CHUNKS_EACH,
        start.elapsed()
    );
    assert_eq!(store.bytes_used(), u64::from(ENTRIES * CHUNKS_EACH) * CHUNK);
    // Unoptimised code may take longer on a busy machine.
    if !cfg!(debug_assertions) {
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}
