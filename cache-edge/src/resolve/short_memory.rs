//! A memory for keys that clients choose: bounded for each source, whatever the length of the keys.
//!
//! Only a keyed hash of each key is stored, so an entry costs the same few bytes however long the
//! key is, and a bound on entries is a bound on bytes. The hash has 128 bits and is keyed with
//! secrets of this process, so that no client can cause a collision.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

use parking_lot::Mutex;

/// Limit for one source: about 3 MiB.
const MAX_OF_SOURCE: usize = 50_000;

/// Hashes keys.
#[derive(Clone, Default)]
pub(super) struct KeyHasher(RandomState, RandomState);

impl KeyHasher {
    pub fn hash(&self, text: &str) -> u128 {
        u128::from(self.0.hash_one(text)) << 64 | u128::from(self.1.hash_one(text))
    }
}

type OfSource<T> = HashMap<u128, (T, i64)>;

/// Values that are valid until a time, by source and key.
pub(super) struct ShortMemory<T> {
    hasher: KeyHasher,
    by_source: Mutex<HashMap<String, OfSource<T>>>,
}

impl<T: Clone> ShortMemory<T> {
    pub fn new(hasher: KeyHasher) -> Self {
        Self {
            hasher,
            by_source: Mutex::default(),
        }
    }

    pub fn get(&self, source: &str, id: &str, now_ms: i64) -> Option<T> {
        let mut by_source = self.by_source.lock();
        let of_source = by_source.get_mut(source)?;
        let hash = self.hasher.hash(id);
        let (value, until_ms) = of_source.get(&hash)?;
        if now_ms < *until_ms {
            return Some(value.clone());
        }
        of_source.remove(&hash);
        if of_source.is_empty() {
            by_source.remove(source);
        }
        None
    }

    /// Inserts a value. If the source has too many, an expired one is removed, or else any one:
    /// each costs one question.
    pub fn insert(&self, source: &str, id: &str, value: T, until_ms: i64, now_ms: i64) {
        let mut by_source = self.by_source.lock();
        let of_source = by_source.entry(source.to_owned()).or_default();
        let hash = self.hasher.hash(id);
        if of_source.len() >= MAX_OF_SOURCE && !of_source.contains_key(&hash) {
            of_source.retain(|_, (_, until_ms)| now_ms < *until_ms);
            if of_source.len() >= MAX_OF_SOURCE {
                let victim = of_source.keys().next().copied();
                victim.and_then(|victim| of_source.remove(&victim));
            } else if of_source.len() < MAX_OF_SOURCE / 4 {
                of_source.shrink_to(MAX_OF_SOURCE / 4);
            }
        }
        of_source.insert(hash, (value, until_ms));
    }

    pub fn remove(&self, source: &str, id: &str) {
        let mut by_source = self.by_source.lock();
        if let Some(of_source) = by_source.get_mut(source) {
            of_source.remove(&self.hasher.hash(id));
            if of_source.is_empty() {
                by_source.remove(source);
            }
        }
    }

    /// Forgets all values of a source; empty: of all sources.
    pub fn forget(&self, source: &str) {
        let mut by_source = self.by_source.lock();
        if source.is_empty() {
            by_source.clear();
        } else {
            by_source.remove(source);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.by_source.lock().values().map(HashMap::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> ShortMemory<u32> {
        ShortMemory::new(KeyHasher::default())
    }

    #[test]
    fn it_forgets_with_time() {
        let memory = memory();
        memory.insert("films", "a", 1, 100, 0);
        assert_eq!(memory.get("films", "a", 99), Some(1));
        assert_eq!(memory.get("shorts", "a", 99), None);
        assert_eq!(memory.get("films", "a", 100), None);
        assert_eq!(memory.len(), 0);
        memory.insert("films", "a", 1, 100, 0);
        memory.remove("films", "a");
        assert!(memory.by_source.lock().is_empty());
    }

    #[test]
    fn a_source_fills_its_own_part_and_no_other() {
        let memory = memory();
        memory.insert("shorts", "kept", 1, 100, 0);
        let long = "x".repeat(4_000);
        for number in 0..MAX_OF_SOURCE + 10 {
            memory.insert("films", &format!("{long}{number}"), 1, 100, 0);
        }
        assert_eq!(memory.len(), MAX_OF_SOURCE + 1);
        assert_eq!(memory.get("shorts", "kept", 1), Some(1));
        // Expired values are removed first.
        memory.insert("films", "next", 1, 300, 200);
        assert_eq!(memory.len(), 2);
    }
}
