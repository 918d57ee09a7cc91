//! Chooses chunks to evict: S3-FIFO over chunks, with a favoured part for heads and indexes.
//!
//! S3-FIFO (Yang et al., SOSP 2023): new chunks enter a small queue. Those used again before they
//! reach its end move to the main queue; the others leave, and a ghost queue remembers them: a
//! chunk that returns while it is remembered enters the main queue directly. A scan of one long
//! file passes through the small queue only. A hit sets two bits in the chunk's own word and
//! touches no queue and no lock. `docs/rfcs/0003-store.md` explains the additions: favoured and
//! pinned chunks.
//!
//! Pure: chunks are numbers, and [`Residents`] answers questions about them.

use std::collections::{HashSet, VecDeque};

/// A chunk; the store packs the entry's number and the chunk's index into it.
pub type ChunkKey = u64;

/// The small queue holds one in this many chunks, as published.
const SMALL_DIVISOR: usize = 10;
/// At most one in this many chunks is favoured: a library of many short files must not consist of
/// heads alone.
const FAVOURED_DIVISOR: usize = 8;
/// A chunk of the small queue that is used more often than this is kept.
const PASSING_USES: u8 = 1;
/// Two numbers each: 8 MiB at most.
const MAX_GHOSTS: usize = 1 << 18;
const MIN_GHOSTS: usize = 64;

/// A present chunk, as the policy sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    pub bytes: u64,
    /// Counted uses since they were last reset, saturating.
    pub uses: u8,
    /// A reader holds it now.
    pub is_held: bool,
    /// An operator wants its entry kept.
    pub is_pinned: bool,
    /// It is one of the first or last chunks of its entry: players read the head first, and
    /// containers keep their index at either end.
    pub is_favoured: bool,
}

/// The policy's view of the chunks.
pub trait Residents {
    /// `None`: it is gone.
    fn look(&self, key: ChunkKey) -> Option<Resident>;
    /// Marks it as queued; false: it was queued already.
    fn enqueue(&self, key: ChunkKey) -> bool;
    /// Marks it as not queued.
    fn dequeue(&self, key: ChunkKey);
    fn forget_use(&self, key: ChunkKey);
}

/// How much to choose.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    pub bytes: u64,
    pub max_chunks: usize,
    pub may_take_pinned: bool,
}

/// The policy's queues, each oldest first.
#[derive(Debug, Default)]
pub struct Eviction {
    small: VecDeque<ChunkKey>,
    main: VecDeque<ChunkKey>,
    favoured: VecDeque<ChunkKey>,
    pinned: VecDeque<ChunkKey>,
    ghost: Ghost,
    /// Number of chunks that left without the policy; the queues still contain their keys.
    gone: usize,
}

impl Eviction {
    /// Adds a chunk that has become durable.
    pub fn insert(&mut self, key: ChunkKey, residents: &impl Residents) {
        self.sweep_if_mostly_gone(residents);
        // A key left over from an earlier life of the chunk keeps its position.
        if !residents.enqueue(key) {
            return;
        }
        let returned = self.ghost.remove(key);
        match residents.look(key) {
            None => residents.dequeue(key),
            Some(chunk) if chunk.is_pinned => self.pinned.push_back(key),
            Some(chunk) if chunk.is_favoured => self.favoured.push_back(key),
            Some(_) if returned => self.main.push_back(key),
            Some(_) => self.small.push_back(key),
        }
    }

    /// Returns a proposed chunk that was not evicted: it is proposed first the next time.
    pub fn put_back(&mut self, key: ChunkKey, residents: &impl Residents) {
        if residents.look(key).is_some() && residents.enqueue(key) {
            self.main.push_front(key);
        }
    }

    /// Records that `chunks` chunks left other than through [`victims`](Self::victims).
    pub fn note_gone(&mut self, chunks: usize) {
        self.gone += chunks;
    }

    /// Must follow each unpinning of an entry.
    pub fn pinning_changed(&mut self) {
        self.main.append(&mut self.pinned);
    }

    /// Number of keys in all queues.
    #[must_use]
    pub fn len(&self) -> usize {
        self.small.len() + self.main.len() + self.favoured.len() + self.pinned.len()
    }

    /// Whether all queues are empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Chooses chunks until there are enough or none are left, and takes them out of the queues.
    /// Never chooses a chunk that a reader holds. Chooses pinned ones only if nothing else is left
    /// and they may be taken at all.
    pub fn victims(&mut self, amount: Amount, residents: &impl Residents) -> Vec<ChunkKey> {
        let Amount {
            bytes,
            max_chunks,
            may_take_pinned,
        } = amount;
        let mut chosen = Vec::new();
        // Set aside, so that a queue full of held chunks does not hide the chunks behind them.
        let mut held = Vec::new();
        let mut freed = 0;
        // Terminates, because each step removes a key, a use, a position or a favour.
        while freed < bytes && chosen.len() < max_chunks {
            match self.step(may_take_pinned, residents) {
                Some(Step::Evict(key, size)) => {
                    residents.dequeue(key);
                    freed += size;
                    chosen.push(key);
                }
                Some(Step::Held(key)) => held.push(key),
                Some(Step::Moved) => {}
                None => break,
            }
        }
        // A reader's hold is a use.
        self.main.extend(held);
        chosen
    }

    /// Processes one chunk; `None` when all queues it may take from are empty.
    fn step(&mut self, may_take_pinned: bool, residents: &impl Residents) -> Option<Step> {
        let ordinary = self.small.len() + self.main.len();
        let (queue, from) =
            if self.favoured.len() * FAVOURED_DIVISOR > self.len().max(FAVOURED_DIVISOR) {
                (&mut self.favoured, Queue::FavouredOverShare)
            } else if !self.small.is_empty()
                && (self.small.len() * SMALL_DIVISOR >= ordinary || self.main.is_empty())
            {
                (&mut self.small, Queue::Small)
            } else if !self.main.is_empty() {
                (&mut self.main, Queue::Main)
            } else if !self.favoured.is_empty() {
                (&mut self.favoured, Queue::Favoured)
            } else if may_take_pinned {
                (&mut self.pinned, Queue::Pinned)
            } else {
                return None;
            };
        let key = queue.pop_front()?;
        let Some(chunk) = residents.look(key) else {
            residents.dequeue(key);
            self.gone = self.gone.saturating_sub(1);
            return Some(Step::Moved);
        };
        if chunk.is_held {
            return Some(Step::Held(key));
        }
        let is_used = chunk.uses > 0;
        match from {
            _ if chunk.is_pinned && from != Queue::Pinned => {
                self.pinned.push_back(key);
                return Some(Step::Moved);
            }
            Queue::Small if chunk.uses > PASSING_USES => self.main.push_back(key),
            Queue::Small => {
                self.ghost.insert(key, self.main.len());
                return Some(Step::Evict(key, chunk.bytes));
            }
            Queue::Main if is_used => self.main.push_back(key),
            Queue::Favoured | Queue::FavouredOverShare if is_used => self.favoured.push_back(key),
            Queue::FavouredOverShare => self.main.push_back(key),
            Queue::Pinned if !chunk.is_pinned => self.main.push_back(key),
            Queue::Main | Queue::Favoured | Queue::Pinned => {
                return Some(Step::Evict(key, chunk.bytes));
            }
        }
        residents.forget_use(key);
        Some(Step::Moved)
    }

    fn sweep_if_mostly_gone(&mut self, residents: &impl Residents) {
        if self.gone <= self.len() / 2 + MIN_GHOSTS {
            return;
        }
        self.gone = 0;
        for queue in [
            &mut self.small,
            &mut self.main,
            &mut self.favoured,
            &mut self.pinned,
        ] {
            queue.retain(|key| {
                let is_there = residents.look(*key).is_some();
                if !is_there {
                    residents.dequeue(*key);
                }
                is_there
            });
        }
    }
}

enum Step {
    Evict(ChunkKey, u64),
    Held(ChunkKey),
    Moved,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
    FavouredOverShare,
    Favoured,
    Pinned,
}

/// Keys recently evicted from the small queue.
#[derive(Debug, Default)]
struct Ghost {
    order: VecDeque<ChunkKey>,
    keys: HashSet<ChunkKey>,
}

impl Ghost {
    /// Remembers as many keys as the main queue has, as published.
    fn insert(&mut self, key: ChunkKey, main_len: usize) {
        if self.keys.insert(key) {
            self.order.push_back(key);
        }
        while self.order.len() > main_len.clamp(MIN_GHOSTS, MAX_GHOSTS) {
            if let Some(oldest) = self.order.pop_front() {
                self.keys.remove(&oldest);
            }
        }
    }

    /// Removes a key; true if it was present. Its position in the order remains, so the queue
    /// forgets keys slightly sooner.
    fn remove(&mut self, key: ChunkKey) -> bool {
        self.keys.remove(&key)
    }
}

#[cfg(test)]
#[path = "eviction_tests.rs"]
mod tests;
