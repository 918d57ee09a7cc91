//! Exponential back-off with jitter.

use std::time::Duration;

/// The waits between attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    /// The first wait is about `first`. Each later one is about twice the previous one, up to
    /// `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            attempts: 0,
        }
    }

    /// The next wait. `random` in [0, 1) spreads it over the upper half of its span, so that
    /// clients that failed together do not return together.
    pub fn wait(&mut self, random: f64) -> Duration {
        let doubled = self.first.saturating_mul(1u32 << self.attempts.min(20));
        self.attempts = self.attempts.saturating_add(1);
        let span = doubled.min(self.longest);
        span.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// Number of waits since the last success.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Resets after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_its_limit_and_starts_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..6).map(|_| backoff.wait(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.wait(0.0).as_millis(), 50);
    }

    #[test]
    fn many_attempts_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        for _ in 0..1_000 {
            assert!(backoff.wait(0.5) <= Duration::from_secs(30));
        }
    }
}
