//! The port for statement latencies. The metrics implement it; this module does not know
//! Prometheus.

use std::time::Duration;

/// Called for each statement that ended.
pub trait StatementObserver: Send + Sync + 'static {
    /// `statement` is a file name of `queries/` without `.sql`, or `begin` or `commit`: a bounded
    /// set.
    fn observe(&self, statement: &'static str, took: Duration, ok: bool);
}

/// Records nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl StatementObserver for NoObserver {
    fn observe(&self, _statement: &'static str, _took: Duration, _ok: bool) {}
}
