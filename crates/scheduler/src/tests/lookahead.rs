//! How much is fetched ahead of a reader: what it consumes in some fetch times, within limits. And
//! what a rate gives at first.

use super::*;

const LONG: EntryNo = EntryNo(7);

/// With an object of 1,000 chunks.
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

/// A chunk of the origin took so long.
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

/// Edges take each fetch at the rate they were given.
#[test]
fn a_rate_holds_from_its_first_moment() {
    let rate = 10_000_000;
    let mut bench = Bench::new(3, 4);
    bench.source(0, rate);
    let mut open: Vec<(Assignment, u64)> = Vec::new();
    let begin = |open: &mut Vec<_>, effects: &[Effect]| {
        let given = assigned(effects).into_iter();
        open.extend(given.filter(|a| a.from == From::Origin).map(|a| (a, 0)));
    };
    for edge in 0..3 {
        let chunks = edge * 30..edge * 30 + 30;
        let effects = bench.want(u64::from(edge), edge, chunks);
        begin(&mut open, &effects);
    }
    let (mut came, step) = (0, 50);
    for passed in (step..=2_000).step_by(step as usize) {
        let mut effects = bench.after(step);
        for (assignment, bytes) in std::mem::take(&mut open) {
            let whole = u64::from(assignment.chunk_count) * CHUNK;
            let part = (assignment.max_rate_bytes_per_second * step / 1_000).min(whole - bytes);
            came += part;
            let event = if bytes + part == whole {
                Event::FetchFinished {
                    edge: assignment.edge,
                    assignment: assignment.id,
                }
            } else {
                Event::FetchProgressed {
                    edge: assignment.edge,
                    assignment: assignment.id,
                    bytes_done: bytes + part,
                }
            };
            if bytes + part < whole {
                open.push((assignment, bytes + part));
            }
            effects.extend(bench.apply(event));
        }
        begin(&mut open, &effects);
        assert!(came <= rate * passed / 1_000, "{came} bytes in {passed} ms");
    }
    assert!(came >= rate, "half of it is used: {came} bytes");
}
