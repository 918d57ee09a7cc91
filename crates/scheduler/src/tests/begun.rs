//! What a stopped fetch leaves half written.

use super::*;

fn cancelled_fetch(
    bench: &mut Bench,
    assignment: AssignmentId,
    begun: &[ChunkIndex],
) -> Vec<Assignment> {
    assigned(&bench.apply(Event::FetchCancelled {
        edge: EdgeId(0),
        assignment,
        begun: begun.to_vec(),
    }))
}

/// A seek costs what it stops, but what came by then is not thrown away.
#[test]
fn it_is_completed_when_nothing_else_is_wanted() {
    let mut bench = Bench::new(1, 3);
    let given = assigned(&bench.read(0, 1, 40 * CHUNK, true));
    let reader = ReaderId {
        edge: EdgeId(0),
        number: 1,
    };
    let stopped = cancelled(&bench.apply(Event::DemandClosed { reader }));
    let begun = given
        .iter()
        .find(|a| a.id == stopped[0])
        .unwrap()
        .first_chunk;
    // Those that stop still occupy the origin: it waits for the last of them that matters more.
    let mut after = cancelled_fetch(&mut bench, stopped[0], &[begun]);
    for id in stopped.iter().skip(1) {
        after.extend(cancelled_fetch(&mut bench, *id, &[]));
    }
    assert_eq!(after.len(), 1, "{after:?}");
    let how = (
        after[0].level,
        after[0].reason,
        after[0].first_chunk,
        after[0].chunk_count,
    );
    assert_eq!(how, (Level::Low, Reason::Begun, begun, 1));
    assert!(assigned(&bench.finish(0, after[0].id)).is_empty());
}

#[test]
fn it_gives_way_to_a_reader() {
    let mut bench = Bench::new(1, 3);
    let job = assigned(&bench.want(1, 0, 0..8));
    bench.apply(Event::WantClosed { want: WantId(1) });
    let low = cancelled_fetch(&mut bench, job[0].id, &[3]);
    assert_eq!(low[0].reason, Reason::Begun);
    let effects = bench.read(0, 1, 40 * CHUNK, true);
    assert_eq!(cancelled(&effects), vec![low[0].id]);
    assert!(
        assigned(&effects).iter().all(|a| a.level < Level::Low),
        "{effects:?}"
    );
    assert!(
        cancelled_fetch(&mut bench, low[0].id, &[3])
            .iter()
            .all(|a| a.level < Level::Low)
    );
}

/// The edge has given it back by then: to fetch it would be to fetch all of it, for nobody.
#[test]
fn it_is_forgotten_after_a_while() {
    let mut bench = Bench::new(1, 3);
    let job = assigned(&bench.want(1, 0, 0..8));
    bench.apply(Event::SourceBackOff {
        source: ORIGIN,
        until: bench.now + 60_000,
    });
    bench.apply(Event::WantClosed { want: WantId(1) });
    assert!(cancelled_fetch(&mut bench, job[0].id, &[3]).is_empty());
    assert!(assigned(&bench.after(70_000)).is_empty());
    assert!(assigned(&bench.after(70_000)).is_empty());
}

/// The edge counts from the last byte of each chunk, not from the last chunk.
#[test]
fn it_is_forgotten_in_its_own_time_whatever_is_begun_after_it() {
    let mut bench = Bench::new(1, 3);
    let jobs: Vec<_> = (0..2)
        .map(|want| {
            let start = 20 * u32::try_from(want).unwrap();
            assigned(&bench.want(want, 0, start..start + 1)).remove(0)
        })
        .collect();
    bench.apply(Event::SourceBackOff {
        source: ORIGIN,
        until: bench.now + 20_000,
    });
    for want in 0..2 {
        bench.apply(Event::WantClosed { want: WantId(want) });
    }
    cancelled_fetch(&mut bench, jobs[0].id, &[0]);
    assert!(assigned(&bench.after(10_000)).is_empty());
    cancelled_fetch(&mut bench, jobs[1].id, &[20]);
    let after = assigned(&bench.after(11_000));
    let chunks: Vec<_> = after.iter().map(|a| a.first_chunk).collect();
    assert_eq!(chunks, [20], "{after:?}");
}

/// A lookahead that became shorter leaves a fetch behind that none of the reader's claims covers:
/// it goes with its reader all the same.
#[test]
fn what_a_longer_lookahead_had_asked_for_goes_with_its_reader() {
    let mut bench = Bench::new(1, 8);
    let mut wide = demand(0, 1, 0, false);
    wide.lookahead_bytes = 32 * CHUNK;
    let given = assigned(&bench.apply(Event::DemandSet(wide.clone())));
    wide.lookahead_bytes = 4 * CHUNK;
    wide.position = CHUNK;
    bench.apply(Event::DemandSet(wide.clone()));
    let reader = wide.reader;
    let mut stopped = cancelled(&bench.apply(Event::DemandClosed { reader }));
    stopped.sort_unstable();
    let all: Vec<_> = given.iter().map(|a| a.id).collect();
    assert_eq!(stopped, all, "{given:?}");
}
