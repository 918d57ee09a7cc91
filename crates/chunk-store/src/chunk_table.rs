//! The state of each chunk of one entry, in one atomic word per chunk.
//!
//! Readers pin and unpin with one compare-and-swap, so connections share no lock. Slots are the
//! leaves of a radix tree whose nodes are made when first touched: the table grows with what is
//! stored, not with the length that an object claims, and a chunk of a small object costs 16 bytes.
//! The table holds facts only; the store decides the order in which they may change (journal before
//! punch, sync before durable).

use std::{
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use chunkcache_proto::ChunkIndex;

/// Children of a node, as a power of two: 1 KiB a full leaf, 6 levels for 2^32 chunks.
const FANOUT_BITS: u32 = 6;
const FANOUT: usize = 1 << FANOUT_BITS;

const PRESENT: u64 = 1;
const VERIFIED: u64 = 1 << 1;
const DURABLE: u64 = 1 << 2;
const DOOMED: u64 = 1 << 3;
const WRITTEN: u64 = 1 << 4;
const SPOILED: u64 = 1 << 5;
const QUEUED: u64 = 1 << 6;
const SYNCING: u64 = 1 << 7;
const UNRECORDED: u64 = 1 << 10;
const USES_SHIFT: u32 = 8;
const USES_MASK: u64 = 0b11 << USES_SHIFT;
const TICK_SHIFT: u32 = 16;
const TICK_MASK: u64 = 0xffff << TICK_SHIFT;
const PIN_ONE: u64 = 1 << 32;
const MAX_PINS: u64 = u32::MAX as u64;

/// Uses saturate here, as in S3-FIFO: two bits tell hot from warm from cold.
pub const MAX_USES: u8 = 3;
/// Uses within this many ticks of the last counted one count as the same use: one viewer reads a
/// chunk in many pieces, and that must not look like popularity.
const CORRELATED_TICKS: u16 = 2;

/// A chunk's word at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkState(u64);

impl ChunkState {
    /// Whether readers may use it.
    #[must_use]
    pub fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }
    /// Whether its bytes were checked, or written, by this process.
    #[must_use]
    pub fn is_verified(self) -> bool {
        self.0 & VERIFIED != 0
    }
    /// Whether it and its journal record are synced.
    #[must_use]
    pub fn is_durable(self) -> bool {
        self.0 & DURABLE != 0
    }
    /// Whether it was withdrawn; its bytes are freed once no reader holds it.
    #[must_use]
    pub fn is_doomed(self) -> bool {
        self.0 & DOOMED != 0
    }
    /// Whether bytes of it were written since it was last empty.
    #[must_use]
    pub fn is_written(self) -> bool {
        self.0 & WRITTEN != 0
    }
    /// Whether a sync of its file failed while it was being written: its bytes may be lost although
    /// reads still show them.
    #[must_use]
    pub fn is_spoiled(self) -> bool {
        self.0 & SPOILED != 0
    }
    /// Whether all its bytes were written before the running sync began.
    #[must_use]
    pub fn is_syncing(self) -> bool {
        self.0 & SYNCING != 0
    }
    /// Whether its bytes may be freed: it is withdrawn, the journal no longer lists it, and no
    /// reader holds it.
    #[must_use]
    pub fn is_disposable(self) -> bool {
        self.0 & (DOOMED | UNRECORDED) == DOOMED | UNRECORDED && self.pins() == 0
    }
    /// Number of readers that hold it.
    #[must_use]
    pub fn pins(self) -> u64 {
        self.0 >> 32
    }
    fn is_vacant(self) -> bool {
        self.0 & (PRESENT | WRITTEN | DOOMED | SPOILED) == 0 && self.pins() == 0
    }
    /// Counted uses, 0 to [`MAX_USES`].
    #[must_use]
    pub fn uses(self) -> u8 {
        ((self.0 & USES_MASK) >> USES_SHIFT) as u8
    }
}

#[derive(Default)]
struct Slot {
    word: AtomicU64,
    checksum: AtomicU64,
}

enum Node {
    Leaf(Box<[Slot]>),
    Branch(Box<[OnceLock<Node>]>),
}

/// The chunks of one entry.
pub struct ChunkTable {
    root: OnceLock<Node>,
    /// Levels above the leaves.
    height: u32,
    chunk_count: u32,
}

impl ChunkTable {
    /// Creates a table without chunks; allocates nothing.
    #[must_use]
    pub fn new(chunk_count: u32) -> Self {
        let mut height = 0;
        while u64::from(chunk_count) > 1 << ((height + 1) * FANOUT_BITS) {
            height += 1;
        }
        Self {
            root: OnceLock::new(),
            height,
            chunk_count,
        }
    }

    /// The state of a chunk; all false past the end.
    #[must_use]
    pub fn state(&self, chunk: ChunkIndex) -> ChunkState {
        ChunkState(
            self.word(chunk)
                .map_or(0, |word| word.load(Ordering::Acquire)),
        )
    }

    /// The checksum given when the chunk became present; meaningful only then.
    #[must_use]
    pub fn checksum(&self, chunk: ChunkIndex) -> u64 {
        self.slot(chunk)
            .map_or(0, |slot| slot.checksum.load(Ordering::Acquire))
    }

    /// Pins a present chunk, and counts the use. `tick` is a coarse clock that may wrap.
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

    /// Pins a present chunk without counting a use.
    pub fn try_hold(&self, chunk: ChunkIndex) -> bool {
        let fits = |state: u64| state & PRESENT != 0 && state >> 32 < MAX_PINS;
        self.word(chunk)
            .is_some_and(|word| update(word, |s| fits(s).then(|| s + PIN_ONE)).is_some())
    }

    /// Pins a chunk whose bytes are written or being written, so that they are not punched. The
    /// caller then checks that the bytes it wants are still written.
    pub fn try_hold_unfinished(&self, chunk: ChunkIndex) -> bool {
        let fits = |state: u64| {
            state & (PRESENT | WRITTEN) != 0
                && state & (DOOMED | SPOILED) == 0
                && state >> 32 < MAX_PINS
        };
        self.word(chunk)
            .is_some_and(|word| update(word, |s| fits(s).then(|| s + PIN_ONE)).is_some())
    }

    /// Releases a pin; the returned state tells whether this was the last pin on a doomed chunk.
    pub fn unpin(&self, chunk: ChunkIndex) -> ChunkState {
        let Some(word) = self.word(chunk) else {
            return ChunkState(0);
        };
        let before = word.fetch_sub(PIN_ONE, Ordering::AcqRel);
        debug_assert!(before >> 32 > 0, "unpin without a pin");
        ChunkState(before - PIN_ONE)
    }

    /// Records that bytes are about to be written. The caller prevents punching of the chunk
    /// meanwhile. Returns the previous state; if that was present, nothing changes. A doomed chunk
    /// is no longer doomed: its old blocks belong to the new chunk.
    pub fn begin_write(&self, chunk: ChunkIndex) -> ChunkState {
        let Some(slot) = self.make_slot(chunk) else {
            return ChunkState(0);
        };
        self.change(&slot.word, |state| {
            (state & PRESENT == 0).then_some(state & !(DOOMED | UNRECORDED | SPOILED) | WRITTEN)
        })
    }

    /// Records that all bytes are written: the chunk is present and verified. Returns false, and
    /// changes nothing, if it was already present, not written, or spoiled.
    pub fn finish(&self, chunk: ChunkIndex, checksum: u64, tick: u16) -> bool {
        let Some(slot) = self.slot(chunk) else {
            return false;
        };
        let state = slot.word.load(Ordering::Acquire);
        if state & (PRESENT | SPOILED) != 0 || state & WRITTEN == 0 {
            return false;
        }
        slot.checksum.store(checksum, Ordering::Release);
        update(&slot.word, |state| {
            let fit = state & (PRESENT | SPOILED | WRITTEN) == WRITTEN;
            fit.then_some(with_tick(state, tick) & !(USES_MASK | DURABLE) | PRESENT | VERIFIED)
        })
        .is_some()
    }

    /// Restores a chunk from the journal: present, not verified;
    /// [`mark_durable`](Self::mark_durable) follows. False: it was already present, and gets this
    /// checksum.
    pub fn restore(&self, chunk: ChunkIndex, checksum: u64) -> bool {
        let Some(slot) = self.make_slot(chunk) else {
            return false;
        };
        slot.checksum.store(checksum, Ordering::Release);
        let before = slot
            .word
            .fetch_or(PRESENT | SYNCING | WRITTEN, Ordering::AcqRel);
        before & PRESENT == 0
    }

    /// Records that its file is about to be synced. Distinguishes this chunk from one that is
    /// withdrawn and rewritten while the sync runs.
    pub fn begin_sync(&self, chunk: ChunkIndex) -> bool {
        self.set_while_present(chunk, SYNCING)
    }

    /// Records that its sync and its journal record succeeded. False: it was withdrawn meanwhile,
    /// or is already durable.
    pub fn mark_durable(&self, chunk: ChunkIndex) -> bool {
        let fits = |state: u64| state & (PRESENT | SYNCING | DURABLE) == PRESENT | SYNCING;
        self.word(chunk).is_some_and(|word| {
            update(word, |state| {
                fits(state).then_some(state & !SYNCING | DURABLE)
            })
            .is_some()
        })
    }

    /// Clears the durable mark of all chunks; returns how many had it.
    pub fn forget_durable(&self) -> usize {
        let mut count = 0;
        self.visit(0..self.chunk_count, &mut |_, slot| {
            count += usize::from(slot.word.fetch_and(!DURABLE, Ordering::AcqRel) & DURABLE != 0);
            true
        });
        count
    }

    /// Records that its bytes have been checked.
    pub fn mark_verified(&self, chunk: ChunkIndex) -> bool {
        self.set_while_present(chunk, VERIFIED)
    }

    /// Hides a chunk from readers. Returns the previous state if it was present.
    pub fn withdraw(&self, chunk: ChunkIndex) -> Option<ChunkState> {
        let word = self.word(chunk)?;
        update(word, |state| {
            (state & PRESENT != 0)
                .then_some(state & !(PRESENT | VERIFIED | DURABLE | SYNCING | UNRECORDED) | DOOMED)
        })
        .map(ChunkState)
    }

    /// Dooms an unfinished chunk. Returns the previous state if there was one.
    pub fn abandon(&self, chunk: ChunkIndex) -> Option<ChunkState> {
        let word = self.word(chunk)?;
        update(word, |state| {
            let fits =
                state & PRESENT == 0 && state & (WRITTEN | SPOILED) != 0 && state & DOOMED == 0;
            fits.then_some(state & !(WRITTEN | SPOILED) | DOOMED)
        })
        .map(ChunkState)
    }

    /// Records that the journal no longer lists it. Returns the new state if the chunk is still
    /// withdrawn.
    pub fn mark_unrecorded(&self, chunk: ChunkIndex) -> Option<ChunkState> {
        let word = self.word(chunk)?;
        let fits = |state: u64| (state & DOOMED != 0).then_some(state | UNRECORDED);
        update(word, fits).map(|before| ChunkState(before | UNRECORDED))
    }

    /// Whether all remaining chunks are disposable.
    #[must_use]
    pub fn is_disposable(&self) -> bool {
        self.visit(0..self.chunk_count, &mut |_, slot| {
            slot.state().is_vacant() || slot.state().is_disposable()
        })
    }

    /// Records that its bytes are gone (the caller punches only disposable chunks, under its lock).
    pub fn mark_empty(&self, chunk: ChunkIndex) {
        if let Some(word) = self.word(chunk) {
            word.fetch_and(!(DOOMED | UNRECORDED | WRITTEN | SPOILED), Ordering::AcqRel);
        }
    }

    /// Marks unfinished chunks after a failed sync of the file: their written bytes cannot be
    /// trusted.
    pub fn spoil_unfinished(&self) {
        self.visit(0..self.chunk_count, &mut |_, slot| {
            update(&slot.word, |state| {
                (state & (WRITTEN | PRESENT | DOOMED) == WRITTEN).then_some(state | SPOILED)
            });
            true
        });
    }

    /// For the eviction policy: puts the chunk into a queue. False: it was in one.
    pub fn enqueue(&self, chunk: ChunkIndex) -> bool {
        self.make_slot(chunk)
            .is_some_and(|slot| slot.word.fetch_or(QUEUED, Ordering::AcqRel) & QUEUED == 0)
    }

    /// For the eviction policy: takes the chunk out of its queue.
    pub fn dequeue(&self, chunk: ChunkIndex) {
        if let Some(word) = self.word(chunk) {
            word.fetch_and(!QUEUED, Ordering::AcqRel);
        }
    }

    /// For the eviction policy: decrements the uses.
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

    /// The first chunk of `from..to` that is present.
    #[must_use]
    pub fn first_present(&self, from: ChunkIndex, to: ChunkIndex) -> Option<ChunkIndex> {
        let mut found = None;
        self.visit(from..to, &mut |chunk, slot| {
            if slot.state().is_present() {
                found = Some(chunk);
            }
            found.is_none()
        });
        found
    }

    /// Runs of adjacent present chunks in `within`, ascending; at most `limit` of them.
    #[must_use]
    pub fn present_runs(&self, within: Range<ChunkIndex>, limit: usize) -> Vec<Range<ChunkIndex>> {
        let mut runs: Vec<Range<ChunkIndex>> = Vec::new();
        self.visit(within, &mut |chunk, slot| {
            if !slot.state().is_present() {
                return true;
            }
            let is_full = runs.len() >= limit;
            match runs.last_mut() {
                Some(run) if run.end == chunk => run.end += 1,
                _ if is_full => return false,
                _ => runs.push(chunk..chunk + 1),
            }
            true
        });
        runs
    }

    /// Whether no chunk is present, written, withdrawn or held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.visit(0..self.chunk_count, &mut |_, slot| slot.state().is_vacant())
    }

    /// Chunks ever touched whose state `keep` accepts, ascending.
    pub fn select(&self, keep: impl Fn(ChunkState) -> bool) -> impl Iterator<Item = ChunkIndex> {
        let mut selected = Vec::new();
        self.visit(0..self.chunk_count, &mut |chunk, slot| {
            if keep(slot.state()) {
                selected.push(chunk);
            }
            true
        });
        selected.into_iter()
    }

    /// Number of chunks, present or not.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        self.chunk_count
    }

    /// Calls `f` with the slots of `within` that were ever touched, ascending, until `f` returns
    /// false; returns false if it did.
    fn visit(
        &self,
        within: Range<ChunkIndex>,
        f: &mut impl FnMut(ChunkIndex, &Slot) -> bool,
    ) -> bool {
        let within = u64::from(within.start)..u64::from(within.end.min(self.chunk_count));
        self.root
            .get()
            .is_none_or(|root| root.visit(self.height, 0, &within, f))
    }

    fn word(&self, chunk: ChunkIndex) -> Option<&AtomicU64> {
        self.slot(chunk).map(|slot| &slot.word)
    }

    fn slot(&self, chunk: ChunkIndex) -> Option<&Slot> {
        let mut node = self.root.get()?;
        let mut height = self.height;
        loop {
            match node {
                Node::Leaf(slots) => return slots.get(place(chunk, 0)),
                Node::Branch(children) => {
                    node = children.get(place(chunk, height))?.get()?;
                    height -= 1;
                }
            }
        }
    }

    fn make_slot(&self, chunk: ChunkIndex) -> Option<&Slot> {
        if chunk >= self.chunk_count {
            return None;
        }
        let slots = (self.chunk_count as usize).min(FANOUT);
        let mut height = self.height;
        let mut node = self.root.get_or_init(|| Node::new(height, slots));
        loop {
            match node {
                Node::Leaf(slots) => return slots.get(place(chunk, 0)),
                Node::Branch(children) => {
                    let child = children.get(place(chunk, height))?;
                    height -= 1;
                    node = child.get_or_init(|| Node::new(height, slots));
                }
            }
        }
    }

    fn set_while_present(&self, chunk: ChunkIndex, flag: u64) -> bool {
        self.word(chunk)
            .is_some_and(|word| update(word, |s| (s & PRESENT != 0).then_some(s | flag)).is_some())
    }

    /// Changes a word if `next` agrees; always returns the previous state.
    fn change(&self, word: &AtomicU64, next: impl Fn(u64) -> Option<u64>) -> ChunkState {
        ChunkState(update(word, next).unwrap_or_else(|| word.load(Ordering::Acquire)))
    }
}

impl Slot {
    fn state(&self) -> ChunkState {
        ChunkState(self.word.load(Ordering::Acquire))
    }
}

impl Node {
    /// Creates a leaf with as many slots as there can be chunks below it: few in a small object.
    fn new(height: u32, slots: usize) -> Self {
        if height == 0 {
            Self::Leaf((0..slots).map(|_| Slot::default()).collect())
        } else {
            Self::Branch((0..FANOUT).map(|_| OnceLock::new()).collect())
        }
    }

    /// `first`: the first chunk below this node.
    fn visit(
        &self,
        height: u32,
        first: u64,
        within: &Range<u64>,
        f: &mut impl FnMut(ChunkIndex, &Slot) -> bool,
    ) -> bool {
        let child_chunks = 1_u64 << (height * FANOUT_BITS);
        let below = |at: usize| first + at as u64 * child_chunks;
        let skipped = (within.start.saturating_sub(first) / child_chunks).min(FANOUT as u64);
        let skipped = skipped as usize;
        match self {
            Self::Leaf(slots) => slots.iter().enumerate().skip(skipped).all(|(at, slot)| {
                let chunk = below(at);
                chunk >= within.end || f(chunk as ChunkIndex, slot)
            }),
            Self::Branch(children) => {
                let made = children.iter().enumerate().skip(skipped);
                made.take_while(|(at, _)| below(*at) < within.end)
                    .filter_map(|(at, child)| Some((at, child.get()?)))
                    .all(|(at, child)| child.visit(height - 1, below(at), within, f))
            }
        }
    }
}

/// Which child of a node at `height` leads to the chunk.
fn place(chunk: ChunkIndex, height: u32) -> usize {
    (chunk >> (height * FANOUT_BITS)) as usize % FANOUT
}

/// Compare-and-swap until it succeeds; the previous value, or `None` if `next` refused.
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
