//! Bytes of response bodies by their origin, in total and per source.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::by_source::{SentToViewers, SourceNames};

/// Where sent bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteSource {
    /// A stored chunk, or an object that is kept as a whole.
    Hit,
    /// A chunk or a whole object that was still arriving.
    InFlight,
    /// The origin, without being stored.
    Origin,
    /// Sent to another edge.
    Peer,
    /// Passed through.
    Bypass,
}

const FROM: [&str; 5] = ["hit", "in_flight", "origin", "peer", "bypass"];

type Counters = [Counter; FROM.len()];
type Labels = [(&'static str, Arc<str>); 2];

/// Counts the bytes sent of one source's objects. Counting takes no lock.
#[derive(Debug)]
pub struct SentBytes {
    all: Counters,
    of_source: Counters,
}

impl SentBytes {
    pub fn count(&self, from: ByteSource, bytes: u64) {
        self.all[from as usize].inc_by(bytes);
        self.of_source[from as usize].inc_by(bytes);
    }

    fn to_viewers(&self) -> SentToViewers {
        let sent = |from: ByteSource| self.of_source[from as usize].get();
        let (hit, passed) = (sent(ByteSource::Hit), sent(ByteSource::Bypass));
        SentToViewers {
            all: hit + sent(ByteSource::InFlight) + sent(ByteSource::Origin) + passed,
            hit,
            passed,
        }
    }
}

/// The counters of all sources.
#[derive(Debug)]
pub struct SentBySource {
    all: Counters,
    family: Family<Labels, Counter>,
    names: SourceNames,
    sources: RwLock<HashMap<Arc<str>, Arc<SentBytes>>>,
}

impl SentBySource {
    pub fn new(registry: &mut Registry) -> Self {
        let all = Family::<[(&'static str, &'static str); 1], Counter>::default();
        registry.register(
            "http_sent_bytes",
            "Bytes of bodies by where they came from",
            all.clone(),
        );
        let family = Family::<Labels, Counter>::default();
        registry.register(
            "source_sent_bytes",
            "Bytes of bodies by the object's source, and by where they came from",
            family.clone(),
        );
        Self {
            all: FROM.map(|from| all.get_or_create_owned(&[("source", from)])),
            family,
            names: SourceNames::default(),
            sources: RwLock::default(),
        }
    }

    /// The counters of a source, to be kept with its cached resolutions.
    #[must_use]
    pub fn of(&self, source: &str) -> Arc<SentBytes> {
        if let Some(known) = self.sources.read().get(source) {
            return known.clone();
        }
        let name = self.names.label(source);
        let mut sources = self.sources.write();
        let counters = sources.entry(name.clone()).or_insert_with(|| {
            let of_source = FROM.map(|from| {
                let labels = [("source", name.clone()), ("from", from.into())];
                self.family.get_or_create_owned(&labels)
            });
            Arc::new(SentBytes {
                all: self.all.clone(),
                of_source,
            })
        });
        counters.clone()
    }

    /// Zero if the source has no counters of its own.
    #[must_use]
    pub fn to_viewers(&self, source: &str) -> SentToViewers {
        let sources = self.sources.read();
        let counters = sources.get(source).map(|it| it.to_viewers());
        counters.unwrap_or_default()
    }

    /// Bytes sent of all sources.
    #[must_use]
    pub fn total(&self, from: ByteSource) -> u64 {
        self.all[from as usize].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::by_source::{MAX_SOURCES, OTHERS};

    #[test]
    fn bytes_are_counted_by_source_and_in_all() {
        let sent = SentBySource::new(&mut Registry::default());
        let films = sent.of("films");
        films.count(ByteSource::Hit, 5);
        films.count(ByteSource::InFlight, 3);
        films.count(ByteSource::Peer, 100);
        sent.of("songs").count(ByteSource::Hit, 1);
        sent.of("films").count(ByteSource::Bypass, 2);
        let of = |source| {
            let it = sent.to_viewers(source);
            (it.all, it.hit, it.passed)
        };
        assert_eq!(of("films"), (10, 5, 2));
        assert_eq!((of("songs"), of("unknown")), ((1, 1, 0), (0, 0, 0)));
        assert_eq!(sent.total(ByteSource::Hit), 6);
        assert_eq!(sent.total(ByteSource::Peer), 100);
    }

    #[test]
    fn sources_beyond_the_most_share_their_counters() {
        let sent = SentBySource::new(&mut Registry::default());
        for number in 0..MAX_SOURCES + 2 {
            let source = sent.of(&format!("s{number}"));
            source.count(ByteSource::Hit, 1);
        }
        assert_eq!(sent.to_viewers(OTHERS).hit, 2);
        assert_eq!(sent.to_viewers("s0").hit, 1);
        assert_eq!(sent.sources.read().len(), MAX_SOURCES + 1);
    }
}
