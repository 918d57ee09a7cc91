//! A disk that refuses operations: chunks that are not durable are withdrawn and reported, reads
//! continue, and the store recovers by itself.

use super::{simulated::SimulatedDisk, *};

fn open(disk: &SimulatedDisk) -> Store {
    let shared = open_shared(
        Arc::new(disk.clone()),
        options(Path::new("simulated")),
        Tuning::default(),
    )
    .unwrap();
    Store(Arc::new(Handle {
        shared,
        running: Mutex::new(Some(Running {
            threads: None,
            _lock: None,
        })),
    }))
}

/// One chunk durable, one finished; the commit's change number `step` fails.
fn commit_with_failure(disk: &SimulatedDisk, store: &Store, step: u64) -> Arc<EntryFile> {
    let entry = entry_of(store, 1, 4 * CHUNK);
    write_chunk(&entry, 0).unwrap();
    commit::commit_group(store.shared());
    write_chunk(&entry, 1).unwrap();
    assert!(entry.is_present(1));
    disk.fail_after(step);
    commit::commit_group(store.shared());
    entry
}

fn check_withdrawn_and_recovers(disk: &SimulatedDisk, store: &Store, entry: &EntryFile) {
    let mut lost = store.take_corrupt();
    assert_eq!(
        lost.try_recv().ok(),
        Some(Victims {
            entry: entry.id(),
            chunks: vec![1]
        })
    );
    assert!(store.degraded().is_some());
    assert!(entry.is_present(0) && !entry.is_present(1));
    assert_eq!(read_chunk(entry, 0), content(entry, 0));
    assert!(entry.reserve(CHUNK).is_err() && entry.write_at(2 * CHUNK, b"x").is_err());

    // Still refused: still degraded.
    disk.fail_after(2);
    threads::recover(store.shared());
    assert!(store.degraded().is_some());
    threads::recover(store.shared());
    assert_eq!(store.degraded(), None);
    commit::commit_group(store.shared());
    removal::reap(store.shared());
    assert_eq!(store.bytes_used(), CHUNK);
    write_chunk(entry, 1).unwrap();
    commit::commit_group(store.shared());
    let after = open(&disk.after_crash(5));
    let entry = after.entry(&entry.id()).unwrap();
    assert!(entry.is_present(0) && entry.is_present(1));
    assert_eq!(read_chunk(&entry, 1), content(&entry, 1));
}

#[test]
fn a_failed_data_sync_withdraws_what_it_was_to_save() {
    let disk = SimulatedDisk::default();
    let store = open(&disk);
    let entry = commit_with_failure(&disk, &store, 1);
    check_withdrawn_and_recovers(&disk, &store, &entry);
}

#[test]
fn a_failed_journal_sync_replaces_the_journal() {
    let disk = SimulatedDisk::default();
    let store = open(&disk);
    // After the data's sync and the journal's write.
    let entry = commit_with_failure(&disk, &store, 3);
    assert!(store.shared().journal.lock().is_broken());
    // Chunks that the old journal may still claim are not punched before it is replaced.
    removal::reap(store.shared());
    assert_eq!(store.bytes_used(), 2 * CHUNK);
    check_withdrawn_and_recovers(&disk, &store, &entry);
}

#[test]
fn a_sync_that_fails_under_a_fetch_voids_what_was_written() {
    let disk = SimulatedDisk::default();
    let store = open(&disk);
    let entry = entry_of(&store, 1, 4 * CHUNK);
    let under_way = content(&entry, 2);
    let reservation = entry.reserve(CHUNK).unwrap();
    entry.write_at(2 * CHUNK, &under_way[..100]).unwrap();
    write_chunk(&entry, 0).unwrap();
    disk.fail_after(1);
    commit::commit_group(store.shared());
    threads::recover(store.shared());
    assert!(
        entry.write_at(2 * CHUNK + 100, &under_way[100..]).is_err(),
        "told that its bytes may be lost"
    );
    entry.write_at(2 * CHUNK, &under_way).unwrap();
    entry.finish_chunk(2, ChunkDigest::of(2 * CHUNK, &under_way), reservation);
    commit::commit_group(store.shared());
    let after = open(&disk.after_crash(6));
    let entry = after.entry(&entry.id()).unwrap();
    assert_eq!(entry.present_chunks().len(), 1);
    assert_eq!(read_chunk(&entry, 2), under_way);
}

/// After a restart no file is open. A file that was opened read-only is reopened once the disk
/// accepts writes again.
#[test]
fn a_read_only_disk_is_read_and_written_again_when_it_can_be() {
    let disk = SimulatedDisk::default();
    let id = {
        let store = open(&disk);
        let entry = entry_of(&store, 1, 4 * CHUNK);
        write_chunk(&entry, 0).unwrap();
        commit::commit_group(store.shared());
        entry.id()
    };
    let store = open(&disk);
    let entry = store.entry(&id).unwrap();
    disk.set_read_only(true);
    assert_eq!(read_chunk(&entry, 0), content(&entry, 0));
    assert!(write_chunk(&entry, 1).is_err());
    assert!(store.degraded().is_some());
    assert_eq!(read_chunk(&entry, 0), content(&entry, 0));
    disk.set_read_only(false);
    threads::recover(store.shared());
    write_chunk(&entry, 1).unwrap();
    assert_eq!(store.degraded(), None);
    assert!(entry.open_file(disk::Open::Existing).unwrap().is_writable);
    assert_eq!(read_chunk(&entry, 1), content(&entry, 1));
}

#[test]
fn a_full_disk_is_opened_and_written_again_when_it_can_be() {
    let disk = SimulatedDisk::default();
    let id = {
        let store = open(&disk);
        let entry = entry_of(&store, 1, 4 * CHUNK);
        write_chunk(&entry, 0).unwrap();
        commit::commit_group(store.shared());
        entry.id()
    };
    // The second time, the journal cannot be rewritten either.
    for is_torn in [false, true] {
        if is_torn {
            let folder = Path::new(JOURNAL_DIR);
            let newest = disk.list(folder).unwrap().into_iter().max().unwrap();
            let segment = disk.open(&folder.join(newest), disk::Open::Existing);
            segment.unwrap().write_all_at(b"torn", 0).unwrap();
        }
        disk.set_full(true);
        let store = open(&disk);
        assert!(store.degraded().is_some());
        if !is_torn {
            let entry = store.entry(&id).unwrap();
            assert_eq!(read_chunk(&entry, 0), content(&entry, 0));
            assert!(write_chunk(&entry, 1).is_err());
        }
        threads::recover(store.shared());
        assert!(store.degraded().is_some());
        disk.set_full(false);
        threads::recover(store.shared());
        assert_eq!(store.degraded(), None);
        let new = entry_of(&store, 2, 4 * CHUNK);
        write_chunk(&new, 0).unwrap();
        commit::commit_group(store.shared());
        let after = open(&disk.after_crash(7));
        assert_eq!(after.entry(&id).is_some(), !is_torn);
        let new = after.entry(&new.id()).unwrap();
        assert_eq!(read_chunk(&new, 0), content(&new, 0));
    }
}
