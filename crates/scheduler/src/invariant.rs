//! Lookups that cannot fail, because the scheduler's own indexes agree.
//!
//! Where one fails nevertheless, the scheduler does not take its coordinator down: it skips the
//! step, and counts.

use std::sync::atomic::{AtomicU64, Ordering};

static BROKEN: AtomicU64 = AtomicU64::new(0);

/// How often an index contradicted another one since the last call, in this process. Each is a
/// bug.
#[must_use]
pub fn take_broken_invariants() -> u64 {
    BROKEN.swap(0, Ordering::Relaxed)
}

pub trait Invariant: Sized {
    /// Marks a lookup that finds something, as long as the indexes agree. Panics in tests if not.
    #[track_caller]
    fn expected(self) -> Self;
}

impl<T> Invariant for Option<T> {
    fn expected(self) -> Self {
        if self.is_none() {
            BROKEN.fetch_add(1, Ordering::Relaxed);
            debug_assert!(false, "the scheduler's indexes contradict each other");
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "contradict")]
    fn a_lookup_that_fails_panics_in_tests() {
        assert_eq!(Some(1).expected(), Some(1));
        None::<u8>.expected();
    }
}
