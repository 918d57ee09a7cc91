//! Failures that seeded runs of the simulation found, written out as traces: a seed loses its
//! meaning with each change of the simulated cluster.

use super::*;

fn cancelled(effects: &[Effect], id: FetchId) -> bool {
    let is_it =
        |effect: &Effect| matches!(effect, Effect::Cancel { assignment, .. } if *assignment == id);
    effects.iter().any(is_it)
}

#[test]
fn a_lowered_fetch_gives_its_slot_to_a_critical_one_queued_ahead() {
    let mut bench = Bench::new(1, 1);
    let mut critical = Vec::new();
    for (reader, chunk) in [(1, 0), (2, 10), (3, 20)] {
        let effects = bench.read(0, reader, chunk * CHUNK, true);
        let of_it = |it: &Assignment| it.first_chunk == chunk as u32;
        critical.extend(assigned(&effects).into_iter().filter(of_it));
    }
    assert_eq!(critical.len(), 3, "one slot, one for CRITICAL, one ahead");
    let effects = bench.apply(Event::DemandClosed {
        reader: ReaderId {
            edge: EdgeId(0),
            number: 1,
        },
    });
    assert!(cancelled(&effects, critical[0].id), "{effects:?}");
}

#[test]
fn a_waiter_behind_others_that_the_origin_refuses_is_served_by_a_peer() {
    let mut bench = Bench::new(2, 20);
    bench.source(1, 0);
    bench.apply(Event::ChunksHeld {
        edge: EdgeId(0),
        entry: MOVIE,
        chunks: vec![90..91],
    });
    bench.read(0, 1, 50 * CHUNK, true);
    for reader in 0..10 {
        bench.read(1, reader, reader * 5 * CHUNK, true);
    }
    let effects = bench.read(1, 10, 90 * CHUNK, true);
    let of_it = assigned(&effects)
        .into_iter()
        .find(|it| it.first_chunk == 90);
    assert_eq!(of_it.map(|it| it.from), Some(FetchSource::Peer(EdgeId(0))));
}

#[test]
fn draining_is_remembered_of_an_edge_that_is_away() {
    let mut bench = Bench::new(1, 1);
    let edge = EdgeId(0);
    bench.apply(Event::EdgeLost { edge });
    bench.apply(Event::EdgeDraining {
        edge,
        draining: true,
    });
    bench.apply(Event::EdgeJoined {
        edge,
        max_downloads: 1,
        background_fill: false,
    });
    assert!(bench.scheduler.is_draining(edge));
}
