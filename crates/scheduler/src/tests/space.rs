//! The fill of a disk of limited size.

use super::*;

const MIB: u64 = 1 << 20;

fn space(bench: &mut Bench, used: u64, allowed: u64) -> Vec<Effect> {
    bench.apply(Event::EdgeSpace {
        edge: EdgeId(0),
        bytes_used: used,
        bytes_allowed: allowed,
    })
}

fn hold(bench: &mut Bench, chunks: std::ops::Range<ChunkIndex>) -> Vec<Effect> {
    bench.apply(Event::ChunksHeld {
        edge: EdgeId(0),
        entry: MOVIE,
        chunks: vec![chunks],
    })
}

/// Carries out assignments until there are no more; returns the number of chunks fetched.
fn run_to_the_end(bench: &mut Bench, effects: Vec<Effect>) -> u32 {
    let (mut open, mut came) = (assigned(&effects), 0);
    while let Some(next) = open.pop() {
        came += next.chunk_count;
        assert!(came <= 100, "the entry has no more");
        let effects = bench.finish(0, next.id);
        for id in cancelled(&effects) {
            open.retain(|it| it.id != id);
        }
        open.extend(assigned(&effects));
    }
    came
}

#[test]
fn a_fill_ends_before_its_edge_begins_to_evict() {
    let mut bench = Bench::filling(1);
    // 50 chunks; the edge evicts when less than one of them is free.
    space(&mut bench, 4 * MIB, 100 * MIB);
    let effects = hold(&mut bench, 0..2);
    let came = run_to_the_end(&mut bench, effects);
    assert!(
        (38..=46).contains(&came),
        "{came} chunks of the 48 there is room for"
    );
    assert_eq!(bench.after(1_000), vec![], "and does not begin again");
    // The fetched chunks are counted now, so there is no more space than before.
    assert_eq!(
        space(&mut bench, (2 + u64::from(came)) * CHUNK, 100 * MIB),
        vec![]
    );
}

#[test]
fn a_fill_begins_again_when_there_is_clearly_room() {
    let mut bench = Bench::filling(1);
    space(&mut bench, 100 * MIB, 100 * MIB);
    assert_eq!(assigned(&hold(&mut bench, 0..2)), vec![]);
    // As after an eviction.
    assert_eq!(space(&mut bench, 98 * MIB, 100 * MIB), vec![]);
    assert_eq!(space(&mut bench, 93 * MIB, 100 * MIB), vec![]);
    let given = assigned(&space(&mut bench, 50 * MIB, 100 * MIB));
    assert!(given.iter().all(|it| it.reason == Reason::BackgroundFill));
    assert!(!given.is_empty());
}

#[test]
fn a_fill_stops_when_others_take_the_room() {
    let mut bench = Bench::filling(1);
    space(&mut bench, 4 * MIB, 1_000 * MIB);
    let fill = assigned(&hold(&mut bench, 0..2));
    assert!(!fill.is_empty());
    let effects = space(&mut bench, 990 * MIB, 1_000 * MIB);
    let ids: Vec<_> = fill.iter().map(|it| it.id).collect();
    assert_eq!(cancelled(&effects), ids);
    assert_eq!(assigned(&effects), vec![]);
}

#[test]
fn a_full_edge_fetches_what_readers_and_jobs_ask_for() {
    let mut bench = Bench::filling(1);
    space(&mut bench, 100 * MIB, 100 * MIB);
    assert_eq!(
        assigned(&bench.read(0, 1, 0, true))[0].level,
        Level::Critical
    );
    assert!(!assigned(&bench.want(1, 0, 80..90)).is_empty());
}

fn quota(bench: &mut Bench, used: u64, quota: u64) -> Vec<Effect> {
    bench.apply(Event::SourceSpaces {
        edge: EdgeId(0),
        spaces: vec![SourceSpace {
            source: ORIGIN,
            bytes_used: used,
            quota_bytes: quota,
        }],
    })
}

#[test]
fn a_fill_ends_before_its_source_exceeds_its_quota() {
    let mut bench = Bench::filling(1);
    space(&mut bench, 4 * MIB, 1_000 * MIB);
    // 40 chunks, of which an eighth is kept free.
    quota(&mut bench, 4 * MIB, 80 * MIB);
    let effects = hold(&mut bench, 0..2);
    let came = run_to_the_end(&mut bench, effects);
    assert!((22..=28).contains(&came), "{came} chunks");
    let used = (2 + u64::from(came)) * CHUNK;
    assert_eq!(quota(&mut bench, used, 80 * MIB), vec![]);
    assert_eq!(bench.after(1_000), vec![], "and does not begin again");
    // A larger one, or none.
    assert!(!assigned(&quota(&mut bench, used, 800 * MIB)).is_empty());
    quota(&mut bench, 80 * MIB, 80 * MIB);
    let none = Event::SourceSpaces {
        edge: EdgeId(0),
        spaces: vec![],
    };
    assert!(!assigned(&bench.apply(none)).is_empty());
}

#[test]
fn a_used_up_quota_stops_assignments_of_its_source_for_a_moment() {
    let mut bench = Bench::new(1, 3);
    let given = assigned(&bench.read(0, 1, 0, true));
    let failed = bench.apply(Event::FetchFailed {
        edge: EdgeId(0),
        assignment: given[0].id,
        fault: Fault::Quota,
        retry_after: None,
    });
    assert_eq!(assigned(&failed), vec![]);
    assert_eq!(assigned(&bench.after(1_500)), vec![]);
    assert!(!assigned(&bench.after(1_000)).is_empty());
}
