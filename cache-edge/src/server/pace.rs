//! Limits the rate of a connection or of one body, after a burst.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use chunkcache_proto::Level;
use tokio::time::{Instant, Sleep};

use crate::core::byte_rate::ByteRateLimiter;

/// The bytes of one second are sent in this many parts.
const PARTS_PER_SECOND: u64 = 8;
/// Smaller parts cost more than they smooth.
const LEAST_PART_BYTES: u64 = 16 << 10;

pub(super) struct Pacer {
    bytes_per_second: u64,
    limiter: ByteRateLimiter,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Pacer {
    /// `burst`: this much of the rate is sent at once, at the start and after a pause.
    pub fn new(bytes_per_second: u64, burst: Duration) -> Self {
        Self {
            bytes_per_second,
            limiter: ByteRateLimiter::with_burst(burst),
            wait: None,
        }
    }

    /// Number of bytes that may be sent when ready.
    pub fn part_bytes(&self) -> u64 {
        (self.bytes_per_second / PARTS_PER_SECOND).max(LEAST_PART_BYTES)
    }

    /// Ready when the next part may be sent.
    pub fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(context));
                self.wait = None;
            }
            let (rate, now) = (self.bytes_per_second, Instant::now().into_std());
            match self.limiter.wait(Level::Critical, rate, now) {
                Some(wait) => self.wait = Some(Box::pin(tokio::time::sleep(wait))),
                None => return Poll::Ready(()),
            }
        }
    }

    /// Counts sent bytes.
    pub fn sent(&mut self, bytes: usize) {
        let (rate, now) = (self.bytes_per_second, Instant::now().into_std());
        self.limiter.take(bytes, Level::Critical, rate, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of bytes that are sent within `seconds`.
    async fn sent_in(rate: u64, burst: Duration, seconds: u64) -> u64 {
        let mut pace = Pacer::new(rate, burst);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut sent = 0;
        loop {
            std::future::poll_fn(|context| pace.poll_ready(context)).await;
            if Instant::now() >= end {
                return sent;
            }
            pace.sent(usize::try_from(pace.part_bytes()).unwrap_or(usize::MAX));
            sent += pace.part_bytes();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_the_rate() {
        let burst = Duration::from_secs(5);
        for rate in [16 << 10, 1 << 20, 100 << 20] {
            let part = (rate / PARTS_PER_SECOND).max(LEAST_PART_BYTES);
            let sent = sent_in(rate, burst, 20).await;
            assert!((24 * rate..=25 * rate + 2 * part).contains(&sent), "{sent}");
            let sent = sent_in(rate, Duration::from_secs(1), 20).await;
            assert!((20 * rate..=21 * rate + 2 * part).contains(&sent), "{sent}");
        }
    }
}
