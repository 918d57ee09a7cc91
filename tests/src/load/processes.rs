//! Processor time and memory of the processes under load, from `/proc`.

use std::fs;

/// User and system time of the processes so far.
pub fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let of = |pid: &u32| -> Option<f64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let user: f64 = fields.next()?.parse().ok()?;
        let system: f64 = fields.next()?.parse().ok()?;
        Some((user + system) / ticks_per_second)
    };
    pids.iter().filter_map(of).sum()
}

/// Memory of the processes now.
pub fn resident_bytes(pids: &[u32]) -> u64 {
    let of = |pid: &u32| -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib << 10)
    };
    pids.iter().filter_map(of).sum()
}
