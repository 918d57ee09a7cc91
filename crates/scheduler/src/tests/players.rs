//! The buffers that players report order lookaheads, and gain no player more than its share.

use super::*;

/// A reader that is not waiting, at its own part of the film.
fn viewer(number: u64, buffer_ms: Option<u32>) -> Demand {
    Demand {
        player_buffer_ms: buffer_ms,
        ..demand(0, number, number * 20 * CHUNK, false)
    }
}

/// Chunks assigned to each of these readers while they report the same demand again and again, and
/// fetches end one at a time.
fn shares(viewers: &[Demand], turns: usize) -> Vec<u32> {
    let mut bench = Bench::new(1, 1);
    let mut open = Vec::new();
    let mut chunks = vec![0; viewers.len()];
    for _ in 0..turns {
        for viewer in viewers {
            open.extend(assigned(&bench.apply(Event::DemandSet(viewer.clone()))));
        }
        let ended = open.remove(0);
        if let Reason::Lookahead(reader) = ended.reason
            && let Some(at) = viewers.iter().position(|it| it.reader == reader)
        {
            chunks[at] += ended.chunk_count;
        }
        bench.now += 100;
        let range = ended.first_chunk..ended.first_chunk + ended.chunk_count;
        open.extend(assigned(&bench.finish(0, ended.id)));
        // Evicted at once, so that no reader is ever satisfied.
        open.extend(assigned(&bench.apply(Event::ChunksDropped {
            edge: EdgeId(0),
            entry: MOVIE,
            chunks: vec![range],
        })));
    }
    chunks
}

#[test]
fn an_expected_request_is_due_when_the_buffer_is_used_up() {
    let mut bench = Bench::new(1, 1);
    let expected = Demand {
        is_expected: true,
        ..viewer(1, Some(3_200))
    };
    let now = bench.now;
    bench.apply(Event::DemandSet(expected));
    bench.apply(Event::DemandSet(viewer(2, Some(3_200))));
    let due = |chunk| bench.scheduler.explain(MOVIE, chunk, bench.now)[0].due;
    assert_eq!((due(20), due(40)), (Some(now + 3_200), None));
}

#[test]
fn who_has_a_full_buffer_comes_after_who_has_an_empty_one() {
    let mut bench = Bench::new(1, 1);
    // The only slot is in use while both come.
    let job = assigned(&bench.want(1, 0, 90..100));
    bench.apply(Event::DemandSet(viewer(1, Some(30_000))));
    bench.apply(Event::DemandSet(viewer(2, Some(500))));
    let deadline = |bench: &Bench, chunk| {
        let decision = bench.scheduler.explain(MOVIE, chunk, bench.now)[0].clone();
        (
            decision.deadline.unwrap() - bench.now,
            decision.player_buffer_ms,
        )
    };
    assert_eq!(deadline(&bench, 20), (30_000, Some(30_000)));
    assert_eq!(deadline(&bench, 40), (500, Some(500)));
    let next: Vec<_> = job
        .iter()
        .flat_map(|job| assigned(&bench.finish(0, job.id)))
        .collect();
    let first = next.iter().find(|it| it.level == Level::High).unwrap();
    let reader = viewer(2, None).reader;
    assert_eq!(first.reason, Reason::Lookahead(reader), "{next:?}");
}

#[test]
fn who_waits_is_critical_whatever_it_says() {
    let mut bench = Bench::new(1, 3);
    let effects = bench.apply(Event::DemandSet(Demand {
        waiting: true,
        ..viewer(1, Some(u32::MAX))
    }));
    let first = &assigned(&effects)[0];
    assert_eq!((first.level, first.first_chunk), (Level::Critical, 20));
    assert_eq!(first.deadline_ms, 0);
}

#[test]
fn an_empty_buffer_is_no_more_than_silence() {
    let shares = shares(&[viewer(0, Some(0)), viewer(1, None)], 60);
    assert!(shares[0].abs_diff(shares[1]) <= 4, "{shares:?}");
}

#[test]
fn who_says_that_it_is_always_full_is_not_starved_where_there_is_room() {
    let mut bench = Bench::new(1, 3);
    let effects = bench.apply(Event::DemandSet(viewer(0, Some(600_000))));
    assert!(!assigned(&effects).is_empty());
}

#[test]
fn connections_of_one_viewer_are_one_reader() {
    let mut bench = Bench::new(1, 1);
    let beside = |number, viewer| Demand {
        viewer,
        ..demand(0, number, 0, true)
    };
    for (number, viewer) in [(1, 7), (2, 7), (7, 0), (8, 0)] {
        bench.apply(Event::DemandSet(beside(number, viewer)));
    }
    let decision = bench.scheduler.explain(MOVIE, 0, bench.now)[0].clone();
    assert_eq!((decision.readers, decision.viewer), (3, 7));
}
