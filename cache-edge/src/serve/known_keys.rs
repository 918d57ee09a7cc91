//! The keys of entries that are, or were, in the store.
//!
//! An entry can be here without its key being bound: a job brought it. An edge that would ask the
//! origin about a key without asking the coordinator first looks here, so that what is here already
//! is found.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
};

use chunkcache_proto::v1;
use parking_lot::Mutex;

/// 16 MiB; an edge that has seen more entries since its start asks about every key.
const MAX_KEYS: usize = 1 << 20;

/// Hashes: who is taken for known by chance costs one question. A key of an entry that was removed
/// stays.
pub struct KnownKeys {
    hasher: RandomState,
    hashes: Mutex<HashSet<u64>>,
}

impl KnownKeys {
    #[must_use]
    pub fn of<'a>(entries: impl Iterator<Item = &'a v1::Entry>) -> Self {
        let known = Self {
            hasher: RandomState::new(),
            hashes: Mutex::default(),
        };
        entries.for_each(|entry| known.note(entry));
        known
    }

    pub fn note(&self, entry: &v1::Entry) {
        if let Some(key) = &entry.key {
            let mut hashes = self.hashes.lock();
            if hashes.len() < MAX_KEYS {
                hashes.insert(self.hash(key));
            }
        }
    }

    /// An entry of the key may be here, of whatever variant.
    #[must_use]
    pub fn may_have(&self, key: &v1::Key) -> bool {
        let hashes = self.hashes.lock();
        hashes.len() >= MAX_KEYS || hashes.contains(&self.hash(key))
    }

    fn hash(&self, key: &v1::Key) -> u64 {
        self.hasher.hash_one((&key.source, &key.path, &key.query))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_known_by_its_key_whatever_the_variant() {
        let key = |path: &str, variant: &str| v1::Key {
            source: "films".into(),
            path: path.into(),
            query: String::new(),
            variant: variant.into(),
        };
        let entry = |key| v1::Entry {
            key: Some(key),
            ..v1::Entry::default()
        };
        let known = KnownKeys::of([entry(key("a.mp4", ""))].iter());
        assert!(known.may_have(&key("a.mp4", "")));
        assert!(!known.may_have(&key("b.mp4", "")));
        known.note(&entry(key("b.mp4", "accept-language: de")));
        assert!(known.may_have(&key("b.mp4", "")));
    }
}
