//! Decides whether one of several origins of a source is worth asking.
//!
//! A few failures in a row make it dead. A dead origin is not asked during a pause, which grows.
//! Then it is tried in parallel with a request that another origin answers, so that no viewer waits
//! for it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Failures in a row that make an origin dead.
const FAILURES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The health of one origin.
#[derive(Debug, Default)]
pub struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    dead: Option<Dead>,
    last_error: Option<LastError>,
}

/// The last failure, for operators: it is kept when the origin answers again.
#[derive(Clone, Debug)]
pub struct LastError {
    pub text: String,
    pub at: Instant,
}

/// The longest text of an error that is kept.
const MAX_ERROR_BYTES: usize = 200;

#[derive(Clone, Copy, Debug)]
struct Dead {
    since: Instant,
    pause: Duration,
    next_trial: Instant,
}

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Known at once: refused, broken, an error status.
    Quick,
    /// Found by a time-out, which no other request should have to wait for.
    Slow,
}

impl Health {
    /// Records an answer.
    pub fn succeed(&self) {
        let mut state = self.0.lock();
        state.failures = 0;
        state.dead = None;
    }

    /// Records a missing answer, or an error, and its text.
    pub fn fail(&self, failure: Failure, mut text: String, now: Instant) {
        text.truncate(text.floor_char_boundary(MAX_ERROR_BYTES));
        let mut state = self.0.lock();
        state.last_error = Some(LastError { text, at: now });
        state.failures = match failure {
            Failure::Quick => state.failures.saturating_add(1),
            Failure::Slow => state.failures.max(FAILURES),
        };
        if state.failures >= FAILURES && state.dead.is_none() {
            state.dead = Some(Dead {
                since: now,
                pause: FIRST_PAUSE,
                next_trial: now + FIRST_PAUSE,
            });
        }
    }

    /// Since when it is dead.
    #[must_use]
    pub fn dead_since(&self) -> Option<Instant> {
        self.0.lock().dead.map(|dead| dead.since)
    }

    /// The last failure.
    #[must_use]
    pub fn last_error(&self) -> Option<LastError> {
        self.0.lock().last_error.clone()
    }

    /// True once for each pause that is over: the caller then tries the origin.
    #[must_use]
    pub fn take_trial(&self, now: Instant) -> bool {
        let mut state = self.0.lock();
        let Some(dead) = &mut state.dead else {
            return false;
        };
        if dead.next_trial > now {
            return false;
        }
        dead.pause = (dead.pause * 2).min(LONGEST_PAUSE);
        dead.next_trial = now + dead.pause;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_one_is_tried_after_growing_pauses() {
        let (health, start) = (Health::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        health.fail(Failure::Quick, "down".into(), start);
        health.fail(Failure::Quick, "down".into(), start);
        assert_eq!(health.dead_since(), None);
        health.fail(Failure::Quick, "down".into(), start);
        assert_eq!(health.dead_since(), Some(start));
        assert!(!health.take_trial(start));
        let trials: Vec<u64> = (0..200).filter(|&s| health.take_trial(at(s))).collect();
        assert_eq!(trials, [1, 3, 7, 15, 31, 63, 123, 183]);
        health.fail(Failure::Quick, "down".into(), at(9));
        assert_eq!(health.dead_since(), Some(start));
        health.succeed();
        assert_eq!(health.dead_since(), None);
        assert!(!health.take_trial(at(1_000)));
    }

    #[test]
    fn one_time_out_is_enough_and_one_success_forgets_failures() {
        let (health, now) = (Health::default(), Instant::now());
        health.fail(Failure::Quick, "down".into(), now);
        health.fail(Failure::Quick, "down".into(), now);
        health.succeed();
        health.fail(Failure::Quick, "down".into(), now);
        assert_eq!(health.dead_since(), None);
        health.fail(Failure::Slow, "down".into(), now);
        assert!(health.dead_since().is_some());
    }

    #[test]
    fn the_last_error_is_short_and_outlives_a_success() {
        let (health, now) = (Health::default(), Instant::now());
        assert!(health.last_error().is_none());
        health.fail(Failure::Quick, "ä".repeat(150), now);
        health.succeed();
        let error = health.last_error().expect("it is kept");
        assert_eq!((error.text, error.at), ("ä".repeat(100), now));
    }
}
