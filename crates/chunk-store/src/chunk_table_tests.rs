#![allow(clippy::single_range_in_vec_init)] // a list of one range is meant
use std::sync::atomic::AtomicBool;

use super::*;

fn stored(table: &ChunkTable, chunk: ChunkIndex) {
    table.begin_write(chunk);
    assert!(table.finish(chunk, u64::from(chunk) + 1, 0));
}

fn count_nodes(node: Option<&Node>) -> usize {
    match node {
        None => 0,
        Some(Node::Leaf(_)) => 1,
        Some(Node::Branch(children)) => {
            let below = children.iter().map(|child| count_nodes(child.get()));
            1 + below.sum::<usize>()
        }
    }
}

#[test]
fn a_chunk_lives_and_dies() {
    let table = ChunkTable::new(2000);
    assert!(!table.try_pin(1500, 0));
    assert!(!table.finish(1500, 1, 0), "nothing was written");
    stored(&table, 1500);
    assert!(!table.finish(1500, 9, 0), "present already");
    assert_eq!(table.checksum(1500), 1501);
    assert!(table.state(1500).is_verified() && !table.state(1500).is_durable());
    assert!(!table.mark_durable(1500), "no sync was begun");
    assert!(table.begin_sync(1500) && table.mark_durable(1500) && !table.mark_durable(1500));
    assert!(table.try_pin(1500, 0));
    assert!(table.withdraw(1500).is_some_and(ChunkState::is_durable));
    assert!(table.withdraw(1500).is_none());
    assert!(!table.try_pin(1500, 0));
    assert!(!table.mark_durable(1500));
    let last = table.unpin(1500);
    assert!(
        last.is_doomed() && !last.is_disposable(),
        "the journal has it"
    );
    assert!(
        table
            .mark_unrecorded(1500)
            .is_some_and(ChunkState::is_disposable)
    );
    assert!(table.is_disposable() && !table.is_empty());
    table.mark_empty(1500);
    assert!(table.is_empty() && table.mark_unrecorded(1500).is_none());
    assert_eq!(table.state(1500).pins(), 0);
    assert!(!table.state(1500).is_written());
}

#[test]
fn an_unfinished_chunk_that_is_held_outlives_being_given_up() {
    let table = ChunkTable::new(2);
    assert!(!table.try_hold_unfinished(1), "nothing is written");
    table.begin_write(1);
    assert!(table.try_hold_unfinished(1));
    assert!(table.abandon(1).is_some_and(|before| before.pins() == 1));
    assert!(!table.try_hold_unfinished(1), "it is going");
    assert!(table.abandon(1).is_none());
    assert!(
        table
            .mark_unrecorded(1)
            .is_some_and(|state| !state.is_disposable())
    );
    let last = table.unpin(1);
    assert!(last.is_disposable());
    table.begin_write(1);
    assert!(!table.is_disposable(), "it is being written anew");
    assert!(table.abandon(1).is_some_and(|before| before.pins() == 0));
    assert!(!table.state(1).is_disposable());
}

#[test]
fn nothing_lies_past_the_end() {
    let table = ChunkTable::new(3);
    table.begin_write(3);
    assert!(!table.finish(3, 1, 0) && !table.restore(600, 1) && !table.try_pin(u32::MAX, 0));
    assert_eq!(table.first_missing(3, 10), None);
    assert_eq!(ChunkTable::new(0).first_missing(0, 1), None);
}

#[test]
fn one_viewer_in_many_pieces_is_one_use() {
    let table = ChunkTable::new(1);
    stored(&table, 0);
    for _ in 0..100 {
        assert!(table.try_pin(0, 1));
        table.unpin(0);
    }
    assert_eq!(table.state(0).uses(), 0);
    for tick in [2, 4, 6, 8, 10] {
        assert!(table.try_pin(0, tick));
        table.unpin(0);
    }
    assert_eq!(table.state(0).uses(), MAX_USES);
    table.forget_use(0);
    assert_eq!(table.state(0).uses(), MAX_USES - 1);
}

#[test]
fn a_failed_sync_spoils_what_is_unfinished_only() {
    let table = ChunkTable::new(3);
    stored(&table, 0);
    table.begin_write(1);
    table.spoil_unfinished();
    assert!(table.state(0).is_present());
    assert!(!table.finish(1, 1, 0));
    assert!(table.abandon(1).is_some());
    table.begin_write(1);
    assert!(table.finish(1, 1, 0));
    assert_eq!(
        table.select(ChunkState::is_present).collect::<Vec<_>>(),
        [0, 1]
    );
    assert_eq!(table.first_missing(0, 3), Some(2));
}

#[test]
fn a_held_chunk_is_never_seen_empty() {
    let rounds = if cfg!(miri) { 20 } else { 20_000 };
    let table = ChunkTable::new(4);
    // Represents the bytes: false once punched.
    let bytes = AtomicBool::new(false);
    let punching = std::sync::Mutex::new(());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if table.try_pin(2, 0) {
                        assert!(bytes.load(Ordering::Acquire), "pinned and punched");
                        table.unpin(2);
                    }
                }
            });
        }
        for _ in 0..rounds {
            let _guard = punching.lock();
            table.begin_write(2);
            bytes.store(true, Ordering::Release);
            assert!(table.finish(2, 7, 0));
            assert!(table.withdraw(2).is_some());
            while table.state(2).pins() > 0 {
                std::hint::spin_loop();
            }
            bytes.store(false, Ordering::Release);
            table.mark_empty(2);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(table.state(2).pins(), 0);
}

#[test]
fn a_table_grows_with_what_is_stored_and_not_with_what_is_claimed() {
    let table = ChunkTable::new(u32::MAX);
    assert_eq!(table.first_present(0, u32::MAX), None);
    assert!(table.present_runs(0..u32::MAX, 8).is_empty() && table.is_empty());
    for chunk in [0, 63, 64, 65, 1 << 30, u32::MAX - 1] {
        assert_eq!(table.first_missing(chunk, u32::MAX), Some(chunk));
        stored(&table, chunk);
    }
    let runs = [0..1, 63..66, 1 << 30..(1 << 30) + 1, u32::MAX - 1..u32::MAX];
    assert_eq!(table.present_runs(0..u32::MAX, 8), runs);
    assert_eq!(table.present_runs(0..u32::MAX, 2), runs[..2]);
    assert_eq!(table.present_runs(64..1 << 30, 8), [64..66]);
    assert_eq!(table.first_present(66, u32::MAX), Some(1 << 30));
    assert_eq!(table.first_present(66, 1 << 30), None);
    assert_eq!(table.select(ChunkState::is_present).count(), 6);
    assert_eq!(count_nodes(table.root.get()), 17);
    assert_eq!(count_nodes(ChunkTable::new(1).root.get()), 0);
}
