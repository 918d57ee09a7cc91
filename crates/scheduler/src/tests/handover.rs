//! Hand-over of a draining edge's chunks.

use super::*;

fn hold(bench: &mut Bench, edge: u32, chunks: std::ops::Range<ChunkIndex>) -> Vec<Effect> {
    bench.apply(Event::ChunksHeld {
        edge: EdgeId(edge),
        entry: MOVIE,
        chunks: vec![chunks],
    })
}

fn hand_over(bench: &mut Bench, chunks: std::ops::Range<ChunkIndex>) -> Vec<Effect> {
    bench.apply(Event::EdgeDraining {
        edge: EdgeId(0),
        draining: true,
    });
    bench.apply(Event::HandOver {
        want: WantId(1),
        edge: EdgeId(1),
        entry: MOVIE,
        chunks: vec![chunks],
    })
}

#[test]
fn it_comes_from_the_edge_that_is_drained() {
    let mut bench = Bench::new(2, 3);
    hold(&mut bench, 0, 10..30);
    let mut open = assigned(&hand_over(&mut bench, 10..30));
    let mut done = false;
    while let Some(next) = open.pop() {
        assert_eq!(
            (next.from, next.edge, next.level),
            (FetchSource::Peer(EdgeId(0)), EdgeId(1), Level::Medium)
        );
        let effects = bench.finish(1, next.id);
        done |= effects.contains(&Effect::WantDone { want: WantId(1) });
        open.extend(assigned(&effects));
    }
    assert!(done);
    assert_eq!(bench.scheduler.only_held_by(EdgeId(0), MOVIE, 100), []);
}

#[test]
fn the_origin_is_not_asked_for_what_is_evicted_meanwhile() {
    let mut bench = Bench::new(2, 1);
    hold(&mut bench, 0, 10..30);
    let mut open = assigned(&hand_over(&mut bench, 10..30));
    bench.apply(Event::ChunksDropped {
        edge: EdgeId(0),
        entry: MOVIE,
        chunks: vec![26..30],
    });
    let mut brought = 0;
    let mut done = false;
    while let Some(next) = open.pop() {
        assert_eq!(next.from, FetchSource::Peer(EdgeId(0)));
        brought += next.chunk_count;
        let effects = bench.finish(1, next.id);
        done |= effects.contains(&Effect::WantDone { want: WantId(1) });
        open.extend(assigned(&effects));
    }
    for _ in 0..20 {
        let effects = bench.after(100);
        done |= effects.contains(&Effect::WantDone { want: WantId(1) });
        assert_eq!(assigned(&effects), []);
    }
    assert!(done, "what nobody holds is let go");
    assert!(brought >= 16);
}

#[test]
fn the_origin_is_not_asked_where_the_edge_fails_to_send() {
    let mut bench = Bench::new(2, 3);
    hold(&mut bench, 0, 10..14);
    let given = assigned(&hand_over(&mut bench, 10..14));
    let mut effects = bench.apply(Event::FetchFailed {
        edge: EdgeId(1),
        assignment: given[0].id,
        fault: Fault::Peer,
        retry_after: None,
    });
    for _ in 0..50 {
        effects.extend(bench.after(100));
    }
    let again = assigned(&effects);
    assert!(!again.is_empty(), "it is tried again");
    assert!(again.iter().all(|a| a.from == FetchSource::Peer(EdgeId(0))));
}

#[test]
fn what_another_edge_holds_is_not_handed_over_and_readers_come_first() {
    let mut bench = Bench::new(3, 3);
    hold(&mut bench, 0, 0..100);
    hold(&mut bench, 1, 40..60);
    bench.read(0, 1, 30 * CHUNK, false);
    let found = bench.scheduler.only_held_by(EdgeId(0), MOVIE, 20);
    assert_eq!(found, [30..40, 60..70]);
    let all = bench.scheduler.only_held_by(EdgeId(0), MOVIE, 1_000);
    assert_eq!(all, [30..40, 60..100, 0..30]);
}
