//! Origins and objects that have just failed to answer a revalidation. One failure counts for all
//! requests: they get the stale object at once, and the origin is asked in the background.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::short_memory::KeyHasher;

/// How often the origin is asked while it is ailing.
const ASK_EVERY_MS: i64 = 2_000;
/// After this time without a request, the next one waits for its answer again.
const FORGET_AFTER_MS: i64 = 60_000;
/// Beyond this number, the forgotten ones are removed, or else all: each costs one wait.
const MAX_AILING: usize = 10_000;

#[derive(Clone, Copy)]
struct Ill {
    ask_at_ms: i64,
    forget_at_ms: i64,
}

/// The ailing, by source and by key.
#[derive(Default)]
pub(super) struct Ailing {
    hasher: KeyHasher,
    ill: Mutex<HashMap<u128, Ill>>,
}

/// How to handle a stale object of an ailing source or key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    ServeStale,
    /// Serve stale, and ask in the background.
    ServeStaleAndAsk,
}

impl Ailing {
    pub fn failed(&self, id: &str, now_ms: i64) {
        let mut ill = self.ill.lock();
        if ill.len() >= MAX_AILING {
            ill.retain(|_, it| now_ms < it.forget_at_ms);
            if ill.len() >= MAX_AILING {
                ill.clear();
            }
        }
        let state = Ill {
            ask_at_ms: now_ms + ASK_EVERY_MS,
            forget_at_ms: now_ms + FORGET_AFTER_MS,
        };
        ill.insert(self.hasher.hash(id), state);
    }

    pub fn answered(&self, id: &str) {
        self.ill.lock().remove(&self.hasher.hash(id));
    }

    pub fn advise(&self, id: &str, now_ms: i64) -> Option<Advice> {
        let mut ill = self.ill.lock();
        let hash = self.hasher.hash(id);
        let state = ill.get_mut(&hash)?;
        if now_ms >= state.forget_at_ms {
            ill.remove(&hash);
            return None;
        }
        if now_ms < state.ask_at_ms {
            return Some(Advice::ServeStale);
        }
        state.ask_at_ms = now_ms + ASK_EVERY_MS;
        Some(Advice::ServeStaleAndAsk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_question_each_moment_and_the_rest_do_not_wait() {
        let ailing = Ailing::default();
        assert_eq!(ailing.advise("films", 0), None);
        ailing.failed("films", 0);
        assert_eq!(ailing.advise("films", 1), Some(Advice::ServeStale));
        assert_eq!(ailing.advise("shorts", 1), None);
        let asked = ailing.advise("films", ASK_EVERY_MS);
        assert_eq!(asked, Some(Advice::ServeStaleAndAsk));
        let next = ailing.advise("films", ASK_EVERY_MS + 1);
        assert_eq!(next, Some(Advice::ServeStale), "one asks for all");
        ailing.answered("films");
        assert_eq!(ailing.advise("films", ASK_EVERY_MS + 1), None);
        ailing.failed("films", 0);
        assert_eq!(ailing.advise("films", FORGET_AFTER_MS), None);
    }

    #[test]
    fn it_is_bounded() {
        let ailing = Ailing::default();
        for number in 0..=MAX_AILING {
            ailing.failed(&number.to_string(), 0);
        }
        assert!(ailing.ill.lock().len() <= MAX_AILING);
    }
}
