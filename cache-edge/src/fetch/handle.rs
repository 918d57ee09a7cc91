//! Stops a running fetch, and shows its progress.

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

use chunkcache_proto::Level;

use tokio::sync::Notify;

/// How soon a fetch must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopMode {
    /// After the current chunk.
    AtChunkEnd = 1,
    /// At once; the fetch resumes later.
    Preempted = 2,
    /// No longer wanted; written bytes are kept.
    Now = 3,
}

/// Called with the number of bytes of the run that the fetch has passed.
type OnChunk = Box<dyn Fn(u64) + Send + Sync>;

/// Shared between a running fetch and its manager.
#[derive(Default)]
pub struct FetchHandle {
    stop: AtomicU8,
    stopped: Notify,
    /// Where the answer that is being read began.
    leg_start: AtomicU64,
    position: AtomicU64,
    bytes_done: AtomicU64,
    run_start: u64,
    /// Distance from the run's start to the furthest position.
    reached: AtomicU64,
    on_chunk: Option<OnChunk>,
    /// The position from which only the end is missing; 0: none, or it was passed.
    end_begins: AtomicU64,
    on_end: Option<Box<dyn Fn() + Send + Sync>>,
    /// How urgently its bytes are wanted.
    level: Arc<AtomicU8>,
}

impl FetchHandle {
    /// `run_start`: where the run begins; `start_at`: the first byte to fetch. `on_chunk` is called
    /// at each chunk's end.
    #[must_use]
    pub fn new(
        run_start: u64,
        start_at: u64,
        on_chunk: impl Fn(u64) + Send + Sync + 'static,
    ) -> Self {
        let handle = Self {
            run_start,
            on_chunk: Some(Box::new(on_chunk)),
            ..Self::default()
        };
        handle.begin_leg(start_at);
        handle
    }

    /// Calls `on_end` once, when the fetch is at this position or beyond it.
    #[must_use]
    pub fn with_end(mut self, begins: u64, on_end: impl Fn() + Send + Sync + 'static) -> Self {
        self.end_begins = AtomicU64::new(begins);
        self.on_end = Some(Box::new(on_end));
        self
    }

    /// Begins another part of the run.
    pub fn begin_leg(&self, start: u64) {
        self.leg_start.store(start, Ordering::Relaxed);
        self.set_position(start);
    }

    /// The distance to a wanted byte that has not arrived; `None`: the fetch is past it. A byte
    /// that has arrived is written within milliseconds.
    #[must_use]
    pub fn distance_to(&self, wanted: u64) -> Option<u64> {
        let is_passed = wanted < self.leg_start.load(Ordering::Relaxed);
        (!is_passed).then(|| wanted.saturating_sub(self.position()))
    }

    /// The level, shared with the answer that is being read.
    #[must_use]
    pub fn level(&self) -> Arc<AtomicU8> {
        self.level.clone()
    }

    pub fn set_level(&self, level: Level) {
        self.level.store(level as u8, Ordering::Relaxed);
    }

    /// Records that the fetch has reached a chunk's end.
    pub fn chunk_ended(&self) {
        if let Some(on_chunk) = &self.on_chunk {
            on_chunk(self.reached());
        }
    }

    /// How many bytes of the run the fetch has passed, including present ones that it skipped.
    #[must_use]
    pub fn reached(&self) -> u64 {
        self.reached.load(Ordering::Relaxed)
    }

    /// Tells the fetch to stop. A later call can only be more urgent.
    pub fn stop(&self, stop: StopMode) {
        self.stop.fetch_max(stop as u8, Ordering::AcqRel);
        self.stopped.notify_waiters();
        self.stopped.notify_one();
    }

    #[must_use]
    pub fn wanted_stop(&self) -> Option<StopMode> {
        match self.stop.load(Ordering::Acquire) {
            1 => Some(StopMode::AtChunkEnd),
            2 => Some(StopMode::Preempted),
            3 => Some(StopMode::Now),
            _ => None,
        }
    }

    /// Returns when the fetch must stop at once. Cancel safe.
    pub async fn stopped_now(&self) -> StopMode {
        self.stopped(StopMode::Preempted).await
    }

    /// Returns when the fetch must stop at once and will not be resumed. Cancel safe.
    pub async fn ended_now(&self) {
        self.stopped(StopMode::Now).await;
    }

    async fn stopped(&self, least: StopMode) -> StopMode {
        loop {
            let notified = self.stopped.notified();
            match self.wanted_stop() {
                Some(stop) if stop >= least => return stop,
                _ => notified.await,
            }
        }
    }

    /// The position of the next byte.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    pub fn set_position(&self, offset: u64) {
        self.position.store(offset, Ordering::Relaxed);
        let reached = offset.saturating_sub(self.run_start);
        self.reached.fetch_max(reached, Ordering::Relaxed);
        let end_begins = self.end_begins.load(Ordering::Relaxed);
        if end_begins > 0
            && offset >= end_begins
            && self.end_begins.swap(0, Ordering::Relaxed) > 0
            && let Some(on_end) = &self.on_end
        {
            on_end();
        }
    }

    pub fn add_bytes(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    #[must_use]
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_arrived_is_not_behind() {
        let handle = FetchHandle::new(0, 600, |_| {});
        assert_eq!(
            (handle.distance_to(599), handle.distance_to(700)),
            (None, Some(100))
        );
        handle.set_position(900);
        // It may not be written yet, but a reader that waits for it must not start another fetch.
        assert_eq!(
            (handle.distance_to(700), handle.distance_to(950)),
            (Some(0), Some(50))
        );
        handle.begin_leg(100);
        assert_eq!(
            (handle.distance_to(99), handle.distance_to(600)),
            (None, Some(500))
        );
    }
}
