//! When a fetch asks its origin again, and when it gives up.

use std::time::Duration;

use service_kit::backoff::Backoff;
use tokio::time::Instant;

use super::Assignment;
use crate::upstream::OriginError;

const FIRST_WAIT: Duration = Duration::from_millis(150);
const LONGEST_WAIT: Duration = Duration::from_secs(4);

/// The retries of one fetch.
pub(super) struct Retries {
    /// Limits the time since the last byte.
    pub budget: Duration,
    backoff: Backoff,
    last_progress: Instant,
}

impl Retries {
    pub fn new(budget: Duration) -> Self {
        Self {
            budget,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            last_progress: Instant::now(),
        }
    }

    pub fn progressed(&mut self) {
        self.last_progress = Instant::now();
        self.backoff.reset();
    }

    pub fn is_over(&self) -> bool {
        self.last_progress.elapsed() > self.budget
    }

    /// How long to wait before the origin is asked again; `None`: the fetch has failed.
    pub fn wait(&mut self, error: &OriginError, assignment: &Assignment) -> Option<Duration> {
        let asked = error.retry_after().unwrap_or_default();
        let wait = self.backoff.wait(rand::random()).max(asked);
        // The whole cluster must back off, so the coordinator has to know now and not when this
        // fetch gives up.
        let is_reported = matches!(error, OriginError::Busy { .. }) && !assignment.is_local();
        let is_late = self.last_progress.elapsed() + wait > self.budget;
        (!is_reported && error.is_transient() && !is_late).then_some(wait)
    }
}
