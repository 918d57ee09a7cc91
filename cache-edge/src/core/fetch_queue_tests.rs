use proptest::prelude::*;

use super::*;

fn free(_: &Task) -> bool {
    true
}

fn no_link(_: &str) -> bool {
    false
}

/// The link to one origin, "a", is full.
fn link_of_a(origin: &str) -> bool {
    origin == "a"
}

fn n(number: u64) -> FetchId {
    FetchId::Coordinated(number)
}

fn task(id: u64, level: Level, deadline_ms: u64) -> Task {
    Task {
        id: n(id),
        entry: EntryId::nil(),
        origin: None,
        first_chunk: id as u32 * 4,
        chunk_count: 4,
        level,
        deadline_ms,
        reader: 0,
    }
}

#[test]
fn the_earliest_deadline_of_the_most_urgent_level_first() {
    let mut queue = FetchQueue::new(1);
    for (id, level, deadline) in [(1, Level::Low, 0), (2, Level::High, 9), (3, Level::High, 5)] {
        assert!(queue.push(task(id, level, deadline)));
    }
    assert_eq!(queue.settle(0, free, no_link), [Effect::Start(n(3))]);
    queue.ended(n(3));
    assert_eq!(queue.settle(0, free, no_link), [Effect::Start(n(2))]);
}

#[test]
fn a_readers_chunks_come_in_their_order_although_it_became_faster() {
    let mut queue = FetchQueue::new(1);
    let of = |id, deadline, reader| Task {
        reader,
        ..task(id, Level::High, deadline)
    };
    for (id, deadline, reader) in [(1, 900, 7), (2, 500, 7), (3, 600, 8), (4, 400, 0)] {
        assert!(queue.push(of(id, deadline, reader)));
    }
    for id in [4, 3, 1, 2] {
        assert_eq!(queue.settle(0, free, no_link), [Effect::Start(n(id))]);
        queue.ended(n(id));
    }
}

#[test]
fn what_nobody_wants_any_more_is_dropped_before_others_give_way_to_it() {
    let mut queue = FetchQueue::new(1);
    let of = |id, level| Task {
        origin: Some("films".into()),
        ..task(id, level, 0)
    };
    let left = |task: &Task| task.id > n(3);
    assert!(queue.push(of(4, Level::Low)));
    assert_eq!(queue.settle(0, left, no_link), [Effect::Start(n(4))]);
    assert!(queue.push(of(1, Level::Critical)) && queue.push(of(2, Level::High)));
    assert!(queue.push(of(3, Level::Low)));
    assert_eq!(
        queue.settle(0, left, no_link),
        [Effect::Drop(n(1)), Effect::Drop(n(2))],
        "nothing gives way, and what is below HIGH has no reader"
    );
    assert_eq!((queue.running_count(), queue.waiting_count()), (1, 1));
}

#[test]
fn what_is_of_an_origin_is_told_with_how_far_it_is() {
    let mut queue = FetchQueue::new(2);
    let of = |id, level, origin: &str| Task {
        origin: Some(origin.into()),
        ..task(id, level, 0)
    };
    assert!(queue.push(of(1, Level::Low, "films")) && queue.push(of(2, Level::High, "films")));
    assert_eq!(queue.settle(0, free, no_link).len(), 2);
    assert!(queue.push(of(3, Level::Medium, "films")) && queue.push(of(4, Level::High, "other")));
    assert!(queue.push(task(5, Level::High, 0)));
    assert!(queue.cancel(n(1)).is_some());
    let expected = [
        (n(2), TaskStanding::Running),
        (n(3), TaskStanding::Waiting),
        (n(1), TaskStanding::Stopping),
    ];
    assert_eq!(queue.of_origin("films"), expected);
}

#[test]
fn critical_takes_the_reserved_slot_and_then_preempts() {
    let mut queue = FetchQueue::new(1);
    assert!(queue.push(task(1, Level::Low, 0)));
    assert_eq!(queue.settle(0, free, no_link), [Effect::Start(n(1))]);
    assert!(queue.push(task(2, Level::Critical, 0)));
    assert_eq!(queue.settle(0, free, no_link), [Effect::Start(n(2))]);
    assert!(queue.push(task(3, Level::Critical, 0)));
    assert_eq!(
        queue.settle(0, free, no_link),
        [Effect::Preempt(n(1)), Effect::Start(n(3))]
    );
    assert!(queue.preempted(n(1)));
    assert_eq!(queue.settle(0, free, no_link), []);
    queue.ended(n(2));
    assert_eq!(
        queue.settle(0, free, no_link),
        [],
        "one runs, the slot beyond is kept for CRITICAL"
    );
    queue.ended(n(3));
    assert_eq!(queue.settle(0, free, no_link), [Effect::Start(n(1))]);
}

#[test]
fn high_takes_the_place_of_less_and_medium_waits() {
    let mut queue = FetchQueue::new(2);
    assert!(queue.push(task(1, Level::Low, 0)) && queue.push(task(2, Level::Low, 1)));
    assert_eq!(queue.settle(0, free, no_link).len(), 2);
    assert!(queue.push(task(3, Level::Medium, 0)));
    assert_eq!(queue.settle(0, free, no_link), []);
    assert!(queue.push(task(4, Level::High, 9)));
    let expected = [Effect::Preempt(n(2)), Effect::Start(n(4))];
    assert_eq!(queue.settle(0, free, no_link), expected);
    assert!(queue.push(task(5, Level::High, 0)) && queue.push(task(6, Level::High, 0)));
    let expected = [Effect::Preempt(n(1)), Effect::Start(n(5))];
    assert_eq!(queue.settle(0, free, no_link), expected, "not of HIGH");
}

#[test]
fn promotion_starts_what_waited() {
    let mut queue = FetchQueue::new(1);
    assert!(queue.push(task(1, Level::High, 0)));
    assert!(queue.push(task(2, Level::Low, 0)));
    assert_eq!(queue.settle(0, free, no_link), [Effect::Start(n(1))]);
    assert_eq!(
        queue
            .covering(EntryId::nil(), 9)
            .map(|(t, runs)| (t.id, runs))
            .collect::<Vec<_>>(),
        [(n(2), false)]
    );
    queue.reprioritise(n(2), Level::Critical, 0);
    assert_eq!(queue.settle(0, free, no_link), [Effect::Start(n(2))]);
}

#[test]
fn a_waiting_task_is_cancelled_at_once_and_a_running_one_is_stopped() {
    let mut queue = FetchQueue::new(1);
    assert!(queue.push(task(1, Level::High, 0)));
    assert!(queue.push(task(2, Level::High, 1)));
    let _ = queue.settle(0, free, no_link);
    assert_eq!(queue.cancel(n(2)), None);
    assert_eq!(queue.cancel(n(1)), Some(Effect::Cancel(n(1))));
    assert!(queue.push(task(3, Level::High, 2)));
    assert_eq!(
        queue.settle(0, free, no_link),
        [Effect::Start(n(3))],
        "its slot is free while it stops"
    );
    queue.ended(n(1));
    queue.ended(n(3));
    assert_eq!((queue.running_count(), queue.waiting_count()), (0, 0));
}

fn of_origin(origin: &str, task: Task) -> Task {
    Task {
        origin: Some(origin.into()),
        ..task
    }
}

#[test]
fn lower_levels_of_an_origin_give_way_while_a_critical_one_of_it_runs() {
    let mut queue = FetchQueue::new(4);
    for (id, origin, level) in [
        (1, "a", Level::Low),
        (2, "a", Level::High),
        (3, "b", Level::Low),
        (4, "a", Level::Medium),
    ] {
        assert!(queue.push(of_origin(origin, task(id, level, 0))));
    }
    assert_eq!(queue.settle(0, free, no_link).len(), 4);
    assert!(queue.push(of_origin("a", task(5, Level::Critical, 0))));
    assert_eq!(
        queue.settle(0, free, no_link),
        [
            Effect::Preempt(n(1)),
            Effect::Preempt(n(4)),
            Effect::Start(n(5))
        ]
    );
    assert!(queue.preempted(n(1)) && queue.preempted(n(4)));
    assert_eq!(
        queue.settle(1, free, no_link),
        [],
        "slots are free, the way is not"
    );
    queue.ended(n(5));
    assert_eq!(
        queue.settle(2, free, no_link),
        [Effect::Start(n(4)), Effect::Start(n(1))]
    );
}

#[test]
fn who_gave_way_for_long_runs_to_its_end() {
    let mut queue = FetchQueue::new(3);
    for id in [1, 2] {
        assert!(queue.push(of_origin("a", task(id, Level::Low, 0))));
    }
    assert_eq!(queue.settle(0, free, no_link).len(), 2);
    // Back-to-back CRITICAL fetches, with gaps too short for anything else.
    let mut now = 0;
    let mut next = 10;
    let mut spared = None;
    while now < 2 * MAX_YIELD_MS && spared.is_none() {
        assert!(queue.push(of_origin("a", task(next, Level::Critical, 0))));
        let started = queue
            .settle(now, free, no_link)
            .contains(&Effect::Start(n(1)));
        for id in [1, 2] {
            let _ = queue.preempted(n(id));
        }
        if started
            || queue
                .settle(now, free, no_link)
                .contains(&Effect::Start(n(1)))
        {
            spared = Some(now);
        } else {
            queue.ended(n(next));
            let _ = queue.settle(now, free, no_link);
        }
        next += 1;
        now += 100;
    }
    assert_eq!(spared, Some(MAX_YIELD_MS), "one of them, not sooner");
    assert_eq!(queue.settle(now, free, no_link), [], "one only");
    assert!(queue.push(of_origin("a", task(next, Level::Critical, 0))));
    assert_eq!(
        queue.settle(now, free, no_link),
        [Effect::Start(n(next))],
        "it is let be"
    );
    queue.ended(n(1));
    assert_eq!(
        queue.settle(now, free, no_link),
        [],
        "the other's time begins anew"
    );
}

#[test]
fn a_turn_ends_with_the_task_that_had_it_however_that_ends() {
    for how in 0..3 {
        let mut queue = FetchQueue::new(2);
        let of = |id, level| of_origin("a", task(id, level, 0));
        let low = [1, 2].map(|id| of(id, Level::Low));
        assert!(low.into_iter().all(|task| queue.push(task)));
        assert!(queue.push(of(3, Level::Critical)));
        assert_eq!(queue.settle(0, free, no_link), [Effect::Start(n(3))]);
        let turn = MAX_YIELD_MS;
        assert_eq!(queue.settle(turn, free, no_link), [Effect::Start(n(1))]);
        // It gives its slot to others, and is over while it waits.
        assert!(queue.push(of(5, Level::Critical)) && queue.push(of(6, Level::Critical)));
        let _ = queue.settle(turn, free, no_link);
        assert!(queue.preempted(n(1)));
        match how {
            0 => queue.ended(n(1)),
            1 => assert_eq!(queue.cancel(n(1)), None),
            _ => {
                queue.reprioritise(n(1), Level::High, 0);
                let left = |task: &Task| task.id != n(1);
                assert!(
                    queue
                        .settle(turn, left, no_link)
                        .contains(&Effect::Drop(n(1)))
                );
            }
        }
        queue.max_running = 4;
        assert_eq!(queue.settle(turn + 1, free, no_link), []);
        let next = queue.settle(2 * turn + 1, free, no_link);
        assert_eq!(next, [Effect::Start(n(2))], "{how}");
    }
}

#[test]
fn on_a_full_link_lookahead_waits_for_what_is_needed_first() {
    let mut queue = FetchQueue::new(3);
    let of = |id, level, deadline| of_origin("a", task(id, level, deadline));
    assert!(queue.push(of(1, Level::Critical, 0)));
    assert!(queue.push(of(2, Level::High, 5)) && queue.push(of(3, Level::High, 9)));
    assert!(queue.push(of_origin("b", task(4, Level::High, 9))));
    assert_eq!(
        queue.settle(0, free, link_of_a),
        [Effect::Start(n(1)), Effect::Start(n(4))]
    );
    // The next one is requested while the end of the one before arrives.
    queue.near_end(n(1));
    assert_eq!(queue.settle(1, free, link_of_a), [Effect::Start(n(2))]);
    assert_eq!(queue.settle(2, free, link_of_a), [], "one at a time");
    queue.ended(n(1));
    assert_eq!(queue.settle(3, free, link_of_a), []);
    // A reader has reached it.
    queue.reprioritise(n(3), Level::Critical, 0);
    assert_eq!(queue.settle(4, free, link_of_a), [Effect::Start(n(3))]);
    for id in [2, 3, 4] {
        queue.ended(n(id));
    }
    assert_eq!(queue.settle(5, free, no_link), []);
    // Nothing starves, and on a link that is not full all start at once.
    assert!(queue.push(of(5, Level::Critical, 0)) && queue.push(of(6, Level::High, 5)));
    assert_eq!(queue.settle(10, free, link_of_a), [Effect::Start(n(5))]);
    assert_eq!(queue.settle(9 + MAX_YIELD_MS, free, link_of_a), []);
    assert_eq!(
        queue.settle(10 + MAX_YIELD_MS, free, link_of_a),
        [Effect::Start(n(6))]
    );
    assert!(queue.push(of(7, Level::High, 9)));
    assert_eq!(queue.settle(10 + MAX_YIELD_MS, free, link_of_a), []);
    let now = 10 + MAX_YIELD_MS;
    assert_eq!(queue.settle(now, free, no_link), [Effect::Start(n(7))]);
}

#[test]
fn on_a_full_link_lower_levels_yield_to_lookahead_too() {
    let mut queue = FetchQueue::new(4);
    let of = |id, level| of_origin("a", task(id, level, 0));
    for (id, level) in [(1, Level::Low), (2, Level::Medium)] {
        assert!(queue.push(of(id, level)));
    }
    assert!(queue.push(of_origin("b", task(3, Level::Low, 0))));
    assert_eq!(
        queue.settle(0, free, link_of_a),
        [Effect::Start(n(2)), Effect::Start(n(3))],
        "one after the other"
    );
    assert!(queue.push(of(4, Level::High)));
    assert_eq!(
        queue.settle(0, free, link_of_a),
        [Effect::Preempt(n(2)), Effect::Start(n(4))]
    );
    assert!(queue.preempted(n(2)));
    assert_eq!(queue.settle(1, free, link_of_a), []);
    let mut wide = queue.clone();
    assert_eq!(
        wide.settle(1, free, no_link),
        [Effect::Start(n(2)), Effect::Start(n(1))]
    );
    // Nothing starves.
    let late = MAX_YIELD_MS;
    assert_eq!(queue.settle(late, free, link_of_a), [Effect::Start(n(2))]);
    queue.ended(n(2));
    queue.ended(n(4));
    assert_eq!(queue.settle(late + 1, free, link_of_a), [], "a seek, say");
    assert!(queue.push(of(5, Level::Critical)));
    let seek = late + QUIET_MS - 1;
    assert_eq!(queue.settle(seek, free, link_of_a), [Effect::Start(n(5))]);
    queue.ended(n(5));
    assert_eq!(queue.settle(seek + QUIET_MS - 1, free, link_of_a), []);
    let quiet = queue.settle(seek + QUIET_MS, free, link_of_a);
    assert_eq!(quiet, [Effect::Start(n(1))]);
    // Nothing of the origin is left for a moment.
    let again = seek + QUIET_MS + 1;
    assert!(queue.push(of(6, Level::High)));
    let _ = queue.settle(again, free, link_of_a);
    for id in [1, 6] {
        let _ = queue.preempted(n(id));
        queue.ended(n(id));
    }
    assert_eq!(queue.settle(again + 1, free, link_of_a), []);
    assert!(queue.push(of(7, Level::Low)));
    assert_eq!(queue.settle(again + 2, free, link_of_a), []);
    let quiet = queue.settle(again + QUIET_MS, free, link_of_a);
    assert_eq!(quiet, [Effect::Start(n(7))]);
}

#[test]
fn a_viewer_that_seeks_all_the_time_starves_no_job() {
    let mut queue = FetchQueue::new(4);
    let of = |id, level| of_origin("a", task(id, level, 0));
    assert!(queue.push(of(1, Level::Medium)) && queue.push(of(2, Level::Medium)));
    let mut begun = Vec::new();
    for seek in 0..100 {
        let now = seek * 200;
        let (reached, left) = (10 + 2 * seek, 11 + 2 * seek);
        assert!(queue.push(of(reached, Level::Critical)) && queue.push(of(left, Level::High)));
        for effect in queue.settle(now, free, link_of_a) {
            if let Effect::Start(id) = effect
                && id < n(10)
            {
                begun.push((id, now));
            }
        }
        // It seeks: what it left is lowered and ends, or is cancelled.
        queue.reprioritise(n(reached), Level::Low, 0);
        queue.ended(n(reached));
        let _ = queue.cancel(n(left));
        queue.ended(n(left));
        if let Some((id, _)) = begun.last().filter(|(_, at)| at + 400 == now) {
            queue.ended(*id);
        }
    }
    let turn = MAX_YIELD_MS + 400;
    assert_eq!(
        begun,
        [(n(1), MAX_YIELD_MS), (n(2), turn + MAX_YIELD_MS + 200)]
    );
}

#[test]
fn a_task_cancelled_while_it_is_preempted_does_not_come_back() {
    let mut queue = FetchQueue::new(1);
    assert!(queue.push(task(1, Level::Low, 0)));
    assert!(queue.push(task(2, Level::Critical, 0)));
    assert!(queue.push(task(3, Level::Critical, 0)));
    assert!(
        queue
            .settle(0, free, no_link)
            .contains(&Effect::Start(n(3)))
    );
    assert!(queue.push(task(4, Level::Critical, 0)));
    let _ = queue.settle(0, free, no_link);
    assert_eq!(queue.cancel(n(1)), None, "it never ran");
    assert!(queue.push(task(5, Level::Low, 0)));
    for id in [2, 3, 4] {
        queue.ended(n(id));
    }
    assert_eq!(queue.settle(0, free, no_link), [Effect::Start(n(5))]);
    for id in [6, 7] {
        assert!(queue.push(task(id, Level::Critical, 0)));
    }
    assert!(
        queue
            .settle(0, free, no_link)
            .contains(&Effect::Preempt(n(5)))
    );
    assert_eq!(queue.cancel(n(5)), Some(Effect::Cancel(n(5))));
    assert!(!queue.preempted(n(5)));
    assert!(queue.get(n(5)).is_none());
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

/// Carries a step out. Tasks with an even number are from the origin "a" if `has_origins`.
fn take(queue: &mut FetchQueue, step: &Step, has_origins: bool) {
    match *step {
        Step::Push(id, level, deadline) => {
            let task = task(id, Level::ALL[level as usize], deadline);
            let _ = queue.push(match has_origins && id % 2 == 0 {
                true => of_origin("a", task),
                false => task,
            });
        }
        Step::End(id) => queue.ended(n(id)),
        Step::Preempted(id) => {
            let _ = queue.preempted(n(id));
        }
        Step::Cancel(id) => {
            let _ = queue.cancel(n(id));
        }
        Step::Reprioritise(id, level) => queue.reprioritise(n(id), Level::ALL[level as usize], 0),
    }
}

proptest! {
    #[test]
    fn no_critical_waits_behind_less_and_limits_hold(
        max in 1usize..4,
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut queue = FetchQueue::new(max);
        for step in &steps {
            take(&mut queue, step, false);
            let _ = queue.settle(0, free, no_link);
            prop_assert!(queue.running.len() <= max + 1);
            let best_waiting = queue.waiting.first().map(|rank| rank.0);
            if best_waiting == Some(Level::Critical) {
                prop_assert!(queue.running.iter().all(|rank| rank.0 == Level::Critical));
                prop_assert_eq!(queue.running.len(), max + 1);
            }
            if best_waiting == Some(Level::High) {
                prop_assert!(queue.running.iter().all(|rank| rank.0 <= Level::High));
            }
            if best_waiting.is_some() {
                prop_assert!(queue.running.len() >= max, "work waits while a slot is free");
            }
            prop_assert!(queue.settle(0, free, no_link).is_empty(), "settled means settled");
            for rank in queue.waiting.iter().chain(&queue.running) {
                prop_assert_eq!(queue.tasks[&rank.2].0.rank(), *rank);
            }
        }
    }

    #[test]
    fn origins_are_those_of_the_tasks(steps in prop::collection::vec(step(), 1..80)) {
        let mut queue = FetchQueue::new(2);
        for step in &steps {
            take(&mut queue, step, true);
            let _ = queue.settle(0, free, link_of_a);
            let of_a = queue.tasks.values().filter(|(task, _)| task.origin.is_some()).count();
            prop_assert_eq!(queue.origins.get("a").copied().unwrap_or(0), of_a);
        }
    }
}

#[test]
fn a_source_that_hangs_keeps_its_part_of_the_slots() {
    let mut queue = FetchQueue::new(3);
    let of = |id, origin: &str| Task {
        origin: Some(origin.into()),
        ..task(id, Level::Critical, id)
    };
    for id in 0..8 {
        assert!(queue.push(of(id, "hung")));
    }
    let started: Vec<Effect> = (0..4).map(|id| Effect::Start(n(id))).collect();
    assert_eq!(queue.settle(0, free, no_link), started);
    assert!(queue.push(of(8, "other")));
    let gives_way = [Effect::Preempt(n(3)), Effect::Start(n(8))];
    assert_eq!(
        queue.settle(0, free, no_link),
        gives_way,
        "behind four that wait"
    );
    assert!(queue.preempted(n(3)));
    assert!(queue.push(of(9, "other")));
    let even = [Effect::Preempt(n(2)), Effect::Start(n(9))];
    assert_eq!(queue.settle(0, free, no_link), even);
    assert!(queue.preempted(n(2)));
    assert!(queue.push(of(10, "other")));
    assert_eq!(queue.settle(0, free, no_link), [], "each has its part");
    queue.ended(n(8));
    queue.ended(n(9));
    queue.ended(n(10));
    assert_eq!(
        queue.settle(0, free, no_link),
        [Effect::Start(n(2)), Effect::Start(n(3))],
        "what is free is used"
    );
}
