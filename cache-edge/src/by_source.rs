//! Counters by source.
//!
//! The names are the operators', and bounded nevertheless: what is counted of further sources is
//! counted together.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Sources with metrics of their own.
pub const MAX_SOURCES: usize = 256;

/// The label of a source's metrics.
pub type SourceLabel = [(&'static str, Arc<str>); 1];

/// The sources that have metrics of their own.
#[derive(Debug, Default)]
pub struct SourceNames(Mutex<HashSet<Arc<str>>>);

impl SourceNames {
    /// What a source's metrics are labelled with.
    #[must_use]
    pub fn label(&self, source: &Arc<str>) -> Arc<str> {
        let mut names = self.0.lock();
        let is_named =
            names.contains(source) || (names.len() < MAX_SOURCES && names.insert(source.clone()));
        if is_named {
            source.clone()
        } else {
            "others".into()
        }
    }
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

    pub fn add(&self, source: &Arc<str>, count: u64) {
        if count == 0 {
            return;
        }
        let name = self.names.label(source);
        self.counters
            .get_or_create(&[("source", name)])
            .inc_by(count);
    }

    #[cfg(test)]
    pub fn get(&self, source: &str) -> u64 {
        self.counters
            .get_or_create(&[("source", source.into())])
            .get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_beyond_the_most_are_counted_together() {
        let counter = CounterBySource::default();
        for number in 0..MAX_SOURCES + 2 {
            counter.add(&format!("s{number}").into(), 3);
        }
        counter.add(&"s0".into(), 1);
        assert_eq!((counter.get("s0"), counter.get("others")), (4, 6));
    }
}
