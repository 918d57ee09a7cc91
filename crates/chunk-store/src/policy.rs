//! Connects the eviction policy to the entries: maps keys to chunks, and remembers proposals whose
//! rows are not gone yet.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use chunkcache_proto::ChunkIndex;

use super::{Victims, catalog::Catalog, entry_file::EntryFile, source_space::SourceSpace};
use crate::{
    chunk_table::ChunkState,
    eviction::{Amount, ChunkKey, Eviction, Resident, Residents},
};

/// The favoured first and last chunks of an entry: players probe the head; MP4 and Matroska files
/// have their index at the end.
const FAVOURED_HEAD_CHUNKS: u32 = 2;
const FAVOURED_TAIL_CHUNKS: u32 = 2;
/// A proposal that is not carried out (without a coordinator) is forgotten, and may be made again.
const PROPOSAL_LIFETIME: Duration = Duration::from_secs(15);

/// One set of queues per source, so that a scan of one source does not evict what another holds.
#[derive(Default)]
pub(super) struct Policy {
    sources: BTreeMap<Arc<str>, SourceQueues>,
    proposed: HashMap<ChunkKey, Proposal>,
    proposed_bytes: u64,
}

struct SourceQueues {
    space: Arc<SourceSpace>,
    eviction: Eviction,
}

/// How much to propose, in addition to what the quotas require.
pub(super) struct Wanted {
    pub bytes: u64,
    pub max_chunks: usize,
    /// Dropping part of an entry frees nothing.
    pub whole_entries: bool,
    pub tick: u16,
}

struct Proposal {
    space: Arc<SourceSpace>,
    bytes: u64,
    until: Instant,
}

impl Policy {
    /// Adds a chunk that has become durable.
    pub fn insert(&mut self, catalog: &Catalog, entry: &EntryFile, chunk: ChunkIndex) {
        let space = entry.space();
        let queues = self
            .sources
            .entry(space.name().clone())
            .or_insert_with(|| SourceQueues {
                space: space.clone(),
                eviction: Eviction::default(),
            });
        let key = key(entry, chunk);
        queues.eviction.insert(key, &AllEntries(catalog));
    }

    pub fn pinning_changed(&mut self, entry: &EntryFile) {
        if let Some(queues) = self.sources.get_mut(entry.space().name()) {
            queues.eviction.pinning_changed();
        }
    }

    /// Removes withdrawn chunks.
    pub fn removed(&mut self, entry: &EntryFile, chunks: &[ChunkIndex]) {
        let mut unproposed = 0;
        for chunk in chunks {
            match self.proposed.remove(&key(entry, *chunk)) {
                Some(proposal) => {
                    self.proposed_bytes -= proposal.bytes;
                    proposal.space.unpropose(proposal.bytes);
                }
                None => unproposed += 1,
            }
        }
        self.note_gone(entry, unproposed);
    }

    /// Notes that an entry left with this many chunks.
    pub fn note_gone(&mut self, entry: &EntryFile, chunks: usize) {
        if let Some(queues) = self.sources.get_mut(entry.space().name()) {
            queues.eviction.note_gone(chunks);
        }
    }

    /// Bytes that will be free once the rows are gone.
    pub fn proposed_bytes(&self) -> u64 {
        self.proposed_bytes
    }

    /// Chooses chunks over a quota, and then further ones until at least `bytes` are chosen, within
    /// the limit of chunks. Remembers the proposal.
    pub fn victims(&mut self, wanted: &Wanted, catalog: &Catalog, now: Instant) -> Vec<Victims> {
        self.expire(catalog, now);
        let residents = AllEntries(catalog);
        self.sources
            .retain(|_, queues| !queues.eviction.is_empty() || queues.space.staying() > 0);
        let mut by_entry: BTreeMap<u32, Vec<ChunkIndex>> = BTreeMap::new();
        for key in self.choose(wanted, &residents, now) {
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

    /// Chooses in this order: sources over their quota, down to the quota; sources over an equal
    /// share of the disk, down to that share, the largest excess first (a source that nobody reads
    /// any longer has no share); then all sources, and pinned chunks last.
    fn choose(
        &mut self,
        wanted: &Wanted,
        residents: &AllEntries<'_>,
        now: Instant,
    ) -> Vec<ChunkKey> {
        let mut chosen = Vec::new();
        let mut left = wanted.bytes;
        let over = |(source, queues): (&Arc<str>, &SourceQueues)| {
            let excess = queues.space.over_quota();
            (excess > 0).then(|| (source.clone(), excess))
        };
        let over: Vec<_> = self.sources.iter().filter_map(over).collect();
        for (source, excess) in over {
            let limit = wanted.max_chunks.saturating_sub(chosen.len());
            let taken = self.take_from(&source, (excess, limit, false), residents, now);
            left = left.saturating_sub(taken.1);
            chosen.extend(taken.0);
        }
        if left == 0 {
            return chosen;
        }
        let shares = self.excesses(left, wanted.tick);
        for (within_excess, may_take_pinned) in [(true, false), (false, false), (false, true)] {
            for (source, excess) in &shares {
                let limit = wanted.max_chunks.saturating_sub(chosen.len());
                let bytes = if within_excess {
                    left.min(*excess)
                } else {
                    left
                };
                let amount = (bytes, limit, may_take_pinned);
                let taken = self.take_from(source, amount, residents, now);
                left = left.saturating_sub(taken.1);
                chosen.extend(taken.0);
            }
        }
        chosen
    }

    /// All sources with the bytes that each holds beyond its share of what remains once `left`
    /// bytes have left, the largest excess first.
    fn excesses(&self, left: u64, tick: u16) -> Vec<(Arc<str>, u64)> {
        let active = self.sources.values().filter(|it| !it.space.is_idle(tick));
        let count = active.count().max(1) as u64;
        let staying = self.sources.values().map(|it| it.space.staying());
        let share = staying.sum::<u64>().saturating_sub(left) / count;
        let mut excesses: Vec<_> = self
            .sources
            .iter()
            .map(|(source, queues)| {
                let is_idle = queues.space.is_idle(tick);
                let share = if is_idle { 0 } else { share };
                (
                    source.clone(),
                    queues.space.staying().saturating_sub(share),
                    is_idle,
                )
            })
            .collect();
        excesses.sort_by_key(|(_, excess, is_idle)| std::cmp::Reverse((*is_idle, *excess)));
        excesses
            .into_iter()
            .map(|(source, excess, _)| (source, excess))
            .collect()
    }

    /// Chooses chunks of one source, with their sizes, and remembers the proposal.
    fn take_from(
        &mut self,
        source: &Arc<str>,
        (bytes, max_chunks, may_take_pinned): (u64, usize, bool),
        residents: &AllEntries<'_>,
        now: Instant,
    ) -> (Vec<ChunkKey>, u64) {
        let Some(queues) = self.sources.get_mut(source) else {
            return (Vec::new(), 0);
        };
        let amount = Amount {
            bytes,
            max_chunks,
            may_take_pinned,
        };
        let keys = queues.eviction.victims(amount, residents);
        let before = self.proposed_bytes;
        keys.iter()
            .for_each(|key| self.propose(*key, residents, now));
        (keys, self.proposed_bytes - before)
    }

    fn propose(&mut self, key: ChunkKey, residents: &AllEntries<'_>, now: Instant) {
        let Some((entry, chunk)) = residents.find(key) else {
            return;
        };
        let proposal = Proposal {
            space: entry.space().clone(),
            bytes: look(entry, chunk).map_or(0, |chunk| chunk.bytes),
            until: now + PROPOSAL_LIFETIME,
        };
        self.proposed_bytes += proposal.bytes;
        proposal.space.propose(proposal.bytes);
        if let Some(before) = self.proposed.insert(key, proposal) {
            self.proposed_bytes -= before.bytes;
            before.space.unpropose(before.bytes);
        }
    }

    pub fn expire(&mut self, catalog: &Catalog, now: Instant) {
        let residents = AllEntries(catalog);
        let (sources, proposed_bytes) = (&mut self.sources, &mut self.proposed_bytes);
        self.proposed.retain(|key, proposal| {
            let lives = proposal.until > now;
            if !lives {
                *proposed_bytes -= proposal.bytes;
                proposal.space.unpropose(proposal.bytes);
                if let Some(queues) = sources.get_mut(proposal.space.name()) {
                    queues.eviction.put_back(*key, &residents);
                }
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

#[cfg(test)]
thread_local! {
    /// Number of chunks that this thread examined.
    pub(super) static LOOKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

fn look(entry: &EntryFile, chunk: ChunkIndex) -> Option<Resident> {
    #[cfg(test)]
    LOOKS.set(LOOKS.get() + 1);
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
