//! The process's metrics. A leaf: every module may count, none reads.
//!
//! Names follow the conventions of Prometheus; labels come from small fixed sets, never from data.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::Level;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry, Unit},
};
use scheduler::AskedAgain;
use service_kit::metrics::{
    Exposition, INTERNAL_SECONDS, MetricFamily, families, register_build_info, register_log_lines,
};

use crate::db::{DatabaseError, StatementObserver, writer::WriterObserver};

/// By level of urgency.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct LevelLabel {
    /// `critical`, `high`, `medium`, `low`.
    pub level: &'static str,
}

/// By kind of drift.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct DriftLabel {
    /// One of `DRIFT_KINDS`.
    pub kind: &'static str,
}

/// By why an origin was asked a second time.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CauseLabel {
    /// `hedge`, `own`, `peer`: see [`AskedAgain`].
    pub cause: &'static str,
}

/// By SQL statement.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StatementLabel {
    /// The statement's file name.
    pub statement: &'static str,
}

/// By how a session ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct EndLabel {
    /// One of [`SESSION_ENDS`].
    pub reason: &'static str,
}

/// Kinds of drift. These counters exist from the start, at 0: `increase()` misses the first event
/// of a counter that appears with that event, so an alert would stay silent.
const DRIFT_KINDS: [&str; 2] = ["rows_without_bytes", "bytes_without_rows"];

/// The ways in which a session ends; these counters exist from the start, too.
pub const SESSION_ENDS: [&str; 11] = [
    "closed",
    "transport",
    "timeout",
    "fenced",
    "protocol",
    "overflow",
    "database",
    "shutdown",
    "forgotten",
    "verify",
    "not_leader",
];

/// Bounds that suit both the scheduler and the database.
#[derive(Clone, Copy, Debug)]
pub struct LatencyBuckets;

impl MetricConstructor<Histogram> for LatencyBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(INTERNAL_SECONDS)
    }
}

/// Declares the metrics, once: a field is exposed under its name, and its comment is the help text.
macro_rules! metrics {
    ($(#[doc = $help:literal] $field:ident: $kind:ty = $new:expr,)*) => {
        /// All metrics of the process.
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("cache_coordinator");
                register_build_info(&mut registry, env!("CARGO_PKG_VERSION"));
                register_log_lines(&mut registry);
                $(
                    let $field: $kind = $new;
                    register(&mut registry, stringify!($field), $help, $field.clone());
                )*
                let metrics = Self { registry, $($field),* };
                metrics.begin_at_zero();
                metrics
            }
        }
    };
}

metrics! {
    /// Open edge sessions.
    sessions: Gauge = Gauge::default(),
    /// Edge sessions that ended.
    sessions_ended: Family<EndLabel, Counter> = Family::default(),
    /// Chunks waiting for a fetch.
    queued_chunks: Family<LevelLabel, Gauge> = Family::default(),
    /// Chunks being fetched.
    running_chunks: Family<LevelLabel, Gauge> = Family::default(),
    /// Entries the scheduler knows.
    open_entries: Gauge = Gauge::default(),
    /// Commands the plan took in.
    commands_applied: Counter = Counter::default(),
    /// Asked of an origin although an edge had it or was being sent it.
    asked_again_bytes: Family<CauseLabel, Counter> = Family::default(),
    /// Contradictions within the scheduler's state, each a bug.
    broken_invariants: Counter = Counter::default(),
    /// Time of one command of the plan.
    apply_seconds: Histogram = LatencyBuckets.new_metric(),
    /// Chunk rows committed.
    chunks_committed: Counter = Counter::default(),
    /// Chunks in one report of an edge.
    report_chunks: Histogram = Histogram::new(exponential_buckets(1.0, 4.0, 8)),
    /// Time of a statement with its round trip.
    database_statement_seconds: Family<StatementLabel, Histogram, LatencyBuckets> =
        Family::new_with_constructor(LatencyBuckets),
    /// Rows and bytes that did not agree, found and repaired.
    drift_chunks: Family<DriftLabel, Counter> = Family::default(),
    /// Changes the database refused, set aside one by one.
    refused_changes: Counter = Counter::default(),
    /// Entries dropped everywhere because two edges held different bytes of a chunk.
    conflicting_entries: Counter = Counter::default(),
    /// Entries in the database.
    entries: Gauge = Gauge::default(),
    /// Entries of which no edge holds anything.
    chunkless_entries: Gauge = Gauge::default(),
    /// Entries forgotten because no edge held anything of them.
    entries_forgotten: Counter = Counter::default(),
    /// Open watches.
    watchers: Gauge = Gauge::default(),
    /// 1 while this coordinator leads.
    leading: Gauge = Gauge::default(),
}

/// A unit at the end of a name is declared as such.
fn register(registry: &mut Registry, name: &str, help: &str, metric: impl Metric) {
    let help = help.trim().trim_end_matches('.');
    for (suffix, unit) in [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)] {
        if let Some(name) = name.strip_suffix(suffix) {
            return registry.register_with_unit(name, help, unit, metric);
        }
    }
    registry.register(name, help, metric);
}

impl Metrics {
    fn begin_at_zero(&self) {
        for reason in SESSION_ENDS {
            drop(self.sessions_ended.get_or_create(&EndLabel { reason }));
        }
        for kind in DRIFT_KINDS {
            drop(self.drift_chunks.get_or_create(&DriftLabel { kind }));
        }
        self.asked_again(AskedAgain::default());
    }

    /// Adds what the scheduler counted.
    pub fn asked_again(&self, bytes: AskedAgain) {
        let add = |cause, bytes: u64| {
            let counter = self.asked_again_bytes.get_or_create(&CauseLabel { cause });
            counter.inc_by(bytes);
        };
        add("hedge", bytes.hedge);
        add("own", bytes.own);
        add("peer", bytes.peer);
    }

    /// All of them, for export.
    #[must_use]
    pub fn families(&self) -> Vec<MetricFamily> {
        families(&self.registry)
    }

    /// Encodes as text; `accept` is the scraper's header.
    pub fn encode(&self, accept: Option<&str>) -> Result<Exposition, std::fmt::Error> {
        service_kit::metrics::encode(&self.registry, accept)
    }
}

impl LevelLabel {
    /// The label of a level.
    #[must_use]
    pub fn of(level: Level) -> Self {
        Self {
            level: level.label(),
        }
    }
}

/// Receives the latencies of database statements.
pub struct DatabaseTimes(pub Arc<Metrics>);

impl WriterObserver for DatabaseTimes {
    fn refused(&self, _kind: &'static str, _error: &DatabaseError) {
        self.0.refused_changes.inc();
    }
}

impl StatementObserver for DatabaseTimes {
    fn observe(&self, statement: &'static str, took: Duration, _ok: bool) {
        let family = &self.0.database_statement_seconds;
        family
            .get_or_create(&StatementLabel { statement })
            .observe(took.as_secs_f64());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_exposed() {
        let metrics = Metrics::default();
        metrics.sessions.inc();
        metrics
            .database_statement_seconds
            .get_or_create(&StatementLabel {
                statement: "entry_get",
            })
            .observe(0.001);
        let text = metrics.encode(None).unwrap().body;
        assert!(text.contains("cache_coordinator_sessions 1"));
        assert!(text.contains("cache_coordinator_asked_again_bytes_total{cause=\"peer\"} 0"));
        assert!(text.contains("cache_coordinator_database_statement_seconds_bucket"));
        assert!(text.contains("cache_coordinator_sessions_ended_total{reason=\"fenced\"} 0"));
        assert!(
            text.contains("cache_coordinator_drift_chunks_total{kind=\"rows_without_bytes\"} 0")
        );
    }
}
