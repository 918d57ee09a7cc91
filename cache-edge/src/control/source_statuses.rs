//! An edge's report of each source: its space, its traffic, and the health of its origins.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chunkcache_proto::v1;

use super::session::Totals;
use crate::upstream::{Catalogue, Source, counters::Counters};
use chunk_store::SourceUse;

/// Sources in one status.
const MAX_SOURCES: usize = 1_000;
/// Origins in one status. With names and errors of usual length about 50 KiB, each second.
const MAX_ORIGINS: usize = 512;

/// One status per source, by name.
pub fn of_all(
    uses: Vec<SourceUse>,
    catalogue: &Catalogue,
    counters: &Counters,
    totals: &dyn Totals,
) -> Vec<v1::SourceStatus> {
    let mut statuses: BTreeMap<String, v1::SourceStatus> = BTreeMap::new();
    for it in uses {
        let status = statuses.entry(it.source.to_string()).or_default();
        status.bytes_used = it.used_bytes;
        status.quota_bytes = it.quota_bytes.unwrap_or(0);
    }
    let mut sources = catalogue.all();
    sources.sort_unstable_by(|one, other| one.name().cmp(other.name()));
    let (now, mut origins_left) = (Instant::now(), MAX_ORIGINS);
    for source in &sources {
        let status = statuses.entry(source.name().to_owned()).or_default();
        status.origins = origins(source, now, origins_left);
        origins_left -= status.origins.len();
    }
    let statuses = statuses.into_iter().take(MAX_SOURCES);
    let filled = statuses.map(|(name, status)| {
        let sent = totals.of_source(&name);
        v1::SourceStatus {
            bytes_sent_total: sent.all,
            bytes_hit_total: sent.hit,
            bytes_origin_total: counters.origin_bytes_of.of(&name) + sent.passed,
            origin_errors_total: counters.origin_errors_of.of(&name),
            source: name,
            ..status
        }
    });
    filled.collect()
}

fn origins(source: &Source, now: Instant, at_most: usize) -> Vec<v1::OriginHealth> {
    let ms = |since: Instant| ms(now.saturating_duration_since(since));
    let origins = source.origins().iter().take(at_most).map(|origin| {
        let last_error = origin.health.last_error();
        v1::OriginHealth {
            origin: origin.authority().to_owned(),
            down_ms: origin.health.dead_since().map(ms),
            first_byte_us: origin.usual_time().map(us),
            last_error_ms: last_error.as_ref().map_or(0, |error| ms(error.at)),
            last_error: last_error.map(|error| error.text).unwrap_or_default(),
        }
    });
    origins.collect()
}

/// Whole microseconds; at most an hour.
fn us(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// Whole milliseconds.
pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        by_source::SentToViewers,
        upstream::{health::Failure, hedging::RequestKind},
    };

    struct Sent;

    impl Totals for Sent {
        fn totals(&self) -> [u64; 5] {
            [0; 5]
        }

        fn of_source(&self, source: &str) -> SentToViewers {
            if source != "films" {
                return SentToViewers::default();
            }
            SentToViewers {
                all: 10,
                hit: 4,
                passed: 2,
            }
        }

        fn requests_active(&self) -> u32 {
            0
        }

        fn uptime(&self) -> Duration {
            Duration::ZERO
        }
    }

    fn source(name: &str, mirrors: usize) -> v1::Source {
        v1::Source {
            name: name.into(),
            base_url: "http://first:81/".into(),
            further_base_urls: vec!["http://user:secret@mirror/".into(); mirrors],
            ..Default::default()
        }
    }

    #[test]
    fn a_status_has_space_traffic_and_health() {
        let (catalogue, counters) = (Catalogue::default(), Counters::default());
        catalogue.replace(vec![source("films", 1), source("songs", 0)]);
        counters.origin_bytes_of.add("films", 7);
        counters.origin_failed("films");
        let films = catalogue.get("films").expect("it is registered");
        for _ in 0..3 {
            let health = &films.origins()[0].health;
            health.fail(Failure::Quick, "answered 500".into(), Instant::now());
        }
        for millis in [1, 2, 9] {
            let took = Duration::from_millis(millis);
            films.origins()[0].record_time(RequestKind::Chunks, took);
        }
        let used = |name: &str, quota_bytes| SourceUse {
            source: name.into(),
            used_bytes: 5,
            quota_bytes,
        };
        let uses = vec![used("removed", None), used("films", Some(9))];
        let all = of_all(uses, &catalogue, &counters, &Sent);
        let names: Vec<&str> = all.iter().map(|it| it.source.as_str()).collect();
        assert_eq!(names, ["films", "removed", "songs"]);
        let films = &all[0];
        assert_eq!((films.bytes_used, films.quota_bytes), (5, 9));
        assert_eq!((films.bytes_sent_total, films.bytes_hit_total), (10, 4));
        let fetched = (films.bytes_origin_total, films.origin_errors_total);
        assert_eq!(fetched, (9, 1));
        let first = &films.origins[0];
        assert_eq!(first.origin, "first:81");
        assert_eq!(first.last_error, "answered 500");
        assert!(first.down_ms.is_some());
        let mirror = &films.origins[1];
        assert_eq!(mirror.origin, "mirror", "without what is secret");
        let times = (first.first_byte_us, mirror.first_byte_us);
        assert_eq!(times, (Some(2_000), None));
        assert_eq!((mirror.down_ms, mirror.last_error.as_str()), (None, ""));
    }

    #[test]
    fn a_status_is_bounded() {
        let (catalogue, counters) = (Catalogue::default(), Counters::default());
        let sources = (0..1_100).map(|number| source(&format!("s{number:04}"), 0));
        catalogue.replace(sources.collect());
        let all = of_all(Vec::new(), &catalogue, &counters, &Sent);
        assert_eq!(all.len(), MAX_SOURCES);
        let origins: usize = all.iter().map(|it| it.origins.len()).sum();
        assert_eq!(origins, MAX_ORIGINS);
    }
}
