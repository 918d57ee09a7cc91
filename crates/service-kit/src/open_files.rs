//! The limit of open files, which also bounds connections.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Time between reports of the same failure.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Raises the soft limit to the hard one, and returns it; `u64::MAX`: there is none. The soft limit
/// protects programs that use select(2), which cannot name descriptors above 1023.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // A sandbox may forbid it: then the soft limit stays.
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        Err(_) => current.unwrap_or(u64::MAX),
    }
}

/// Reports connections that cannot be accepted. Without descriptors each attempt fails, many times
/// a second, so only the first in a while is reported.
#[derive(Debug, Default)]
pub struct AcceptFailures {
    reported: Option<Instant>,
}

impl AcceptFailures {
    pub fn report(&mut self, error: &io::Error) {
        if self.is_due(Instant::now()) {
            tracing::error!(%error, "can not accept connections at the moment");
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.reported.is_none_or(|at| now >= at + REPORT_EVERY);
        if is_due {
            self.reported = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum;
        let raised = raise_limit();
        assert_eq!(raised, hard.unwrap_or(u64::MAX));
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
    }

    #[test]
    fn failures_are_reported_once_in_a_while() {
        let mut failures = AcceptFailures::default();
        let start = Instant::now();
        let due = [0, 1, 9, 10, 11, 20].map(|at| failures.is_due(start + Duration::from_secs(at)));
        assert_eq!(due, [true, false, false, true, false, true]);
    }
}
