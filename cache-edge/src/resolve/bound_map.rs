//! Bindings in memory: encoded, because an edge has many and uses few of them at a time.
//!
//! The encoded form is shared with the store's note. The decoded form, several times as large, is
//! kept of those that were used last.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use chunkcache_proto::{EntryId, v1};
use prost::Message;

use super::bindings::Bound;

/// Limit of all bindings, because clients choose keys and must not be able to fill the memory.
const MAX_BYTES: usize = 96 << 20;
/// Size of a binding besides its encoding and its key: its places in this map and in the store's.
const PLACE_BYTES: usize = 200;
/// Limit of decoded bindings: some 6 MiB.
const MAX_DECODED: usize = 4_096;
/// If there is no room, one in so many bindings is removed at once, so that the search for those
/// that nobody used is seldom.
const REMOVED_AT_ONCE: usize = 16;

/// A hash of a whole key; keyed, so that no client can cause a collision.
pub(super) type KeyHash = u128;
/// A hash of a key without its variant. A collision costs one question.
pub(super) type BaseHash = u64;
/// An encoded [`v1::KeyBinding`].
pub(super) type Encoded = Arc<[u8]>;

struct StoredBinding {
    id: EntryId,
    base: BaseHash,
    encoded: Encoded,
    decoded: Option<Arc<Bound>>,
    bytes: usize,
    /// Some request asked for the key since the last round.
    used: AtomicBool,
}

/// See the module.
#[derive(Default)]
pub(super) struct BoundMap {
    by_key: HashMap<KeyHash, StoredBinding>,
    bytes: usize,
    /// Those with a decoded form, the oldest first, and some that had one.
    decoded: VecDeque<KeyHash>,
}

/// A binding, as the map has it.
pub(super) enum BindingForm {
    Decoded(Arc<Bound>),
    Encoded(Encoded),
}

impl BoundMap {
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn get(&self, key: KeyHash) -> Option<BindingForm> {
        let kept = self.by_key.get(&key)?;
        Some(match &kept.decoded {
            Some(bound) => BindingForm::Decoded(bound.clone()),
            None => BindingForm::Encoded(kept.encoded.clone()),
        })
    }

    /// Marks the key as used. Written only when it changes, because many threads read it at the
    /// same time.
    pub fn note_use(&self, key: KeyHash) {
        let kept = self.by_key.get(&key);
        if let Some(kept) = kept.filter(|kept| !kept.used.load(Ordering::Relaxed)) {
            kept.used.store(true, Ordering::Relaxed);
        }
    }

    pub fn insert(
        &mut self,
        (key, base): (KeyHash, BaseHash),
        key_len: usize,
        id: EntryId,
        encoded: Encoded,
    ) {
        self.remove(key);
        let bytes = PLACE_BYTES + key_len + encoded.len();
        self.bytes += bytes;
        self.by_key.insert(
            key,
            StoredBinding {
                id,
                base,
                encoded,
                decoded: None,
                bytes,
                used: AtomicBool::new(true),
            },
        );
    }

    /// Keeps the decoded form of a binding that is still this one, and drops the oldest one.
    pub fn set_decoded(&mut self, key: KeyHash, encoded: &Encoded, bound: Arc<Bound>) {
        let Some(kept) = self.by_key.get_mut(&key) else {
            return;
        };
        if !Arc::ptr_eq(&kept.encoded, encoded) || kept.decoded.replace(bound).is_some() {
            return;
        }
        self.decoded.push_back(key);
        if self.decoded.len() > MAX_DECODED
            && let Some(oldest) = self.decoded.pop_front()
            && let Some(kept) = self.by_key.get_mut(&oldest)
        {
            kept.decoded = None;
        }
    }

    pub fn remove(&mut self, key: KeyHash) -> Option<Encoded> {
        let kept = self.by_key.remove(&key)?;
        self.bytes -= kept.bytes;
        Some(kept.encoded)
    }

    /// Removes the key if it is bound to this entry.
    pub fn remove_of(&mut self, key: KeyHash, id: EntryId) -> Option<Encoded> {
        let is_of = self.by_key.get(&key).is_some_and(|kept| kept.id == id);
        is_of.then(|| self.remove(key))?
    }

    /// Removes bindings if there are too many, the unused ones first.
    pub fn make_room(&mut self) -> Vec<Encoded> {
        if self.bytes <= MAX_BYTES {
            return Vec::new();
        }
        let most = self.len() / REMOVED_AT_ONCE + 1;
        let mut victims = self.unused(most);
        let others = self.by_key.keys().copied();
        victims.extend(others.take(most - victims.len()));
        let removed = victims.into_iter();
        removed.filter_map(|key| self.remove(key)).collect()
    }

    /// Keys that no request asked for since the last round, at most `most`.
    pub fn unused(&self, most: usize) -> Vec<KeyHash> {
        let unused = self.by_key.iter();
        let unused = unused.filter(|(_, kept)| !kept.used.load(Ordering::Relaxed));
        unused.map(|(key, _)| *key).take(most).collect()
    }

    /// Begins a round: nothing counts as used.
    pub fn begin_round(&self) {
        for kept in self.by_key.values() {
            kept.used.store(false, Ordering::Relaxed);
        }
    }

    /// The keys of these bases, and those bound to one of the entries.
    pub fn selected(&self, bases: &HashSet<BaseHash>, entries: &HashSet<&EntryId>) -> Vec<Encoded> {
        let kept = self.by_key.values();
        let selected = kept.filter(|kept| entries.contains(&kept.id) || bases.contains(&kept.base));
        selected.map(|kept| kept.encoded.clone()).collect()
    }

    /// All bindings. They are decoded after the lock is released.
    pub fn all(&self) -> Vec<Encoded> {
        let kept = self.by_key.values();
        kept.map(|kept| kept.encoded.clone()).collect()
    }
}

/// Decodes a binding. `None`: it is not one, and nothing is bound.
pub(super) fn decode(encoded: &[u8]) -> Option<Bound> {
    Bound::of(v1::KeyBinding::decode(encoded).ok()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn encoded(number: u128, path_len: usize) -> (EntryId, Encoded) {
        let id = EntryId::from_u128(number);
        let entry = v1::Entry {
            id: id.to_string(),
            key: Some(v1::Key {
                source: "films".into(),
                path: "p".repeat(path_len),
                ..v1::Key::default()
            }),
            ..v1::Entry::default()
        };
        let binding = v1::KeyBinding {
            entry: Some(entry),
            freshness: None,
        };
        (id, binding.encode_to_vec().into())
    }

    fn put(map: &mut BoundMap, number: u128, path_len: usize) -> Encoded {
        let (id, encoded) = encoded(number, path_len);
        map.insert((number, 0), path_len, id, encoded.clone());
        encoded
    }

    #[test]
    fn as_many_are_decoded_as_were_used_last() {
        let mut map = BoundMap::default();
        let count = MAX_DECODED as u128 + 10;
        for number in 0..count {
            let encoded = put(&mut map, number, 10);
            assert!(matches!(map.get(number), Some(BindingForm::Encoded(_))));
            let bound = Arc::new(decode(&encoded).unwrap());
            map.set_decoded(number, &encoded, bound);
        }
        let is_decoded = |number| matches!(map.get(number), Some(BindingForm::Decoded(_)));
        assert_eq!(
            (0..count).filter(|number| is_decoded(*number)).count(),
            MAX_DECODED
        );
        assert!(!is_decoded(0));
        assert!(is_decoded(count - 1));
    }

    #[test]
    fn a_decoded_form_of_a_replaced_binding_is_not_kept() {
        let mut map = BoundMap::default();
        let before = put(&mut map, 1, 10);
        put(&mut map, 1, 20);
        map.set_decoded(1, &before, Arc::new(decode(&before).unwrap()));
        let Some(BindingForm::Encoded(now)) = map.get(1) else {
            panic!("the older form is kept")
        };
        assert_eq!(decode(&now).unwrap().entry.key.unwrap().path.len(), 20);
    }

    #[test]
    fn bytes_are_bounded_and_unused_keys_go_first() {
        let mut map = BoundMap::default();
        let (mut number, mut removed) = (0, Vec::new());
        for _ in 0..10 {
            put(&mut map, number, 4_000);
            number += 1;
        }
        map.begin_round();
        map.note_use(3);
        while removed.is_empty() {
            put(&mut map, number, 4_000);
            number += 1;
            assert!(map.bytes < MAX_BYTES + 10_000);
            removed = map.make_room();
        }
        assert!(map.bytes <= MAX_BYTES);
        let gone = |number: u128| map.get(number).is_none();
        assert!((0..10).filter(|number| *number != 3).all(gone));
        assert_eq!(map.len() + removed.len(), number as usize);
        let bytes = map.by_key.values().map(|kept| kept.bytes).sum::<usize>();
        assert_eq!(bytes, map.bytes);
    }
}
