//! After an open: frees bytes that the journal does not prove, and finds chunks that it proves but
//! the disk lacks. Runs in the background, so that serving begins at once.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use chunkcache_proto::{ByteRange, EntryId};

use super::{
    CHUNKS_SUFFIX, ENTRIES_DIR, disk::Open, entry_file::EntryFile, health::is_unsupported,
    shared::Shared, verify,
};
use crate::{chunk_table::ChunkState, journal_record::EntryNumber};

/// Counts of what was freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReclaimedSpace {
    pub files: u64,
    pub chunks: u64,
}

/// The entries known at the open. The search ignores later changes.
pub(super) struct Search {
    /// Weak: a removed entry's file goes with its last reader.
    entries: Vec<Weak<EntryFile>>,
    files: HashSet<PathBuf>,
    /// Files of later entries have higher numbers.
    next_number: EntryNumber,
    reclaimed: ReclaimedSpace,
}

impl Search {
    /// Must run before anything is stored or removed.
    pub fn new(shared: &Shared) -> Self {
        let catalog = shared.catalog.read();
        let entries = catalog.all();
        Self {
            files: entries.iter().map(|entry| entry.path()).collect(),
            entries: entries.iter().map(Arc::downgrade).collect(),
            next_number: catalog.next_number(),
            reclaimed: ReclaimedSpace::default(),
        }
    }

    /// Removes files without an entry and punches extents without a chunk. Blocking, long.
    pub fn run(mut self, shared: &Shared) -> ReclaimedSpace {
        if let Err(error) = self.remove_orphans(shared) {
            tracing::warn!(%error, "the data directory could not be searched for orphaned files");
        }
        for entry in std::mem::take(&mut self.entries) {
            if shared.is_stopping() {
                return self.reclaimed;
            }
            let Some(entry) = entry.upgrade() else {
                continue;
            };
            if let Err(error) = reclaim_entry(&entry, &mut self.reclaimed) {
                tracing::warn!(
                    %error,
                    entry = %entry.id(),
                    "unproved extents could not be reclaimed"
                );
            }
        }
        if self.reclaimed != ReclaimedSpace::default() {
            tracing::info!(
                files = self.reclaimed.files,
                chunks = self.reclaimed.chunks,
                "reclaimed what the journal does not prove"
            );
        }
        self.reclaimed
    }

    fn remove_orphans(&mut self, shared: &Shared) -> io::Result<()> {
        let root = Path::new(ENTRIES_DIR);
        for directory in shared.disk.list(root)? {
            let directory = root.join(directory);
            for name in shared.disk.list(&directory)? {
                if shared.is_stopping() {
                    return Ok(());
                }
                let is_later = number_in(&name).is_some_and(|number| number >= self.next_number);
                let path: PathBuf = directory.join(&name);
                if is_later || !is_ours(&name) || self.files.contains(&path) {
                    continue;
                }
                match shared.disk.remove_file(&path) {
                    Ok(()) => self.reclaimed.files += 1,
                    Err(error) => {
                        tracing::warn!(%error, ?path, "an orphaned file could not be removed")
                    }
                }
            }
        }
        Ok(())
    }
}

/// The number in the name of a file that has its entry's id and number.
fn number_in(name: &str) -> Option<EntryNumber> {
    name.split('.').nth(1)?.parse().ok()
}

/// Whether the name is one of the store's; other files are left alone.
fn is_ours(name: &str) -> bool {
    name.get(..36)
        .is_some_and(|id| id.parse::<EntryId>().is_ok())
        && (name.ends_with(CHUNKS_SUFFIX) || name.ends_with(".removed"))
}

fn reclaim_entry(entry: &Arc<EntryFile>, reclaimed: &mut ReclaimedSpace) -> io::Result<()> {
    let geometry = entry.geometry();
    let file = match entry.open_file(Open::Existing) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            check_present(entry, 0, geometry.chunk_count());
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let mut at = 0;
    while let Some(data) = file.file.next_data(at)? {
        if entry.is_stopping() {
            return Ok(());
        }
        let chunks = geometry.chunks_covering(data);
        // A proved chunk in a hole: either its blocks are lost, or the file system does not store
        // zeros. Reading the chunk tells which.
        check_present(entry, geometry.chunk_of(at), chunks.start);
        for chunk in chunks.clone() {
            // Under the lock that the first write to a chunk takes, so that writes of this process
            // are not disturbed.
            let _no_write_begins = entry.emptying.lock();
            let state = entry.table().state(chunk);
            if !state.is_present() && !state.is_written() && !state.is_doomed() {
                file.file
                    .punch(geometry.chunk_range(chunk).intersect(data))
                    .or_else(ignore_unsupported)?;
                reclaimed.chunks += 1;
            }
        }
        at = data.end;
    }
    if at < geometry.size() {
        check_present(
            entry,
            geometry.chunk_of(at.saturating_sub(1)) + u32::from(at > 0),
            geometry.chunk_count(),
        );
    }
    // Blocks past the end of the object belong to nothing.
    let len = file.file.len()?;
    file.file
        .punch(ByteRange::new(geometry.size().next_multiple_of(4096), len))
        .or_else(ignore_unsupported)
}

/// Where punching is not supported, blocks are freed with the file.
fn ignore_unsupported(error: io::Error) -> io::Result<()> {
    if is_unsupported(&error) {
        Ok(())
    } else {
        Err(error)
    }
}

/// Verifies proved chunks that seem to have no blocks.
pub(super) fn check_present(entry: &Arc<EntryFile>, from: u32, to: u32) {
    let is_unsure = |state: ChunkState| state.is_durable() && !state.is_verified();
    // Only stored chunks, not all that the entry claims: an object may be petabytes long.
    let unsure = entry.table().select(is_unsure);
    for chunk in unsure.filter(|chunk| (from..to).contains(chunk)) {
        // Each check reads a whole chunk, so many lost ones would delay the process's exit.
        if entry.is_stopping() {
            return;
        }
        if let Err(error) = verify::check(entry, chunk, verify::Trust::Verified) {
            tracing::warn!(
                %error,
                entry = %entry.id(),
                chunk,
                "a chunk without blocks could not be checked"
            );
        }
    }
}
