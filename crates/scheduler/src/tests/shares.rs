//! Fair shares, and that nothing starves.

use super::*;

#[test]
fn two_jobs_share_an_edge() {
    let mut bench = Bench::new(1, 1);
    let mut given = assigned(&bench.want(1, 0, 0..40));
    given.extend(assigned(&bench.want(2, 0, 50..90)));
    for index in 0..6 {
        let next = assigned(&bench.finish(0, given[index].id));
        given.extend(next);
    }
    let of = |want| {
        given
            .iter()
            .filter(|a| a.reason == Reason::Want(WantId(want)))
            .count()
    };
    assert!(of(1).abs_diff(of(2)) <= 2, "{given:?}");
}

#[test]
fn two_sources_share_an_edge() {
    let mut bench = Bench::new(1, 1);
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
    let mut given = assigned(&bench.want(1, 0, 0..80));
    let chunks = std::iter::once(0..80).collect();
    let other = Event::WantSet {
        want: WantId(2),
        edge: EdgeId(0),
        entry,
        chunks,
        level: Level::Medium,
    };
    given.extend(assigned(&bench.apply(other)));
    for index in 0..8 {
        let next = assigned(&bench.finish(0, given[index].id));
        given.extend(next);
    }
    let of = |entry| given.iter().filter(|a| a.entry == entry).count();
    assert!(of(MOVIE).abs_diff(of(entry)) <= 2, "{given:?}");
}

/// Sets the levels of open assignments as they were changed.
fn raise(open: &mut [Assignment], effects: &[Effect]) {
    for effect in effects {
        if let Effect::Reprioritise {
            assignment, level, ..
        } = effect
        {
            let changed = open.iter_mut().filter(|a| a.id == *assignment);
            changed.for_each(|a| a.level = *level);
        }
    }
}

#[test]
fn jobs_go_on_while_lookaheads_take_all_there_is() {
    let mut bench = Bench::new(1, 2);
    let entry = EntryNo(2);
    let geometry = Geometry::new(100 * CHUNK, CHUNK as u32).unwrap();
    bench.apply(Event::EntryOpened {
        entry,
        source: ORIGIN,
        geometry,
    });
    let all = || std::iter::once(0..100).collect::<Vec<_>>();
    let want = |want, level| Event::WantSet {
        want: WantId(want),
        edge: EdgeId(0),
        entry,
        chunks: all(),
        level,
    };
    let mut open = assigned(&bench.apply(want(1, Level::Medium)));
    open.extend(assigned(&bench.apply(want(2, Level::Low))));
    let (mut medium, mut low, mut high) = (0, 0, 0);
    for turn in 0..400u64 {
        // Readers whose demand never ends: chunks fetched for them are evicted at once.
        let mut effects = bench.apply(Event::ChunksDropped {
            edge: EdgeId(0),
            entry: MOVIE,
            chunks: all(),
        });
        effects.extend(bench.apply(Event::ChunksDropped {
            edge: EdgeId(0),
            entry,
            chunks: all(),
        }));
        effects.extend(bench.apply(Event::DemandSet(demand(
            0,
            turn % 8,
            turn % 8 * 12 * CHUNK,
            false,
        ))));
        for id in cancelled(&effects) {
            open.retain(|a| a.id != id);
            effects.extend(bench.apply(Event::FetchCancelled {
                edge: EdgeId(0),
                assignment: id,
            }));
        }
        open.extend(assigned(&effects));
        raise(&mut open, &effects);
        open.sort_by_key(|a| (a.level, a.id));
        // The edge runs two, by level, and they end.
        for _ in 0..open.len().min(2) {
            let ended = open.remove(0);
            match ended.reason {
                Reason::Want(WantId(1)) => medium += 1,
                Reason::Want(_) => low += 1,
                _ => high += 1,
            }
            bench.now += 50;
            let effects = bench.finish(0, ended.id);
            open.extend(assigned(&effects));
            raise(&mut open, &effects);
            for id in cancelled(&effects) {
                open.retain(|a| a.id != id);
                open.extend(assigned(&bench.apply(Event::FetchCancelled {
                    edge: EdgeId(0),
                    assignment: id,
                })));
            }
        }
    }
    assert!(
        medium > high / 20 && low > 2,
        "{high} HIGH, {medium} MEDIUM, {low} LOW"
    );
}
