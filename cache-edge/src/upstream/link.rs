//! The link to one origin: what fetches read from it, seen together (`core::link_rate`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use crate::core::link_rate::LinkRate;

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct OriginLink(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    rate: Mutex<LinkRate>,
    streams: AtomicU64,
}

impl OriginLink {
    /// An answer that is read as fast as it comes, until it is dropped.
    #[must_use]
    pub fn stream(&self) -> LinkStream {
        self.0.rate.lock().settle(Instant::now());
        LinkStream {
            link: self.clone(),
            id: self.0.streams.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The rate of the link, if it is known.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<u64> {
        self.0.rate.lock().bytes_per_second(Instant::now())
    }

    /// Whether to fetch one answer at a time.
    #[must_use]
    pub fn is_for_one(&self) -> bool {
        self.0.rate.lock().is_for_one(Instant::now())
    }

    /// Whether a fetch beside another one adds nothing, if it is known.
    #[must_use]
    pub fn is_full(&self) -> Option<bool> {
        self.0.rate.lock().is_full(Instant::now())
    }
}

/// One answer that is read from the link.
#[derive(Debug)]
pub struct LinkStream {
    link: OriginLink,
    id: u64,
}

impl LinkStream {
    /// Counts bytes that were read.
    pub fn took(&self, bytes: usize) {
        let mut rate = self.link.0.rate.lock();
        rate.take(self.id, bytes as u64, Instant::now());
    }
}

impl Drop for LinkStream {
    fn drop(&mut self) {
        self.link.0.rate.lock().settle(Instant::now());
    }
}
