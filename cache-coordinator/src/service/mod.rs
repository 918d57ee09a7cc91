//! One file per use case, over the table, the plan and the open sessions.
//!
//! Knows messages of the protos as values, but nothing of tonic's transport, SQL, or the session
//! protocol. Every use case that writes or decides calls [`Cluster::require_leader`] first.

pub mod availability;
pub mod edges;
pub mod entries;
pub mod entry_ref;
pub mod error;
pub mod explain;
pub mod forget;
pub mod invalidate;
pub mod jobs;
pub mod loader;
pub mod membership;
pub mod observe;
pub mod probe;
pub mod purge;
pub mod ranges;
pub mod readiness;
pub mod resolve_key;
pub mod source_check;
pub mod source_rules;
pub mod source_secrets;
pub mod source_uses;
pub mod sources;
pub mod status;
pub mod steer;
pub mod term;
pub mod title;
pub mod watch;

use std::sync::Arc;

use arc_swap::ArcSwap;
use chunkcache_proto::v1;
use tokio::sync::watch as channel;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    db::{Database, Leadership, Writer, lease::StepDown},
    events::ChangeLog,
    metrics::Metrics,
    sessions::{actor::PlanHandle, registry::Registry},
};
use error::ServiceError;

/// The dependencies of every use case.
pub struct Cluster {
    pub database: Database,
    pub writer: Writer,
    /// The change log: present and past changes.
    pub events: ChangeLog,
    /// The scheduler.
    pub plan: PlanHandle,
    /// The open sessions.
    pub registry: Arc<Registry>,
    /// Whether this coordinator leads.
    pub leadership: channel::Receiver<Leadership>,
    /// Why the lease can be neither read nor taken.
    pub lease_trouble: channel::Receiver<Option<String>>,
    /// Gives up the leadership.
    pub step_down: StepDown,
    /// The sources as in the table: read at the start of a term, changed together with the table.
    pub sources: ArcSwap<Vec<v1::Source>>,
    /// Locked from a change of the table until the change is in `sources`, in the outboxes and in
    /// the plan, so that all of them see changes in one order.
    pub publishing: tokio::sync::Mutex<()>,
    /// Held while a purge is carried out.
    pub purging: tokio::sync::Mutex<()>,
    /// Keys being resolved.
    pub resolver: resolve_key::Resolver,
    /// Questions to origins, through edges.
    pub probes: probe::Probes,
    /// Running requests for the objects of a title.
    pub titles: title::Titles,
    /// Running checks of buckets.
    pub source_checks: source_check::SourceChecks,
    /// Entries that have watchers, and so are not forgotten.
    pub watched: forget::Watched,
    /// Running jobs.
    pub jobs: jobs::Jobs,
    /// Newest first; set at the start of a term.
    pub peer_keys: ArcSwap<Vec<Vec<u8>>>,
    /// Whether this term's state is loaded.
    pub term_ready: channel::Sender<bool>,
    /// This coordinator's address for clients.
    pub address: String,
    pub metrics: Arc<Metrics>,
    /// Chunk size of new entries.
    pub chunk_size: u32,
    /// Short tasks beside requests and sessions.
    pub tasks: TaskTracker,
    /// Cancelled when the process ends.
    pub shutdown: CancellationToken,
}

impl Cluster {
    /// True while the lease holds and this term's state is loaded.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        matches!(*self.leadership.borrow(), Leadership::Leader { .. }) && *self.term_ready.borrow()
    }

    /// Returns an error with the leader's address if this coordinator does not lead.
    pub fn require_leader(&self) -> Result<(), ServiceError> {
        if self.shutdown.is_cancelled() {
            return Err(ServiceError::ShuttingDown);
        }
        let leadership = self.leadership.borrow().clone();
        match leadership {
            Leadership::Leader { .. } if *self.term_ready.borrow() => Ok(()),
            Leadership::Leader { .. } => Err(ServiceError::Database(
                "this coordinator is taking over the lead".into(),
            )),
            standby @ Leadership::Standby { .. } => Err(standby.refusal().into()),
        }
    }

    /// A registered source.
    #[must_use]
    pub fn source(&self, name: &str) -> Option<v1::Source> {
        self.sources
            .load()
            .iter()
            .find(|source| source.name == name)
            .cloned()
    }
}
