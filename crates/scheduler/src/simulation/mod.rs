//! Seeded runs of the scheduler against invented clusters.
//!
//! A run makes a cluster (edges, origins, entries). Edges join, leave, stall and fill their disks;
//! origins are slow, fail and ask for a pause; readers open, read, seek, pause and leave; jobs come
//! and go. All invariants are checked after each event (`check`). Then the faults stop, and all
//! demand must be met in bounded time.
//!
//! `SIM_RUNS` sets the number of runs, `SIM_SEED` the first seed. The default keeps `cargo test`
//! short; use longer runs for changes of the scheduler (`SIM_RUNS=20000`). The runs are split into
//! two tests, so that two processors share them. A failing seed is printed. Once its fault is
//! fixed, write it out as a trace in `tests/traces.rs`, because each change here gives seeds
//! another meaning.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// A list with a single range is intended.
#![allow(clippy::single_range_in_vec_init)]

mod check;
mod edges;
mod end;
mod idle;
mod people;
mod quota;
mod restart;
mod world;

use world::{Faults, World};

/// Keeps `cargo test` in debug within seconds.
const DEFAULT_RUNS: u64 = 120;
/// Steps of 1 to 40 ms each.
const STEPS: u32 = 120;

fn run(seed: u64, steps: u32) -> World {
    let mut world = World::new(seed, Faults::of(seed));
    for _ in 0..steps {
        world.step(true);
    }
    world
}

/// Ends all faults; all demand must be met within two simulated minutes.
fn settle(world: &mut World) {
    world.calm();
    for _ in 0..24_000 {
        if world.settled() {
            return;
        }
        world.step(false);
    }
    panic!("seed {}: not settled: {}", world.seed, world.unsettled());
}

/// Runs a cluster from its start to its end; returns the number of events.
fn whole(seed: u64, steps: u32) -> u64 {
    let mut world = run(seed, steps);
    if seed.is_multiple_of(7) {
        let again = run(seed, steps);
        assert_eq!(
            world.journal, again.journal,
            "seed {seed}: equal input gave unequal output"
        );
    }
    world.check_rebuild();
    settle(&mut world);
    quiet(&mut world);
    world.events
}

/// Once no demand is left, fills must end as well, and evicted chunks must not be fetched again and
/// again.
fn quiet(world: &mut World) {
    let (mut said, mut since) = (0, 0);
    for _ in 0..100 {
        if (world.journal.len(), world.evicted) != (said, since) {
            (said, since) = (world.journal.len(), world.evicted);
            for _ in 0..200 {
                world.step(false);
            }
        } else {
            return;
        }
    }
    panic!("seed {}: no end of it: {since} chunks evicted", world.seed);
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Every second seed, beginning with the first or the second.
fn invariants_hold(half: u64) {
    let runs = variable("SIM_RUNS").unwrap_or(DEFAULT_RUNS);
    let first = variable("SIM_SEED").unwrap_or(0);
    let (mut events, mut failed) = (0, Vec::new());
    for seed in (first + half..first + runs).step_by(2) {
        match std::panic::catch_unwind(|| whole(seed, STEPS)) {
            Ok(of_seed) => events += of_seed,
            Err(_) => failed.push(seed),
        }
    }
    eprintln!("simulation: half of {runs} seeds from {first}, {events} events, failed: {failed:?}");
    assert!(failed.is_empty(), "seeds {failed:?} failed");
}

#[test]
fn invariants_hold_after_each_event_of_even_seeds() {
    invariants_hold(0);
}

#[test]
fn invariants_hold_after_each_event_of_odd_seeds() {
    invariants_hold(1);
}
