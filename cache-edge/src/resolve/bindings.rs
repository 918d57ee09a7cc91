//! Bindings of keys to entries, with their lifetimes; missing objects; and answers that cannot be
//! stored.
//!
//! Bindings are also notes in the store, so that the edge still has them after a restart without a
//! coordinator.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use chunkcache_proto::{EntryId, identity::belongs_to, v1};
use parking_lot::{Mutex, RwLock};
use prost::Message;

use super::{
    bound_map::{BaseHash, BindingForm, BoundMap, Encoded, decode},
    short_memory::{KeyHasher, ShortMemory},
    whole_store::WholeAnswers,
};
use crate::clock::now_ms;
use chunk_store::Store;
use http::HeaderMap;
use http_rules::{fields, freshness, purge};

const NOTE_PREFIX: &[u8] = b"binding\0";
/// How long requests for a key whose answer could not be stored go directly to the origin.
const UNSTORABLE_MS: i64 = 60_000;
/// The same, if the answer can be stored once its date is older.
const YOUNG_MS: i64 = 1_000;
/// Number of invalidated keys that are remembered. Answers to questions older than the oldest of
/// them are not trusted at all.
const MAX_INVALIDATED: usize = 4_096;

/// A key's present entry.
#[derive(Clone, Debug)]
pub struct Bound {
    pub id: EntryId,
    pub entry: v1::Entry,
    pub freshness: v1::Freshness,
    /// The fields of `freshness`, as they are sent.
    pub fields: Arc<HeaderMap>,
}

impl Bound {
    /// `None`: the message has no entry, or its id is none.
    pub(super) fn of(binding: v1::KeyBinding) -> Option<Self> {
        let entry = binding.entry?;
        let id = entry.id.parse().ok()?;
        Some(Self::new(id, entry, binding.freshness.unwrap_or_default()))
    }

    #[must_use]
    pub fn new(id: EntryId, entry: v1::Entry, freshness: v1::Freshness) -> Self {
        Self {
            id,
            entry,
            fields: Arc::new(fields::to_headers(&freshness.fields)),
            freshness,
        }
    }
}

/// Bindings by key. A look-up takes one shared lock.
pub struct Bindings {
    store: Store,
    bound: RwLock<BoundMap>,
    /// The header names that the origin varies on, by key without variant.
    vary: ShortMemory<Arc<[String]>>,
    negative: ShortMemory<u16>,
    unstorable: ShortMemory<&'static str>,
    hasher: KeyHasher,
    /// Edges that keep answers as a whole.
    keepers: ShortMemory<Arc<v1::Keeper>>,
    /// Answers that are stored as a whole.
    whole: WholeAnswers,
    /// The cluster's last invalidation or purge that took effect here.
    cluster_epoch: AtomicU64,
    /// Locked before every other lock, including the session's, so that a finding is recorded and
    /// reported either before an invalidation or after it.
    invalidated: Mutex<InvalidatedKeys>,
    /// Incremented after each change: while it stays the same, a look-up need not be repeated.
    changes: AtomicU64,
}

/// A position in the order of invalidations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InvalidationEpoch(u64);

#[derive(Default)]
struct InvalidatedKeys {
    hasher: KeyHasher,
    count: u64,
    /// Each with its number, the oldest first; hashes of keys without variant.
    latest: VecDeque<(u64, u128)>,
}

impl InvalidatedKeys {
    fn add(&mut self, key: &v1::Key) {
        self.count += 1;
        let id = self.hasher.hash(&base_id(key));
        self.latest.push_back((self.count, id));
        if self.latest.len() > MAX_INVALIDATED {
            self.latest.pop_front();
        }
    }

    /// Invalidates the answers to all questions that were asked before now.
    fn add_all(&mut self) {
        self.count += 1;
        self.latest.clear();
    }

    fn has_since(&self, since: InvalidationEpoch, key: &v1::Key) -> bool {
        let forgotten = self.count - self.latest.len() as u64;
        let id = self.hasher.hash(&base_id(key));
        since.0 < forgotten
            || self
                .latest
                .iter()
                .rev()
                .take_while(|(number, _)| *number > since.0)
                .any(|(_, invalidated)| *invalidated == id)
    }
}

/// One text per key. The separator cannot occur in its parts.
#[must_use]
pub fn key_id(key: &v1::Key) -> String {
    format!(
        "{}\0{}\0{}\0{}",
        key.source, key.path, key.query, key.variant
    )
}

fn base_id(key: &v1::Key) -> String {
    key_id(&v1::Key {
        variant: String::new(),
        ..key.clone()
    })
}

impl Bindings {
    /// Loads the bindings from the store's notes.
    #[must_use]
    pub fn load(store: Store) -> Self {
        let hasher = KeyHasher::default();
        let bindings = Self {
            bound: RwLock::default(),
            vary: ShortMemory::new(hasher.clone()),
            negative: ShortMemory::new(hasher.clone()),
            unstorable: ShortMemory::new(hasher.clone()),
            keepers: ShortMemory::new(hasher.clone()),
            hasher,
            whole: WholeAnswers::default(),
            cluster_epoch: AtomicU64::new(0),
            invalidated: Mutex::default(),
            changes: AtomicU64::new(0),
            store,
        };
        for (_, note) in bindings.store.notes(NOTE_PREFIX) {
            if let Some(bound) = decode(&note) {
                bindings.remember(&Arc::new(bound), &note, false);
            }
        }
        bindings
    }

    /// Number of keys with a known entry.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.bound.read().len()
    }

    /// A change counter. Read it before a look-up: while it stays the same, so does the result.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// The binding of a key that a request asks for.
    #[must_use]
    pub fn get(&self, key: &v1::Key) -> Option<Arc<Bound>> {
        let hash = self.hasher.hash(&key_id(key));
        let found = {
            let bound = self.bound.read();
            bound.note_use(hash);
            bound.get(hash)?
        };
        match found {
            BindingForm::Decoded(bound) => Some(bound),
            BindingForm::Encoded(encoded) => {
                let bound = Arc::new(decode(&encoded)?);
                let mut map = self.bound.write();
                map.set_decoded(hash, &encoded, bound.clone());
                Some(bound)
            }
        }
    }

    /// The same for our own use, which does not count.
    #[must_use]
    pub fn peek(&self, key: &v1::Key) -> Option<Arc<Bound>> {
        let found = self.bound.read().get(self.hasher.hash(&key_id(key)))?;
        match found {
            BindingForm::Decoded(bound) => Some(bound),
            BindingForm::Encoded(encoded) => decode(&encoded).map(Arc::new),
        }
    }

    /// Forgets keys that no request asked for since the last round, at most `most` of them. False:
    /// more are left, and the next call continues the same round.
    pub fn forget_unused(&self, most: usize) -> bool {
        let unused = self.bound.read().unused(most);
        for key in &unused {
            let mut map = self.bound.write();
            self.remove_notes(map.remove(*key));
        }
        if !unused.is_empty() {
            self.changed();
        }
        if unused.len() == most {
            return false;
        }
        self.bound.read().begin_round();
        true
    }

    /// Forgets the key of an entry that the store has forgotten, because it had no chunks and no
    /// request looked it up. The next request for the key asks the coordinator.
    pub fn forget_entry(&self, entry: &v1::Entry) {
        let (Some(key), Ok(id)) = (&entry.key, entry.id.parse()) else {
            return;
        };
        if self.store.entry(&id).is_some() {
            return;
        }
        let hash = self.hasher.hash(&key_id(key));
        let mut map = self.bound.write();
        let removed = map.remove_of(hash, id);
        if removed.is_some() {
            self.remove_notes(removed);
            drop(map);
            self.changed();
        }
    }

    fn remove_notes(&self, removed: impl IntoIterator<Item = Encoded>) {
        for bound in removed.into_iter().filter_map(|encoded| decode(&encoded)) {
            let id = key_id(&bound.entry.key.unwrap_or_default());
            self.store.put_note(&note_key(&id), None);
        }
    }

    /// The header names that the origin varies on for this key, as far as known.
    #[must_use]
    pub fn vary(&self, key: &v1::Key) -> Arc<[String]> {
        let known = self.vary.get(&key.source, &base_id(key), 0);
        known.unwrap_or_default()
    }

    /// Records the header names that an answer for the key varies on.
    pub fn set_vary(&self, key: &v1::Key, names: &[String]) {
        if !names.is_empty() {
            self.vary
                .insert(&key.source, &base_id(key), names.into(), i64::MAX, 0);
        }
    }

    /// Adds the names that earlier answers for the key named and that its origin gets: many servers
    /// name a header only in answers to requests that have it.
    pub(super) fn add_known_vary(
        &self,
        key: &v1::Key,
        forwarded: &[String],
        names: &mut Vec<String>,
    ) {
        for name in self.vary(key).iter() {
            let is_sent = forwarded.iter().any(|it| it.eq_ignore_ascii_case(name));
            if is_sent && !names.contains(name) {
                names.push(name.clone());
            }
        }
    }

    pub(super) fn whole(&self) -> &WholeAnswers {
        &self.whole
    }

    /// A hash of a text that clients choose.
    #[must_use]
    pub fn hash(&self, text: &str) -> u128 {
        self.hasher.hash(text)
    }

    /// The present epoch. Read it before the origin or the coordinator is asked about a key.
    #[must_use]
    pub fn now(&self) -> InvalidationEpoch {
        InvalidationEpoch(self.invalidated.lock().count)
    }

    /// Runs `then` (which records and reports a finding) unless the key was invalidated since. No
    /// invalidation can happen in between.
    pub fn unless_invalidated<T>(
        &self,
        since: InvalidationEpoch,
        key: &v1::Key,
        then: impl FnOnce() -> T,
    ) -> Option<T> {
        let invalidated = self.invalidated.lock();
        (!invalidated.has_since(since, key)).then(then)
    }

    /// Binds the key durably.
    pub fn bind(&self, entry: v1::Entry, freshness: v1::Freshness) -> Option<Arc<Bound>> {
        let binding = v1::KeyBinding {
            entry: Some(entry),
            freshness: Some(freshness),
        };
        let encoded = Encoded::from(binding.encode_to_vec());
        let bound = Arc::new(Bound::of(binding)?);
        self.remember(&bound, &encoded, true)?;
        Some(bound)
    }

    /// `is_new`: there is no note of it yet. The map is locked until the note is set, so that both
    /// always agree.
    fn remember(&self, bound: &Arc<Bound>, encoded: &Encoded, is_new: bool) -> Option<()> {
        let key = bound.entry.key.as_ref()?;
        let id = key_id(key);
        self.set_vary(key, &bound.freshness.vary);
        self.negative.remove(&key.source, &id);
        self.unstorable.remove(&key.source, &id);
        self.keepers.remove(&key.source, &id);
        let hashes = (self.hasher.hash(&id), self.base_hash(key));
        let mut map = self.bound.write();
        let removed = map.make_room();
        self.remove_notes(removed);
        map.insert(hashes, id.len(), bound.id, encoded.clone());
        if is_new {
            map.set_decoded(hashes.0, encoded, bound.clone());
            self.store.put_note(&note_key(&id), Some(encoded.clone()));
        }
        drop(map);
        self.changed();
        Some(())
    }

    #[allow(clippy::cast_possible_truncation)] // half of it is enough
    fn base_hash(&self, key: &v1::Key) -> BaseHash {
        self.hasher.hash(&base_id(key)) as BaseHash
    }

    /// Removes the binding: the next request for the key asks again.
    pub fn unbind(&self, key: &v1::Key) {
        let id = key_id(key);
        let mut map = self.bound.write();
        if map.remove(self.hasher.hash(&id)).is_some() {
            self.store.put_note(&note_key(&id), None);
        }
        drop(map);
        self.negative.remove(&key.source, &id);
        self.unstorable.remove(&key.source, &id);
        self.keepers.remove(&key.source, &id);
        self.changed();
    }

    /// Removes all variants of the keys, and all keys bound to one of the entries.
    pub fn invalidate(&self, keys: &[v1::Key], entries: &[EntryId]) {
        let mut invalidated = self.invalidated.lock();
        let entries: HashSet<&EntryId> = entries.iter().collect();
        let same = |held: &v1::Key, key: &v1::Key| {
            (&held.source, &held.path, &held.query) == (&key.source, &key.path, &key.query)
        };
        let bases = keys.iter().map(|key| self.base_hash(key)).collect();
        let selected = self.bound.read().selected(&bases, &entries);
        let hit = selected
            .iter()
            .filter_map(|encoded| decode(encoded)?.entry.key);
        let hit: Vec<v1::Key> = hit.collect();
        self.whole
            .forget(|held, _| keys.iter().any(|key| same(held, key)));
        for key in hit.iter().chain(keys) {
            invalidated.add(key);
            self.unbind(key);
        }
    }

    /// Purges the selected keys and the keys of the entries: forgets them, or in a soft purge
    /// requires that the origin is asked before they are served. Returns the number of purged
    /// objects that no table lists, because they are stored as a whole.
    pub fn purge(
        &self,
        selector: &v1::PurgeSelector,
        entries: &HashSet<EntryId>,
        soft: bool,
    ) -> u64 {
        // From here on no answer to an older question is bound, so the bindings can be looked
        // through while other questions go on.
        self.invalidated.lock().add_all();
        let all = self.bound.read().all();
        let hit = all.iter().filter_map(|encoded| decode(encoded));
        let hit = hit.filter(|bound| {
            let key = bound.entry.key.as_ref();
            entries.contains(&bound.id)
                || key.is_some_and(|key| purge::selects(selector, key, &bound.fields))
        });
        for bound in hit {
            let Some(key) = &bound.entry.key else {
                continue;
            };
            let _no_other_finding = self.invalidated.lock();
            if !soft {
                self.unbind(key);
            } else if self.peek(key).is_some_and(|held| held.id == bound.id) {
                let fresh_until_ms = bound.freshness.fresh_until_ms.min(now_ms());
                let freshness = v1::Freshness {
                    fresh_until_ms,
                    must_confirm: true,
                    ..bound.freshness.clone()
                };
                self.bind(bound.entry.clone(), freshness);
            }
        }
        // Only their hashes are known, so all of the source are forgotten: each costs one question.
        self.negative.forget(&selector.source);
        self.unstorable.forget(&selector.source);
        self.keepers.forget(&selector.source);
        let forgotten = self
            .whole
            .forget(|key, headers| purge::selects(selector, key, headers));
        self.changed();
        forgotten
    }

    /// Forgets keys whose entries do not belong to their source as it is registered now, because
    /// the source was removed or its base URL changed.
    pub fn forget_foreign(&self, base_url_of: impl Fn(&str) -> Option<String>) {
        // These are few, and do not record their base URL.
        self.whole.forget(|_, _| true);
        self.keepers.forget("");
        let all = self.bound.read().all();
        let bound = all.iter().filter_map(|encoded| decode(encoded));
        let foreign = bound.filter_map(|bound| {
            let key = bound.entry.key.clone()?;
            let base_url = base_url_of(&key.source);
            let is_ours = base_url.is_some_and(|base_url| belongs_to(&bound.entry, &base_url));
            (!is_ours).then_some(key)
        });
        let foreign: Vec<v1::Key> = foreign.collect();
        let mut invalidated = self.invalidated.lock();
        for key in &foreign {
            invalidated.add(key);
            self.unbind(key);
        }
    }

    /// Records that the origin has no such object, until the given time.
    pub fn set_negative(&self, key: &v1::Key, status: u16, until_ms: i64, now_ms: i64) {
        let id = key_id(key);
        self.negative
            .insert(&key.source, &id, status, until_ms, now_ms);
        self.changed();
    }

    #[must_use]
    pub fn negative(&self, key: &v1::Key, now_ms: i64) -> Option<u16> {
        self.negative.get(&key.source, &key_id(key), now_ms)
    }

    /// Records why the key's answer cannot be stored.
    pub fn set_unstorable(&self, key: &v1::Key, why: &'static str, now_ms: i64) {
        let remembered_for = match why {
            freshness::YOUNG => YOUNG_MS,
            _ => UNSTORABLE_MS,
        };
        let (id, until_ms) = (key_id(key), now_ms + remembered_for);
        self.unstorable
            .insert(&key.source, &id, why, until_ms, now_ms);
        self.changed();
    }

    #[must_use]
    pub fn unstorable(&self, key: &v1::Key, now_ms: i64) -> Option<&'static str> {
        self.unstorable.get(&key.source, &key_id(key), now_ms)
    }

    /// Records which edge has just given its answer for the key.
    pub fn set_keeper(&self, key: &v1::Key, keeper: Arc<v1::Keeper>, now_ms: i64) {
        let (id, until_ms) = (key_id(key), now_ms + UNSTORABLE_MS);
        self.keepers
            .insert(&key.source, &id, keeper, until_ms, now_ms);
    }

    /// The edge that asks the origin for the key instead of this one.
    #[must_use]
    pub fn keeper(&self, key: &v1::Key, now_ms: i64) -> Option<Arc<v1::Keeper>> {
        self.keepers.get(&key.source, &key_id(key), now_ms)
    }

    pub fn forget_keeper(&self, key: &v1::Key) {
        self.keepers.remove(&key.source, &key_id(key));
    }

    /// The cluster's last invalidation or purge that took effect here.
    #[must_use]
    pub fn cluster_epoch(&self) -> u64 {
        self.cluster_epoch.load(Ordering::Acquire)
    }

    /// Records that an invalidation or purge has taken effect.
    pub fn set_cluster_epoch(&self, epoch: u64) {
        self.cluster_epoch.fetch_max(epoch, Ordering::AcqRel);
    }

    /// Begins a session. If there were invalidations since the last one, forgets the answers that
    /// no table lists: nothing else says which of them are outdated.
    pub fn resume_at(&self, epoch: u64) {
        if self.cluster_epoch.swap(epoch, Ordering::AcqRel) != epoch {
            self.whole.forget(|_, _| true);
        }
    }
}

fn note_key(id: &str) -> Vec<u8> {
    [NOTE_PREFIX, id.as_bytes()].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "bindings_tests.rs"]
mod tests;
