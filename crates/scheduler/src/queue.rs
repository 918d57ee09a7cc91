//! The ready queues of one edge: by level, then by source, then ordered by deadline.
//!
//! An element is a claim, not a chunk, so a million outstanding chunks are some thousands of
//! elements, and every change is O(log claims). Elements are removed lazily: a claim with nothing
//! missing is removed when it is examined.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::api::{Millis, SourceId};
use super::claim::Owner;

/// Order within a source: ready first, then by deadline, chunks served, and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// 0: ready. Otherwise it is not examined before this time.
    pub not_before: Millis,
    /// Deadline of the claim's first missing chunk, rounded.
    pub deadline: Millis,
    /// Start-time fair queueing: chunks served, but at least the tag that the queue served last, so
    /// that a latecomer does not catch up on chunks it never asked for.
    pub tag: u64,
    pub owner: Owner,
}

/// Claims on one source at one level of one edge.
#[derive(Clone, Debug, Default)]
pub struct SourceQueue {
    keys: BTreeSet<Key>,
    /// Chunks granted to the source here, for fair shares between sources.
    served: u64,
}

/// One level of one edge.
#[derive(Clone, Debug, Default)]
pub struct LevelQueue {
    by_source: BTreeMap<SourceId, SourceQueue>,
    /// Number of keys.
    len: usize,
    /// Keys that are held back until a later time.
    held_back: usize,
    /// The tag that was served last.
    virtual_time: u64,
    /// The source's share that was served last.
    source_time: u64,
}

impl LevelQueue {
    /// The tag of a claim that was served this many chunks.
    pub fn tag(&self, served: u64) -> u64 {
        served.max(self.virtual_time)
    }

    pub fn insert(&mut self, source: SourceId, key: Key) {
        let floor = self.source_time;
        let queue = self.by_source.entry(source).or_default();
        if queue.keys.is_empty() {
            queue.served = queue.served.max(floor);
        }
        if queue.keys.insert(key) {
            self.len += 1;
            self.held_back += usize::from(key.not_before > 0);
        }
    }

    pub fn remove(&mut self, source: SourceId, key: &Key) {
        if let Some(queue) = self.by_source.get_mut(&source)
            && queue.keys.remove(key)
        {
            self.len -= 1;
            self.held_back -= usize::from(key.not_before > 0);
        }
    }

    /// Records a grant.
    pub fn served(&mut self, source: SourceId, tag: u64, chunks: u64) {
        self.virtual_time = self.virtual_time.max(tag);
        if let Some(queue) = self.by_source.get_mut(&source) {
            self.source_time = self.source_time.max(queue.served);
            queue.served += chunks;
        }
    }

    /// Sources with claims to look at, the most urgent first.
    pub fn sources(&self, now: Millis) -> Vec<SourceId> {
        let mut heads: Vec<_> = self
            .by_source
            .iter()
            .filter_map(|(&source, queue)| {
                let head = queue.keys.first().filter(|key| key.not_before <= now)?;
                Some((head.deadline, head.tag, queue.served, source))
            })
            .collect();
        heads.sort_unstable();
        heads.into_iter().map(|(.., source)| source).collect()
    }

    /// The first key of the source, or the first one after `after`.
    pub fn next(&self, source: SourceId, after: Option<&Key>) -> Option<Key> {
        use std::ops::Bound::{Excluded, Unbounded};
        let keys = &self.by_source.get(&source)?.keys;
        match after {
            None => keys.first().copied(),
            Some(key) => keys.range((Excluded(key), Unbounded)).next().copied(),
        }
    }

    /// A key whose hold has ended.
    pub fn due(&self, source: SourceId, now: Millis) -> Option<Key> {
        let held_back = Key {
            not_before: 1,
            deadline: 0,
            tag: 0,
            owner: Owner::Waiting(super::api::ReaderId {
                edge: super::api::EdgeId(0),
                number: 0,
            }),
        };
        let key = self
            .by_source
            .get(&source)?
            .keys
            .range(held_back..)
            .next()?;
        (key.not_before <= now).then_some(*key)
    }

    /// Sources with claims here, including claims that are held back.
    pub fn all_sources(&self) -> impl Iterator<Item = SourceId> + '_ {
        self.by_source
            .iter()
            .filter(|(_, queue)| !queue.keys.is_empty())
            .map(|(&source, _)| source)
    }

    pub fn any_held_back(&self) -> bool {
        self.held_back > 0
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
