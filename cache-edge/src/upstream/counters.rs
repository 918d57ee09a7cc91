//! Counters of fetches, for metrics and for the edge's reports.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use chunkcache_proto::{Level, v1};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use service_kit::metrics::LATENCY_SECONDS;
use v1::{RemovalReason, fetch_failure::Fault};

use crate::by_source::CounterBySource;

type Labels = [(&'static str, &'static str); 1];

/// Labels that exist from the start, at 0: `increase()` misses the first event of a counter that
/// appears with that event.
const FAULTS: [&str; 6] = ["origin", "peer", "edge", "changed", "quota", "unsigned"];
const SIGNATURE_CHECKS: [SignatureCheck; 3] = [
    SignatureCheck::Accepted,
    SignatureCheck::Refused,
    SignatureCheck::Failed,
];
const REMOVALS: [&str; 3] = ["evicted", "invalidated", "corrupt"];

/// The outcome of a question about a client's signature.
#[derive(Clone, Copy, Debug)]
pub enum SignatureCheck {
    Accepted,
    Refused,
    /// The origin gave no verdict.
    Failed,
}

impl SignatureCheck {
    fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// One histogram per level.
#[derive(Debug)]
struct Waits(Family<Labels, Histogram, fn() -> Histogram>);

impl Default for Waits {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| {
            Histogram::new(LATENCY_SECONDS)
        }))
    }
}

/// The process's counters.
#[derive(Debug, Default)]
pub struct Counters {
    pub origin_bytes: Counter,
    pub peer_bytes: Counter,
    pub origin_errors: Counter,
    pub peer_errors: Counter,
    /// In record mode: bytes of answers compared with stored ones, and answers that differed.
    pub compared_bytes: Counter,
    pub mismatches: Counter,
    /// How far this machine's clock is ahead of the coordinator's, in milliseconds.
    clock_ahead_ms: AtomicI64,
    clock_ahead: Gauge<f64, AtomicU64>,
    waits: Waits,
    /// `origin_bytes` and `origin_errors` by source.
    pub origin_bytes_of: CounterBySource,
    pub origin_errors_of: CounterBySource,
    failures: Family<Labels, Counter>,
    removed: Family<Labels, Counter>,
    signature_checks: Family<Labels, Counter>,
}

impl Counters {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            ("origin_bytes", "Bytes from origins", &self.origin_bytes),
            ("peer_bytes", "Bytes from other edges", &self.peer_bytes),
            (
                "origin_errors",
                "Attempts at origins that failed",
                &self.origin_errors,
            ),
            (
                "peer_errors",
                "Fetches and answers that other edges failed to give",
                &self.peer_errors,
            ),
            (
                "record_compared_bytes",
                "Bytes of an origin's answers compared with what is stored, in record mode",
                &self.compared_bytes,
            ),
            (
                "record_mismatches",
                "Answers of an origin that differed from what is stored, in record mode",
                &self.mismatches,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        for level in Level::ALL {
            drop(self.waits.0.get_or_create(&[("level", level.label())]));
        }
        for fault in FAULTS {
            drop(self.failures.get_or_create(&[("fault", fault)]));
        }
        for reason in REMOVALS {
            drop(self.removed.get_or_create(&[("reason", reason)]));
        }
        for result in SIGNATURE_CHECKS {
            drop(
                self.signature_checks
                    .get_or_create(&[("result", result.label())]),
            );
        }
        registry.register(
            "signature_checks",
            "Questions to origins about clients' signatures of presigned URLs",
            self.signature_checks.clone(),
        );
        self.origin_bytes_of.register(
            registry,
            "source_origin_bytes",
            "Bytes of chunks that the source's origins sent",
        );
        self.origin_errors_of.register(
            registry,
            "source_origin_errors",
            "Attempts at the source's origins that failed",
        );
        registry.register(
            "chunk_wait_seconds",
            "From the order of a fetch to the end of each of its chunks, by level",
            self.waits.0.clone(),
        );
        registry.register(
            "clock_skew_seconds",
            "How far this machine's clock was ahead of the coordinator's when the session began",
            self.clock_ahead.clone(),
        );
        registry.register(
            "fetch_failures",
            "Fetches given up, by whose fault it was",
            self.failures.clone(),
        );
        registry.register(
            "removed_chunks",
            "Chunks taken out of the store, by reason",
            self.removed.clone(),
        );
    }

    /// Counts a failed attempt at a source's origins.
    pub fn origin_failed(&self, source: &str) {
        self.origin_errors.inc();
        self.origin_errors_of.add(source, 1);
    }

    pub fn set_clock_ahead(&self, ahead_ms: i64) {
        self.clock_ahead_ms.store(ahead_ms, Ordering::Relaxed);
        self.clock_ahead.set(ahead_ms as f64 / 1_000.0);
    }

    /// The correction of the origin's dates before they are compared with this machine's clock.
    #[must_use]
    pub fn clock_ahead_ms(&self) -> i64 {
        self.clock_ahead_ms.load(Ordering::Relaxed)
    }

    /// Records the time from the request for a chunk to its arrival.
    pub fn chunk_came(&self, level: Level, after: Duration) {
        let label = [("level", level.label())];
        self.waits
            .0
            .get_or_create(&label)
            .observe(after.as_secs_f64());
    }

    /// Counts a failed fetch.
    pub fn failed(&self, fault: Fault) {
        let fault = match fault {
            Fault::Origin => "origin",
            Fault::Peer => "peer",
            Fault::Edge => "edge",
            Fault::Changed => "changed",
            Fault::Quota => "quota",
            Fault::Unsigned => "unsigned",
            Fault::Unspecified => "unknown",
        };
        self.failures.get_or_create(&[("fault", fault)]).inc();
    }

    /// Counts a question about a client's signature.
    pub fn signature_checked(&self, result: SignatureCheck) {
        let label = [("result", result.label())];
        self.signature_checks.get_or_create(&label).inc();
    }

    /// Counts chunks that were removed from the store.
    pub fn removed(&self, reason: RemovalReason, chunks: usize) {
        let reason = match reason {
            RemovalReason::Evicted => "evicted",
            RemovalReason::Invalidated => "invalidated",
            RemovalReason::Corrupt => "corrupt",
            _ => "other",
        };
        let counter = self.removed.get_or_create(&[("reason", reason)]);
        counter.inc_by(u64::try_from(chunks).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_from_small_sets() {
        let mut registry = Registry::default();
        let counters = Counters::default();
        counters.register(&mut registry);
        counters.chunk_came(Level::Critical, Duration::from_millis(3));
        counters.failed(Fault::Peer);
        counters.removed(RemovalReason::Evicted, 5);
        let mut text = String::new();
        let encoded = prometheus_client::encoding::text::encode(&mut text, &registry);
        assert!(encoded.is_ok());
        for line in [
            "chunk_wait_seconds_count{level=\"critical\"} 1",
            "chunk_wait_seconds_count{level=\"low\"} 0",
            "fetch_failures_total{fault=\"peer\"} 1",
            "fetch_failures_total{fault=\"origin\"} 0",
            "removed_chunks_total{reason=\"evicted\"} 5",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
