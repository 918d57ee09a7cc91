//! Bounded waits, and a lock for heavy tests.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::cluster;

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Probes until there is an answer; panics, naming what was awaited, if there is none in time.
pub fn eventually<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Locked by tests that move gigabytes or measure time: one at a time on this machine, whatever
/// runs them.
pub fn heavy() -> File {
    let path = cluster::shared_directory().join("heavy.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
    flock(&file, FlockOperation::LockExclusive).expect("lock for heavy tests");
    file
}
