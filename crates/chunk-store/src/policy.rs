//! Connects the eviction policy to the entries: keys to chunks, and proposals whose rows are not
//! gone yet.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use chunkcache_proto::ChunkIndex;

use super::{Victims, catalog::Catalog, entry_file::EntryFile};
use crate::{
    chunk_table::ChunkState,
    eviction::{ChunkKey, Eviction, Resident, Residents},
};

/// The favoured first and last chunks of an entry: players probe the head; MP4 and Matroska files
/// have their index at the end.
const FAVOURED_HEAD_CHUNKS: u32 = 2;
const FAVOURED_TAIL_CHUNKS: u32 = 2;
/// A proposal that is not carried out (no coordinator) is forgotten, and may be made again.
const PROPOSAL_LIFETIME: Duration = Duration::from_secs(15);

#[derive(Default)]
pub(super) struct Policy {
    eviction: Eviction,
    proposed: HashMap<ChunkKey, Proposal>,
    proposed_bytes: u64,
}

/// What to propose.
pub(super) struct Wanted {
    pub bytes: u64,
    pub max_chunks: usize,
    /// Dropping part of an entry frees nothing.
    pub whole_entries: bool,
}

struct Proposal {
    bytes: u64,
    until: Instant,
}

impl Policy {
    /// Adds a chunk that has become durable.
    pub fn insert(&mut self, catalog: &Catalog, entry: &EntryFile, chunk: ChunkIndex) {
        self.eviction
            .insert(key(entry, chunk), &AllEntries(catalog));
    }

    pub fn pinning_changed(&mut self) {
        self.eviction.pinning_changed();
    }

    /// Removes withdrawn chunks.
    pub fn removed(&mut self, entry: &EntryFile, chunks: &[ChunkIndex]) {
        let mut unproposed = 0;
        for chunk in chunks {
            match self.proposed.remove(&key(entry, *chunk)) {
                Some(proposal) => self.proposed_bytes -= proposal.bytes,
                None => unproposed += 1,
            }
        }
        self.eviction.note_gone(unproposed);
    }

    /// Notes that an entry left with this many chunks.
    pub fn note_gone(&mut self, chunks: usize) {
        self.eviction.note_gone(chunks);
    }

    /// Bytes that will be free once the rows are gone.
    pub fn proposed_bytes(&self) -> u64 {
        self.proposed_bytes
    }

    /// Chooses at least `bytes` (if there are so many, and within the limit of chunks), and
    /// remembers the proposal.
    pub fn victims(&mut self, wanted: &Wanted, catalog: &Catalog, now: Instant) -> Vec<Victims> {
        self.expire(catalog, now);
        let residents = AllEntries(catalog);
        let mut by_entry: BTreeMap<u32, Vec<ChunkIndex>> = BTreeMap::new();
        let limits = (wanted.bytes, wanted.max_chunks);
        for key in self.eviction.victims(limits, &residents) {
            self.propose(key, &residents, now);
            let (number, chunk) = parts(key);
            by_entry.entry(number).or_default().push(chunk);
        }
        if wanted.whole_entries {
            for (number, chunks) in &mut by_entry {
                let Some(entry) = catalog.by_number(*number) else {
                    continue;
                };
                let others = entry.table().select(ChunkState::is_durable);
                for chunk in others
                    .filter(|chunk| !chunks.contains(chunk))
                    .collect::<Vec<_>>()
                {
                    let key = key(entry, chunk);
                    residents.dequeue(key);
                    self.propose(key, &residents, now);
                    chunks.push(chunk);
                }
            }
        }
        let known = |(number, chunks)| {
            Some(Victims {
                entry: catalog.by_number(number)?.id(),
                chunks,
            })
        };
        by_entry.into_iter().filter_map(known).collect()
    }

    fn propose(&mut self, key: ChunkKey, residents: &AllEntries<'_>, now: Instant) {
        let bytes = residents.look(key).map_or(0, |chunk| chunk.bytes);
        let until = now + PROPOSAL_LIFETIME;
        let before = self.proposed.insert(key, Proposal { bytes, until });
        self.proposed_bytes += bytes;
        self.proposed_bytes -= before.map_or(0, |before| before.bytes);
    }

    pub fn expire(&mut self, catalog: &Catalog, now: Instant) {
        let residents = AllEntries(catalog);
        let (eviction, proposed_bytes) = (&mut self.eviction, &mut self.proposed_bytes);
        self.proposed.retain(|key, proposal| {
            let lives = proposal.until > now;
            if !lives {
                *proposed_bytes -= proposal.bytes;
                eviction.put_back(*key, &residents);
            }
            lives
        });
    }
}

fn key(entry: &EntryFile, chunk: ChunkIndex) -> ChunkKey {
    u64::from(entry.number()) << 32 | u64::from(chunk)
}

fn parts(key: ChunkKey) -> (u32, ChunkIndex) {
    ((key >> 32) as u32, key as u32)
}

fn look(entry: &EntryFile, chunk: ChunkIndex) -> Option<Resident> {
    let state = entry.table().state(chunk);
    if !state.is_durable() || entry.is_removed() {
        return None;
    }
    let count = entry.geometry().chunk_count();
    Some(Resident {
        bytes: entry.geometry().chunk_len(chunk),
        uses: state.uses(),
        is_held: state.pins() > 0,
        is_pinned: entry.is_pinned(),
        is_favoured: chunk < FAVOURED_HEAD_CHUNKS || chunk + FAVOURED_TAIL_CHUNKS >= count,
    })
}

struct AllEntries<'a>(&'a Catalog);

impl AllEntries<'_> {
    fn find(&self, key: ChunkKey) -> Option<(&Arc<EntryFile>, ChunkIndex)> {
        let (number, chunk) = parts(key);
        Some((self.0.by_number(number)?, chunk))
    }
}

impl Residents for AllEntries<'_> {
    fn look(&self, key: ChunkKey) -> Option<Resident> {
        self.find(key).and_then(|(entry, chunk)| look(entry, chunk))
    }

    fn enqueue(&self, key: ChunkKey) -> bool {
        self.find(key)
            .is_some_and(|(entry, chunk)| entry.table().enqueue(chunk))
    }

    fn dequeue(&self, key: ChunkKey) {
        if let Some((entry, chunk)) = self.find(key) {
            entry.table().dequeue(chunk);
        }
    }

    fn forget_use(&self, key: ChunkKey) {
        if let Some((entry, chunk)) = self.find(key) {
            entry.table().forget_use(chunk);
        }
    }
}
