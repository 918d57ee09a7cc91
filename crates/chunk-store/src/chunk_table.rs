//! What is known of each chunk of one entry, in one atomic word a chunk.
//!
//! Readers pin and unpin with one compare-and-swap: no lock is shared between connections. Words
//! live in pages of 512 that are made when first touched, so that a 100 GB entry of which little is
//! cached costs some hundred bytes. The table holds facts only; the order in which they may change
//! (journal before punch, sync before durable) is the store's business.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

use chunkcache_proto::ChunkIndex;

/// 8 KiB a page: small against what 512 chunks weigh, large against the pointer to it.
const PAGE_CHUNKS: usize = 512;

const PRESENT: u64 = 1;
const VERIFIED: u64 = 1 << 1;
const DURABLE: u64 = 1 << 2;
const DOOMED: u64 = 1 << 3;
const WRITTEN: u64 = 1 << 4;
const SPOILED: u64 = 1 << 5;
const QUEUED: u64 = 1 << 6;
const SYNCING: u64 = 1 << 7;
const USES_SHIFT: u32 = 8;
const USES_MASK: u64 = 0b11 << USES_SHIFT;
const TICK_SHIFT: u32 = 16;
const TICK_MASK: u64 = 0xffff << TICK_SHIFT;
const PIN_ONE: u64 = 1 << 32;
const MAX_PINS: u64 = u32::MAX as u64;

/// Uses saturate here, as S3-FIFO has it: two bits tell hot from warm from cold.
pub const MAX_USES: u8 = 3;
/// Uses less than so many ticks after the last counted one are the same use: one viewer takes a
/// chunk in many pieces, and that must not look like popularity.
const CORRELATED_TICKS: u16 = 2;

/// A chunk's word at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkState(u64);

impl ChunkState {
    /// Readers may have it.
    #[must_use]
    pub fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }
    /// Its bytes were checked, or written, by this process.
    #[must_use]
    pub fn is_verified(self) -> bool {
        self.0 & VERIFIED != 0
    }
    /// It and its journal record are synced.
    #[must_use]
    pub fn is_durable(self) -> bool {
        self.0 & DURABLE != 0
    }
    /// Withdrawn; its bytes go once nobody holds it.
    #[must_use]
    pub fn is_doomed(self) -> bool {
        self.0 & DOOMED != 0
    }
    /// Bytes of it were written since it was last empty.
    #[must_use]
    pub fn is_written(self) -> bool {
        self.0 & WRITTEN != 0
    }
    /// A sync of its file failed while it was being written: its bytes may be lost although reads
    /// still show them.
    #[must_use]
    pub fn is_spoiled(self) -> bool {
        self.0 & SPOILED != 0
    }
    /// All its bytes were written before the sync under way began.
    #[must_use]
    pub fn is_syncing(self) -> bool {
        self.0 & SYNCING != 0
    }
    /// Readers that hold it.
    #[must_use]
    pub fn pins(self) -> u64 {
        self.0 >> 32
    }
    /// Counted uses, 0 to [`MAX_USES`].
    #[must_use]
    pub fn uses(self) -> u8 {
        ((self.0 & USES_MASK) >> USES_SHIFT) as u8
    }
}

struct Page {
    words: [AtomicU64; PAGE_CHUNKS],
    checksums: [AtomicU64; PAGE_CHUNKS],
}

/// The chunks of one entry.
pub struct ChunkTable {
    pages: Box<[OnceLock<Box<Page>>]>,
    chunk_count: u32,
}

impl ChunkTable {
    /// All chunks absent.
    #[must_use]
    pub fn new(chunk_count: u32) -> Self {
        let pages = (chunk_count as usize).div_ceil(PAGE_CHUNKS);
        Self {
            pages: (0..pages).map(|_| OnceLock::new()).collect(),
            chunk_count,
        }
    }

    /// Of a chunk; all false past the end.
    #[must_use]
    pub fn state(&self, chunk: ChunkIndex) -> ChunkState {
        ChunkState(
            self.word(chunk)
                .map_or(0, |word| word.load(Ordering::Acquire)),
        )
    }

    /// As it was given when the chunk became present; only then of meaning.
    #[must_use]
    pub fn checksum(&self, chunk: ChunkIndex) -> u64 {
        let page = self
            .pages
            .get(chunk as usize / PAGE_CHUNKS)
            .and_then(OnceLock::get);
        page.map_or(0, |p| {
            p.checksums[chunk as usize % PAGE_CHUNKS].load(Ordering::Acquire)
        })
    }

    /// Holds a present chunk, and counts the use. `tick` is a coarse clock that may wrap.
    pub fn try_pin(&self, chunk: ChunkIndex, tick: u16) -> bool {
        let Some(word) = self.word(chunk) else {
            return false;
        };
        update(word, |state| {
            if state & PRESENT == 0 || state >> 32 == MAX_PINS {
                return None;
            }
            let last = ((state & TICK_MASK) >> TICK_SHIFT) as u16;
            let mut next = state + PIN_ONE;
            if tick.wrapping_sub(last) >= CORRELATED_TICKS {
                let uses = ((state & USES_MASK) >> USES_SHIFT)
                    .saturating_add(1)
                    .min(u64::from(MAX_USES));
                next = with_tick(next, tick) & !USES_MASK | uses << USES_SHIFT;
            }
            Some(next)
        })
        .is_some()
    }

    /// Holds a present chunk without counting a use.
    pub fn try_hold(&self, chunk: ChunkIndex) -> bool {
        let fits = |state: u64| state & PRESENT != 0 && state >> 32 < MAX_PINS;
        self.word(chunk)
            .is_some_and(|word| update(word, |s| fits(s).then(|| s + PIN_ONE)).is_some())
    }

    /// Holds a chunk whose bytes are being written or are there: what is read of it is not punched
    /// meanwhile. The caller makes sure afterwards that the bytes it wants are written still.
    pub fn try_hold_unfinished(&self, chunk: ChunkIndex) -> bool {
        let fits = |state: u64| {
            state & (PRESENT | WRITTEN) != 0
                && state & (DOOMED | SPOILED) == 0
                && state >> 32 < MAX_PINS
        };
        self.word(chunk)
            .is_some_and(|word| update(word, |s| fits(s).then(|| s + PIN_ONE)).is_some())
    }

    /// Gives a pin back; the state after it tells whether this was the last hold on a doomed chunk.
    pub fn unpin(&self, chunk: ChunkIndex) -> ChunkState {
        let Some(word) = self.word(chunk) else {
            return ChunkState(0);
        };
        let before = word.fetch_sub(PIN_ONE, Ordering::AcqRel);
        debug_assert!(before >> 32 > 0, "unpin without a pin");
        ChunkState(before - PIN_ONE)
    }

    /// Bytes are about to be written. The caller excludes punching of the chunk meanwhile. Returns
    /// the state before; nothing changes if that was present. A doomed chunk is doomed no more: its
    /// old bytes are the new one's.
    pub fn begin_write(&self, chunk: ChunkIndex) -> ChunkState {
        let Some(word) = self.make_word(chunk) else {
            return ChunkState(0);
        };
        self.change(word, |state| {
            (state & PRESENT == 0).then_some(state & !(DOOMED | SPOILED) | WRITTEN)
        })
    }

    /// All bytes are written: present and verified. False, and nothing changed: it was present
    /// already, not written, or spoiled.
    pub fn finish(&self, chunk: ChunkIndex, checksum: u64, tick: u16) -> bool {
        let Some(word) = self.make_word(chunk) else {
            return false;
        };
        let state = word.load(Ordering::Acquire);
        if state & (PRESENT | SPOILED) != 0 || state & WRITTEN == 0 {
            return false;
        }
        self.set_checksum(chunk, checksum);
        update(word, |state| {
            let fit = state & (PRESENT | SPOILED | WRITTEN) == WRITTEN;
            fit.then_some(with_tick(state, tick) & !(USES_MASK | DURABLE) | PRESENT | VERIFIED)
        })
        .is_some()
    }

    /// From the journal: present, not verified; [`mark_durable`](Self::mark_durable) follows.
    /// False: it was present already (its checksum is the new one).
    pub fn restore(&self, chunk: ChunkIndex, checksum: u64) -> bool {
        let Some(word) = self.make_word(chunk) else {
            return false;
        };
        self.set_checksum(chunk, checksum);
        word.fetch_or(PRESENT | SYNCING | WRITTEN, Ordering::AcqRel) & PRESENT == 0
    }

    /// Its file is about to be synced. Tells this chunk from one that is withdrawn and written anew
    /// while the sync runs.
    pub fn begin_sync(&self, chunk: ChunkIndex) -> bool {
        self.set_while_present(chunk, SYNCING)
    }

    /// Its sync and its journal record succeeded. False: it was withdrawn meanwhile, or is durable
    /// already.
    pub fn mark_durable(&self, chunk: ChunkIndex) -> bool {
        let fits = |state: u64| state & (PRESENT | SYNCING | DURABLE) == PRESENT | SYNCING;
        self.word(chunk).is_some_and(|word| {
            update(word, |state| {
                fits(state).then_some(state & !SYNCING | DURABLE)
            })
            .is_some()
        })
    }

    /// No chunk is durable any more; returns how many were.
    pub fn forget_durable(&self) -> usize {
        self.words()
            .filter(|(_, word)| word.fetch_and(!DURABLE, Ordering::AcqRel) & DURABLE != 0)
            .count()
    }

    /// Its bytes have been checked.
    pub fn mark_verified(&self, chunk: ChunkIndex) -> bool {
        self.set_while_present(chunk, VERIFIED)
    }

    /// No reader gets it from now on. Returns the state before if it was present.
    pub fn withdraw(&self, chunk: ChunkIndex) -> Option<ChunkState> {
        let word = self.word(chunk)?;
        update(word, |state| {
            (state & PRESENT != 0)
                .then_some(state & !(PRESENT | VERIFIED | DURABLE | SYNCING) | DOOMED)
        })
        .map(ChunkState)
    }

    /// An unfinished chunk is given up. Returns the state before if there was one. One that is held
    /// is doomed instead of empty: its bytes go with the last hold.
    pub fn abandon(&self, chunk: ChunkIndex) -> Option<ChunkState> {
        let word = self.word(chunk)?;
        update(word, |state| {
            let fits =
                state & PRESENT == 0 && state & (WRITTEN | SPOILED) != 0 && state & DOOMED == 0;
            let emptied = state & !(WRITTEN | SPOILED);
            fits.then_some(if state >> 32 > 0 {
                emptied | DOOMED
            } else {
                emptied
            })
        })
        .map(ChunkState)
    }

    /// Its bytes are gone (the caller punches only doomed chunks without pins, under its lock).
    pub fn mark_empty(&self, chunk: ChunkIndex) {
        if let Some(word) = self.word(chunk) {
            word.fetch_and(!(DOOMED | WRITTEN | SPOILED), Ordering::AcqRel);
        }
    }

    /// Its file's sync failed before the chunk was finished: what is written of it can not be
    /// trusted.
    pub fn spoil_unfinished(&self) {
        for (_, word) in self.words() {
            update(word, |state| {
                (state & (WRITTEN | PRESENT | DOOMED) == WRITTEN).then_some(state | SPOILED)
            });
        }
    }

    /// For the eviction policy: is in one of its queues. False: was already.
    pub fn enqueue(&self, chunk: ChunkIndex) -> bool {
        self.make_word(chunk)
            .is_some_and(|word| word.fetch_or(QUEUED, Ordering::AcqRel) & QUEUED == 0)
    }

    /// For the eviction policy: is in none of its queues.
    pub fn dequeue(&self, chunk: ChunkIndex) {
        if let Some(word) = self.word(chunk) {
            word.fetch_and(!QUEUED, Ordering::AcqRel);
        }
    }

    /// For the eviction policy: one use less.
    pub fn forget_use(&self, chunk: ChunkIndex) {
        if let Some(word) = self.word(chunk) {
            update(word, |state| {
                (state & USES_MASK != 0).then(|| state - (1 << USES_SHIFT))
            });
        }
    }

    /// The first chunk of `from..to` that is not present.
    #[must_use]
    pub fn first_missing(&self, from: ChunkIndex, to: ChunkIndex) -> Option<ChunkIndex> {
        (from..to.min(self.chunk_count)).find(|chunk| !self.state(*chunk).is_present())
    }

    /// Chunks of pages ever touched whose state `keep` accepts, ascending.
    pub fn select(&self, keep: impl Fn(ChunkState) -> bool) -> impl Iterator<Item = ChunkIndex> {
        self.words()
            .filter(move |(_, word)| keep(ChunkState(word.load(Ordering::Acquire))))
            .map(|(chunk, _)| chunk)
    }

    /// Number of chunks, present or not.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        self.chunk_count
    }

    fn words(&self) -> impl Iterator<Item = (ChunkIndex, &AtomicU64)> {
        let pages = self
            .pages
            .iter()
            .enumerate()
            .filter_map(|(at, page)| Some((at, page.get()?)));
        pages
            .flat_map(|(at, page)| {
                page.words
                    .iter()
                    .enumerate()
                    .map(move |(i, word)| ((at * PAGE_CHUNKS + i) as u32, word))
            })
            .take_while(|(chunk, _)| *chunk < self.chunk_count)
    }

    fn word(&self, chunk: ChunkIndex) -> Option<&AtomicU64> {
        let page = self.pages.get(chunk as usize / PAGE_CHUNKS)?.get()?;
        Some(&page.words[chunk as usize % PAGE_CHUNKS])
    }

    fn make_word(&self, chunk: ChunkIndex) -> Option<&AtomicU64> {
        if chunk >= self.chunk_count {
            return None;
        }
        let page = self
            .pages
            .get(chunk as usize / PAGE_CHUNKS)?
            .get_or_init(|| {
                Box::new(Page {
                    words: [const { AtomicU64::new(0) }; PAGE_CHUNKS],
                    checksums: [const { AtomicU64::new(0) }; PAGE_CHUNKS],
                })
            });
        Some(&page.words[chunk as usize % PAGE_CHUNKS])
    }

    fn set_checksum(&self, chunk: ChunkIndex, checksum: u64) {
        if let Some(page) = self
            .pages
            .get(chunk as usize / PAGE_CHUNKS)
            .and_then(OnceLock::get)
        {
            page.checksums[chunk as usize % PAGE_CHUNKS].store(checksum, Ordering::Release);
        }
    }

    fn set_while_present(&self, chunk: ChunkIndex, flag: u64) -> bool {
        self.word(chunk)
            .is_some_and(|word| update(word, |s| (s & PRESENT != 0).then_some(s | flag)).is_some())
    }

    /// The state before, changed or not.
    fn change(&self, word: &AtomicU64, next: impl Fn(u64) -> Option<u64>) -> ChunkState {
        ChunkState(update(word, next).unwrap_or_else(|| word.load(Ordering::Acquire)))
    }
}

/// Compare-and-swap until it holds; the value before, or `None` where `next` refused.
fn update(word: &AtomicU64, next: impl Fn(u64) -> Option<u64>) -> Option<u64> {
    word.fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
        .ok()
}

fn with_tick(state: u64, tick: u16) -> u64 {
    state & !TICK_MASK | u64::from(tick) << TICK_SHIFT
}

#[cfg(test)]
#[path = "chunk_table_tests.rs"]
mod tests;
