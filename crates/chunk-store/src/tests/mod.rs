//! The store on real directories, and on a simulated disk that crashes.

mod bounds;
mod crash;
mod degraded;
mod quotas;
mod real;
mod simulated;
mod stress;

use std::{path::Path, sync::Arc, time::Duration};

use chunkcache_proto::{Geometry, checksum::ChunkDigest, v1};
use uuid::Uuid;

use super::*;

pub(super) const CHUNK: u64 = 64 << 10;

pub(super) fn options(path: &Path) -> StoreOptions {
    StoreOptions {
        data_dir: path.to_owned(),
        max_bytes: Some(1 << 40),
        min_free: MinFree::Bytes(0),
        group_sync_window: Duration::from_millis(1),
    }
}

pub(super) fn description(id: Uuid, size: u64) -> (v1::Entry, Geometry) {
    let entry = v1::Entry {
        id: id.to_string(),
        size,
        chunk_size: CHUNK as u32,
        ..Default::default()
    };
    (entry, Geometry::new(size, CHUNK as u32).unwrap())
}

pub(super) fn entry_of(store: &Store, id: u128, size: u64) -> Arc<EntryFile> {
    let (entry, geometry) = description(Uuid::from_u128(id), size);
    store.put_entry(&entry, geometry).unwrap()
}

/// A chunk's bytes, derived from its entry and position.
pub(super) fn content(entry: &EntryFile, chunk: u32) -> Vec<u8> {
    let range = entry.geometry().chunk_range(chunk);
    let seed = entry.id().as_u128() as u64 ^ 0x5851_f42d_4c95_7f2d;
    (range.start..range.end)
        .map(|at| (at.wrapping_mul(seed | 1) >> 7) as u8 | 1)
        .collect()
}

pub(super) fn write_chunk(entry: &EntryFile, chunk: u32) -> Result<(), StoreError> {
    let bytes = content(entry, chunk);
    let start = entry.geometry().chunk_range(chunk).start;
    let reservation = entry.reserve(bytes.len() as u64)?;
    // In two parts, the later one first, as in a fetch from the middle.
    let (head, tail) = bytes.split_at(bytes.len() / 3);
    entry.write_at(start + head.len() as u64, tail)?;
    entry.write_at(start, head)?;
    entry.finish_chunk(chunk, ChunkDigest::of(start, &bytes), reservation);
    Ok(())
}

pub(super) fn read_chunk(entry: &EntryFile, chunk: u32) -> Vec<u8> {
    let range = entry.geometry().chunk_range(chunk);
    let mut bytes = vec![0; range.len() as usize];
    entry.read_at(range.start, &mut bytes).unwrap();
    bytes
}

/// Opens a store without threads: only the test makes progress.
pub(super) fn open_stepped(options: StoreOptions) -> Store {
    let disk = Arc::new(RealDisk::new(options.data_dir.clone()));
    let shared = open_shared(disk, options, Tuning::default()).unwrap();
    let running = Mutex::new(Some(Running {
        threads: None,
        _lock: None,
    }));
    Store(Arc::new(Handle { shared, running }))
}
