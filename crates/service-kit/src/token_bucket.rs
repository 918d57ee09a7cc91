//! A token bucket.

use std::time::{Duration, Instant};

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    /// How much may be taken at once.
    pub burst: f64,
}

/// Tokens, of which a rate allows some each second. The rate is passed with each call, so that many
/// buckets share one.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    #[must_use]
    pub fn new(tokens: f64, now: Instant) -> Self {
        Self { tokens, at: now }
    }

    /// The tokens that there are now.
    #[must_use]
    pub fn level(&self, rate: Rate, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        (self.tokens + gained).min(rate.burst)
    }

    /// Takes tokens, or returns how long it takes until there are as many.
    pub fn take(&mut self, tokens: f64, rate: Rate, now: Instant) -> Result<(), Duration> {
        let level = self.level(rate, now);
        if level < tokens {
            let wait = Duration::try_from_secs_f64((tokens - level) / rate.per_second);
            return Err(wait.unwrap_or(Duration::MAX));
        }
        *self = Self::new(level - tokens, now);
        Ok(())
    }

    /// Puts back tokens that were not used.
    pub fn give_back(&mut self, tokens: f64, rate: Rate) {
        self.tokens = (self.tokens + tokens).min(rate.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let rate = Rate {
            per_second: 2.0,
            burst: 3.0,
        };
        let start = Instant::now();
        let mut bucket = TokenBucket::new(3.0, start);
        assert_eq!(bucket.take(3.0, rate, start), Ok(()));
        assert_eq!(
            bucket.take(1.0, rate, start),
            Err(Duration::from_millis(500))
        );
        let later = start + Duration::from_millis(500);
        assert_eq!(bucket.take(1.0, rate, later), Ok(()));
        bucket.give_back(9.0, rate);
        assert_eq!(bucket.level(rate, later), 3.0, "no more than the burst");
    }
}
