//! A byte rate limiter with levels: limits the reads from one source, and decides which reader may
//! read next.
//!
//! The rate is passed with each call, because it changes while bytes flow. Bytes are counted after
//! they were read, so the limiter goes into debt by one read and then waits. While a more urgent
//! level reads, a lower one is limited to a minimal share of the rate.

use std::time::{Duration, Instant};

use chunkcache_proto::Level;

/// The default burst, for origins: it lets a first request pass without waiting.
const BURST: Duration = Duration::from_millis(250);
/// A level that read, or wanted to read, within this time holds lower ones back.
const ACTIVE_FOR: Duration = Duration::from_millis(250);
/// While held back, a level gets one part in this many of the rate.
const MINIMAL_SHARE: u64 = 16;

/// Limits the reads from one source. 0 bytes per second: no limit.
#[derive(Clone, Debug)]
pub struct ByteRateLimiter {
    /// This much of the rate may be taken at once after a pause.
    burst: Duration,
    /// The time at which past reads are paid for.
    paid_at: Option<Instant>,
    levels: [LevelState; 4],
}

#[derive(Clone, Copy, Debug, Default)]
struct LevelState {
    active_at: Option<Instant>,
    /// The time at which past reads of a minimal share are paid for.
    paid_at: Option<Instant>,
}

impl Default for ByteRateLimiter {
    fn default() -> Self {
        Self::with_burst(BURST)
    }
}

impl ByteRateLimiter {
    #[must_use]
    pub fn with_burst(burst: Duration) -> Self {
        Self {
            burst,
            paid_at: None,
            levels: [LevelState::default(); 4],
        }
    }

    /// How long a reader of this level must wait before its next read; `None`: it may read now.
    #[must_use]
    pub fn wait(&mut self, level: Level, rate: u64, now: Instant) -> Option<Duration> {
        self.levels[level as usize].active_at = Some(now);
        if rate == 0 {
            return None;
        }
        // A minimal share has its own debt: the debt of more urgent levels may never end, and would
        // starve it.
        let paid_at = if self.is_contended(level, now) {
            self.levels[level as usize].paid_at
        } else {
            self.paid_at
        };
        let wait = paid_at.and_then(|at| at.checked_duration_since(now));
        wait.filter(|wait| !wait.is_zero())
    }

    /// Whether a more urgent level reads from the source.
    #[must_use]
    pub fn is_contended(&self, level: Level, now: Instant) -> bool {
        let more_urgent = &self.levels[..level as usize];
        let is_active = |at: Instant| now.saturating_duration_since(at) < ACTIVE_FOR;
        more_urgent
            .iter()
            .any(|state| state.active_at.is_some_and(is_active))
    }

    /// Counts bytes that were read.
    pub fn take(&mut self, bytes: usize, level: Level, rate: u64, now: Instant) {
        if rate == 0 {
            return;
        }
        let rested = now.checked_sub(self.burst).unwrap_or(now);
        let pay = |paid_at: Option<Instant>, from: Instant, rate: u64| {
            let from = paid_at.map_or(from, |at| at.max(from));
            let costs = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            Some(from + costs.min(Duration::from_secs(60)))
        };
        self.paid_at = pay(self.paid_at, rested, rate);
        let state = &mut self.levels[level as usize];
        state.active_at = Some(now);
        state.paid_at = pay(state.paid_at, now, (rate / MINIMAL_SHARE).max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 1_000_000;
    const PIECE: usize = 16 << 10;

    /// How many bytes readers of these levels read in ten seconds.
    fn in_ten_seconds(levels: &[Level], rate: u64) -> Vec<u64> {
        let mut limiter = ByteRateLimiter::default();
        let begun = Instant::now();
        let mut taken = vec![0; levels.len()];
        for ms in 0..10_000 {
            let now = begun + Duration::from_millis(ms);
            for (level, taken) in levels.iter().zip(&mut taken) {
                if limiter.wait(*level, rate, now).is_none() {
                    limiter.take(PIECE, *level, rate, now);
                    *taken += PIECE as u64;
                }
            }
        }
        taken
    }

    #[test]
    fn all_levels_together_keep_to_the_rate() {
        for levels in [
            &[Level::High][..],
            &[Level::Critical, Level::Low],
            &Level::ALL,
        ] {
            let taken: u64 = in_ten_seconds(levels, RATE).iter().sum();
            let most = RATE * 10 + RATE / 4 + 4 * PIECE as u64;
            assert!((RATE * 9..=most).contains(&taken), "{levels:?}: {taken}");
        }
    }

    #[test]
    fn a_lower_level_keeps_to_its_minimal_share_while_a_higher_one_reads() {
        let taken = in_ten_seconds(&[Level::Critical, Level::Low], RATE);
        assert!(taken[0] > RATE * 9, "{taken:?}");
        assert!(taken[1] > RATE / 4, "{taken:?}");
        assert!(in_ten_seconds(&[Level::Low], RATE)[0] > RATE * 9);
    }

    #[test]
    fn a_first_question_does_not_wait_and_no_limit_never_does() {
        let mut limiter = ByteRateLimiter::default();
        let now = Instant::now();
        limiter.take(64 << 10, Level::Critical, RATE, now);
        assert_eq!(limiter.wait(Level::Critical, RATE, now), None);
        limiter.take(1 << 20, Level::Critical, RATE, now);
        assert!(limiter.wait(Level::Critical, RATE, now).is_some());
        assert_eq!(limiter.wait(Level::Critical, 0, now), None);
    }
}
