//! What a reader has really consumed, and how much may be fetched ahead of it for that.
//!
//! The first bytes a reader takes fill buffers: its player's, and the sockets' between. They say
//! nothing of how far it will read. So its lookahead starts at two chunks, and grows by what is
//! consumed beyond them, to a minute of playback at the rate at which it consumes.

use std::time::Duration;

use super::lookahead::DEFAULT_LOOKAHEAD_CHUNKS;

/// Ahead of a reader that has earned nothing yet.
pub const START_CHUNKS: u32 = 2;
/// What may lie in buffers between the edge and a viewer's eyes.
const BUFFERED: u64 = 8 << 20;
/// A rate is measured over at least this long.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// Of one reader. Times are on any clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consumption {
    total: u64,
    window_start: Duration,
    window_bytes: u64,
    rate: u64,
}

impl Consumption {
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self {
            window_start: now,
            ..Self::default()
        }
    }

    /// The reader took these bytes.
    pub fn add(&mut self, bytes: u64, now: Duration) {
        self.total = self.total.saturating_add(bytes);
        self.window_bytes = self.window_bytes.saturating_add(bytes);
        let passed = now.saturating_sub(self.window_start);
        if passed < RATE_WINDOW {
            return;
        }
        let rate = u128::from(self.window_bytes) * 1_000_000 / passed.as_micros().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX).max(1);
        // The first one is mostly buffers, and soon forgotten.
        self.rate = match self.rate {
            0 => rate,
            before => before / 2 + rate / 2,
        };
        (self.window_start, self.window_bytes) = (now, 0);
    }

    /// Bytes a second, over seconds: a burst into a buffer is not a rate. 0: not known yet.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Bytes that may be fetched ahead of the reader: at most what it plays in `longest`, but a
    /// reader that goes on reading gets at least ten chunks.
    #[must_use]
    pub fn earned_bytes(&self, chunk_size: u64, longest: Duration) -> u64 {
        let chunks = |count: u32| u64::from(count).saturating_mul(chunk_size);
        let earned = chunks(START_CHUNKS).saturating_add(self.total.saturating_sub(BUFFERED));
        if self.rate == 0 {
            return earned;
        }
        let played = u128::from(self.rate) * longest.as_millis() / 1_000;
        let played = u64::try_from(played).unwrap_or(u64::MAX);
        earned.min(played.max(chunks(DEFAULT_LOOKAHEAD_CHUNKS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 2 << 20;
    const MINUTE: Duration = Duration::from_secs(60);

    /// Of a reader that took a burst, then so much each second.
    fn consumed(burst: u64, each_second: u64, seconds: u64) -> Consumption {
        let mut consumption = Consumption::new(Duration::ZERO);
        consumption.add(burst, Duration::from_millis(20));
        for second in 1..=seconds {
            consumption.add(each_second, Duration::from_secs(second));
        }
        consumption
    }

    #[test]
    fn what_fits_into_buffers_earns_nothing() {
        assert_eq!(
            consumed(0, 0, 0).earned_bytes(CHUNK, MINUTE),
            2 * CHUNK,
            "at first"
        );
        assert_eq!(
            consumed(BUFFERED, 0, 0).earned_bytes(CHUNK, MINUTE),
            2 * CHUNK
        );
        assert_eq!(
            consumed(BUFFERED, CHUNK, 5).earned_bytes(CHUNK, MINUTE),
            7 * CHUNK
        );
    }

    #[test]
    fn it_is_no_more_than_is_played_in_a_minute_and_no_less_than_ten_chunks() {
        let fast = consumed(0, 1_000_000, 600).earned_bytes(CHUNK, MINUTE);
        assert_eq!(fast, 60_000_000);
        let slow = consumed(0, 50_000, 3_600).earned_bytes(CHUNK, MINUTE);
        assert_eq!(slow, 10 * CHUNK);
    }

    #[test]
    fn a_rate_is_of_seconds_and_follows_what_is_consumed() {
        assert_eq!(consumed(6 << 20, 0, 0).rate(), 0, "a burst");
        let slow = consumed(6 << 20, 100_000, 12).rate();
        assert!((100_000..110_000).contains(&slow), "{slow}");
    }
}
