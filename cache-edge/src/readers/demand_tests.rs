use std::time::Duration;

use chunkcache_proto::Geometry;

use super::*;
use chunk_store::{MinFree, Store, StoreOptions};

fn a_file() -> (tempfile::TempDir, Arc<EntryFile>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(StoreOptions {
        data_dir: dir.path().to_owned(),
        max_bytes: Some(1 << 30),
        min_free: MinFree::Bytes(0),
        group_sync_window: Duration::from_millis(1),
    })
    .unwrap();
    let entry = v1::Entry {
        id: chunkcache_proto::EntryId::from_u128(7).to_string(),
        size: 100 << 20,
        chunk_size: 2 << 20,
        ..Default::default()
    };
    let geometry = Geometry::new(entry.size, entry.chunk_size).unwrap();
    let file = store.put_entry(&entry, geometry).unwrap();
    (dir, file)
}

#[test]
fn what_was_assigned_for_a_reader_that_left_is_wanted_only_by_readers_near_it() {
    let (_dir, file) = a_file();
    let demand = DemandRegistry::default();
    let open = |from: u64| {
        demand.open(
            &file,
            ByteRange::new(from << 20, 100 << 20),
            PlayerReport::default(),
        )
    };
    let (left, _stays) = (open(0), open(40));
    drop(demand.take_changes(false));
    let wants = |from: u64| {
        let run = ByteRange::new(from << 20, (from + 8) << 20);
        demand.still_wants(left.id, file.id(), run)
    };
    assert!(wants(0) && wants(8), "its reader is there");
    demand.close(left.id);
    assert!(!wants(0) && !wants(24), "nobody comes to it any more");
    assert!(wants(40) && wants(60), "another reader does");
    assert!(!wants(72), "too far ahead of the other reader");
    let told = demand.take_changes(false);
    assert_eq!(told.closed, [left.id]);
}

#[test]
fn the_operators_lookahead_is_told_and_without_one_the_coordinator_decides() {
    let (_dir, file) = a_file();
    let told = |demand: DemandRegistry| {
        let reader = demand.open(&file, ByteRange::new(0, 100 << 20), PlayerReport::default());
        demand.message(&reader).lookahead_bytes
    };
    assert_eq!(
        told(DemandRegistry::new(Some(3), DEFAULT_LONGEST_LOOKAHEAD)),
        3 * (2 << 20)
    );
    assert_eq!(told(DemandRegistry::default()), 0);
}

#[test]
fn a_reader_that_takes_nothing_is_told_as_paused_once_and_again_when_it_goes_on() {
    let (_dir, file) = a_file();
    let mut demand = DemandRegistry::default();
    demand.begun -= 2 * PAUSED_AFTER;
    let demand = demand;
    let reader = demand.open(&file, ByteRange::new(0, 100 << 20), PlayerReport::default());
    let told = || {
        let changes = demand.take_changes(false);
        let readers = changes.readers.iter();
        readers
            .map(|it| demand.message(it).paused)
            .collect::<Vec<_>>()
    };
    assert_eq!(told(), [false]);
    demand.sweep();
    assert_eq!(told(), [false; 0], "it has just begun");
    reader.last_read_us.store(0, Ordering::Relaxed);
    demand.sweep();
    assert_eq!(told(), [true]);
    demand.sweep();
    assert_eq!(told(), [true; 0], "once");
    demand.advance(&reader, 1, 1, false);
    assert_eq!(told(), [false]);
}

#[test]
fn hints_are_kept_for_a_while_after_their_reader_left() {
    let (_dir, file) = a_file();
    let demand = DemandRegistry::default();
    let reader = demand.open(&file, ByteRange::new(0, 64 << 10), PlayerReport::default());
    let index = ByteRange::new(90 << 20, 100 << 20);
    demand.hint(&reader, vec![index]);
    drop(demand.take_changes(false));
    demand.close(reader.id);
    let changes = demand.take_changes(false);
    assert_eq!(changes.closed, [0; 0]);
    let told = demand.message(&changes.readers[0]);
    assert_eq!((told.position, told.end), (64 << 10, 64 << 10));
    assert_eq!(told.hints.len(), 1);
    assert!(demand.is_empty() && demand.still_wants(reader.id, file.id(), index));
    let elsewhere = ByteRange::new(0, 2 << 20);
    assert!(!demand.still_wants(reader.id, file.id(), elsewhere));
    assert_eq!(demand.take_changes(true).readers.len(), 1, "a new session");
    demand.expire_hints(Instant::now() + HINTS_KEPT);
    let changes = demand.take_changes(false);
    assert_eq!(changes.closed, [reader.id]);
    assert!(!demand.still_wants(reader.id, file.id(), index));
}

fn of_viewer(session: u64) -> PlayerReport {
    PlayerReport {
        viewer: Some(Viewer { client: 1, session }),
        ..PlayerReport::default()
    }
}

/// A viewer's reader that has consumed 40 MiB.
fn played(demand: &DemandRegistry, file: &Arc<EntryFile>, session: u64) -> Arc<ReaderState> {
    let reader = demand.open(file, ByteRange::new(0, 100 << 20), of_viewer(session));
    demand.advance(&reader, 40 << 20, 40 << 20, true);
    drop(demand.take_changes(false));
    reader
}

#[test]
fn a_viewer_that_seeks_on_another_connection_leaves_its_reader_at_once() {
    let (_dir, file) = a_file();
    let demand = DemandRegistry::default();
    let left = played(&demand, &file, 1);
    let other = played(&demand, &file, 2);
    let run = ByteRange::new(42 << 20, 50 << 20);
    let there = ByteRange::new(80 << 20, 100 << 20);
    let sought = demand.open(&file, there, of_viewer(1));
    assert!(demand.inner.lock().to_report.is_urgent(), "without a delay");
    let mut told: Vec<_> = demand.take_changes(false).readers;
    told.sort_by_key(|it| it.id);
    let told: Vec<_> = told.iter().map(|it| demand.message(it)).collect();
    let shape: Vec<_> = told.iter().map(|it| (it.reader_id, it.paused)).collect();
    assert_eq!(shape, [(left.id, true), (sought.id, false)]);
    assert!(told.iter().all(|it| it.viewer == 1));
    assert!(!demand.view(&other).paused, "another viewer's");
    assert_eq!((demand.viewers(), demand.len()), (2, 3));
    demand.close(other.id);
    assert!(!demand.still_wants(left.id, file.id(), run));

    // The earned bytes count once the viewer has read on at the new position.
    let start = 2 * (2 << 20);
    assert_eq!(demand.earned_bytes(&left), start);
    assert_eq!(demand.earned_bytes(&sought), start);
    demand.advance(&sought, 90 << 20, 10 << 20, true);
    assert_eq!(demand.earned_bytes(&sought), start + (42 << 20));

    // Both are read, as it turns out.
    demand.wait_at(&left, 40 << 20);
    let told = demand.message(&left);
    assert!(
        told.paused && !told.waiting,
        "not the coordinator's concern"
    );
    assert!(demand.view(&left).waiting && left.held_for().is_zero());
    assert!(demand.still_wants(left.id, file.id(), ByteRange::new(40 << 20, 42 << 20)));
    assert!(!demand.still_wants(left.id, file.id(), run));
    demand.advance(&left, 71 << 20, 31 << 20, true);
    assert!(demand.view(&left).paused, "its client may be sent it only");
    demand.advance(&left, 72 << 20, 1 << 20, true);
    assert!(!demand.view(&left).paused);
    assert!(demand.still_wants(left.id, file.id(), run));
}

#[test]
fn a_viewer_goes_on_with_what_it_has_earned_on_another_connection() {
    let (_dir, file) = a_file();
    let demand = DemandRegistry::default();
    let reader = played(&demand, &file, 1);
    demand.close(reader.id);
    let rest = ByteRange::new(40 << 20, 100 << 20);
    let earned = |player| {
        let reader = demand.open(&file, rest, player);
        (demand.earned_bytes(&reader), reader)
    };
    let start = 2 * (2 << 20);
    assert_eq!(earned(of_viewer(2)).0, start, "another viewer");
    assert_eq!(earned(PlayerReport::default()).0, start);
    let (goes_on, first) = earned(of_viewer(1));
    assert_eq!(goes_on, start + (32 << 20));
    // Once: connections beside it have nothing of it, nor has the one before.
    assert_eq!(earned(of_viewer(1)).0, start + (32 << 20));
    assert_eq!(demand.earned_bytes(&first), start);
    assert!(!demand.view(&first).paused, "it did not seek");
}

#[test]
fn a_short_range_is_not_left_and_one_that_is_expected_leaves_none() {
    let (_dir, file) = a_file();
    let demand = DemandRegistry::default();
    let short = demand.open(&file, ByteRange::new(0, 16 << 20), of_viewer(1));
    let there = ByteRange::new(80 << 20, 100 << 20);
    let beside = demand.open(&file, there, of_viewer(1));
    assert!(!demand.view(&short).paused && !demand.view(&beside).paused);
    let long = demand.open(&file, ByteRange::new(0, 100 << 20), of_viewer(2));
    let expected = demand.expect(&file, there, of_viewer(2));
    assert!(!demand.view(&long).paused && !demand.view(&expected).paused);
    assert_eq!(demand.viewers(), 2);
}

#[test]
fn a_reader_whose_own_answer_comes_in_time_is_never_told() {
    let (_dir, file) = a_file();
    let demand = DemandRegistry::default();
    let reader = demand.open(&file, ByteRange::new(0, 100), PlayerReport::default());
    demand.wait_for_answer_at(&reader, 0);
    assert!(
        !demand.inner.lock().to_report.is_urgent(),
        "its bytes are on their way"
    );
    demand.advance(&reader, 100, 100, false);
    demand.close(reader.id);
    let changes = demand.take_changes(false);
    assert!(changes.readers.is_empty() && changes.closed.is_empty());
}

#[test]
fn a_reader_that_waits_for_somebody_to_fetch_is_told_at_once() {
    let (_dir, file) = a_file();
    let demand = DemandRegistry::default();
    let reader = demand.open(&file, ByteRange::new(0, 100), PlayerReport::default());
    demand.wait_at(&reader, 0);
    assert!(demand.inner.lock().to_report.is_urgent());
    assert_eq!(demand.take_changes(false).readers.len(), 1);
    demand.close(reader.id);
    assert_eq!(demand.take_changes(false).closed, [reader.id]);
}
