use proptest::prelude::*;

use super::*;

fn task(id: TaskId, level: Level, deadline_ms: u64) -> Task {
    Task {
        id,
        entry: EntryId::nil(),
        first_chunk: id as u32 * 4,
        chunk_count: 4,
        level,
        deadline_ms,
    }
}

#[test]
fn the_earliest_deadline_of_the_most_urgent_level_first() {
    let mut queue = FetchQueue::new(1);
    for (id, level, deadline) in [(1, Level::Low, 0), (2, Level::High, 9), (3, Level::High, 5)] {
        assert!(queue.push(task(id, level, deadline)));
    }
    assert_eq!(queue.settle(), [Effect::Start(3)]);
    queue.ended(3);
    assert_eq!(queue.settle(), [Effect::Start(2)]);
}

#[test]
fn critical_takes_the_reserved_slot_and_then_preempts() {
    let mut queue = FetchQueue::new(1);
    assert!(queue.push(task(1, Level::Low, 0)));
    assert_eq!(queue.settle(), [Effect::Start(1)]);
    assert!(queue.push(task(2, Level::Critical, 0)));
    assert_eq!(queue.settle(), [Effect::Start(2)]);
    assert!(queue.push(task(3, Level::Critical, 0)));
    assert_eq!(queue.settle(), [Effect::Preempt(1), Effect::Start(3)]);
    assert!(queue.preempted(1));
    assert_eq!(queue.settle(), []);
    queue.ended(2);
    assert_eq!(
        queue.settle(),
        [],
        "one runs, the slot beyond is kept for CRITICAL"
    );
    queue.ended(3);
    assert_eq!(queue.settle(), [Effect::Start(1)]);
}

#[test]
fn promotion_starts_what_waited() {
    let mut queue = FetchQueue::new(1);
    assert!(queue.push(task(1, Level::High, 0)));
    assert!(queue.push(task(2, Level::Low, 0)));
    assert_eq!(queue.settle(), [Effect::Start(1)]);
    assert_eq!(
        queue
            .covering(EntryId::nil(), 9)
            .map(|(t, runs)| (t.id, runs))
            .collect::<Vec<_>>(),
        [(2, false)]
    );
    queue.reprioritise(2, Level::Critical, 0);
    assert_eq!(queue.settle(), [Effect::Start(2)]);
}

#[test]
fn a_waiting_task_is_cancelled_at_once_and_a_running_one_is_stopped() {
    let mut queue = FetchQueue::new(1);
    assert!(queue.push(task(1, Level::High, 0)));
    assert!(queue.push(task(2, Level::High, 1)));
    let _ = queue.settle();
    assert_eq!(queue.cancel(2), None);
    assert_eq!(queue.cancel(1), Some(Effect::Cancel(1)));
    assert!(queue.push(task(3, Level::High, 2)));
    assert_eq!(
        queue.settle(),
        [Effect::Start(3)],
        "its slot is free while it stops"
    );
    queue.ended(1);
    queue.ended(3);
    assert_eq!((queue.running_count(), queue.waiting_count()), (0, 0));
}

#[test]
fn what_is_cancelled_while_it_is_pre_empted_does_not_come_back() {
    let mut queue = FetchQueue::new(1);
    assert!(queue.push(task(1, Level::Low, 0)));
    for id in [2, 3] {
        assert!(queue.push(task(id, Level::Critical, 0)));
    }
    assert!(queue.settle().contains(&Effect::Start(3)));
    assert!(queue.push(task(4, Level::Low, 0)));
    assert_eq!(queue.cancel(4), None);
    let _ = queue.push(task(5, Level::Low, 0));
    queue.ended(2);
    queue.ended(3);
    assert!(queue.settle().contains(&Effect::Start(1)));
    for id in [6, 7] {
        assert!(queue.push(task(id, Level::Critical, 0)));
    }
    assert!(queue.settle().contains(&Effect::Preempt(1)));
    assert_eq!(queue.cancel(1), Some(Effect::Cancel(1)));
    assert!(!queue.preempted(1), "it is over");
    assert_eq!(queue.covering(EntryId::nil(), 4).count(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Push(u64, u8, u64),
    End(u64),
    Preempted(u64),
    Cancel(u64),
    Reprioritise(u64, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..20, 0u8..4, 0u64..9)
            .prop_map(|(id, level, deadline)| Step::Push(id, level, deadline)),
        (0u64..20).prop_map(Step::End),
        (0u64..20).prop_map(Step::Preempted),
        (0u64..20).prop_map(Step::Cancel),
        (0u64..20, 0u8..4).prop_map(|(id, level)| Step::Reprioritise(id, level)),
    ]
}

proptest! {
    #[test]
    fn no_critical_waits_behind_less_and_limits_hold(max in 1usize..4, steps in prop::collection::vec(step(), 1..80)) {
        let mut queue = FetchQueue::new(max);
        for step in steps {
            match step {
                Step::Push(id, level, deadline) => {
                    let _ = queue.push(task(id, Level::ALL[level as usize], deadline));
                }
                Step::End(id) => queue.ended(id),
                Step::Preempted(id) => {
                    let _ = queue.preempted(id);
                }
                Step::Cancel(id) => {
                    let _ = queue.cancel(id);
                }
                Step::Reprioritise(id, level) => queue.reprioritise(id, Level::ALL[level as usize], 0),
            }
            let _ = queue.settle();
            prop_assert!(queue.running.len() <= max + 1);
            let best_waiting = queue.waiting.first().map(|rank| rank.0);
            if best_waiting == Some(Level::Critical) {
                prop_assert!(queue.running.iter().all(|rank| rank.0 == Level::Critical));
                prop_assert_eq!(queue.running.len(), max + 1);
            }
            if best_waiting.is_some() {
                prop_assert!(queue.running.len() >= max, "work waits while a slot is free");
            }
            prop_assert!(queue.settle().is_empty(), "settled means settled");
            for rank in queue.waiting.iter().chain(&queue.running) {
                prop_assert_eq!(queue.tasks[&rank.2].0.rank(), *rank);
            }
        }
    }
}
