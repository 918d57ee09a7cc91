//! Keeps the log short: by age and count, in bounded batches.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::db::{Database, Leadership};

/// How much of the log is kept, and how it is cut.
#[derive(Clone, Copy, Debug)]
pub struct PrunePolicy {
    pub keep_for: Duration,
    pub keep_count: u64,
    /// Time between checks when there is little to do.
    pub every: Duration,
    /// Rows deleted at a time.
    pub bite: u32,
}

impl Default for PrunePolicy {
    fn default() -> Self {
        Self {
            keep_for: Duration::from_secs(3_600),
            keep_count: 1_000_000,
            every: Duration::from_secs(30),
            bite: 5_000,
        }
    }
}

/// Prunes while this process leads, until cancelled. Only a leader certainly has the schema: before
/// the migrations there is no table to prune.
pub async fn prune_until(
    database: Database,
    mut leadership: watch::Receiver<Leadership>,
    policy: PrunePolicy,
    cancel: CancellationToken,
) {
    loop {
        let leads = leadership.wait_for(|now| matches!(now, Leadership::Leader { .. }));
        let term = tokio::select! {
            () = cancel.cancelled() => return,
            now = leads => match now.as_deref() {
                Ok(Leadership::Leader { term }) => *term,
                // The keeper has ended, and with it the leadership.
                _ => return,
            },
        };
        let pruned = database
            .prune_changes(term, policy.keep_for, policy.keep_count, policy.bite)
            .await
            .unwrap_or_else(|error| {
                tracing::debug!("change log is not pruned now: {error}");
                0
            });
        // A full batch: there are more rows, but other work may come first.
        let pause = if pruned >= u64::from(policy.bite) {
            Duration::from_millis(50)
        } else {
            policy.every
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
