//! Stopping a fetch that runs, and seeing how far it is.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use tokio::sync::Notify;

/// How soon a fetch is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// After the chunk under way.
    AtChunkEnd = 1,
    /// Not wanted any more; what is written is kept.
    Now = 2,
    /// As `Now`, but to go on later.
    Preempted = 3,
}

/// Shared between a running fetch and who manages it.
#[derive(Default)]
pub struct Control {
    stop: AtomicU8,
    stopped: Notify,
    position: AtomicU64,
    bytes_done: AtomicU64,
}

impl Control {
    /// A later call may only be more urgent.
    pub fn stop(&self, stop: Stop) {
        self.stop.fetch_max(stop as u8, Ordering::AcqRel);
        self.stopped.notify_waiters();
        self.stopped.notify_one();
    }

    #[must_use]
    pub fn wanted_stop(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Acquire) {
            1 => Some(Stop::AtChunkEnd),
            2 => Some(Stop::Now),
            3 => Some(Stop::Preempted),
            _ => None,
        }
    }

    /// Returns when the fetch is to stop at once. Cancel safe.
    pub async fn stopped_now(&self) -> Stop {
        loop {
            let notified = self.stopped.notified();
            match self.wanted_stop() {
                Some(stop) if stop >= Stop::Now => return stop,
                _ => notified.await,
            }
        }
    }

    /// The next byte to come.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    pub fn set_position(&self, offset: u64) {
        self.position.store(offset, Ordering::Relaxed);
    }

    pub fn add_bytes(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    #[must_use]
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done.load(Ordering::Relaxed)
    }
}
