//! Group commit: finished chunks become durable together.
//!
//! Order: the data files are synced, then the journal is written and synced, then the chunks are
//! reported. A failed sync is never retried, because the kernel reports lost pages only once and a
//! second sync would seem to succeed. All chunks of that file that were not durable are withdrawn.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use chunkcache_proto::{ChunkIndex, checksum::BLOCK_BYTES};
use parking_lot::{Condvar, Mutex};

use super::{
    Durable, catalog::describe, disk::Open, entry_file::EntryFile, journal::Journal, shared::Shared,
};
use crate::{
    chunk_table::ChunkState,
    journal_record::{EntryNumber, MAX_CHUNKS_PER_RECORD, Record, stored_records},
};

/// Files synced in parallel; more would only queue in the disk.
const PARALLEL_SYNCS: usize = 4;
/// A journal smaller than this is not worth rewriting.
const REWRITE_MIN_BYTES: u64 = 4 << 20;
/// Journal bytes per chunk, with its share of a frame.
const BYTES_PER_CHUNK: u64 = 13;
/// Journal bytes per block, likewise. Chunks of a single block have no block records.
const BYTES_PER_BLOCK: u64 = 10;
const BYTES_PER_ENTRY: u64 = 512;

/// A chunk whose bytes are all written.
pub(super) struct FinishedChunk {
    pub entry: Arc<EntryFile>,
    pub chunk: ChunkIndex,
}

/// Chunks and changes that wait for the next group.
#[derive(Default)]
struct Group {
    chunks: Vec<FinishedChunk>,
    changes: Changes,
}

/// Changes that wait for the journal alone.
#[derive(Default)]
struct Changes {
    /// Entries to be described again.
    entries: BTreeMap<EntryNumber, Arc<EntryFile>>,
    notes: BTreeMap<Vec<u8>, Option<Arc<[u8]>>>,
    /// Withdrawn chunks.
    removed: Vec<(Arc<EntryFile>, Vec<ChunkIndex>)>,
    /// Kept until they are recorded: a file is removed with its last handle.
    removed_entries: Vec<Arc<EntryFile>>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.notes.is_empty()
            && self.removed.is_empty()
            && self.removed_entries.is_empty()
    }
}

impl Group {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.changes.is_empty()
    }
}

#[derive(Default)]
pub(super) struct CommitQueue {
    waiting: Mutex<Group>,
    arrived: Condvar,
}

impl CommitQueue {
    pub fn finished(&self, chunk: FinishedChunk) {
        self.put(|group| group.chunks.push(chunk));
    }

    /// Queues the entry's description to be recorded.
    pub fn describe(&self, entry: Arc<EntryFile>) {
        self.put(|group| drop(group.changes.entries.insert(entry.number(), entry)));
    }

    pub fn note(&self, key: Vec<u8>, value: Option<Arc<[u8]>>) {
        self.put(|group| drop(group.changes.notes.insert(key, value)));
    }

    /// Queues the removal of withdrawn chunks.
    pub fn removed(&self, entry: Arc<EntryFile>, chunks: Vec<ChunkIndex>) {
        self.put(|group| group.changes.removed.push((entry, chunks)));
    }

    pub fn entry_removed(&self, entry: Arc<EntryFile>) {
        self.put(|group| group.changes.removed_entries.push(entry));
    }

    /// Adds to the group. Only the first addition wakes the committer, which then waits for others.
    fn put(&self, put: impl FnOnce(&mut Group)) {
        let mut waiting = self.waiting.lock();
        let is_first = waiting.is_empty();
        put(&mut waiting);
        drop(waiting);
        if is_first {
            self.arrived.notify_one();
        }
    }

    pub fn wake(&self) {
        self.arrived.notify_all();
    }

    /// Waits at most `timeout` for a first change, then `window` longer for others to join.
    pub fn wait(&self, timeout: Duration, window: Duration) {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            self.arrived.wait_for(&mut waiting, timeout);
        }
        let until = Instant::now() + window;
        while !waiting.is_empty() && !self.arrived.wait_until(&mut waiting, until).timed_out() {}
    }

    fn take(&self) -> Group {
        std::mem::take(&mut *self.waiting.lock())
    }

    /// Returns the changes of a failed group to the queue; changes queued since are newer.
    fn give_back(&self, changes: Changes) {
        let mut waiting = self.waiting.lock();
        let newer = std::mem::replace(&mut waiting.changes, changes);
        waiting.changes.entries.extend(newer.entries);
        waiting.changes.notes.extend(newer.notes);
        waiting.changes.removed.extend(newer.removed);
        waiting
            .changes
            .removed_entries
            .extend(newer.removed_entries);
    }
}

/// The chunks of a group in one file.
struct FileGroup {
    entry: Arc<EntryFile>,
    chunks: Vec<ChunkIndex>,
}

/// Makes queued chunks durable, or withdraws them.
pub(super) fn commit_group(shared: &Shared) {
    let Group {
        chunks,
        mut changes,
    } = shared.queue.take();
    let mut files: BTreeMap<EntryNumber, FileGroup> = BTreeMap::new();
    for FinishedChunk { entry, chunk } in chunks {
        files
            .entry(entry.number())
            .or_insert_with(|| FileGroup {
                entry,
                chunks: Vec::new(),
            })
            .chunks
            .push(chunk);
    }
    for group in files.values_mut() {
        // A chunk that was withdrawn and rewritten is in the queue twice.
        group.chunks.sort_unstable();
        group.chunks.dedup();
        group
            .chunks
            .retain(|chunk| group.entry.table().begin_sync(*chunk));
    }
    let files = sync_files(shared, files.into_values().collect());
    if files.is_empty() && changes.is_empty() {
        return;
    }
    let mut journal = shared.journal.lock();
    let new = files.iter().map(|group| &group.entry);
    let new = new.filter(|entry| !entry.described.load(Ordering::Acquire));
    let new: Vec<_> = new.cloned().collect();
    for entry in &new {
        changes.entries.insert(entry.number(), entry.clone());
    }
    let numbers = shared.catalog.write().reserve_numbers();
    let (frames, recorded) = frames(&files, &changes, numbers);
    match journal.append(&frames) {
        Ok(()) => {
            for entry in changes.entries.values() {
                entry.described.store(true, Ordering::Release);
            }
            files.iter().for_each(|group| settle(shared, group));
            rewrite_if_mostly_garbage(shared, &mut journal);
            drop(journal);
            dispose_of(shared, changes.removed, &recorded);
            if !changes.removed_entries.is_empty() {
                drop(changes.removed_entries);
                shared.house.wake();
            }
        }
        Err(error) => {
            drop(journal);
            shared
                .health
                .degrade("recording chunks in the journal", &error);
            for entry in new {
                changes.entries.remove(&entry.number());
            }
            shared.queue.give_back(changes);
            for FileGroup { entry, chunks } in files {
                withdraw_all(shared, &entry, chunks);
            }
        }
    }
}

/// Disposes of chunks that the journal no longer lists and no reader holds.
fn dispose_of(
    shared: &Shared,
    removed: Vec<(Arc<EntryFile>, Vec<ChunkIndex>)>,
    recorded: &HashSet<(EntryNumber, ChunkIndex)>,
) {
    for (entry, chunks) in removed {
        for chunk in chunks {
            // A chunk that was stored and removed again has a later removal.
            if recorded.contains(&(entry.number(), chunk)) {
                continue;
            }
            let state = entry.table().mark_unrecorded(chunk);
            if state.is_some_and(ChunkState::is_disposable) {
                shared.reaper.dispose(entry.clone(), chunk);
                shared.house.wake();
            }
        }
    }
}

/// Syncs each file and the names of new ones; keeps the groups whose syncs succeeded.
fn sync_files(shared: &Shared, groups: Vec<FileGroup>) -> Vec<FileGroup> {
    let data = in_parallel(&groups, |group| sync_file(&group.entry));
    // A directory is synced once for all new files of the group: beside ten thousand small objects
    // a second, its sync would cost more than theirs.
    let is_new = |group: &&FileGroup| !group.entry.linked.load(Ordering::Acquire);
    let new = groups.iter().filter(is_new);
    let parents: BTreeSet<PathBuf> = new.flat_map(|group| group.entry.parents()).collect();
    let parents: Vec<PathBuf> = parents.into_iter().collect();
    let synced = in_parallel(&parents, |parent| shared.disk.sync_dir(parent));
    let names: BTreeMap<PathBuf, io::Result<()>> = parents.into_iter().zip(synced).collect();
    let mut kept = Vec::with_capacity(groups.len());
    for (group, data) in groups.into_iter().zip(data) {
        match data.and_then(|()| link(&group.entry, &names)) {
            Ok(()) => kept.push(group),
            Err(error) => {
                shared.health.degrade("syncing a data file", &error);
                group.entry.table().spoil_unfinished();
                // Includes chunks that have finished since and are in no group yet: their pages may
                // be lost too.
                let unsure = |state: ChunkState| state.is_present() && !state.is_durable();
                let chunks = group.entry.table().select(unsure).collect();
                withdraw_all(shared, &group.entry, chunks);
            }
        }
    }
    kept
}

/// Calls `work` for each item, on a few threads if there are several. Results are in the order of
/// the items.
fn in_parallel<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> io::Result<()> + Sync,
) -> Vec<io::Result<()>> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else {
                return done;
            };
            done.push((at, work(item)));
        }
    };
    let panicked = |_: &T| Err(io::Error::other("the sync panicked"));
    let mut results: Vec<io::Result<()>> = items.iter().map(panicked).collect();
    let done: Vec<(usize, io::Result<()>)> = std::thread::scope(|scope| {
        let others = 1..items.len().min(PARALLEL_SYNCS);
        let others: Vec<_> = others.map(|_| scope.spawn(run)).collect();
        let mut done = run();
        done.extend(others.into_iter().filter_map(|it| it.join().ok()).flatten());
        done
    });
    for (at, result) in done {
        results[at] = result;
    }
    results
}

fn sync_file(entry: &EntryFile) -> io::Result<()> {
    let file = entry.open_file(Open::CreateOrExisting)?;
    // Before the sync, so that a write during the sync sets it again.
    file.unsynced.store(false, Ordering::Release);
    file.file.sync_data()
}

/// Records that the file's name is durable, if the directories that it needs were synced.
fn link(entry: &EntryFile, synced: &BTreeMap<PathBuf, io::Result<()>>) -> io::Result<()> {
    if entry.linked.load(Ordering::Acquire) {
        return Ok(());
    }
    for parent in entry.parents() {
        match synced.get(&parent) {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(io::Error::new(error.kind(), error.to_string())),
            // The file was removed meanwhile, and so were the group's chunks in it.
            None => return Ok(()),
        }
    }
    entry.linked.store(true, Ordering::Release);
    Ok(())
}

/// The records of a group, and the chunks that they list as stored.
fn frames(
    files: &[FileGroup],
    changes: &Changes,
    numbers: Option<Record>,
) -> (Vec<u8>, HashSet<(EntryNumber, ChunkIndex)>) {
    let mut bytes = Vec::new();
    let mut recorded = HashSet::new();
    let mut encode = |record: Record| {
        // Only a description or note can be too large, and both are checked when they are set.
        if let Err(error) = record.encode(&mut bytes) {
            tracing::error!(%error, "left out of the journal");
        }
    };
    numbers.into_iter().for_each(&mut encode);
    let described = changes.entries.values();
    described
        .filter(|entry| !entry.is_removed())
        .for_each(|entry| encode(describe(entry)));
    for (key, value) in &changes.notes {
        encode(match value {
            Some(value) => Record::Note {
                key: key.clone(),
                value: value.to_vec(),
            },
            None => Record::NoteRemoved { key: key.clone() },
        });
    }
    // Before the stored chunks, because a chunk that was removed and stored again is stored.
    for (entry, chunks) in &changes.removed {
        if entry.is_removed() {
            continue;
        }
        for part in chunks.chunks(MAX_CHUNKS_PER_RECORD) {
            encode(Record::Removed {
                number: entry.number(),
                chunks: part.to_vec(),
            });
        }
    }
    for group in files.iter().filter(|group| !group.entry.is_removed()) {
        let table = group.entry.table();
        let present = group
            .chunks
            .iter()
            .filter(|chunk| table.state(**chunk).is_syncing());
        let chunks: Vec<_> = present
            .map(|chunk| (*chunk, table.checksum(*chunk)))
            .collect();
        let number = group.entry.number();
        recorded.extend(chunks.iter().map(|(chunk, _)| (number, *chunk)));
        stored_records(number, &chunks).for_each(&mut encode);
        let blocks = group.entry.block_records(&chunks);
        blocks.into_iter().for_each(&mut encode);
    }
    for entry in &changes.removed_entries {
        encode(Record::EntryRemoved {
            number: entry.number(),
        });
    }
    (bytes, recorded)
}

/// Completes the group: its records are synced.
fn settle(shared: &Shared, group: &FileGroup) {
    let entry = &group.entry;
    if entry.is_removed() {
        return;
    }
    // If a chunk was withdrawn meanwhile, the withdrawing code records its removal later.
    let durable: Vec<_> = group
        .chunks
        .iter()
        .copied()
        .filter(|chunk| entry.mark_durable(*chunk))
        .collect();
    {
        let catalog = shared.catalog.read();
        let mut policy = shared.policy.lock();
        durable
            .iter()
            .for_each(|chunk| policy.insert(&catalog, entry, *chunk));
    }
    if !durable.is_empty() {
        let chunks = durable
            .into_iter()
            .map(|chunk| (chunk, entry.table().checksum(chunk)))
            .collect();
        shared.durable.send(Durable {
            entry: entry.id(),
            chunks,
        });
    }
}

/// Withdraws chunks that did not become durable, and reports them as missing.
fn withdraw_all(shared: &Shared, entry: &Arc<EntryFile>, chunks: Vec<ChunkIndex>) {
    let withdrawn: Vec<_> = chunks
        .into_iter()
        .filter(|chunk| entry.withdraw(*chunk))
        .collect();
    if !withdrawn.is_empty() {
        shared.queue.removed(entry.clone(), withdrawn.clone());
    }
    shared.report_lost(entry.id(), withdrawn);
}

fn rewrite_if_mostly_garbage(shared: &Shared, journal: &mut Journal) {
    let live = {
        let catalog = shared.catalog.read();
        shared.durable_chunks.load(Ordering::Acquire) * BYTES_PER_CHUNK
            + shared.space.chunk_bytes() / BLOCK_BYTES * BYTES_PER_BLOCK
            + catalog.len() as u64 * BYTES_PER_ENTRY
            + catalog.notes_bytes()
    };
    if journal.len_bytes() > (2 * live).max(REWRITE_MIN_BYTES)
        && let Err(error) = shared.rewrite_journal(journal)
    {
        shared.health.degrade("rewriting the journal", &error);
    }
}
