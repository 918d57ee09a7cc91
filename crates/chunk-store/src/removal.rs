//! Removal: the journal forgets a chunk, synced, before its hole is punched; and nobody holds it
//! then.
//!
//! Punching is left to the maintenance thread where a reader still holds the chunk, and while the
//! journal is broken: a file that may still say "stored" must not outlive the bytes.

use std::{collections::VecDeque, io, path::PathBuf, sync::Arc};

use chunkcache_proto::ChunkIndex;
use parking_lot::Mutex;

use super::{StoreError, disk::Open, entry_file::EntryFile, shared::Shared};
use crate::journal_record::{MAX_CHUNKS_PER_RECORD, Record};

enum Task {
    Punch(Arc<EntryFile>, ChunkIndex),
    /// A removed entry's file, and the bytes its chunks take.
    Unlink(PathBuf, u64),
}

/// What is to be given back to the disk off the caller's thread.
#[derive(Default)]
pub(super) struct Reaper(Mutex<VecDeque<Task>>);

impl Reaper {
    pub fn punch(&self, entry: Arc<EntryFile>, chunk: ChunkIndex) {
        self.0.lock().push_back(Task::Punch(entry, chunk));
    }

    pub fn unlink(&self, path: PathBuf, bytes: u64) {
        self.0.lock().push_back(Task::Unlink(path, bytes));
    }
}

/// Withdraws, records and punches. On an error the chunks are withdrawn all the same, and go once
/// the journal has been rewritten.
pub(super) fn drop_chunks(
    shared: &Shared,
    entry: &Arc<EntryFile>,
    chunks: &[ChunkIndex],
) -> Result<(), StoreError> {
    let _no_write_begins = entry.emptying.lock();
    let withdrawn: Vec<_> = chunks
        .iter()
        .copied()
        .filter(|chunk| entry.withdraw(*chunk))
        .collect();
    if withdrawn.is_empty() {
        return Ok(());
    }
    let mut frames = Vec::new();
    for part in withdrawn.chunks(MAX_CHUNKS_PER_RECORD) {
        let record = Record::Removed {
            number: entry.number(),
            chunks: part.to_vec(),
        };
        record.encode(&mut frames).map_err(io::Error::other)?;
    }
    let recorded = {
        let mut journal = shared.journal.lock();
        journal.append(&frames).inspect_err(|_| journal.give_up())
    };
    shared.policy.lock().removed(entry, &withdrawn);
    if let Err(error) = recorded {
        shared
            .health
            .degrade("recording a removal in the journal", &error);
        withdrawn
            .into_iter()
            .for_each(|chunk| shared.reaper.punch(entry.clone(), chunk));
        return Err(error.into());
    }
    for chunk in withdrawn {
        if entry.table().state(chunk).pins() == 0 {
            punch_locked(entry, chunk);
        }
        // Otherwise the last reader hands it to the reaper. It may have left between the withdrawal
        // and now: then it is in the reaper's queue as well, finds the chunk empty, and nothing
        // happens.
    }
    Ok(())
}

/// The record first, then the name; the blocks go with the last reader.
pub(super) fn remove_entry(shared: &Shared, entry: &Arc<EntryFile>) -> Result<(), StoreError> {
    let _no_write_begins = entry.emptying.lock();
    let mut frames = Vec::new();
    Record::EntryRemoved {
        number: entry.number(),
    }
    .encode(&mut frames)
    .map_err(io::Error::other)?;
    let mut journal = shared.journal.lock();
    let removed = journal.append(&frames).and_then(|()| entry.set_removed());
    if let Err(error) = removed {
        // Half of it must not come true after a crash while this process goes on with the entry.
        journal.give_up();
        shared.health.degrade("removing an entry", &error);
        return Err(error.into());
    }
    shared.catalog.write().remove(entry);
    drop(journal);
    let forgotten = entry.forget_durable();
    shared.policy.lock().note_gone(forgotten);
    Ok(())
}

/// Works off what waits. Blocking.
pub(super) fn reap(shared: &Shared) {
    if shared.journal.lock().is_broken() {
        return;
    }
    let tasks = std::mem::take(&mut *shared.reaper.0.lock());
    for task in tasks {
        match task {
            Task::Punch(entry, chunk) => {
                let _no_write_begins = entry.emptying.lock();
                let state = entry.table().state(chunk);
                // A reader that still holds it hands it over again; one that was written anew is
                // not ours any more.
                if state.is_doomed() && state.pins() == 0 {
                    if shared.journal.lock().is_broken() {
                        shared.reaper.punch(entry.clone(), chunk);
                    } else {
                        punch_locked(&entry, chunk);
                    }
                }
            }
            Task::Unlink(path, bytes) => {
                match shared.disk.remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        // It is an orphan at the next open; until then its bytes count.
                        tracing::warn!(%error, ?path, "a removed entry's file could not be removed");
                        continue;
                    }
                    _ => shared.space.release_chunk(bytes),
                }
            }
        }
    }
}

/// `emptying` is held, the chunk is doomed, unpinned, and the journal does not know it.
fn punch_locked(entry: &Arc<EntryFile>, chunk: ChunkIndex) {
    if !entry.table().state(chunk).is_doomed() {
        return;
    }
    let range = entry.geometry().chunk_range(chunk);
    let punched = match entry.open_file(Open::Existing) {
        Ok(file) => file.file.punch(range),
        // No file, no blocks.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    match punched {
        Ok(()) => {
            entry.table().mark_empty(chunk);
            entry.release(chunk);
        }
        Err(error) => {
            // It stays doomed and counted. The next write to it takes it over, or the next open
            // reclaims it.
            entry.shared().health.degrade("punching a hole", &error);
            entry.shared().reaper.punch(entry.clone(), chunk);
        }
    }
}
