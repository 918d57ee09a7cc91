//! Idle entries are closed, and loaded again when a command names them.

use super::*;

/// Longer than an idle entry stays open.
const LONG: u64 = 1_500_000;

impl Fixture {
    /// Ticks for this long, as the actor does.
    fn wait(&mut self, ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            self.now += 999;
            self.apply(Command::Tick);
        }
    }

    /// The edge leaves, and long after that the entry is closed.
    fn closes_without_its_edge(&mut self) {
        self.apply(Command::EdgeLeft {
            edge: EDGE,
            epoch: 1,
        });
        self.wait(LONG);
        assert_eq!(self.plan.entry_count(), 0);
    }

    fn leave(&mut self) {
        let batch = v1::DemandBatch {
            closed_readers: vec![1],
            ..Default::default()
        };
        self.apply(Command::Demand {
            edge: EDGE,
            epoch: 1,
            batch,
        });
    }
}

#[test]
fn an_entry_nobody_speaks_of_is_closed_and_loaded_again() {
    let mut fixture = Fixture::new();
    fixture.demand(1);
    fixture.load(0..4);
    fixture.leave();
    fixture.wait(100_000);
    assert_eq!(
        fixture.plan.entry_count(),
        1,
        "who comes back finds it open"
    );
    fixture.wait(LONG);
    assert_eq!(fixture.plan.entry_count(), 0);
    assert_eq!(fixture.demand(1), [Action::Load(ENTRY)]);
    let actions = fixture.load(0..3);
    assert_eq!(assigned(&actions), [3], "what is held is known again");
}

#[test]
fn a_reader_that_rests_keeps_its_entry_open() {
    let mut fixture = Fixture::new();
    fixture.demand(1);
    fixture.load(0..4);
    fixture.wait(LONG);
    assert_eq!(fixture.plan.entry_count(), 1);
    fixture.leave();
    fixture.wait(LONG);
    assert_eq!(fixture.plan.entry_count(), 0);
}

#[test]
fn a_job_and_a_fetch_keep_their_entry_open() {
    let mut fixture = Fixture::new();
    fixture.want();
    fixture.load(0..0);
    fixture.wait(LONG);
    assert_eq!(fixture.plan.entry_count(), 1);
    fixture.apply(Command::WantClosed(WantId(9)));
    fixture.wait(LONG);
    assert_eq!(
        fixture.plan.entry_count(),
        1,
        "its edge has not said that the fetch has ended"
    );
    fixture.closes_without_its_edge();
}

#[test]
fn an_entry_to_be_filled_is_kept_open_as_long_as_its_edge_is_there() {
    let mut fixture = Fixture::new();
    fixture.apply(Command::SourceSet(Box::new(v1::Source {
        name: "films".into(),
        background_fill: Some(true),
        ..Default::default()
    })));
    fixture.apply(Command::EntryWanted(ENTRY));
    fixture.load(0..2);
    fixture.apply(Command::EdgeDraining {
        edge: EDGE,
        draining: true,
    });
    fixture.wait(LONG);
    assert_eq!(
        fixture.plan.entry_count(),
        1,
        "it is drained, and may be taken back"
    );
    fixture.closes_without_its_edge();
}

#[test]
fn an_entry_that_was_just_made_is_open_without_being_read() {
    let mut fixture = Fixture::new();
    // A command named it before its row existed; the answer comes late.
    assert_eq!(fixture.demand(1), [Action::Load(ENTRY)]);
    let actions = fixture.apply(Command::EntryCreated(Box::new(film())));
    assert!(!assigned(&actions).is_empty(), "what waited is planned for");
    let late = Command::EntryLoaded {
        id: ENTRY,
        loaded: None,
    };
    assert_eq!(fixture.apply(late), []);
    assert_eq!(fixture.plan.entry_count(), 1);
}

#[test]
fn an_entry_that_is_expected_is_not_read_before_its_row_is_there() {
    let mut fixture = Fixture::new();
    fixture.apply(Command::EntryExpected(ENTRY));
    assert_eq!(fixture.demand(1), [], "its row is on its way");
    let actions = fixture.apply(Command::EntryCreated(Box::new(film())));
    assert!(!assigned(&actions).is_empty(), "what waited is planned for");
}

#[test]
fn an_expected_entry_that_was_there_already_is_read() {
    let mut fixture = Fixture::new();
    fixture.apply(Command::EntryExpected(ENTRY));
    assert_eq!(fixture.demand(1), []);
    let actions = fixture.apply(Command::EntryWanted(ENTRY));
    assert_eq!(actions, [Action::Load(ENTRY)]);
}

#[test]
fn an_expected_entry_that_nobody_speaks_of_is_not_read() {
    let mut fixture = Fixture::new();
    fixture.apply(Command::EntryExpected(ENTRY));
    assert_eq!(fixture.apply(Command::EntryRegistered(ENTRY)), []);
    assert_eq!(fixture.demand(1), [Action::Load(ENTRY)]);
}

#[test]
fn an_expected_entry_whose_row_does_not_come_is_read_for_who_waits() {
    let mut fixture = Fixture::new();
    fixture.apply(Command::EntryExpected(ENTRY));
    assert_eq!(fixture.demand(1), []);
    let mut read = Vec::new();
    for _ in 0..7 {
        fixture.now += 999;
        read.extend(fixture.apply(Command::Tick));
    }
    assert_eq!(read, [Action::Load(ENTRY)], "once");
}
