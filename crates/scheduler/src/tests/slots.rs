//! Which fetch has a slot, and which gives one up.

use super::*;

/// A reader that waits for this chunk, and wants no other.
fn one_chunk(number: u64, chunk: u64) -> Demand {
    Demand {
        end: (chunk + 1) * CHUNK,
        ..demand(0, number, chunk * CHUNK, true)
    }
}

/// Whether each has a slot.
fn slots(bench: &Bench, of: &[Assignment]) -> Vec<bool> {
    let fetch = |a: &Assignment| bench.scheduler.fetch((a.edge, a.id)).unwrap().slot;
    of.iter().map(fetch).collect()
}

#[test]
fn critical_takes_the_slot_of_a_job() {
    let mut bench = Bench::new(1, 2);
    let jobs = assigned(&bench.want(1, 0, 0..80));
    assert_eq!(jobs.len(), 4, "two slots, two ahead");
    // The reserved slot.
    assert_eq!(
        cancelled(&bench.apply(Event::DemandSet(one_chunk(1, 90)))),
        vec![]
    );
    let effects = bench.apply(Event::DemandSet(one_chunk(2, 95)));
    assert!(
        cancelled(&effects).is_empty(),
        "what has a slot has asked its origin, and is only paused"
    );
    assert!(
        assigned(&effects)
            .iter()
            .any(|a| a.level == Level::Critical && a.first_chunk == 95)
    );
}

#[test]
fn lookahead_takes_the_slot_of_a_job_too_and_the_job_goes_on_afterwards() {
    let mut bench = Bench::new(1, 2);
    let job = assigned(&bench.want(1, 0, 0..80));
    let effects = bench.read(0, 1, 92 * CHUNK, true);
    assert!(cancelled(&effects).is_empty(), "it is paused: {effects:?}");
    let reader = assigned(&effects);
    let levels: Vec<_> = reader.iter().map(|a| a.level).collect();
    assert_eq!(levels, [Level::Critical, Level::High, Level::High]);
    assert_eq!(slots(&bench, &reader), [true; 3]);
    assert_eq!(slots(&bench, &job), [false; 4]);
    for fetch in &reader {
        bench.finish(0, fetch.id);
    }
    assert_eq!(slots(&bench, &job), [true, true, false, false]);
}

#[test]
fn what_is_paused_is_bounded() {
    let mut bench = Bench::new(1, 2);
    bench.want_at(Level::Low, 1, 0, 0..40);
    bench.read(0, 1, 50 * CHUNK, false);
    let paused = |bench: &Bench, level| {
        let fetches = bench.scheduler.edges[&EdgeId(0)].fetches.iter();
        let of_level = fetches.filter(|it| it.paused && !it.cancelling && it.level == level);
        of_level.count()
    };
    assert_eq!(paused(&bench, Level::Low), 2);
    let mut effects = Vec::new();
    for (number, chunk) in [(2, 90), (3, 92), (4, 94)] {
        effects.extend(bench.apply(Event::DemandSet(one_chunk(number, chunk))));
    }
    assert_eq!(cancelled(&effects).len(), 2, "the lowest: {effects:?}");
    let left = [Level::High, Level::Low].map(|level| paused(&bench, level));
    assert_eq!(left, [2, 0]);
}

#[test]
fn medium_waits_for_a_slot() {
    let mut bench = Bench::new(1, 2);
    let fills = assigned(&bench.want_at(Level::Low, 1, 0, 0..40));
    let job = assigned(&bench.want(2, 0, 50..90));
    assert!(!fills.is_empty() && !job.is_empty());
    assert_eq!(slots(&bench, &fills), [true; 2]);
    assert!(slots(&bench, &job).iter().all(|has| !has));
    bench.apply(Event::LocalFetchStarted {
        edge: EdgeId(0),
        assignment: FetchId::Local(1),
        entry: MOVIE,
        chunks: 95..96,
        level: Level::Medium,
    });
    assert_eq!(slots(&bench, &fills), [true; 2], "nor for the edge's own");
}

/// So that its connection does not idle for a round trip.
#[test]
fn lookahead_is_queued_beside_what_it_paused() {
    let mut bench = Bench::new(1, 2);
    let fills = assigned(&bench.want_at(Level::Low, 1, 0, 0..40));
    assert_eq!(fills.len(), 2, "none is queued");
    let ahead = assigned(&bench.read(0, 1, 60 * CHUNK, false));
    assert!(ahead.iter().all(|a| a.level == Level::High));
    assert_eq!(slots(&bench, &ahead), [true, true, false]);
}

/// Its slots and its queue are full of what may be preempted.
#[test]
fn an_edge_learns_that_its_lookahead_may_begin() {
    let mut bench = Bench::new(2, 2);
    bench.source(2, 0);
    let (source, entry) = (SourceId(2), EntryNo(2));
    bench.apply(Event::SourceSet {
        source,
        max_connections: 0,
        max_rate_bytes_per_second: 0,
        background_fill: None,
    });
    let geometry = Geometry::new(100 * CHUNK, CHUNK as u32).unwrap();
    bench.apply(Event::EntryOpened {
        entry,
        source,
        geometry,
    });
    let theirs = assigned(&bench.want(1, 1, 0..8));
    assert_eq!(theirs.len(), 1, "the other connection is for CRITICAL");
    let job = assigned(&bench.apply(Event::WantSet {
        want: WantId(2),
        edge: EdgeId(0),
        entry,
        chunks: vec![0..80],
        level: Level::Medium,
    }));
    assert_eq!(job.len(), 4);
    assert_eq!(assigned(&bench.read(0, 1, 60 * CHUNK, false)), []);
    let given = assigned(&bench.finish(1, theirs[0].id));
    assert_eq!((given[0].edge, given[0].level), (EdgeId(0), Level::High));
}
