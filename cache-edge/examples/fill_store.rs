//! Makes a stopped edge's store claim every chunk of the entries it knows: journal records over
//! sparse files.
//!
//! For measurements of starts and reconciliation at sizes that no disk here has
//! (`chunkcache-restart`). The bytes in between are missing: a reader of such a chunk finds it
//! corrupt, as the store intends. Usage: `fill_store <data directory>`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use chunk_store::{MinFree, Store, StoreOptions};
use chunkcache_proto::checksum::{BLOCK_BYTES, ChunkDigest};

fn main() {
    let data_dir = std::env::args().nth(1).unwrap().into();
    let begun = Instant::now();
    let store = Store::open(StoreOptions {
        data_dir,
        max_bytes: Some(u64::MAX / 4),
        min_free: MinFree::Bytes(0),
        group_sync_window: Duration::from_millis(50),
    })
    .unwrap();
    let mut durable = store.take_durable();
    let mut made = 0_u64;
    for entry in store.entries() {
        let geometry = entry.geometry();
        let missing = (0..geometry.chunk_count()).filter(|&chunk| !entry.is_present(chunk));
        for chunk in missing {
            let range = geometry.chunk_range(chunk);
            let reservation = entry.reserve(range.len()).unwrap();
            // Two blocks, 8 GB per million: so no chunk looks as if the disk had lost it.
            entry.write_at(range.start, &[1]).unwrap();
            entry.write_at(range.end - 1, &[1]).unwrap();
            let digest = ChunkDigest {
                checksum: u64::from(chunk) * 7 + 1,
                blocks: vec![1; range.len().div_ceil(BLOCK_BYTES) as usize].into(),
            };
            entry.finish_chunk(chunk, digest, reservation);
            made += 1;
            // Empties the store's queue, which grows with every unsynced chunk.
            while durable.try_recv().is_ok() {}
        }
    }
    store.close();
    println!("{made} chunks in {:.1} s", begun.elapsed().as_secs_f64());
}
