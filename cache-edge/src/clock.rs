//! The wall clock of this process.

use std::sync::LazyLock;

/// The wall clock, in milliseconds since the epoch.
#[must_use]
pub fn now_ms() -> i64 {
    /// The wall clock is read only once, so that setting it later makes neither fresh objects stale
    /// nor stale ones fresh.
    static STARTED: LazyLock<(std::time::Instant, i64)> =
        LazyLock::new(|| (std::time::Instant::now(), service_kit::clock::now_ms()));
    let (begun, at) = *STARTED;
    at.saturating_add(i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX))
}
