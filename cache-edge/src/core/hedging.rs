//! Decides when an answer is late, and how many second requests a source may be sent.

use std::time::Duration;

/// Number of answers remembered for each kind of request to an origin.
const SAMPLES: usize = 128;
/// Number of answers needed before conclusions are drawn from them.
const ENOUGH: usize = 20;
/// The minimum margin beyond the 95th percentile: less is noise of a busy machine.
const LEAST_MARGIN: Duration = Duration::from_millis(20);

/// In thousandths of a second request: the earnings of each request, the price of a second request,
/// and the maximum savings. At the start, one is affordable.
const EARNED: u32 = 30;
const COST: u32 = 1_000;
const MOST_SAVED: u32 = 3 * COST;

/// How long an origin's latest answers took to begin.
#[derive(Clone, Debug)]
pub struct AnswerTimes {
    micros: [u32; SAMPLES],
    count: usize,
    next: usize,
}

impl Default for AnswerTimes {
    fn default() -> Self {
        Self {
            micros: [0; SAMPLES],
            count: 0,
            next: 0,
        }
    }
}

impl AnswerTimes {
    /// Adds an answer, and forgets the oldest.
    pub fn record(&mut self, took: Duration) {
        self.micros[self.next] = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.next = (self.next + 1) % SAMPLES;
        self.count = (self.count + 1).min(SAMPLES);
    }

    /// The time after which an answer is late: the 95th percentile plus a quarter. `None`: too few
    /// answers are known.
    #[must_use]
    pub fn late_after(&self) -> Option<Duration> {
        if self.count < ENOUGH {
            return None;
        }
        let usual = self.percentile(95)?;
        Some(usual + (usual / 4).max(LEAST_MARGIN))
    }

    /// `None`: no answer is known.
    #[must_use]
    pub fn median(&self) -> Option<Duration> {
        self.percentile(50)
    }

    /// The shortest: of an answer that waited for no other. `None`: no answer is known.
    #[must_use]
    pub fn least(&self) -> Option<Duration> {
        self.percentile(0)
    }

    fn percentile(&self, percent: usize) -> Option<Duration> {
        let place = self.count * percent / 100;
        let mut sorted = self.micros;
        let known = &mut sorted[..self.count];
        if place >= known.len() {
            return None;
        }
        let (_, &mut micros, _) = known.select_nth_unstable(place);
        Some(Duration::from_micros(micros.into()))
    }
}

/// How long to wait for an answer before a second request: until it is late, or for `lost_after` if
/// that is not known. For a question, never longer than `lost_after`: each answer that is given up
/// counts as one that took as long, and would make the next question wait longer still.
#[must_use]
pub fn patience(late_after: Option<Duration>, lost_after: Duration, is_question: bool) -> Duration {
    match late_after {
        Some(late_after) if is_question => late_after.min(lost_after),
        late_after => late_after.unwrap_or(lost_after),
    }
}

/// The second requests that a source may still be sent: 3 % of its requests.
#[derive(Clone, Copy, Debug)]
pub struct HedgeBudget(u32);

impl Default for HedgeBudget {
    fn default() -> Self {
        Self(COST)
    }
}

impl HedgeBudget {
    /// Counts a request.
    pub fn earn(&mut self) {
        self.0 = (self.0 + EARNED).min(MOST_SAVED);
    }

    /// Pays for a second request if the budget allows it.
    pub fn take(&mut self) -> bool {
        let rest = self.0.checked_sub(COST);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(ms: impl IntoIterator<Item = u64>) -> AnswerTimes {
        let mut times = AnswerTimes::default();
        for ms in ms {
            times.record(Duration::from_millis(ms));
        }
        times
    }

    fn late_after_ms(times: &AnswerTimes) -> Option<u128> {
        times.late_after().map(|after| after.as_millis())
    }

    #[test]
    fn the_least_time_is_that_of_an_answer_before_which_there_was_no_queue() {
        assert_eq!(times([]).least(), None);
        let times = times([220, 25, 231, 240]);
        assert_eq!(times.least(), Some(Duration::from_millis(25)));
    }

    #[test]
    fn late_is_a_quarter_beyond_the_95th_percentile() {
        assert_eq!(late_after_ms(&times([100; 19])), None);
        assert_eq!(late_after_ms(&times([100; 20])), Some(125));
        // At least some milliseconds.
        assert_eq!(late_after_ms(&times([2; 20])), Some(22));
        // A slow answer in a hundred changes nothing; one in ten does.
        let one_in = |n| times((1..=128).map(|nth| if nth % n == 0 { 2_000 } else { 100 }));
        assert_eq!(late_after_ms(&one_in(100)), Some(125));
        assert_eq!(late_after_ms(&one_in(10)), Some(2_500));
    }

    #[test]
    fn old_answers_are_forgotten() {
        let slower = times([100; 128].into_iter().chain([400; 128]));
        assert_eq!(late_after_ms(&slower), Some(500));
        let longest = times([u64::MAX / 1_000_000; 20]);
        assert!(longest.late_after().is_some());
    }

    #[test]
    fn no_question_waits_longer_and_longer() {
        let (lost_after, mut times) = (Duration::from_secs(4), times([5; 20]));
        for _ in 0..SAMPLES {
            let waited = patience(times.late_after(), lost_after, true);
            assert!(waited <= lost_after, "{waited:?}");
            times.record(lost_after);
        }
        let slow = Some(Duration::from_secs(9));
        assert_eq!(patience(slow, lost_after, false), Duration::from_secs(9));
        assert_eq!(patience(None, lost_after, true), lost_after);
    }

    #[test]
    fn three_in_a_hundred_are_affordable() {
        let mut budget = HedgeBudget::default();
        let taken = (0..1_000).filter(|_| {
            budget.earn();
            budget.take()
        });
        assert_eq!(taken.count(), 31, "one at first, then 3 %");
        for _ in 0..10_000 {
            budget.earn();
        }
        let saved = (0..100).filter(|_| budget.take()).count();
        assert_eq!(saved, 3, "little is saved");
    }
}
