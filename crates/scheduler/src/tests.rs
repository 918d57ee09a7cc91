//! One scenario per test. The general invariants are the simulation's.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod handover;
mod late;
mod lookahead;
mod players;
mod quota;
mod shares;
mod slots;
mod space;
mod traces;

use chunkcache_proto::{ChunkIndex, Geometry, Level};

use super::api::*;
use super::{Config, Scheduler};

const CHUNK: u64 = 2 << 20;
const MOVIE: EntryNo = EntryNo(1);
const ORIGIN: SourceId = SourceId(1);

/// A scheduler, its clock, and its last effects.
struct Bench {
    scheduler: Scheduler,
    now: Millis,
}

impl Bench {
    fn new(edges: u32, max_downloads: u32) -> Self {
        let mut bench = Self {
            scheduler: Scheduler::new(Config::default()),
            now: 1_000,
        };
        bench.source(0, 0);
        for edge in 0..edges {
            bench.apply(Event::EdgeJoined {
                edge: EdgeId(edge),
                max_downloads,
                background_fill: false,
            });
        }
        let geometry = Geometry::new(100 * CHUNK, CHUNK as u32).unwrap();
        bench.apply(Event::EntryOpened {
            entry: MOVIE,
            source: ORIGIN,
            geometry,
        });
        bench
    }

    fn source(&mut self, max_connections: u32, max_rate_bytes_per_second: u64) -> Vec<Effect> {
        self.apply(Event::SourceSet {
            source: ORIGIN,
            max_connections,
            max_rate_bytes_per_second,
            background_fill: None,
        })
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.scheduler.apply(event, self.now, &mut effects);
        effects
    }

    /// Three fetches per edge; entries are completed.
    fn filling(edges: u32) -> Self {
        let mut bench = Self::new(edges, 3);
        bench.apply(Event::SourceSet {
            source: ORIGIN,
            max_connections: 0,
            max_rate_bytes_per_second: 0,
            background_fill: Some(true),
        });
        bench
    }

    fn read(&mut self, edge: u32, number: u64, position: u64, waiting: bool) -> Vec<Effect> {
        self.apply(Event::DemandSet(demand(edge, number, position, waiting)))
    }

    fn want(&mut self, want: u64, edge: u32, chunks: std::ops::Range<ChunkIndex>) -> Vec<Effect> {
        self.want_at(Level::Medium, want, edge, chunks)
    }

    fn want_at(
        &mut self,
        level: Level,
        want: u64,
        edge: u32,
        chunks: std::ops::Range<ChunkIndex>,
    ) -> Vec<Effect> {
        let edge = EdgeId(edge);
        self.apply(Event::WantSet {
            want: WantId(want),
            edge,
            entry: MOVIE,
            chunks: vec![chunks],
            level,
        })
    }

    fn finish(&mut self, edge: u32, assignment: FetchId) -> Vec<Effect> {
        self.apply(Event::FetchFinished {
            edge: EdgeId(edge),
            assignment,
        })
    }

    fn after(&mut self, ms: Millis) -> Vec<Effect> {
        self.now += ms;
        self.apply(Event::Tick)
    }
}

fn demand(edge: u32, number: u64, position: u64, waiting: bool) -> Demand {
    Demand {
        reader: ReaderId {
            edge: EdgeId(edge),
            number,
        },
        entry: MOVIE,
        position,
        end: 100 * CHUNK,
        waiting,
        rate_bytes_per_second: 1_000_000,
        buffered_bytes: 0,
        lookahead_bytes: 0,
        earned_bytes: 0,
        player_buffer_ms: None,
        viewer: 0,
        is_expected: false,
        paused: false,
        hints: Vec::new(),
    }
}

fn assigned(effects: &[Effect]) -> Vec<Assignment> {
    let assignment = |effect: &Effect| match effect {
        Effect::Assign(assignment) => Some(assignment.clone()),
        _ => None,
    };
    effects.iter().filter_map(assignment).collect()
}

fn cancelled(effects: &[Effect]) -> Vec<FetchId> {
    let id = |effect: &Effect| match effect {
        Effect::Cancel { assignment, .. } => Some(*assignment),
        _ => None,
    };
    effects.iter().filter_map(id).collect()
}

#[test]
fn a_reader_gets_its_chunk_from_its_byte_and_then_its_lookahead() {
    let mut bench = Bench::new(1, 3);
    let effects = bench.read(0, 1, 5 * CHUNK + 77, true);
    let given = assigned(&effects);
    assert_eq!(
        (given[0].level, given[0].first_chunk, given[0].chunk_count),
        (Level::Critical, 5, 1)
    );
    assert_eq!(given[0].start_at, 5 * CHUNK + 77);
    assert_eq!(
        (given[1].level, given[1].first_chunk, given[1].chunk_count),
        (Level::High, 6, 4)
    );
    let last = given.last().unwrap();
    assert!(
        last.first_chunk + last.chunk_count <= 17,
        "the request is bytes=N-, the fetch is the lookahead: {last:?}"
    );
}

#[test]
fn a_seek_cancels_what_it_superseded_and_fetches_its_target_at_once() {
    let mut bench = Bench::new(1, 3);
    let before = assigned(&bench.read(0, 1, 0, true));
    let effects = bench.read(0, 1, 60 * CHUNK, true);
    let given = assigned(&effects);
    assert_eq!(
        (given[0].level, given[0].first_chunk),
        (Level::Critical, 60)
    );
    let high: Vec<_> = before
        .iter()
        .filter(|a| a.level == Level::High)
        .map(|a| a.id)
        .collect();
    assert!(
        high.iter().all(|id| cancelled(&effects).contains(id)),
        "{effects:?}"
    );
}

#[test]
fn a_reader_that_reads_on_lets_its_last_chunk_be_finished() {
    let mut bench = Bench::new(1, 3);
    let before = assigned(&bench.read(0, 1, 0, true));
    let effects = bench.read(0, 1, CHUNK, false);
    assert!(!cancelled(&effects).contains(&before[0].id));
    let lowered = Effect::Reprioritise {
        edge: EdgeId(0),
        assignment: before[0].id,
        level: Level::Low,
        deadline_ms: u32::MAX,
    };
    assert!(effects.contains(&lowered), "{effects:?}");
}

#[test]
fn one_edge_asks_the_origin_and_the_other_follows_it() {
    let mut bench = Bench::new(2, 3);
    bench.read(0, 1, 0, true);
    let effects = bench.read(1, 1, 0, true);
    assert!(
        assigned(&effects)
            .iter()
            .all(|a| a.from == FetchSource::Peer(EdgeId(0))),
        "{effects:?}"
    );
}

#[test]
fn a_peer_that_is_lost_is_replaced_by_the_origin_at_once() {
    let mut bench = Bench::new(2, 3);
    bench.apply(Event::ChunksHeld {
        edge: EdgeId(0),
        entry: MOVIE,
        chunks: std::iter::once(0..100).collect(),
    });
    let given = assigned(&bench.read(1, 1, 0, true));
    assert_eq!(given[0].from, FetchSource::Peer(EdgeId(0)));
    let effects = bench.apply(Event::EdgeLost { edge: EdgeId(0) });
    assert!(cancelled(&effects).contains(&given[0].id));
    bench.apply(Event::FetchCancelled {
        edge: EdgeId(1),
        assignment: given[0].id,
    });
    let explained = bench.scheduler.explain(MOVIE, 0, bench.now);
    assert_eq!(explained[0].from, FetchSource::Origin);
}

#[test]
fn a_waiter_does_not_stand_behind_the_rest_of_a_run() {
    let mut bench = Bench::new(1, 3);
    let job = assigned(&bench.want(1, 0, 0..8));
    let effects = bench.read(0, 1, 6 * CHUNK, true);
    assert_eq!(cancelled(&effects), vec![job[0].id]);
    let first = &assigned(&effects)[0];
    assert_eq!((first.level, first.first_chunk), (Level::Critical, 6));
}

#[test]
fn connections_hold_and_critical_has_its_part() {
    let mut bench = Bench::new(1, 8);
    bench.source(4, 0);
    assert_eq!(assigned(&bench.want(1, 0, 0..90)).len(), 3);
    assert_eq!(assigned(&bench.read(0, 1, 95 * CHUNK, true)).len(), 1);
    let effects = bench.read(0, 2, 97 * CHUNK, true);
    assert_eq!(cancelled(&effects).len(), 1, "a job gives its connection");
    let gone = cancelled(&effects)[0];
    let effects = bench.apply(Event::FetchCancelled {
        edge: EdgeId(0),
        assignment: gone,
    });
    assert_eq!(assigned(&effects)[0].level, Level::Critical);
}

#[test]
fn an_origin_that_asks_for_rest_gets_it() {
    let mut bench = Bench::new(1, 3);
    bench.apply(Event::SourceBackOff {
        source: ORIGIN,
        until: bench.now + 5_000,
    });
    assert_eq!(bench.read(0, 1, 0, true), vec![]);
    assert_eq!(bench.after(4_900), vec![]);
    assert_eq!(assigned(&bench.after(200))[0].level, Level::Critical);
}

#[test]
fn a_pause_that_one_object_asks_for_is_its_own() {
    let mut bench = Bench::new(1, 8);
    for number in 2..=4 {
        bench.apply(Event::EntryOpened {
            entry: EntryNo(number),
            source: ORIGIN,
            geometry: Geometry::new(CHUNK, CHUNK as u32).unwrap(),
        });
    }
    let waits = |bench: &mut Bench, number: u32, fault: Option<Fault>| {
        let effects = bench.apply(Event::DemandSet(Demand {
            entry: EntryNo(number),
            end: CHUNK,
            ..demand(0, u64::from(number), 0, true)
        }));
        let assignment = assigned(&effects).first().map(|a| a.id);
        if let (Some(assignment), Some(fault)) = (assignment, fault) {
            bench.apply(Event::FetchFailed {
                edge: EdgeId(0),
                assignment,
                fault,
                retry_after: Some(5_000),
            });
        }
        assignment.is_some()
    };
    for number in 1..=3 {
        assert!(waits(&mut bench, number, Some(Fault::Origin)), "{number}");
    }
    assert!(!waits(&mut bench, 4, None), "three objects said so");
    assert!(assigned(&bench.after(4_900)).is_empty());
    assert_eq!(assigned(&bench.after(200)).len(), 4);

    let mut bench = Bench::new(1, 8);
    bench.apply(Event::EntryOpened {
        entry: EntryNo(2),
        source: ORIGIN,
        geometry: Geometry::new(CHUNK, CHUNK as u32).unwrap(),
    });
    assert!(waits(&mut bench, 1, Some(Fault::Busy)));
    assert!(!waits(&mut bench, 2, None), "429 is of the source");
}

#[test]
fn a_failure_is_tried_again_after_a_rest() {
    let mut bench = Bench::new(1, 3);
    let first = assigned(&bench.read(0, 1, 0, true))[0].clone();
    let failed = Event::FetchFailed {
        edge: EdgeId(0),
        assignment: first.id,
        fault: Fault::Origin,
        retry_after: None,
    };
    assert!(assigned(&bench.apply(failed)).is_empty());
    assert_eq!(assigned(&bench.after(250))[0].first_chunk, 0);
}

/// A job for objects that only clients may request, on an edge that no client has used.
#[test]
fn an_edge_without_a_signature_keeps_only_itself_waiting() {
    let mut bench = Bench::new(2, 3);
    let unsigned = |bench: &mut Bench, edge, assignment| {
        bench.apply(Event::FetchFailed {
            edge: EdgeId(edge),
            assignment,
            fault: Fault::Unsigned,
            retry_after: None,
        })
    };
    let mut job = assigned(&bench.want(7, 1, 0..2));
    for rest in [200, 400, 800, 1_600, 3_200] {
        assert_eq!(job.len(), 1, "{rest}");
        assert!(assigned(&unsigned(&mut bench, 1, job[0].id)).is_empty());
        assert!(assigned(&bench.after(rest / 2)).is_empty(), "{rest}");
        job = assigned(&bench.after(rest));
    }
    assert!(assigned(&unsigned(&mut bench, 1, job[0].id)).is_empty());
    // Neither the source nor the object is held back, nor is a reader on that edge.
    let there = assigned(&bench.read(0, 1, 10 * CHUNK, true));
    assert_eq!((there[0].edge, there[0].first_chunk), (EdgeId(0), 10));
    bench.after(250);
    let here = assigned(&bench.read(1, 1, 50 * CHUNK, true));
    assert_eq!((here[0].edge, here[0].first_chunk), (EdgeId(1), 50));
    // The job may use the reader's signature, so its back-off starts again with the shortest pause.
    bench.finish(1, here[0].id);
    let of_job = |effects: Vec<Effect>| {
        let mut all = assigned(&effects).into_iter();
        all.find(|it| it.reason == job[0].reason)
    };
    let next = of_job(bench.after(6_400)).unwrap();
    unsigned(&mut bench, 1, next.id);
    assert!(of_job(bench.after(200)).is_some());
}

#[test]
fn a_late_critical_fetch_is_hedged_and_the_loser_stopped() {
    let mut bench = Bench::new(1, 3);
    let first = assigned(&bench.read(0, 1, 0, true))[0].clone();
    let hedge = assigned(&bench.after(1_100))
        .into_iter()
        .find(|a| matches!(a.reason, Reason::Hedge(_)))
        .unwrap();
    assert_eq!(
        (hedge.reason, hedge.first_chunk),
        (Reason::Hedge(first.id), 0)
    );
    assert_eq!(bench.scheduler.take_asked_again().hedge, CHUNK);
    assert_eq!(cancelled(&bench.finish(0, hedge.id)), vec![first.id]);
}

#[test]
fn a_want_is_done_when_its_edge_holds_it() {
    let mut bench = Bench::new(1, 3);
    let job = assigned(&bench.want(7, 0, 0..4));
    assert!(
        bench
            .finish(0, job[0].id)
            .contains(&Effect::WantDone { want: WantId(7) })
    );
}

#[test]
fn background_fill_runs_only_when_nothing_above_needs_the_origin() {
    let mut bench = Bench::filling(2);
    let mut fill = |edge| {
        let fill = assigned(&bench.apply(Event::ChunksHeld {
            edge: EdgeId(edge),
            entry: MOVIE,
            chunks: std::iter::once(edge * 30..edge * 30 + 3).collect(),
        }));
        assert!(!fill.is_empty() && fill.iter().all(|a| a.reason == Reason::BackgroundFill));
        let of_edge = fill.into_iter().filter(|a| a.from == FetchSource::Origin);
        of_edge.map(|a| a.id).collect::<Vec<_>>()
    };
    let (own, others) = (fill(0), fill(1));
    let effects = bench.read(0, 1, 80 * CHUNK, true);
    let stopped = cancelled(&effects);
    assert!(others.iter().all(|id| stopped.contains(id)), "{effects:?}");
    assert!(own.iter().all(|id| !stopped.contains(id)), "paused there");
    assert!(assigned(&effects).iter().all(|a| a.level <= Level::High));
}

#[test]
fn unknown_ids_change_nothing() {
    let mut bench = Bench::new(1, 3);
    let (edge, assignment) = (EdgeId(9), FetchId::Coordinated(99));
    for event in [
        Event::FetchFinished { edge, assignment },
        Event::FetchCancelled {
            edge: EdgeId(0),
            assignment,
        },
        Event::FetchProgressed {
            edge,
            assignment,
            bytes_done: 1,
        },
        Event::EntryClosed { entry: EntryNo(9) },
        Event::SourceRemoved {
            source: SourceId(9),
        },
        Event::EdgeLost { edge },
        Event::WantClosed { want: WantId(9) },
        Event::DemandClosed {
            reader: ReaderId { edge, number: 1 },
        },
        Event::DemandSet(Demand {
            entry: EntryNo(9),
            ..demand(0, 1, 0, true)
        }),
        Event::DemandSet(demand(9, 1, 0, true)),
    ] {
        assert_eq!(bench.apply(event), vec![]);
    }
    assert_eq!(bench.scheduler.queued_by_level(), [0; 4]);
}

#[test]
fn explain_names_level_state_source_and_reason() {
    let mut bench = Bench::new(2, 3);
    bench.read(0, 1, 0, true);
    bench.read(0, 2, 0, true);
    let decision = &bench.scheduler.explain(MOVIE, 0, bench.now)[0];
    assert_eq!(
        (decision.level, decision.from, decision.readers),
        (Level::Critical, FetchSource::Origin, 2)
    );
    assert_eq!(decision.state.name(), "assigned");
    assert_eq!(
        decision.reason,
        Reason::ReaderWaits(ReaderId {
            edge: EdgeId(0),
            number: 1
        })
    );
}

/// `explain` names the present reason: for a job's fetch that a reader has come to wait for, and
/// for a fetch that the edge began on its own.
#[test]
fn explain_names_the_reason_of_now() {
    let mut bench = Bench::new(2, 3);
    bench.want(0, 0, 0..1);
    let why = |bench: &Bench, chunk| bench.scheduler.explain(MOVIE, chunk, bench.now)[0].reason;
    assert!(matches!(why(&bench, 0), Reason::Want(_)));
    bench.read(0, 1, 0, true);
    assert!(matches!(why(&bench, 0), Reason::ReaderWaits(_)));
    bench.apply(Event::LocalFetchStarted {
        edge: EdgeId(0),
        assignment: FetchId::Local(0),
        entry: MOVIE,
        chunks: 90..91,
        level: Level::Critical,
    });
    assert_eq!(why(&bench, 90), Reason::Own);
}

#[test]
fn who_reads_from_a_peer_raises_the_fetch_it_follows() {
    let mut bench = Bench::new(2, 3);
    let job = assigned(&bench.want(1, 0, 0..1));
    let effects = bench.read(1, 1, 0, true);
    let raised = |effect: &Effect| {
        matches!(
            effect,
            Effect::Reprioritise { edge: EdgeId(0), assignment, level: Level::Critical,
                .. } if *assignment == job[0].id
        )
    };
    assert!(effects.iter().any(raised), "{effects:?}");
}
