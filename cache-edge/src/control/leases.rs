//! Keeps the edge's use of each source within its lease, including after the lease expires.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::fetch::Downloads;
use crate::upstream::Catalogue;

/// See the module.
pub struct LeaseKeeper {
    pub catalogue: Arc<Catalogue>,
    pub downloads: Downloads,
}

impl LeaseKeeper {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut before = None;
        loop {
            let (state, next) = self.catalogue.lease_state();
            if before != Some(state) {
                tracing::debug!(?state, "quota leases");
                before = Some(state);
            }
            for source in self.catalogue.all() {
                if let Some(excess) = source.quota.enforce() {
                    self.downloads.shed(source.name(), excess);
                }
            }
            let next = next.unwrap_or(Duration::from_secs(3_600));
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.catalogue.leases_changed() => {}
                () = tokio::time::sleep(next) => {}
            }
        }
    }
}
