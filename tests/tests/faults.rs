//! The fault campaign, in the short form. The full one: `tests/faults/run --full`.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use chunkcache_tests::heavy;

/// Runs as its own program, which uses a network namespace if possible.
#[test]
fn nothing_is_lost_and_nothing_is_wrong_whatever_is_killed() {
    let _turn = heavy();
    // Built before the campaign has its own network.
    let edge = chunkcache_tests::services::program("cache-edge");
    let campaign = Command::new(env!("CARGO_BIN_EXE_chunkcache-faults"))
        .env("CHUNKCACHE_BIN_DIR", edge.parent().unwrap())
        .args(["--seed", "20261122"])
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&campaign.stdout);
    println!("{table}");
    let errors = String::from_utf8_lossy(&campaign.stderr);
    assert!(campaign.status.success(), "{errors}");
    assert!(table.contains("| wrong bytes | 0 |"), "{table}");
}
