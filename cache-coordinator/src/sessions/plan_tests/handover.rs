//! A drain hands entries that are played on an edge over to the others.

use super::*;

const OTHER: EdgeId = EdgeId(2);

impl Fixture {
    fn join_other(&mut self, epoch: u64) -> Vec<Action> {
        self.apply(Command::EdgeJoined {
            edge: OTHER,
            epoch,
            record: EdgeRecord {
                name: "b".into(),
                url: "http://b".into(),
            },
            max_downloads: 3,
            background_fill: false,
            draining: false,
            space: EdgeSpace::default(),
            kept: Vec::new(),
        })
    }

    fn drain(&mut self, draining: bool) -> Vec<Action> {
        self.apply(Command::EdgeDraining {
            edge: EDGE,
            draining,
        })
    }

    fn report(&mut self, assignment: u64, state: v1::fetch_report::State) -> Vec<Action> {
        let report = v1::FetchReport {
            assignment_id: assignment,
            state: state.into(),
            ..Default::default()
        };
        self.apply(Command::FetchReport {
            edge: OTHER,
            epoch: 1,
            report,
        })
    }

    fn to_hand_over(&self) -> u64 {
        self.plan.chunks_to_hand_over(EDGE)
    }
}

fn assignments(actions: &[Action]) -> Vec<(EdgeId, v1::Assign)> {
    let assign = |action: &Action| match action {
        Action::Send(edge, message) => match message.as_ref() {
            Message::Assign(assign) => Some((*edge, assign.clone())),
            _ => None,
        },
        _ => None,
    };
    actions.iter().filter_map(assign).collect()
}

#[test]
fn what_is_open_goes_to_the_other_edge_and_progress_is_told() {
    let mut fixture = Fixture::new();
    fixture.join_other(1);
    fixture.apply(Command::EntryWanted(ENTRY));
    fixture.load(0..4);
    assert_eq!(fixture.to_hand_over(), 0);
    let given = assignments(&fixture.drain(true));
    assert_eq!(fixture.to_hand_over(), 4);
    assert_eq!(given.len(), 1);
    let (edge, assign) = &given[0];
    assert_eq!(
        (*edge, assign.first_chunk, assign.chunk_count),
        (OTHER, 0, 4)
    );
    let actions = fixture.report(assign.assignment_id, v1::fetch_report::State::Finished);
    assert_eq!(fixture.to_hand_over(), 0);
    assert!(!actions.iter().any(|it| matches!(it, Action::WantDone(_))));
}

#[test]
fn what_is_played_without_a_miss_is_loaded_for_it() {
    let mut fixture = Fixture::new();
    fixture.join_other(1);
    fixture.drain(true);
    let played = Command::HandOver {
        edge: EDGE,
        entry: ENTRY,
    };
    assert_eq!(fixture.apply(played), [Action::Load(ENTRY)]);
    let given = assignments(&fixture.load(0..4));
    assert_eq!(given.len(), 1);
    assert_eq!(fixture.to_hand_over(), 4);
}

#[test]
fn it_ends_with_the_drain_or_with_either_edge() {
    let leave = |edge| Command::EdgeLeft { edge, epoch: 1 };
    let undrain = Command::EdgeDraining {
        edge: EDGE,
        draining: false,
    };
    for end in [undrain, leave(EDGE), leave(OTHER)] {
        let mut fixture = Fixture::new();
        fixture.join_other(1);
        fixture.apply(Command::EntryWanted(ENTRY));
        fixture.load(0..4);
        fixture.drain(true);
        assert_eq!(fixture.to_hand_over(), 4);
        let given = assignments(&fixture.apply(end));
        assert_eq!(fixture.to_hand_over(), 0);
        assert!(given.is_empty(), "nothing of it is asked of the origin");
    }
}

/// A coordinator restarts in the middle of it, and nobody drains the edge a second time.
#[test]
fn it_goes_on_after_a_restart() {
    let mut fixture = Fixture::new();
    fixture.apply(Command::EdgeJoined {
        edge: EDGE,
        epoch: 2,
        record: EdgeRecord {
            name: "a".into(),
            url: "http://a".into(),
        },
        max_downloads: 3,
        background_fill: false,
        draining: true,
        space: EdgeSpace::default(),
        kept: Vec::new(),
    });
    // Hot entries are opened before the receiving edges are back.
    fixture.apply(Command::EntryWanted(ENTRY));
    fixture.load(0..4);
    fixture.join_other(1);
    assert_eq!(fixture.to_hand_over(), 0);
    fixture.now += 500;
    let given = assignments(&fixture.apply(Command::Tick));
    assert_eq!(given.len(), 1);
    assert_eq!((given[0].0, fixture.to_hand_over()), (OTHER, 4));
}

#[test]
fn where_one_ends_with_its_edge_another_takes_over() {
    const THIRD: EdgeId = EdgeId(3);
    let mut fixture = Fixture::new();
    fixture.join_other(1);
    fixture.apply(Command::EntryWanted(ENTRY));
    fixture.load(0..4);
    fixture.drain(true);
    fixture.apply(Command::EdgeLeft {
        edge: OTHER,
        epoch: 1,
    });
    fixture.apply(Command::EdgeJoined {
        edge: THIRD,
        epoch: 1,
        record: EdgeRecord {
            name: "c".into(),
            url: "http://c".into(),
        },
        max_downloads: 3,
        background_fill: false,
        draining: false,
        space: EdgeSpace::default(),
        kept: Vec::new(),
    });
    fixture.now += 500;
    let given = assignments(&fixture.apply(Command::Tick));
    assert_eq!(given.iter().map(|it| it.0).collect::<Vec<_>>(), [THIRD]);
}
