//! Shared parts of the load tests: sizes, figures, the large table, a coordinator in its own
//! process.

pub mod inventory;
pub mod process;
pub mod table;

use std::time::Duration;

/// A size from the environment; otherwise the small one, with which the test runs as a plain test.
pub fn size(variable: &str, small: u32) -> u32 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(small)
}

/// Prints a figure for `tests/bench/coordinator`, which gathers these lines.
pub fn figure(name: &str, value: f64) {
    println!("figure {name} {value}");
}

/// Prints median and p99, in milliseconds.
pub fn report(name: &str, what: &str, mut times: Vec<Duration>) {
    times.sort();
    let part = |part: usize| times[(times.len() - 1) * part / 100];
    println!(
        "{what}: median {:?}, p99 {:?}, longest {:?} of {}",
        part(50),
        part(99),
        part(100),
        times.len()
    );
    figure(&format!("{name}_p50_ms"), part(50).as_secs_f64() * 1_000.0);
    figure(&format!("{name}_p99_ms"), part(99).as_secs_f64() * 1_000.0);
}

/// Resident memory of a process, in bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}
