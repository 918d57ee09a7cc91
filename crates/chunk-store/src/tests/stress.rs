//! Many threads on one real store: a pinned chunk is intact, whatever is stored, dropped and
//! removed meanwhile.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const ENTRIES: u128 = 3;
const CHUNKS: u32 = 6;
const ROUNDS: u32 = 100;

#[test]
fn readers_never_see_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    let size = u64::from(CHUNKS) * CHUNK;
    let expected: Vec<Vec<Vec<u8>>> = (0..ENTRIES)
        .map(|id| {
            let entry = entry_of(&store, id, size);
            (0..CHUNKS).map(|chunk| content(&entry, chunk)).collect()
        })
        .collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    let reads = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (store, expected, done, reads) = (&store, &expected, &done, &reads);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed);
                while !done.load(Ordering::Acquire) {
                    let (id, chunk) = (
                        random.random_range(0..ENTRIES),
                        random.random_range(0..CHUNKS),
                    );
                    let Some(entry) = store.entry(&Uuid::from_u128(id)) else {
                        continue;
                    };
                    let Some(_pin) = entry.pin(chunk) else {
                        continue;
                    };
                    assert!(read_chunk(&entry, chunk) == expected[id as usize][chunk as usize]);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // One writer per entry, like the fetches. It drops and stores again at once, and
        // occasionally removes everything.
        let writers: Vec<_> = (0..ENTRIES)
            .map(|id| {
                let store = &store;
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(id as u64 + 100);
                    for round in 0..ROUNDS {
                        let entry = entry_of(store, id, size);
                        let chunk = random.random_range(0..CHUNKS);
                        if entry.is_present(chunk) {
                            store.drop_chunks(&entry.id(), &[chunk]);
                        } else {
                            write_chunk(&entry, chunk).unwrap();
                        }
                        if round % 50 == 49 {
                            store.remove_entry(&entry.id());
                        }
                    }
                })
            })
            .collect();
        let results: Vec<_> = writers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, Ordering::Release);
        assert!(results.iter().all(Result::is_ok));
    });
    assert!(reads.load(Ordering::Relaxed) > 0);
    store.close();
    let digests: Vec<_> = (0..ENTRIES)
        .map(|id| store.digest(&Uuid::from_u128(id)))
        .collect();
    drop(store);
    let store = open_stepped(options(dir.path()));
    let found: Vec<_> = (0..ENTRIES)
        .map(|id| store.digest(&Uuid::from_u128(id)))
        .collect();
    assert_eq!(found, digests);
    for entry in store.entries() {
        for (chunk, _) in entry.present_chunks() {
            assert!(verify::check(&entry, chunk, verify::Trust::Verified).unwrap());
        }
    }
}
