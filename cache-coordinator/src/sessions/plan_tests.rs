//! The plan without a runtime: waits for loads, messages of an old epoch, edges that return.
#![allow(clippy::unwrap_used)]

mod handover;
mod idle;

use chunkcache_proto::{EntryId, Level, v1};
use v1::session_response::Message;

use super::{
    directory::EdgeRecord,
    plan::{Action, Command, EdgeSpace, LoadedEntry, Plan},
};
use scheduler::{
    Config, Scheduler,
    api::{EdgeId, WantId},
};

const EDGE: EdgeId = EdgeId(1);
const ENTRY: EntryId = EntryId::from_u128(7);
const MIB: u64 = 1 << 20;

struct Fixture {
    plan: Plan,
    now: u64,
    /// The in-flight fetches that the edge reports when it joins.
    kept: Vec<v1::KeptFetch>,
}

fn film() -> v1::Entry {
    v1::Entry {
        id: ENTRY.to_string(),
        key: Some(v1::Key {
            source: "films".into(),
            ..Default::default()
        }),
        size: 8 * MIB,
        chunk_size: 2 << 20,
        ..Default::default()
    }
}

impl Fixture {
    fn new() -> Self {
        let mut fixture = Self {
            plan: Plan::new(Scheduler::new(Config::default())),
            now: 0,
            kept: Vec::new(),
        };
        let source = v1::Source {
            name: "films".into(),
            ..Default::default()
        };
        fixture.apply(Command::SourceSet(Box::new(source)));
        fixture.join(1);
        fixture
    }

    fn apply(&mut self, command: Command) -> Vec<Action> {
        self.now += 1;
        let mut actions = Vec::new();
        self.plan.apply(command, self.now, &mut actions);
        actions
    }

    fn join(&mut self, epoch: u64) -> Vec<Action> {
        self.apply(Command::EdgeJoined {
            edge: EDGE,
            epoch,
            record: EdgeRecord {
                name: "a".into(),
                url: "http://a".into(),
            },
            max_downloads: 3,
            background_fill: false,
            draining: false,
            space: EdgeSpace::default(),
            kept: self.kept.clone(),
        })
    }

    fn load(&mut self, held: std::ops::Range<u32>) -> Vec<Action> {
        let entry = film();
        let holders = if held.is_empty() {
            Vec::new()
        } else {
            vec![(EDGE, std::iter::once(held).collect())]
        };
        self.apply(Command::EntryLoaded {
            id: ENTRY,
            loaded: Some(Box::new(LoadedEntry { entry, holders })),
        })
    }

    fn demand(&mut self, epoch: u64) -> Vec<Action> {
        let reader = v1::ReaderDemand {
            reader_id: 1,
            entry_id: ENTRY.to_string(),
            position: 0,
            end: 8 * MIB,
            waiting: true,
            ..Default::default()
        };
        let batch = v1::DemandBatch {
            readers: vec![reader],
            ..Default::default()
        };
        self.apply(Command::Demand {
            edge: EDGE,
            epoch,
            batch,
        })
    }

    fn want(&mut self) -> Vec<Action> {
        self.apply(Command::Want {
            want: WantId(9),
            edge: EDGE,
            entry: ENTRY,
            chunks: std::iter::once(0..4).collect(),
            level: Level::Medium,
        })
    }
}

fn assigned(actions: &[Action]) -> Vec<u32> {
    let mut chunks: Vec<u32> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Send(_, message) => match message.as_ref() {
                Message::Assign(a) => Some(a.first_chunk..a.first_chunk + a.chunk_count),
                _ => None,
            },
            _ => None,
        })
        .flatten()
        .collect();
    chunks.sort_unstable();
    chunks
}

#[test]
fn an_edge_that_drained_at_its_shutdown_gets_jobs_when_it_is_back() {
    let mut fixture = Fixture::new();
    fixture.load(0..0);
    fixture.apply(Command::EdgeDraining {
        edge: EDGE,
        draining: true,
    });
    fixture.apply(Command::EdgeLeft {
        edge: EDGE,
        epoch: 1,
    });
    fixture.join(2);
    fixture.load(0..0);
    assert!(!assigned(&fixture.want()).is_empty());
}

#[test]
fn demand_waits_for_the_load_and_what_is_held_is_not_fetched() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.demand(1), [Action::Load(ENTRY)]);
    assert_eq!(fixture.demand(1), []);
    let actions = fixture.load(0..1);
    assert_eq!(assigned(&actions), [1, 2, 3]);
}

#[test]
fn rows_committed_during_the_load_count() {
    let mut fixture = Fixture::new();
    fixture.want();
    fixture.apply(Command::Held {
        edge: EDGE,
        entry: ENTRY,
        chunks: vec![0, 1, 2, 3],
    });
    let actions = fixture.load(0..0);
    assert!(actions.contains(&Action::WantDone(WantId(9))));
}

#[test]
fn a_reader_that_leaves_during_the_load_stays_away() {
    let mut fixture = Fixture::new();
    fixture.demand(1);
    fixture.apply(Command::Demand {
        edge: EDGE,
        epoch: 1,
        batch: v1::DemandBatch {
            closed_readers: vec![1],
            ..Default::default()
        },
    });
    assert_eq!(assigned(&fixture.load(0..0)), Vec::<u32>::new());
}

fn absent() -> Command {
    Command::EntryLoaded {
        id: ENTRY,
        loaded: None,
    }
}

fn local_fetch(first_chunk: u32, chunk_count: u32) -> Command {
    Command::LocalFetch {
        edge: EDGE,
        epoch: 1,
        fetch: v1::LocalFetch {
            assignment_id: 1 << 63 | 1,
            entry_id: ENTRY.to_string(),
            first_chunk,
            chunk_count,
            priority: v1::Priority::Critical.into(),
        },
    }
}

/// A session's two lanes: the probe's fetch is reported at once, and the entry's row is committed a
/// moment later.
#[test]
fn what_is_said_before_the_row_is_committed_is_not_lost() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.apply(local_fetch(0, 2)), [Action::Load(ENTRY)]);
    fixture.demand(1);
    assert_eq!(fixture.apply(absent()), []);
    assert_eq!(
        fixture.apply(Command::EntryWanted(ENTRY)),
        [Action::Load(ENTRY)]
    );
    let actions = fixture.load(0..0);
    assert_eq!(
        assigned(&actions),
        [2, 3],
        "the edge's own fetch brings the others"
    );
}

#[test]
fn a_row_committed_while_it_was_looked_for_is_looked_for_again() {
    let mut fixture = Fixture::new();
    fixture.demand(1);
    assert_eq!(fixture.apply(Command::EntryWanted(ENTRY)), []);
    assert_eq!(fixture.apply(absent()), [Action::Load(ENTRY)]);
    assert_eq!(assigned(&fixture.load(0..0)), [0, 1, 2, 3]);
}

#[test]
fn a_fetch_that_ended_before_its_entry_was_open_does_not_begin_after_it() {
    let mut fixture = Fixture::new();
    fixture.apply(local_fetch(0, 4));
    fixture.demand(1);
    fixture.apply(Command::FetchReport {
        edge: EDGE,
        epoch: 1,
        report: v1::FetchReport {
            assignment_id: 1 << 63 | 1,
            state: v1::fetch_report::State::Failed.into(),
            ..Default::default()
        },
    });
    assert_eq!(assigned(&fixture.load(0..0)), [0, 1, 2, 3]);
}

#[test]
fn what_is_said_of_an_entry_that_never_comes_is_forgotten() {
    let mut fixture = Fixture::new();
    fixture.demand(1);
    fixture.apply(absent());
    fixture.now += 10_000;
    fixture.apply(Command::Tick);
    assert_eq!(fixture.demand(1), [Action::Load(ENTRY)], "asked for anew");
}

#[test]
fn an_old_epoch_changes_nothing() {
    let mut fixture = Fixture::new();
    fixture.join(2);
    assert_eq!(fixture.demand(1), []);
    fixture.apply(Command::EdgeLeft {
        edge: EDGE,
        epoch: 1,
    });
    assert_eq!(fixture.demand(2), [Action::Load(ENTRY)]);
}

#[test]
fn a_want_survives_the_return_of_its_edge() {
    let mut fixture = Fixture::new();
    fixture.want();
    assert_eq!(assigned(&fixture.load(0..0)), [0, 1, 2, 3]);
    fixture.apply(Command::EdgeLeft {
        edge: EDGE,
        epoch: 1,
    });
    assert_eq!(assigned(&fixture.join(2)), [0, 1, 2, 3]);
}

#[test]
fn wants_on_an_entry_that_is_not_there_are_dropped() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.want(), [Action::Load(ENTRY)]);
    let actions = fixture.apply(Command::EntryLoaded {
        id: ENTRY,
        loaded: None,
    });
    assert_eq!(actions, []);
    assert_eq!(fixture.plan.entry_count(), 0);
}

#[test]
fn a_wait_is_held_from_the_moment_it_is_planned_for() {
    let mut fixture = Fixture::new();
    let planned = fixture.demand(1);
    let actions = fixture.load(0..0);
    assert_eq!(assigned(&actions), [0, 1, 2, 3]);
    let held = |actions: &[Action]| {
        actions.iter().any(|action| {
            matches!(action, Action::Send(_, message)
                if matches!(message.as_ref(), Message::Held(held)
                    if held.reader_ids == [1] && held.wait_ms >= 10_000))
        })
    };
    assert!(!held(&planned), "its entry could not be read yet");
    // Also if it can be fetched: the fetch may be stopped for others, and the edge would not
    // notice.
    assert!(held(&actions));
    let ids: Vec<u64> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Send(_, message) => match message.as_ref() {
                Message::Assign(assign) => Some(assign.assignment_id),
                _ => None,
            },
            _ => None,
        })
        .collect();
    let mut after = Vec::new();
    for assignment_id in ids {
        after.extend(fixture.apply(Command::FetchReport {
            edge: EDGE,
            epoch: 1,
            report: v1::FetchReport {
                assignment_id,
                state: v1::fetch_report::State::Failed.into(),
                failure: Some(v1::FetchFailure {
                    fault: v1::fetch_failure::Fault::Origin.into(),
                    http_status: 429,
                    retry_after_ms: 3_000,
                    ..Default::default()
                }),
                ..Default::default()
            },
        }));
    }
    assert_eq!(assigned(&after), Vec::<u32>::new());
    let actions = fixture.demand(1);
    assert_eq!(assigned(&actions), Vec::<u32>::new());
    assert!(held(&actions), "{actions:?}");
}

#[test]
fn numbers_of_assignments_go_on_where_they_are_told_to() {
    let mut fixture = Fixture::new();
    fixture.plan = Plan::new(Scheduler::new(Config {
        first_assignment: 1 << 40,
        ..Config::default()
    }));
    fixture.apply(Command::SourceSet(Box::new(v1::Source {
        name: "films".into(),
        ..Default::default()
    })));
    fixture.join(1);
    fixture.demand(1);
    let actions = fixture.load(0..0);
    let first = actions.iter().find_map(|action| match action {
        Action::Send(_, message) => match message.as_ref() {
            Message::Assign(assign) => Some(assign.assignment_id),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(first, Some((1 << 40) + 1));
}

fn kept(assignment_id: u64, first_chunk: u32, chunk_count: u32) -> v1::KeptFetch {
    v1::KeptFetch {
        assignment_id,
        entry_id: ENTRY.to_string(),
        first_chunk,
        chunk_count,
        priority: v1::Priority::Medium.into(),
    }
}

/// A coordinator takes over: a job from its table, then the edge that was working on it.
#[test]
fn what_an_edge_kept_is_not_assigned_again_after_a_takeover() {
    for is_loaded_first in [true, false] {
        let mut fixture = Fixture::new();
        fixture.apply(Command::EdgeLeft {
            edge: EDGE,
            epoch: 1,
        });
        fixture.want();
        fixture.kept = vec![kept(77, 1, 2)];
        let actions = if is_loaded_first {
            assert_eq!(assigned(&fixture.load(0..0)), Vec::<u32>::new());
            fixture.join(2)
        } else {
            fixture.join(2);
            fixture.load(0..0)
        };
        assert_eq!(assigned(&actions), [0, 3], "{is_loaded_first}");
        // It fails on the edge: now the chunks are missing.
        let actions = fixture.apply(Command::FetchReport {
            edge: EDGE,
            epoch: 2,
            report: v1::FetchReport {
                assignment_id: 77,
                state: v1::fetch_report::State::Cancelled.into(),
                ..Default::default()
            },
        });
        assert_eq!(assigned(&actions), [1, 2]);
    }
}

#[test]
fn a_kept_fetch_that_ended_before_its_entry_was_open_does_not_begin_after_it() {
    let mut fixture = Fixture::new();
    fixture.apply(Command::EdgeLeft {
        edge: EDGE,
        epoch: 1,
    });
    fixture.want();
    fixture.kept = vec![kept(77, 1, 2)];
    fixture.join(2);
    fixture.apply(Command::FetchReport {
        edge: EDGE,
        epoch: 2,
        report: v1::FetchReport {
            assignment_id: 77,
            state: v1::fetch_report::State::Cancelled.into(),
            ..Default::default()
        },
    });
    assert_eq!(assigned(&fixture.load(0..0)), [0, 1, 2, 3]);
}

#[test]
fn many_entries_are_closed_though_most_are_not_known() {
    let mut fixture = Fixture::new();
    fixture.demand(1);
    fixture.load(0..1);
    assert_eq!(fixture.plan.entry_count(), 1);
    let purged = (0..1_000).map(EntryId::from_u128).collect();
    fixture.apply(Command::EntriesClosed(std::sync::Arc::new(purged)));
    assert_eq!(fixture.plan.entry_count(), 0);
}
