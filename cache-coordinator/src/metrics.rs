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
    registry::{Registry, Unit},
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

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    /// Open edge sessions.
    pub sessions: Gauge,
    /// Sessions that ended.
    pub sessions_ended: Family<EndLabel, Counter>,
    /// Chunks that wait for a fetch.
    pub queued_chunks: Family<LevelLabel, Gauge>,
    /// Chunks being fetched.
    pub running_chunks: Family<LevelLabel, Gauge>,
    /// Entries the scheduler knows.
    pub open_entries: Gauge,
    /// Commands applied by the plan.
    pub commands_applied: Counter,
    /// Bytes that origins were asked for although an edge had them.
    pub asked_again_bytes: Family<CauseLabel, Counter>,
    /// Lookups of the scheduler that cannot fail, and did.
    pub broken_invariants: Counter,
    /// Time of one command.
    pub apply_seconds: Histogram,
    /// Chunk rows committed.
    pub chunks_committed: Counter,
    /// Chunks in one report of an edge.
    pub report_chunks: Histogram,
    /// Time of a statement, with its round trip.
    pub database_seconds: Family<StatementLabel, Histogram, LatencyBuckets>,
    /// Rows and bytes that did not agree, found and repaired.
    pub drift_chunks: Family<DriftLabel, Counter>,
    /// Changes the database refused, set aside one by one.
    pub refused_changes: Counter,
    /// Entries dropped everywhere because two edges held different bytes of a chunk.
    pub conflicting_entries: Counter,
    /// Entries in the database.
    pub entries: Gauge,
    /// Entries without chunks on any edge.
    pub chunkless_entries: Gauge,
    /// Entries that were forgotten.
    pub entries_forgotten: Counter,
    /// Open watches.
    pub watchers: Gauge,
    /// 1 while this coordinator leads.
    pub leading: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("cache_coordinator"),
            sessions: Gauge::default(),
            sessions_ended: Family::default(),
            queued_chunks: Family::default(),
            running_chunks: Family::default(),
            open_entries: Gauge::default(),
            commands_applied: Counter::default(),
            asked_again_bytes: Family::default(),
            broken_invariants: Counter::default(),
            apply_seconds: LatencyBuckets.new_metric(),
            chunks_committed: Counter::default(),
            report_chunks: Histogram::new(exponential_buckets(1.0, 4.0, 8)),
            database_seconds: Family::new_with_constructor(LatencyBuckets),
            drift_chunks: Family::default(),
            refused_changes: Counter::default(),
            conflicting_entries: Counter::default(),
            entries: Gauge::default(),
            chunkless_entries: Gauge::default(),
            entries_forgotten: Counter::default(),
            watchers: Gauge::default(),
            leading: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        for reason in SESSION_ENDS {
            drop(self.sessions_ended.get_or_create(&EndLabel { reason }));
        }
        for kind in DRIFT_KINDS {
            drop(self.drift_chunks.get_or_create(&DriftLabel { kind }));
        }
        self.asked_again(AskedAgain::default());
        let registry = &mut self.registry;
        register_build_info(registry, env!("CARGO_PKG_VERSION"));
        register_log_lines(registry);
        registry.register("sessions", "Open edge sessions", self.sessions.clone());
        registry.register(
            "sessions_ended",
            "Edge sessions that ended",
            self.sessions_ended.clone(),
        );
        registry.register(
            "queued_chunks",
            "Chunks waiting for a fetch",
            self.queued_chunks.clone(),
        );
        registry.register(
            "running_chunks",
            "Chunks being fetched",
            self.running_chunks.clone(),
        );
        registry.register(
            "open_entries",
            "Entries the scheduler knows",
            self.open_entries.clone(),
        );
        registry.register(
            "commands_applied",
            "Commands the plan took in",
            self.commands_applied.clone(),
        );
        registry.register_with_unit(
            "asked_again",
            "Asked of an origin although an edge had it or was being sent it",
            Unit::Bytes,
            self.asked_again_bytes.clone(),
        );
        registry.register(
            "broken_invariants",
            "Contradictions within the scheduler's state, each a bug",
            self.broken_invariants.clone(),
        );
        registry.register_with_unit(
            "apply",
            "Time of one command of the plan",
            Unit::Seconds,
            self.apply_seconds.clone(),
        );
        registry.register(
            "chunks_committed",
            "Chunk rows committed",
            self.chunks_committed.clone(),
        );
        registry.register(
            "report_chunks",
            "Chunks in one report of an edge",
            self.report_chunks.clone(),
        );
        registry.register_with_unit(
            "database_statement",
            "Time of a statement with its round trip",
            Unit::Seconds,
            self.database_seconds.clone(),
        );
        registry.register(
            "drift_chunks",
            "Rows and bytes that did not agree, found and repaired",
            self.drift_chunks.clone(),
        );
        registry.register(
            "refused_changes",
            "Changes the database refused, set aside one by one",
            self.refused_changes.clone(),
        );
        registry.register(
            "conflicting_entries",
            "Entries dropped everywhere because two edges held different bytes of a chunk",
            self.conflicting_entries.clone(),
        );
        registry.register("entries", "Entries in the database", self.entries.clone());
        registry.register(
            "chunkless_entries",
            "Entries of which no edge holds anything",
            self.chunkless_entries.clone(),
        );
        registry.register(
            "entries_forgotten",
            "Entries forgotten because no edge held anything of them",
            self.entries_forgotten.clone(),
        );
        registry.register("watchers", "Open watches", self.watchers.clone());
        registry.register(
            "leading",
            "1 while this coordinator leads",
            self.leading.clone(),
        );
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
        let family = &self.0.database_seconds;
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
            .database_seconds
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
