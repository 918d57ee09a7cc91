//! Changes that are gathered for the session, or for the edge's own planner.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// Changes that their only consumer has not seen. The first of them and the first urgent one wake
/// it, and no other: the reader of a cold small object makes four, and to wake another thread costs
/// more than most of them.
#[derive(Default)]
pub(super) struct Gathered {
    since: Option<Instant>,
    is_urgent: bool,
    wake: Arc<Notify>,
}

impl Gathered {
    /// Records a change; an urgent one is seen at once.
    pub fn add(&mut self, is_urgent: bool) {
        let wakes = self.since.is_none() || (is_urgent && !self.is_urgent);
        self.since.get_or_insert_with(Instant::now);
        self.is_urgent |= is_urgent;
        if wakes {
            self.wake.notify_one();
        }
    }

    /// The consumer sees all changes now.
    pub fn take(&mut self) {
        (self.since, self.is_urgent) = (None, false);
    }

    pub fn is_empty(&self) -> bool {
        self.since.is_none()
    }

    #[cfg(test)]
    pub fn is_urgent(&self) -> bool {
        self.is_urgent
    }

    /// How much longer changes are gathered (`None`: there are none), and what wakes the consumer
    /// earlier.
    pub fn wait(&self, gathering: Duration) -> (Option<Duration>, Arc<Notify>) {
        let left = self.since.map(|since| match self.is_urgent {
            true => Duration::ZERO,
            false => gathering.saturating_sub(since.elapsed()),
        });
        (left, self.wake.clone())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn only_the_first_change_and_the_first_urgent_one_wake() {
        let mut gathered = Gathered::default();
        let wakes = |gathered: &mut Gathered, is_urgent| {
            gathered.add(is_urgent);
            let wake = gathered.wait(Duration::ZERO).1;
            wake.notified().now_or_never().is_some()
        };
        let changes = [false, false, true, true, false];
        let woken = changes.map(|is_urgent| wakes(&mut gathered, is_urgent));
        assert_eq!(woken, [true, false, true, false, false]);
        gathered.take();
        assert!(gathered.is_empty() && gathered.wait(Duration::ZERO).0.is_none());
        assert!(wakes(&mut gathered, false));
    }

    #[test]
    fn an_urgent_change_is_not_gathered() {
        let mut gathered = Gathered::default();
        let long = Duration::from_secs(3_600);
        gathered.add(false);
        assert!(gathered.wait(long).0 > Some(long / 2));
        gathered.add(true);
        assert_eq!(gathered.wait(long).0, Some(Duration::ZERO));
    }
}
