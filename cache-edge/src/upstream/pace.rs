//! The pace of what this edge asks of a source by itself, where the source bears so many bytes per
//! second.
//!
//! What is assigned has a rate of its own. First questions about keys, revalidations, what is
//! passed through and fetches of its own can not be planned: an edge has a part of the source's
//! rate for all of them together, the whole divided by the edges there are. While the coordinator
//! plans, half of that, since it gives at least the other half away; what was taken is told it, and
//! is missing in what it gives next. A source that plans nothing, because it is only passed through
//! or recorded, has no use for the other half.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// So much of a second is sent at once after a rest: a first question does not wait.
const BURST: Duration = Duration::from_millis(250);
/// Longest sleep before the rate is looked at again.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);
/// Before the coordinator has said how many share it.
const UNKNOWN_EDGES: u64 = 4;

/// Of one source. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pace(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Of all edges; 0: no limit.
    whole: u64,
    /// Nothing of this source is planned.
    unplanned: bool,
    /// None: not told yet.
    part: Option<u64>,
    /// Nobody plans now.
    alone: bool,
    /// What was taken is paid for by then.
    paid_at: Option<Instant>,
    /// Bytes the coordinator does not know of.
    untold: u64,
}

impl Pace {
    /// As the source is configured; 0: no limit. `unplanned`: no fetch of it is ever assigned.
    pub fn set(&self, whole: u64, unplanned: bool) {
        let mut state = self.0.lock();
        (state.whole, state.unplanned) = (whole, unplanned);
    }

    /// What the coordinator said; 0: it knows of no limit.
    pub fn set_part(&self, part: u64) {
        self.0.lock().part = (part > 0).then_some(part);
    }

    /// Nobody plans, or somebody does again.
    pub fn set_alone(&self, alone: bool) {
        self.0.lock().alone = alone;
    }

    /// A session begins. What was taken before it is over.
    pub fn begin_session(&self) {
        let mut state = self.0.lock();
        state.untold = 0;
        state.alone = false;
    }

    /// Bytes taken that the coordinator was not told of.
    #[must_use]
    pub fn to_tell(&self) -> Option<u64> {
        let untold = std::mem::take(&mut self.0.lock().untold);
        (untold > 0).then_some(untold)
    }

    /// Returns when more may be read. Cancel safe: what was read is counted by [`took`](Self::took)
    /// alone.
    pub async fn ready(&self) {
        while let Some(wait) = self.wait(Instant::now()) {
            tokio::time::sleep(wait.min(LONGEST_SLEEP)).await;
        }
    }

    fn wait(&self, now: Instant) -> Option<Duration> {
        let state = self.0.lock();
        let wait = state.paid_at?.checked_duration_since(now)?;
        (state.whole > 0 && !wait.is_zero()).then_some(wait)
    }

    pub fn took(&self, bytes: usize) {
        self.took_at(bytes, Instant::now());
    }

    fn took_at(&self, bytes: usize, now: Instant) {
        let mut state = self.0.lock();
        if state.whole == 0 {
            return;
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        state.untold = state.untold.saturating_add(bytes);
        let rested = now.checked_sub(BURST).unwrap_or(now);
        let from = state.paid_at.map_or(rested, |at| at.max(rested));
        let costs = Duration::from_secs_f64(bytes as f64 / state.rate() as f64);
        state.paid_at = Some(from + costs);
    }
}

impl State {
    fn rate(&self) -> u64 {
        let part = self.part.unwrap_or(self.whole / UNKNOWN_EDGES);
        let part = part.min(self.whole);
        let rate = if self.alone || self.unplanned {
            part
        } else {
            part / 2
        };
        rate.max(1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const WHOLE: u64 = 4_000_000;

    fn of_two_edges() -> Pace {
        let pace = Pace::default();
        pace.set(WHOLE, false);
        pace.set_part(WHOLE / 2);
        pace
    }

    /// Bytes that come in ten seconds, in pieces as they are read from a connection.
    fn in_ten_seconds(pace: &Pace) -> u64 {
        const PIECE: usize = 128 << 10;
        let begun = Instant::now();
        let mut now = begun;
        let mut taken = 0;
        while now < begun + Duration::from_secs(10) {
            match pace.wait(now) {
                Some(wait) => now += wait,
                None => {
                    pace.took_at(PIECE, now);
                    taken += PIECE as u64;
                }
            }
        }
        taken
    }

    #[test]
    fn an_edge_takes_half_of_its_part_while_somebody_plans_and_all_of_it_while_nobody_does() {
        let about = |taken: u64, rate: u64| {
            let most = rate * 10 + rate / 4 + (256 << 10);
            assert!((rate * 10..=most).contains(&taken), "{taken} at {rate}");
        };
        let pace = of_two_edges();
        about(in_ten_seconds(&pace), WHOLE / 4);
        let pace = of_two_edges();
        pace.set_alone(true);
        about(in_ten_seconds(&pace), WHOLE / 2);
        let pace = of_two_edges();
        pace.set(WHOLE, true);
        about(in_ten_seconds(&pace), WHOLE / 2);
        let pace = Pace::default();
        pace.set(WHOLE, true);
        about(in_ten_seconds(&pace), WHOLE / UNKNOWN_EDGES);
    }

    #[test]
    fn a_first_question_does_not_wait_and_a_source_without_a_rate_never_does() {
        let pace = of_two_edges();
        let now = Instant::now();
        pace.took_at(64 << 10, now);
        assert_eq!(pace.wait(now), None);
        pace.took_at(1 << 20, now);
        assert!(pace.wait(now).is_some());
        pace.set(0, false);
        assert_eq!(pace.wait(now), None);
        pace.took_at(1 << 20, now);
        assert_eq!(
            pace.to_tell(),
            Some((64 << 10) + (1 << 20)),
            "of the limited time"
        );
    }

    #[test]
    fn what_was_taken_is_told_once_and_not_to_another_session() {
        let pace = of_two_edges();
        assert_eq!(pace.to_tell(), None);
        pace.took(10);
        pace.took(20);
        assert_eq!(pace.to_tell(), Some(30));
        assert_eq!(pace.to_tell(), None);
        pace.took(10);
        pace.begin_session();
        assert_eq!(pace.to_tell(), None);
    }
}
