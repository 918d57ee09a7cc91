//! Connections of a source that edges open for what they ask by themselves.

use super::*;

const EDGES: u32 = 3;

/// What an edge was told last: number, places, and its part without a coordinator.
type Grant = (u64, u32, u32);

fn grant(effects: &[Effect], of: u32) -> Option<Grant> {
    let mut granted = effects.iter().rev().filter_map(|effect| match effect {
        Effect::Places {
            edge,
            sequence,
            places,
            alone,
            ..
        } if *edge == EdgeId(of) => Some((*sequence, *places, *alone)),
        _ => None,
    });
    granted.next()
}

fn want(edge: u32, sequence: u64, held: u32, wanted: u32) -> Event {
    Event::PlacesAsked {
        edge: EdgeId(edge),
        source: SourceId(0),
        sequence,
        held,
        wanted,
    }
}

fn join(edge: u32) -> Event {
    Event::EdgeJoined {
        edge: EdgeId(edge),
        max_downloads: 4,
        background_fill: false,
    }
}

fn limited(max_connections: u32) -> Scheduler {
    let mut scheduler = Scheduler::new(Config::default());
    let mut effects = Vec::new();
    let source = Event::SourceSet {
        source: SourceId(0),
        max_connections,
        max_rate_bytes_per_second: 0,
        background_fill: None,
    };
    scheduler.apply(source, 0, &mut effects);
    for edge in 0..EDGES {
        scheduler.apply(join(edge), 0, &mut effects);
    }
    assert_eq!(
        grant(&effects, 0),
        Some((0, 0, (max_connections / EDGES).max(1)))
    );
    scheduler
}

fn apply(scheduler: &mut Scheduler, event: Event, now: Millis) -> Vec<Effect> {
    let mut effects = Vec::new();
    scheduler.apply(event, now, &mut effects);
    while scheduler.has_more() {
        scheduler.apply(Event::Tick, now, &mut effects);
    }
    effects
}

#[test]
fn an_edge_is_lent_what_it_asks_for_and_others_what_it_gives_back() {
    let mut scheduler = limited(4);
    let effects = apply(&mut scheduler, want(0, 0, 0, 9), 0);
    assert_eq!(grant(&effects, 0), Some((1, 4, 1)));
    let effects = apply(&mut scheduler, want(1, 0, 0, 1), 1);
    assert_eq!(grant(&effects, 0), Some((2, 3, 1)), "one is taken back");
    assert_eq!(
        grant(&effects, 1),
        Some((0, 0, 1)),
        "answered, and nothing to lend yet"
    );
    let effects = apply(&mut scheduler, want(0, 1, 3, 9), 2);
    assert_eq!(
        grant(&effects, 1),
        None,
        "that was said before it was taken back"
    );
    let effects = apply(&mut scheduler, want(0, 2, 3, 9), 3);
    assert_eq!(grant(&effects, 1), Some((1, 1, 1)));
}

#[test]
fn who_is_away_has_what_it_may_have_open_until_it_had_time_to_close_it() {
    let mut scheduler = limited(4);
    apply(&mut scheduler, want(0, 0, 0, 9), 0);
    let effects = apply(&mut scheduler, want(1, 0, 0, 9), 0);
    assert_eq!(grant(&effects, 1).map(|it| it.1), Some(0));
    let effects = apply(&mut scheduler, Event::EdgeLost { edge: EdgeId(0) }, 1);
    assert_eq!(grant(&effects, 1), None, "it has all four still");
    assert_eq!(apply(&mut scheduler, Event::Tick, 1_500), []);
    let effects = apply(&mut scheduler, Event::Tick, 1_502);
    assert_eq!(
        grant(&effects, 1),
        Some((1, 1, 1)),
        "the last place is nobody's who is away for longer than a moment"
    );
    let effects = apply(&mut scheduler, want(0, 1, 4, 4), 1_503);
    assert_eq!(effects, [], "of a session that has ended");
    assert_eq!(apply(&mut scheduler, Event::Tick, 14_900), []);
    let effects = apply(&mut scheduler, Event::Tick, 15_100);
    assert_eq!(grant(&effects, 1), Some((2, 4, 2)));
    assert_eq!(
        grant(&effects, 2),
        Some((0, 0, 2)),
        "its part without a coordinator grows"
    );
}

#[test]
fn while_all_is_kept_again_the_last_connection_goes_to_nobody_else() {
    let mut scheduler = limited(1);
    apply(&mut scheduler, want(0, 0, 0, 1), 0);
    apply(&mut scheduler, Event::EdgeLost { edge: EdgeId(0) }, 1);
    apply(&mut scheduler, want(1, 0, 0, 1), 2);
    let effects = apply(&mut scheduler, Event::Tick, 1_502);
    assert_eq!(grant(&effects, 1).map(|it| it.1), Some(1));
    // From here on for another moment: it has that one to the end of what runs there, and it is not
    // given again.
    let effects = apply(&mut scheduler, Event::EdgeLost { edge: EdgeId(2) }, 1_600);
    assert_eq!(grant(&effects, 1).map(|it| (it.0, it.1)), Some((2, 0)));
    let effects = apply(&mut scheduler, want(1, 2, 1, 1), 1_601);
    assert_eq!(grant(&effects, 1).map(|it| it.1), Some(0));
    let effects = apply(&mut scheduler, want(1, 2, 0, 1), 1_602);
    assert_eq!(grant(&effects, 1).map(|it| it.1), Some(0));
    assert_eq!(apply(&mut scheduler, Event::Tick, 3_099), []);
    let effects = apply(&mut scheduler, Event::Tick, 3_101);
    assert_eq!(grant(&effects, 1).map(|it| it.1), Some(1));
}

#[test]
fn who_comes_back_is_counted_as_it_says() {
    let mut scheduler = limited(4);
    apply(&mut scheduler, want(0, 0, 0, 3), 0);
    apply(&mut scheduler, want(1, 0, 0, 9), 0);
    apply(&mut scheduler, Event::EdgeLost { edge: EdgeId(0) }, 1);
    apply(&mut scheduler, join(0), 2);
    // It has one of them still.
    let effects = apply(&mut scheduler, want(0, 0, 1, 1), 3);
    assert_eq!(grant(&effects, 1).map(|it| it.1), Some(3));
}

#[test]
fn after_a_restart_each_edge_that_is_expected_has_its_part() {
    let mut scheduler = Scheduler::new(Config::default());
    let source = Event::SourceSet {
        source: SourceId(0),
        max_connections: 4,
        max_rate_bytes_per_second: 0,
        background_fill: None,
    };
    apply(&mut scheduler, source, 0);
    let edges = (0..4).map(EdgeId).collect();
    apply(&mut scheduler, Event::EdgesExpected { edges }, 0);
    apply(&mut scheduler, join(0), 1);
    let effects = apply(&mut scheduler, want(0, 0, 0, 9), 2);
    assert_eq!(
        grant(&effects, 0).map(|it| it.1),
        Some(0),
        "any of the others may have had all of them"
    );
    let effects = apply(&mut scheduler, Event::Tick, 1_501);
    assert_eq!(grant(&effects, 0).map(|it| it.1), Some(1));
    assert_eq!(apply(&mut scheduler, Event::Tick, 14_900), []);
    let effects = apply(&mut scheduler, Event::Tick, 15_100);
    assert_eq!(
        grant(&effects, 0).map(|it| it.1),
        Some(4),
        "nobody came back"
    );
}

#[test]
fn of_one_place_each_edge_has_its_turn() {
    let mut scheduler = limited(1);
    let mut sequence = [0; EDGES as usize];
    let mut had = [0; EDGES as usize];
    let mut holds: Option<u32> = None;
    for now in (0..12_000).step_by(100) {
        let mut effects = Vec::new();
        for edge in 0..EDGES {
            let held = u32::from(holds == Some(edge));
            let said = want(edge, sequence[edge as usize], held, 5);
            effects.extend(apply(&mut scheduler, said, now));
        }
        effects.extend(apply(&mut scheduler, Event::Tick, now));
        for edge in 0..EDGES {
            if let Some((number, places, _)) = grant(&effects, edge) {
                sequence[edge as usize] = number;
                if places == 0 && holds == Some(edge) {
                    holds = None;
                } else if places == 1 && holds != Some(edge) {
                    assert_eq!(holds, None, "lent twice");
                    holds = Some(edge);
                    had[edge as usize] += 1;
                }
            }
        }
    }
    assert!(had.iter().all(|&times| times >= 2), "{had:?}");
}

#[test]
fn background_work_gives_way_to_what_an_edge_asks() {
    let mut scheduler = limited(4);
    let geometry = Geometry::new(64 * CHUNK, CHUNK as u32).unwrap();
    let opened = Event::EntryOpened {
        entry: EntryNo(0),
        source: SourceId(0),
        geometry,
    };
    apply(&mut scheduler, opened, 0);
    let job = Event::WantSet {
        want: WantId(1),
        edge: EdgeId(1),
        entry: EntryNo(0),
        chunks: vec![0..64],
        level: Level::Medium,
    };
    let given = assigned(&apply(&mut scheduler, job, 1));
    assert!(given.len() >= 3, "{given:?}");
    let effects = apply(&mut scheduler, want(0, 0, 0, 3), 2);
    assert_eq!(
        grant(&effects, 0).map(|it| it.1),
        Some(4 - given.len() as u32)
    );
    let stopped: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Cancel { edge, assignment } => Some((*edge, *assignment)),
            _ => None,
        })
        .collect();
    assert_eq!(stopped.len(), given.len() - 1, "so many as are asked for");
    let mut last = None;
    for (edge, assignment) in stopped {
        let over = Event::FetchCancelled { edge, assignment };
        let effects = apply(&mut scheduler, over, 3);
        assert_eq!(assigned(&effects), [], "what comes free is lent");
        last = grant(&effects, 0).or(last);
    }
    assert_eq!(last.map(|it| it.1), Some(3));
}

#[test]
fn readers_that_wait_keep_half() {
    let mut scheduler = limited(4);
    let geometry = Geometry::new(64 * CHUNK, CHUNK as u32).unwrap();
    for entry in 0..3 {
        let opened = Event::EntryOpened {
            entry: EntryNo(entry),
            source: SourceId(0),
            geometry,
        };
        apply(&mut scheduler, opened, 0);
    }
    apply(&mut scheduler, want(0, 0, 0, 9), 1);
    let mut sequence = 1;
    let mut critical = 0;
    for number in 0..3 {
        let demand = Event::DemandSet(Demand {
            reader: ReaderId {
                edge: EdgeId(1),
                number,
            },
            entry: EntryNo(number as u32),
            position: 0,
            end: CHUNK,
            waiting: true,
            rate_bytes_per_second: 0,
            buffered_bytes: 0,
            lookahead_bytes: 0,
            paused: false,
            hints: Vec::new(),
        });
        let effects = apply(&mut scheduler, demand, 2);
        let Some((number, places, _)) = grant(&effects, 0) else {
            continue;
        };
        sequence = sequence.max(number);
        assert!(places >= 2);
        // It obeys at once.
        critical += assigned(&apply(&mut scheduler, want(0, sequence, places, 9), 3)).len();
    }
    assert_eq!(critical, 2);
}

#[test]
fn a_fetch_of_its_own_runs_in_its_place() {
    let mut scheduler = limited(2);
    let geometry = Geometry::new(64 * CHUNK, CHUNK as u32).unwrap();
    let opened = Event::EntryOpened {
        entry: EntryNo(0),
        source: SourceId(0),
        geometry,
    };
    apply(&mut scheduler, opened, 0);
    apply(&mut scheduler, want(0, 0, 0, 1), 0);
    let probe = Event::LocalFetchStarted {
        edge: EdgeId(0),
        assignment: AssignmentId(1 << 63),
        entry: EntryNo(0),
        chunks: 0..4,
        level: Level::Critical,
    };
    apply(&mut scheduler, probe, 1);
    let source = &scheduler.sources[&SourceId(0)];
    assert_eq!(source.connections(), 1);
}
