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
            write_chunk(&store, &entry, chunk).unwrap();
        }
        assert!(entry.is_present(5) && entry.is_verified(5) && !entry.is_present(1));
        assert_eq!(entry.first_missing(3, 9), Some(4));
        await_durable(&mut durable, 3);
        store.put_note(b"a", Some(b"1"));
        store.put_note(b"b", Some(b"2"));
        store.put_note(b"a", None);
        store.close();
        (entry.id(), store.digest(&entry.id()), store.store_id())
    };
    let store = Store::open(options(dir.path())).unwrap();
    assert_eq!(store.store_id(), store_id);
    assert_eq!(store.notes(), [(b"b".to_vec(), b"2".to_vec())]);
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
        assert!(!entry.is_verified(chunk) || chunk == 0);
        assert!(runtime.block_on(entry.verify(chunk)).unwrap());
        assert!(entry.is_verified(chunk));
    }
    let range = entry.geometry().chunk_range(3);
    let part = ByteRange::new(range.start + 10, range.end - 10);
    let mapped = entry.map(part).unwrap();
    assert_eq!(
        (mapped.file_offset(), mapped.len() as u64),
        (part.start, part.len())
    );
    assert_eq!(
        mapped.as_ref(),
        &content(&entry, 3)[10..CHUNK as usize - 10]
    );
    assert!(entry.is_resident(part));
}
