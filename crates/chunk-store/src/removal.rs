//! Removal: the journal forgets a chunk, synced, before its bytes are freed, and no reader holds it
//! by then.
//!
//! A chunk is withdrawn at once: readers no longer get it and inventories no longer list it. Its
//! removal is recorded with the next group. Then the maintenance thread frees chunks that no reader
//! holds, by punching a hole, or with the file if nothing else is in it. So a removal costs its
//! caller no system call, and ten thousand removals share a few syncs.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use chunkcache_proto::{ByteRange, ChunkIndex};
use parking_lot::Mutex;

use super::{
    disk::Open, entry_file::EntryFile, health::is_unsupported, journal_record::EntryNumber,
    shared::Shared, source_space::SourceSpace,
};

/// Disposable chunks and files to free.
#[derive(Default)]
struct Waiting {
    chunks: BTreeMap<EntryNumber, (Arc<EntryFile>, Vec<ChunkIndex>)>,
    /// Files of removed entries, and the bytes of their chunks.
    files: Vec<(PathBuf, u64, Arc<SourceSpace>)>,
}

/// Frees disposable chunks and files; see the module.
#[derive(Default)]
pub(super) struct Reaper {
    waiting: Mutex<Waiting>,
    /// Set where parts of files cannot be freed.
    no_punching: AtomicBool,
}

impl Reaper {
    /// Queues a disposable chunk.
    pub fn dispose(&self, entry: Arc<EntryFile>, chunk: ChunkIndex) {
        let mut waiting = self.waiting.lock();
        let (_, chunks) = waiting
            .chunks
            .entry(entry.number())
            .or_insert_with(|| (entry, Vec::new()));
        chunks.push(chunk);
    }

    pub fn unlink(&self, path: PathBuf, bytes: u64, space: Arc<SourceSpace>) {
        self.waiting.lock().files.push((path, bytes, space));
    }

    /// Whether entries are evicted as a whole.
    pub fn frees_whole_files_only(&self) -> bool {
        self.no_punching.load(Ordering::Acquire)
    }

    pub fn set_no_punching(&self) {
        self.no_punching.store(true, Ordering::Release);
    }
}

/// Withdraws chunks, so that readers and inventories no longer have them.
pub(super) fn drop_chunks(shared: &Shared, entry: &Arc<EntryFile>, chunks: &[ChunkIndex]) {
    let withdrawn: Vec<_> = chunks
        .iter()
        .copied()
        .filter(|chunk| entry.withdraw(*chunk))
        .collect();
    if !withdrawn.is_empty() {
        shared.policy.lock().removed(entry, &withdrawn);
        shared.queue.removed(entry.clone(), withdrawn);
    }
}

/// Unregisters the entry; readers that hold it continue.
pub(super) fn remove_entry(shared: &Shared, entry: &Arc<EntryFile>) {
    {
        let mut catalog = shared.catalog.write();
        // Under the lock, so that a registered entry is never marked as removed.
        entry.set_removed();
        catalog.remove(entry);
    }
    let forgotten = entry.forget_durable();
    shared.policy.lock().note_gone(entry, forgotten);
    shared.queue.entry_removed(entry.clone());
}

/// Frees what is queued. Blocking.
pub(super) fn reap(shared: &Shared) {
    // A broken journal may still claim these chunks: free nothing until it is replaced.
    if shared.journal.lock().is_broken() {
        return;
    }
    let Waiting { chunks, files } = std::mem::take(&mut *shared.reaper.waiting.lock());
    for (entry, chunks) in chunks.into_values() {
        dispose(shared, &entry, chunks);
    }
    for (path, bytes, space) in files {
        match shared.disk.remove_file(&path) {
            Err(error) if !is_absent(&error) => {
                // It becomes an orphan, removed at the next open; until then its bytes count.
                tracing::warn!(%error, ?path, "a removed entry's file could not be removed");
            }
            _ => space.release_chunk(bytes),
        }
    }
}

fn dispose(shared: &Shared, entry: &Arc<EntryFile>, mut chunks: Vec<ChunkIndex>) {
    let _no_write_begins = entry.emptying.lock();
    if entry.is_removed() {
        // They are freed with the file.
        return;
    }
    if entry.table().is_disposable() {
        match entry.remove_file() {
            Ok(()) => {
                let all = entry.table().select(|state| state.is_disposable());
                all.for_each(|chunk| emptied(entry, chunk));
                shared.idle.put(entry);
            }
            Err(error) => {
                shared.health.degrade("removing an empty file", &error);
                put_back(shared, entry, &chunks);
            }
        }
        return;
    }
    if shared.reaper.frees_whole_files_only() {
        // They count until the last chunk of their entry is removed.
        return;
    }
    // A rewritten chunk must stay. The last reader of a held chunk queues it again.
    chunks.retain(|chunk| entry.table().state(*chunk).is_disposable());
    chunks.sort_unstable();
    chunks.dedup();
    for run in chunks.chunk_by(|one, next| one + 1 == *next) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            continue;
        };
        let geometry = entry.geometry();
        let range = ByteRange::new(
            geometry.chunk_range(*first).start,
            geometry.chunk_range(*last).end,
        );
        let punched = match entry.open_file(Open::Existing) {
            Ok(file) => file.file.punch(range),
            // No file, no blocks.
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(error),
        };
        match punched {
            Ok(()) => run.iter().for_each(|chunk| emptied(entry, *chunk)),
            Err(error) if is_unsupported(&error) => {
                shared.reaper.set_no_punching();
                return;
            }
            Err(error) => {
                // They stay counted. The next write reuses them, or the next open reclaims them.
                shared.health.degrade("punching a hole", &error);
                put_back(shared, entry, run);
            }
        }
    }
}

/// Whether the file does not exist, or could not be created.
pub(super) fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

fn put_back(shared: &Shared, entry: &Arc<EntryFile>, chunks: &[ChunkIndex]) {
    for chunk in chunks {
        shared.reaper.dispose(entry.clone(), *chunk);
    }
}

fn emptied(entry: &EntryFile, chunk: ChunkIndex) {
    entry.table().mark_empty(chunk);
    entry.release(chunk);
}
