//! Remembers the chunks that were evicted lately and the keys whose object was replaced, to give
//! the reason for a miss.
//!
//! Only a keyed hash of each is kept, in two generations: when the younger one is full, the older
//! one is dropped. So a bound on the number of hashes is a bound on bytes, and a forgotten chunk
//! counts as one that was never here.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
};

use chunkcache_proto::{ChunkIndex, EntryId, v1};
use http_rules::cache_status::Missing;
use parking_lot::Mutex;

/// Limit of one generation: about 1 MiB.
const MAX_HASHES: usize = 50_000;

/// See the module.
#[derive(Default)]
pub struct MissHistory {
    hasher: RandomState,
    evicted: Generations,
    replaced: Generations,
}

#[derive(Default)]
struct Generations(Mutex<[HashSet<u64>; 2]>);

impl Generations {
    fn insert(&self, hash: u64) {
        let [young, old] = &mut *self.0.lock();
        if young.len() >= MAX_HASHES {
            *old = std::mem::take(young);
        }
        young.insert(hash);
    }

    fn has(&self, hash: u64) -> bool {
        self.0.lock().iter().any(|hashes| hashes.contains(&hash))
    }
}

impl MissHistory {
    fn hash_of_chunk(&self, entry: EntryId, chunk: ChunkIndex) -> u64 {
        self.hasher.hash_one((entry, chunk))
    }

    fn hash_of_key(&self, key: &v1::Key) -> u64 {
        let texts = (&key.source, &key.path, &key.query, &key.variant);
        self.hasher.hash_one(texts)
    }

    /// Records that these chunks were dropped for space.
    pub fn note_evicted(&self, entry: EntryId, chunks: &[ChunkIndex]) {
        for chunk in chunks {
            self.evicted.insert(self.hash_of_chunk(entry, *chunk));
        }
    }

    /// Records that the key's object is another version now.
    pub fn note_replaced(&self, key: &v1::Key) {
        self.replaced.insert(self.hash_of_key(key));
    }

    /// The known reasons for a miss. `chunk` is the first missing chunk; `holds_other`: other
    /// chunks of the entry are here.
    #[must_use]
    pub fn missing(
        &self,
        entry: &v1::Entry,
        (id, chunk): (EntryId, Option<ChunkIndex>),
        holds_other: bool,
    ) -> Missing {
        let evicted = chunk.map(|chunk| self.hash_of_chunk(id, chunk));
        let key = entry.key.as_ref();
        Missing {
            evicted: evicted.is_some_and(|hash| self.evicted.has(hash)),
            replaced: key.is_some_and(|key| self.replaced.has(self.hash_of_key(key))),
            partly_here: holds_other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_remembers_what_was_evicted_and_replaced_and_no_more_than_it_may() {
        let history = MissHistory::default();
        let id = EntryId::from_u128(7);
        let entry = v1::Entry {
            key: Some(v1::Key {
                source: "films".into(),
                ..v1::Key::default()
            }),
            ..v1::Entry::default()
        };
        let missing = |chunk| history.missing(&entry, (id, Some(chunk)), false);
        assert_eq!(missing(1), Missing::default());
        history.note_evicted(id, &[1]);
        assert!(missing(1).evicted && !missing(2).evicted);
        history.note_replaced(&v1::Key::default());
        assert!(!missing(2).replaced);
        history.note_replaced(entry.key.as_ref().unwrap_or(&v1::Key::default()));
        assert!(missing(2).replaced);
        let many: Vec<ChunkIndex> = (10..200_000).collect();
        history.note_evicted(id, &many);
        assert!(!missing(1).evicted && missing(199_999).evicted);
        let bound = history
            .evicted
            .0
            .lock()
            .iter()
            .map(HashSet::len)
            .sum::<usize>();
        assert!(bound <= 2 * MAX_HASHES);
    }
}
