//! Which keys the table may have: a question about one it has not is answered without asking it.
//!
//! A viewer waits while a new key is resolved, and nearly all keys that are asked for here are new:
//! edges know theirs. Only the leader writes keys, so what it read at the start of its term and
//! what it wrote since is all of them. Taken out is none: one that is here though the table has it
//! no more costs a look at the table. It never says "no" of a key that is there.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

use chunkcache_proto::v1;
use parking_lot::Mutex;

use super::{Cluster, error::ServiceError};

/// Beyond it the table is asked each time: some 18 MiB.
const MAX_KEYS: usize = 1_000_000;
/// Rows read at a time.
const PAGE: u32 = 10_000;

/// Hashes of keys.
#[derive(Debug, Default)]
pub struct KnownKeys {
    state: Mutex<State>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct State {
    /// Two keys of one hash cost a look at the table.
    hashes: HashSet<u64>,
    /// All that the table has are here.
    complete: bool,
    /// There are more than may be remembered.
    too_many: bool,
    /// Rises with each term: what was read for an earlier one is not all.
    term: u64,
}

impl KnownKeys {
    /// False: the table does not have it.
    #[must_use]
    pub fn may_have(&self, key: &v1::Key) -> bool {
        let state = self.state.lock();
        !state.complete || state.hashes.contains(&self.hasher.hash_one(key))
    }

    /// Before it is written.
    pub fn add(&self, key: &v1::Key) {
        self.state.lock().add(self.hasher.hash_one(key));
    }

    fn begin(&self) -> u64 {
        let mut state = self.state.lock();
        let term = state.term + 1;
        *state = State {
            term,
            ..State::default()
        };
        term
    }

    /// Rows of the table; false: they are of no use any more.
    fn read(&self, term: u64, keys: &[v1::Key]) -> bool {
        let mut state = self.state.lock();
        if state.term != term {
            return false;
        }
        for key in keys {
            state.add(self.hasher.hash_one(key));
        }
        !state.too_many
    }

    fn end(&self, term: u64) {
        let mut state = self.state.lock();
        state.complete = state.term == term && !state.too_many;
    }
}

impl State {
    fn add(&mut self, hash: u64) {
        if self.too_many {
            return;
        }
        self.hashes.insert(hash);
        if self.hashes.len() > MAX_KEYS {
            self.too_many = true;
            self.complete = false;
            self.hashes = HashSet::new();
        }
    }
}

/// At the start of a term. Until all are read the table is asked.
pub async fn load(cluster: &Cluster) -> Result<(), ServiceError> {
    let term = cluster.known_keys.begin();
    let mut after = v1::Key::default();
    loop {
        let page = cluster.database.keys(&after, PAGE).await?;
        if cluster.shutdown.is_cancelled() || !cluster.known_keys.read(term, &page) {
            return Ok(());
        }
        match page.into_iter().next_back() {
            Some(last) => after = last,
            None => {
                cluster.known_keys.end(term);
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: impl ToString) -> v1::Key {
        v1::Key {
            source: "films".into(),
            path: path.to_string(),
            ..Default::default()
        }
    }

    #[test]
    fn says_no_only_when_all_are_read() {
        let known = KnownKeys::default();
        assert!(known.may_have(&key("a")), "nothing was read yet");
        let term = known.begin();
        assert!(known.read(term, &[key("a"), key("b")]));
        assert!(known.may_have(&key("c")), "there may be more");
        known.end(term);
        assert!(known.may_have(&key("a")) && known.may_have(&key("b")));
        assert!(!known.may_have(&key("c")));
        known.add(&key("c"));
        assert!(known.may_have(&key("c")));
        let variant = v1::Key {
            variant: "de".into(),
            ..key("a")
        };
        assert!(!known.may_have(&variant));
    }

    #[test]
    fn what_is_written_while_the_table_is_read_is_kept() {
        let known = KnownKeys::default();
        let term = known.begin();
        known.add(&key("new"));
        assert!(known.read(term, &[key("old")]));
        known.end(term);
        assert!(known.may_have(&key("new")) && known.may_have(&key("old")));
    }

    #[test]
    fn a_new_term_begins_anew() {
        let known = KnownKeys::default();
        let first = known.begin();
        known.end(first);
        let second = known.begin();
        assert!(known.may_have(&key("a")), "another may have written it");
        assert!(!known.read(first, &[key("a")]));
        known.end(first);
        assert!(
            known.may_have(&key("b")),
            "an old reading's end ends nothing"
        );
        known.end(second);
        assert!(!known.may_have(&key("b")));
    }

    #[test]
    fn too_many_are_not_remembered() {
        let known = KnownKeys::default();
        let term = known.begin();
        known.end(term);
        for number in 0..=MAX_KEYS {
            known.add(&key(number));
        }
        assert!(known.may_have(&key("unseen")));
        assert!(known.state.lock().hashes.is_empty());
    }
}
