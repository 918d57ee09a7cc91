//! Lookahead: what a reader consumes in a few fetch times, within limits; and the effect of the
//! first observed rate.

use super::*;

const LONG: EntryNo = EntryNo(7);

/// A scheduler with one edge and an object of 1,000 chunks.
fn bench() -> Bench {
    let mut bench = Bench::new(1, 3);
    let geometry = Geometry::new(1_000 * CHUNK, CHUNK as u32).unwrap();
    bench.apply(Event::EntryOpened {
        entry: LONG,
        source: ORIGIN,
        geometry,
    });
    bench
}

/// Makes one chunk from the origin take this long.
fn fetch_time(bench: &mut Bench, ms: Millis) {
    let given = assigned(&bench.apply(Event::WantSet {
        want: WantId(1),
        edge: EdgeId(0),
        entry: LONG,
        chunks: vec![999..1_000],
        level: Level::Medium,
    }));
    bench.after(ms);
    bench.finish(0, given[0].id);
}

fn reader(rate: u64) -> Demand {
    Demand {
        entry: LONG,
        end: 1_000 * CHUNK,
        rate_bytes_per_second: rate,
        ..demand(0, 1, 0, false)
    }
}

/// Chunks wanted ahead of the only reader.
fn ahead(bench: &mut Bench, demand: Demand) -> std::ops::Range<ChunkIndex> {
    bench.apply(Event::DemandSet(demand));
    let wanted = bench.scheduler.wanted();
    wanted[&(EdgeId(0), LONG, Level::High)].span().unwrap()
}

#[test]
fn a_slow_reader_keeps_little_ahead() {
    let mut bench = bench();
    fetch_time(&mut bench, 200);
    // Ten chunks, in whole requests of four.
    assert_eq!(ahead(&mut bench, reader(250_000)), 0..12);
}

#[test]
fn a_fast_reader_and_a_distant_origin_keep_much() {
    let mut bench = bench();
    fetch_time(&mut bench, 200);
    // 20 MB/s × 0.2 s × 8: 16 chunks.
    assert_eq!(ahead(&mut bench, reader(20_000_000)), 0..16);
    let mut bench = self::bench();
    fetch_time(&mut bench, 2_000);
    // 4 MB/s × 2 s × 8: 31 chunks.
    assert_eq!(ahead(&mut bench, reader(4_000_000)), 0..32);
}

#[test]
fn it_grows_and_shrinks_with_the_rate() {
    let mut bench = bench();
    fetch_time(&mut bench, 1_000);
    assert_eq!(ahead(&mut bench, reader(1_000_000)), 0..12);
    assert_eq!(ahead(&mut bench, reader(8_000_000)), 0..32);
    assert_eq!(ahead(&mut bench, reader(1_000_000)), 0..12);
}

#[test]
fn it_has_an_end() {
    let mut bench = bench();
    fetch_time(&mut bench, 10_000);
    assert_eq!(ahead(&mut bench, reader(1_000_000_000)), 0..128, "256 MiB");
    let asked = Demand {
        end: 3 * CHUNK + 1,
        ..reader(1_000_000_000)
    };
    assert_eq!(ahead(&mut bench, asked), 0..4, "what was asked for");
}

#[test]
fn what_the_edge_is_told_to_keep_replaces_it() {
    let mut bench = bench();
    fetch_time(&mut bench, 10_000);
    let told = |bytes| Demand {
        lookahead_bytes: bytes,
        ..reader(1_000_000_000)
    };
    assert_eq!(ahead(&mut bench, told(3 * CHUNK)), 0..3);
    assert_eq!(ahead(&mut bench, told(40 * CHUNK)), 0..40);
    assert_eq!(ahead(&mut bench, told(1_000 * CHUNK)), 0..128);
}

#[test]
fn no_more_is_fetched_ahead_than_the_reader_has_earned() {
    let mut bench = bench();
    fetch_time(&mut bench, 200);
    let earned = |chunks: u64| Demand {
        earned_bytes: chunks * CHUNK,
        ..reader(20_000_000)
    };
    assert_eq!(ahead(&mut bench, earned(2)), 0..2);
    assert_eq!(ahead(&mut bench, earned(8)), 0..8);
    assert_eq!(ahead(&mut bench, earned(500)), 0..16, "what its rate needs");
}

#[test]
fn a_reader_that_has_all_it_asked_for_may_still_have_hints() {
    let mut bench = bench();
    let hints = vec![900..910];
    let at_end = Demand {
        position: CHUNK,
        end: CHUNK,
        hints,
        ..reader(0)
    };
    assert_eq!(ahead(&mut bench, at_end.clone()), 900..910);
    let paused = Demand {
        paused: true,
        ..at_end
    };
    bench.apply(Event::DemandSet(paused));
    assert!(bench.scheduler.wanted().is_empty());
}
