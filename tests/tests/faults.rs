//! The fault campaign, in the short form. The full one: `tests/faults/run --full`.

use chunkcache_tests::campaign::{Plan, run};
use chunkcache_tests::heavy;

#[test]
fn nothing_is_lost_and_nothing_is_wrong_whatever_is_killed() {
    let _turn = heavy();
    let report = run(&Plan::short(20_261_122));
    println!("{report}");
    assert!(report.bytes_compared > 0, "readers read nothing");
    report.verdict().unwrap_or_else(|wrong| panic!("{wrong}"));
}
