//! Late fetches: which one is blamed, and what is not fetched twice.

use super::*;

fn progress(bench: &mut Bench, edge: u32, assignment: FetchId, bytes_done: u64) {
    bench.apply(Event::FetchProgressed {
        edge: EdgeId(edge),
        assignment,
        bytes_done,
    });
}

fn hold(bench: &mut Bench, edge: u32, chunks: std::ops::Range<ChunkIndex>) -> Vec<Effect> {
    bench.apply(Event::ChunksHeld {
        edge: EdgeId(edge),
        entry: MOVIE,
        chunks: vec![chunks],
    })
}

fn of_chunk(effects: &[Effect], chunk: ChunkIndex) -> Vec<Assignment> {
    let brings = |a: &Assignment| (a.first_chunk..a.first_chunk + a.chunk_count).contains(&chunk);
    assigned(effects).into_iter().filter(brings).collect()
}

#[test]
fn a_peer_is_not_late_for_what_its_origin_took() {
    let mut bench = Bench::new(2, 3);
    let upstream = of_chunk(&bench.read(0, 1, 0, true), 0).remove(0);
    let follower = of_chunk(&bench.read(1, 1, 0, true), 0).remove(0);
    assert_eq!(follower.from, FetchSource::Peer(EdgeId(0)));
    for part in 1..=9 {
        bench.after(500);
        progress(&mut bench, 0, upstream.id, part * CHUNK / 16);
    }
    let mut effects = bench.finish(0, upstream.id);
    for _ in 0..5 {
        effects.extend(bench.after(100));
    }
    assert!(!cancelled(&effects).contains(&follower.id), "{effects:?}");
}

#[test]
fn the_origin_is_not_asked_to_look_ahead_for_what_a_late_peer_holds() {
    let mut bench = Bench::new(2, 3);
    hold(&mut bench, 0, 0..100);
    for failures in 1..=3 {
        bench.scheduler.peer_failed(EdgeId(1), EdgeId(0));
        let ahead = assigned(&bench.read(1, failures, 40 * CHUNK, false));
        assert_eq!(ahead.is_empty(), failures < 3, "{failures}: {ahead:?}");
    }
    let mut waiting = Bench::new(2, 3);
    hold(&mut waiting, 0, 0..100);
    waiting.scheduler.peer_failed(EdgeId(1), EdgeId(0));
    let first = of_chunk(&waiting.read(1, 1, 0, true), 0);
    assert!(
        first.iter().all(|a| a.from == FetchSource::Origin) && !first.is_empty(),
        "who waits does not wait for the peer: {first:?}"
    );
    assert_eq!(waiting.scheduler.take_asked_again().peer, CHUNK);
}

#[test]
fn a_peer_that_sent_a_chunk_is_asked_again() {
    let mut bench = Bench::new(2, 3);
    hold(&mut bench, 0, 0..100);
    let first = of_chunk(&bench.read(1, 1, 0, true), 0).remove(0);
    let second = of_chunk(&bench.read(1, 2, 40 * CHUNK, true), 40).remove(0);
    assert_eq!(second.from, FetchSource::Peer(EdgeId(0)));
    bench.apply(Event::FetchFailed {
        edge: EdgeId(1),
        assignment: first.id,
        fault: Fault::Peer,
        retry_after: None,
    });
    bench.finish(1, second.id);
    let next = of_chunk(&bench.read(1, 3, 80 * CHUNK, true), 80);
    assert_eq!(next.len(), 1);
    assert!(
        next.iter().all(|a| a.from == FetchSource::Peer(EdgeId(0))),
        "{next:?}"
    );
}

#[test]
fn what_has_not_begun_for_want_of_a_slot_is_not_late() {
    let mut bench = Bench::new(1, 2);
    let mut begun = Vec::new();
    for number in 0..4 {
        begun.extend(of_chunk(
            &bench.read(0, number, number * 25 * CHUNK, true),
            number as u32 * 25,
        ));
    }
    assert_eq!(begun.len(), 4, "three have a slot, one is handed out ahead");
    let mut effects = Vec::new();
    for part in 1..=20 {
        effects.extend(bench.after(500));
        progress(&mut bench, 0, begun[0].id, part * CHUNK / 32);
        progress(&mut bench, 0, begun[1].id, part * CHUNK / 32);
        progress(&mut bench, 0, begun[2].id, part * CHUNK / 32);
    }
    assert_eq!(assigned(&effects), [], "a second one would wait as well");
}

#[test]
fn what_makes_a_fill_give_way_is_not_fetched_a_second_time() {
    let mut bench = Bench::filling(1);
    assert_eq!(of_chunk(&hold(&mut bench, 0, 0..1), 8).len(), 1);
    let effects = bench.apply(Event::LocalFetchStarted {
        edge: EdgeId(0),
        assignment: FetchId::Local(0),
        entry: MOVIE,
        chunks: 8..9,
        level: Level::Critical,
    });
    assert_eq!(cancelled(&effects), [], "its edge pauses it");
    let given = of_chunk(&bench.read(0, 1, 8 * CHUNK, true), 8);
    assert_eq!(given, [], "the edge fetches it by itself");
}

#[test]
fn what_a_stopped_fetch_has_brought_is_not_asked_for_until_it_ends() {
    let mut bench = Bench::new(2, 3);
    let fetch = of_chunk(&bench.want(1, 0, 0..8), 7).remove(0);
    progress(&mut bench, 0, fetch.id, 3 * CHUNK + 1);
    let effects = bench.apply(Event::WantClosed { want: WantId(1) });
    assert_eq!(cancelled(&effects), [fetch.id]);
    let given = of_chunk(&bench.want(2, 0, 0..3), 0);
    assert_eq!(given, [], "their rows are on the way");
    let given = of_chunk(&bench.want(3, 1, 0..3), 0);
    assert_eq!(given, [], "nor by another edge");
    hold(&mut bench, 0, 0..3);
    let effects = bench.apply(Event::FetchCancelled {
        edge: EdgeId(0),
        assignment: fetch.id,
    });
    let mut given = of_chunk(&effects, 0);
    given.extend(of_chunk(&bench.after(100), 0));
    assert!(given.iter().all(|a| a.from == FetchSource::Peer(EdgeId(0))));
    assert_eq!(given.len(), 1);
}
