//! The operators' view of a running edge: why it is not ready, and its metrics, which are read at
//! each scrape.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use service_kit::metrics::{Exposition, MetricFamily, encode, families};
use tokio_util::sync::CancellationToken;

use crate::{
    app::Edge,
    by_source::{MAX_SOURCES, SourceLabel},
    control::Link,
    fetch::Downloads,
    readers::DemandRegistry,
    resolve::Bindings,
    server::admin::AdminState,
    upstream::{Catalogue, counters::Counters},
};
use chunk_store::Store;

type Read = fn(&State) -> u64;

/// Present values.
const GAUGES: [(&str, &str, Read); 12] = [
    ("entries", "Entries known, with chunks or without", |s| {
        s.store.entry_count() as u64
    }),
    ("known_keys", "Keys whose entry is known", |s| {
        s.bindings.key_count() as u64
    }),
    (
        "accepted_signatures",
        "Signatures of presigned URLs that origins accepted, remembered",
        |s| {
            let permissions = s.downloads.fetcher().catalogue.permissions();
            permissions.lock().size().0 as u64
        },
    ),
    (
        "accepted_signature_bytes",
        "Memory of the signatures that origins accepted",
        |s| {
            let permissions = s.downloads.fetcher().catalogue.permissions();
            permissions.lock().size().1 as u64
        },
    ),
    ("store_used_bytes", "Bytes of chunks kept", |s| {
        s.store.bytes_used()
    }),
    (
        "store_allowed_bytes",
        "Bytes of chunks that may be kept now",
        |s| s.store.bytes_allowed(),
    ),
    ("store_degraded", "1 while the store refuses writes", |s| {
        u64::from(s.store.degraded().is_some())
    }),
    ("session_ready", "1 while rows and disk agree", |s| {
        u64::from(s.link.is_ready())
    }),
    ("readers", "Readers with bytes missing ahead of them", |s| {
        s.demand.len() as u64
    }),
    (
        "viewers",
        "The same, but one for the readers of each player's session (CMCD `sid`)",
        |s| s.demand.viewers() as u64,
    ),
    ("fetches_running", "Fetches from origins and peers", |s| {
        s.downloads.counts().0 as u64
    }),
    ("fetches_waiting", "Fetches that wait for their turn", |s| {
        s.downloads.counts().1 as u64
    }),
];

/// Values that only rise; `_total` is appended to their names.
const COUNTERS: [(&str, &str, Read); 2] = [
    (
        "accepted_signatures_forgotten",
        "Accepted signatures that are asked about again, for want of space",
        |s| {
            let permissions = s.downloads.fetcher().catalogue.permissions();
            permissions.lock().forgotten()
        },
    ),
    ("origin_requests", "Requests to origins", |s| {
        s.downloads.fetcher().client.requests()
    }),
];

/// The state behind `--admin-listen`.
pub struct State {
    link: Arc<Link>,
    store: Store,
    bindings: Arc<Bindings>,
    downloads: Downloads,
    demand: Arc<DemandRegistry>,
    shutdown: CancellationToken,
    measures: Mutex<Measures>,
}

type OriginLabel = [(&'static str, Arc<str>); 2];

/// Present values of each source.
#[derive(Default)]
struct SourceGauges {
    used: Family<SourceLabel, Gauge>,
    quota: Family<SourceLabel, Gauge>,
    origin_up: Family<OriginLabel, Gauge>,
    origin_rate: Family<OriginLabel, Gauge>,
    origin_link_is_full: Family<OriginLabel, Gauge>,
}

impl SourceGauges {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "source_used_bytes",
            "Bytes of the source's chunks kept",
            self.used.clone(),
        );
        registry.register(
            "source_quota_bytes",
            "Bytes of the source's chunks that may be kept, where that is limited",
            self.quota.clone(),
        );
        registry.register(
            "origin_up",
            "0 from an origin's failures on until it answers: other origins are asked first",
            self.origin_up.clone(),
        );
        registry.register(
            "origin_rate_bytes_per_second",
            "What the link to an origin gave within the last minute, while it was busy",
            self.origin_rate.clone(),
        );
        registry.register(
            "origin_link_is_full",
            "1: fetches at the same time share the link to an origin, and lookahead waits for what \
             is more urgent; 0: each has its own share; absent: not known",
            self.origin_link_is_full.clone(),
        );
    }

    fn read(&self, store: &Store, sources: &Catalogue, counters: &Counters) {
        let value = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.used.clear();
        self.quota.clear();
        self.origin_up.clear();
        self.origin_rate.clear();
        self.origin_link_is_full.clear();
        let mut uses = store.source_uses();
        uses.sort_unstable_by(|one, other| one.source.cmp(&other.source));
        for it in uses.into_iter().take(MAX_SOURCES) {
            let label = [("source", it.source)];
            self.used.get_or_create(&label).set(value(it.used_bytes));
            if let Some(quota) = it.quota_bytes {
                self.quota.get_or_create(&label).set(value(quota));
            }
        }
        let mut sources = sources.all();
        sources.sort_unstable_by(|one, other| one.name().cmp(other.name()));
        for source in sources.iter().take(MAX_SOURCES) {
            counters.origin_bytes_of.add(source.name(), 0);
            counters.origin_errors_of.add(source.name(), 0);
            let origins = source.origins().iter();
            let (up, down): (Vec<_>, Vec<_>) =
                origins.partition(|origin| origin.health.dead_since().is_none());
            // Two origins at one host count as one, which is down if either is.
            for (origins, value) in [(up, 1), (down, 0)] {
                for origin in origins {
                    let label = [
                        ("source", source.name().into()),
                        ("origin", origin.authority().into()),
                    ];
                    self.origin_up.get_or_create(&label).set(value);
                    if let Some(rate) = origin.link.bytes_per_second() {
                        let rate = i64::try_from(rate).unwrap_or(i64::MAX);
                        self.origin_rate.get_or_create(&label).set(rate);
                    }
                    if let Some(is_full) = origin.link.is_full() {
                        let gauge = self.origin_link_is_full.get_or_create(&label);
                        gauge.set(i64::from(is_full));
                    }
                }
            }
        }
    }
}

struct Measures {
    registry: Registry,
    by_source: SourceGauges,
    gauges: Vec<(Gauge, Read)>,
    counters: Vec<(Counter, Read)>,
}

impl State {
    /// Adds the edge's metrics to the registry.
    #[must_use]
    pub fn new(edge: &Edge, mut registry: Registry, shutdown: CancellationToken) -> Self {
        let gauges = GAUGES.map(|(name, help, read)| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            (gauge, read)
        });
        let counters = COUNTERS.map(|(name, help, read)| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            (counter, read)
        });
        edge.downloads.fetcher().counters.register(&mut registry);
        edge.downloads
            .fetcher()
            .client
            .hedges()
            .register(&mut registry);
        edge.incoming().unread.register(&mut registry);
        let by_source = SourceGauges::default();
        by_source.register(&mut registry);
        Self {
            link: edge.link.clone(),
            store: edge.store.clone(),
            bindings: edge.objects.parts().bindings.clone(),
            downloads: edge.downloads.clone(),
            demand: edge.demand.clone(),
            shutdown,
            measures: Mutex::new(Measures {
                registry,
                by_source,
                gauges: gauges.to_vec(),
                counters: counters.to_vec(),
            }),
        }
    }
}

impl AdminState for State {
    fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.shutdown.is_cancelled() {
            reasons.push("the process is shutting down".to_owned());
        } else if self.link.is_draining() {
            reasons.push("this edge is being drained".to_owned());
        }
        reasons.extend(self.link.not_ready());
        reasons.extend(self.store.degraded());
        reasons
    }

    fn metrics(&self, accept: Option<&str>) -> Option<Exposition> {
        self.read(|registry| encode(registry, accept).ok())
    }
}

impl State {
    /// All metrics, for export.
    pub fn families(&self) -> Vec<MetricFamily> {
        self.read(families)
    }

    /// Passes the registry with present values.
    fn read<T>(&self, encode: impl FnOnce(&Registry) -> T) -> T {
        // Locked over both loops, so that of two concurrent scrapes neither counts what the other
        // counted.
        let measures = self.measures.lock();
        for (gauge, read) in &measures.gauges {
            gauge.set(i64::try_from(read(self)).unwrap_or(i64::MAX));
        }
        let fetcher = self.downloads.fetcher();
        let by_source = &measures.by_source;
        by_source.read(&self.store, &fetcher.catalogue, &fetcher.counters);
        for (counter, read) in &measures.counters {
            counter.inc_by(read(self).saturating_sub(counter.get()));
        }
        encode(&measures.registry)
    }
}
