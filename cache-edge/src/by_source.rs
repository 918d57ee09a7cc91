//! Counters by source.
//!
//! Operators choose the names, but their number is bounded nevertheless: further sources are
//! counted together.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Maximum number of sources with metrics of their own.
pub const MAX_SOURCES: usize = 256;

/// The label of a source's metrics.
pub type SourceLabel = [(&'static str, Arc<str>); 1];

/// The label of all further sources.
pub const OTHERS: &str = "others";

/// The sources that have metrics of their own.
#[derive(Debug, Default)]
pub struct SourceNames(Mutex<HashSet<Arc<str>>>);

impl SourceNames {
    /// The label of a source's metrics.
    #[must_use]
    pub fn label(&self, source: &str) -> Arc<str> {
        let mut names = self.0.lock();
        match names.get(source) {
            Some(name) => name.clone(),
            None if names.len() < MAX_SOURCES => {
                let name: Arc<str> = source.into();
                names.insert(name.clone());
                name
            }
            None => OTHERS.into(),
        }
    }
}

/// Bytes of one source that viewers got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SentToViewers {
    pub all: u64,
    /// The part that came from the cache.
    pub hit: u64,
    /// The part that was passed through.
    pub passed: u64,
}

/// One counter for each source.
#[derive(Debug, Default)]
pub struct CounterBySource {
    names: SourceNames,
    counters: Family<SourceLabel, Counter>,
}

impl CounterBySource {
    pub fn register(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, self.counters.clone());
    }

    /// Adds to the count. A count of 0 creates the counter: a rate misses a counter's first value.
    pub fn add(&self, source: &str, count: u64) {
        let name = self.names.label(source);
        self.counters
            .get_or_create(&[("source", name)])
            .inc_by(count);
    }

    /// The count of a source with a counter of its own; otherwise 0.
    #[must_use]
    pub fn of(&self, source: &str) -> u64 {
        let counter = self.counters.get(&[("source", source.into())]);
        counter.map_or(0, |counter| counter.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_beyond_the_most_are_counted_together() {
        let counter = CounterBySource::default();
        for number in 0..MAX_SOURCES + 2 {
            counter.add(&format!("s{number}"), 3);
        }
        counter.add("s0", 1);
        assert_eq!((counter.of("s0"), counter.of(OTHERS)), (4, 6));
        assert_eq!(counter.of("s256"), 0, "not counted by itself");
    }
}
