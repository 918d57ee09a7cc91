//! Group commit: finished chunks become durable together.
//!
//! Order: the data files are synced, then the journal says so and is synced, then it is told. A
//! failed sync is never tried again and believed: the kernel reports lost pages once. Whatever of
//! that file was not durable is withdrawn.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use chunkcache_proto::{ChunkIndex, checksum::BLOCK_BYTES};
use parking_lot::{Condvar, Mutex};

use super::{
    Durable, catalog::describe, disk::Open, entry_file::EntryFile, journal::Journal, shared::Shared,
};
use crate::{
    chunk_table::ChunkState,
    journal_record::{EntryNumber, Record, stored_records},
};

/// Files synced at a time; more would only queue in the disk.
const PARALLEL_SYNCS: usize = 4;
/// A journal smaller than this is not worth rewriting.
const REWRITE_MIN_BYTES: u64 = 4 << 20;
/// A chunk's share of the journal, with its share of a frame.
const BYTES_PER_CHUNK: u64 = 13;
/// A block's, likewise: chunks of one block have none.
const BYTES_PER_BLOCK: u64 = 10;
const BYTES_PER_ENTRY: u64 = 512;

/// A chunk whose bytes are written.
pub(super) struct Finished {
    pub entry: Arc<EntryFile>,
    pub chunk: ChunkIndex,
}

/// What waits for the next group.
#[derive(Default)]
struct Group {
    chunks: Vec<Finished>,
    entries: BTreeMap<EntryNumber, Arc<EntryFile>>,
    notes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.entries.is_empty() && self.notes.is_empty()
    }
}

#[derive(Default)]
pub(super) struct CommitQueue {
    waiting: Mutex<Group>,
    arrived: Condvar,
}

impl CommitQueue {
    pub fn finished(&self, chunk: Finished) {
        self.put(|group| group.chunks.push(chunk));
    }

    /// The entry's description is to be recorded.
    pub fn describe(&self, entry: Arc<EntryFile>) {
        self.put(|group| drop(group.entries.insert(entry.number(), entry)));
    }

    pub fn note(&self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.put(|group| drop(group.notes.insert(key, value)));
    }

    /// Only the first of a group wakes the committer, which then waits for others to join.
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

    /// Until there is something, at most `timeout`; then `window` longer for others to join.
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

    /// Descriptions and notes of a failed group wait again; what came meanwhile is newer.
    fn give_back(
        &self,
        entries: BTreeMap<EntryNumber, Arc<EntryFile>>,
        notes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    ) {
        let mut waiting = self.waiting.lock();
        for (number, entry) in entries {
            waiting.entries.entry(number).or_insert(entry);
        }
        for (key, value) in notes {
            waiting.notes.entry(key).or_insert(value);
        }
    }
}

/// The chunks of a group in one file.
struct FileGroup {
    entry: Arc<EntryFile>,
    chunks: Vec<ChunkIndex>,
}

/// Makes what waits durable, or withdraws it.
pub(super) fn commit_group(shared: &Shared) {
    let Group {
        chunks,
        entries,
        notes,
    } = shared.queue.take();
    let mut files: BTreeMap<EntryNumber, FileGroup> = BTreeMap::new();
    for Finished { entry, chunk } in chunks {
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
        // One that was withdrawn and written anew since is in the queue twice.
        group.chunks.sort_unstable();
        group.chunks.dedup();
        group
            .chunks
            .retain(|chunk| group.entry.table().begin_sync(*chunk));
    }
    let files = sync_files(shared, files.into_values().collect());
    if files.is_empty() && entries.is_empty() && notes.is_empty() {
        return;
    }
    let mut journal = shared.journal.lock();
    match journal.append(&frames(&files, &entries, &notes)) {
        Ok(()) => {
            files.iter().for_each(|group| settle(shared, group));
            rewrite_if_mostly_garbage(shared, &mut journal);
        }
        Err(error) => {
            drop(journal);
            shared
                .health
                .degrade("recording chunks in the journal", &error);
            shared.queue.give_back(entries, notes);
            for FileGroup { entry, chunks } in files {
                withdraw_all(shared, &entry, chunks);
            }
        }
    }
}

/// Syncs each file, some at a time; leaves the groups whose sync succeeded.
fn sync_files(shared: &Shared, groups: Vec<FileGroup>) -> Vec<FileGroup> {
    let mut synced = Vec::with_capacity(groups.len());
    let mut groups = groups.into_iter().peekable();
    while groups.peek().is_some() {
        let batch: Vec<_> = groups.by_ref().take(PARALLEL_SYNCS).collect();
        let results: Vec<io::Result<()>> = if let [only] = &batch[..] {
            vec![sync_file(shared, &only.entry)]
        } else {
            std::thread::scope(|scope| {
                let threads: Vec<_> = batch
                    .iter()
                    .map(|group| scope.spawn(|| sync_file(shared, &group.entry)))
                    .collect();
                let panicked = |_| Err(io::Error::other("the sync panicked"));
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(panicked))
                    .collect()
            })
        };
        for (group, result) in batch.into_iter().zip(results) {
            match result {
                Ok(()) => synced.push(group),
                Err(error) => {
                    shared.health.degrade("syncing a data file", &error);
                    group.entry.table().spoil_unfinished();
                    // Also what finished since and is in no group yet: its pages may be among the
                    // lost.
                    let unsure = |state: ChunkState| state.is_present() && !state.is_durable();
                    let chunks = group.entry.table().select(unsure).collect();
                    withdraw_all(shared, &group.entry, chunks);
                }
            }
        }
    }
    synced
}

fn sync_file(shared: &Shared, entry: &EntryFile) -> io::Result<()> {
    let file = entry.open_file(Open::CreateOrExisting)?;
    // Before the sync: a write meanwhile sets it again.
    file.unsynced.store(false, Ordering::Release);
    file.file.sync_data()?;
    if !entry.linked.load(Ordering::Acquire) {
        for parent in entry.parents() {
            shared.disk.sync_dir(&parent)?;
        }
        entry.linked.store(true, Ordering::Release);
    }
    Ok(())
}

fn frames(
    files: &[FileGroup],
    entries: &BTreeMap<EntryNumber, Arc<EntryFile>>,
    notes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>,
) -> Vec<u8> {
    let descriptions = entries
        .values()
        .filter(|entry| !entry.is_removed())
        .map(|entry| describe(entry));
    let notes = notes.iter().map(|(key, value)| match value.clone() {
        Some(value) => Record::Note {
            key: key.clone(),
            value,
        },
        None => Record::NoteRemoved { key: key.clone() },
    });
    let mut bytes = Vec::new();
    let mut encode = |record: Record| {
        // Only a description or note can be too large, and both are refused at the door.
        if let Err(error) = record.encode(&mut bytes) {
            tracing::error!(%error, "left out of the journal");
        }
    };
    descriptions.chain(notes).for_each(&mut encode);
    for group in files.iter().filter(|group| !group.entry.is_removed()) {
        let table = group.entry.table();
        let present = group
            .chunks
            .iter()
            .filter(|chunk| table.state(**chunk).is_syncing());
        let chunks: Vec<_> = present
            .map(|chunk| (*chunk, table.checksum(*chunk)))
            .collect();
        stored_records(group.entry.number(), &chunks).for_each(&mut encode);
        let blocks = group.entry.block_records(&chunks);
        blocks.into_iter().for_each(&mut encode);
    }
    bytes
}

/// The group's records are synced.
fn settle(shared: &Shared, group: &FileGroup) {
    let entry = &group.entry;
    if entry.is_removed() {
        return;
    }
    // One that was withdrawn meanwhile has its removal recorded after this, by whoever withdrew it.
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

/// Chunks that are not durable: missing again, and said so.
fn withdraw_all(shared: &Shared, entry: &Arc<EntryFile>, chunks: Vec<ChunkIndex>) {
    let withdrawn: Vec<_> = chunks
        .into_iter()
        .filter(|chunk| entry.withdraw(*chunk))
        .collect();
    for chunk in &withdrawn {
        shared.reaper.punch(entry.clone(), *chunk);
    }
    shared.report_lost(entry.id(), withdrawn);
}

fn rewrite_if_mostly_garbage(shared: &Shared, journal: &mut Journal) {
    let live = {
        let catalog = shared.catalog.read();
        let notes: usize = catalog
            .notes
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        shared.durable_chunks.load(Ordering::Acquire) * BYTES_PER_CHUNK
            + shared.space.chunk_bytes() / BLOCK_BYTES * BYTES_PER_BLOCK
            + catalog.len() as u64 * BYTES_PER_ENTRY
            + notes as u64
    };
    if journal.len_bytes() > (2 * live).max(REWRITE_MIN_BYTES)
        && let Err(error) = shared.rewrite_journal(journal)
    {
        shared.health.degrade("rewriting the journal", &error);
    }
}
