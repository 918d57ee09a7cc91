//! Estimates what the link to an origin gives, and whether it is full: whether an answer that is
//! read beside another one adds nothing.
//!
//! Both are seen in passing: what one answer was given that had the link for itself, and what
//! several were given together. If only the second is known, for a moment one is read at a time.

use std::time::{Duration, Instant};

/// Rates are measured over this time.
const WINDOW: Duration = Duration::from_millis(150);
/// Bytes that arrive in one burst say nothing about the rate.
const LEAST_SPAN: Duration = Duration::from_millis(75);
/// An estimate that is older says nothing any more. While a full link is used by one answer at a
/// time, what several are given together is not seen.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// How long one answer is read at a time to learn what it is given, once in [`KNOWN_FOR`].
const TRIAL: Duration = Duration::from_secs(2);
/// Limit of answers that are distinguished in one window.
const MAX_STREAMS: usize = 16;

/// The estimates of one origin's link.
#[derive(Clone, Debug, Default)]
pub struct LinkRate {
    window: Option<Window>,
    /// The rate of an answer that had the link for itself.
    alone: Option<Estimate>,
    /// What several answers were given together.
    together: Option<Estimate>,
    trial_begun: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Estimate {
    bytes_per_second: u64,
    at: Instant,
}

#[derive(Clone, Debug)]
struct Window {
    begun: Instant,
    last: Instant,
    /// After the first read, by answer.
    bytes: Vec<(u64, u64)>,
}

impl LinkRate {
    /// Counts bytes of an answer.
    pub fn take(&mut self, stream: u64, bytes: u64, now: Instant) {
        match &mut self.window {
            Some(window) if now.saturating_duration_since(window.begun) <= WINDOW => {
                window.add(stream, bytes, now);
            }
            _ => {
                self.settle(now);
                self.window = Some(Window::begin(now));
            }
        }
    }

    /// Ends the window. Call it whenever an answer begins or ends: what two are given one after the
    /// other is not what they are given together.
    pub fn settle(&mut self, now: Instant) {
        let Some(window) = self.window.take() else {
            return;
        };
        let (Some(is_alone), Some(rate)) = (window.is_alone(), window.bytes_per_second()) else {
            return;
        };
        let (estimate, weight) = if is_alone {
            (&mut self.alone, 4)
        } else {
            (&mut self.together, 2)
        };
        let before = known(*estimate, now).unwrap_or(rate);
        let average = before - before / weight + rate / weight;
        *estimate = Some(Estimate {
            // A connection begins slowly, which says nothing about what it is given.
            bytes_per_second: if is_alone { rate.max(average) } else { average },
            at: now,
        });
    }

    /// The rate of the link, if it is known.
    #[must_use]
    pub fn bytes_per_second(&self, now: Instant) -> Option<u64> {
        let known = [self.alone, self.together].map(|it| known(it, now));
        known.into_iter().flatten().max()
    }

    /// Whether an answer beside another one adds nothing, if it is known.
    #[must_use]
    pub fn is_full(&self, now: Instant) -> Option<bool> {
        let (alone, together) = (known(self.alone, now)?, known(self.together, now)?);
        // A second answer with a share of its own would double it.
        Some(together < alone.saturating_add(alone / 2))
    }

    /// Whether to read one answer at a time: the link is full, or what one is given is not known.
    pub fn is_for_one(&mut self, now: Instant) -> bool {
        if let Some(is_full) = self.is_full(now) {
            return is_full;
        }
        if known(self.together, now).is_none() {
            return false;
        }
        let since = |at: Instant| now.saturating_duration_since(at);
        let before = self.trial_begun.filter(|at| since(*at) < KNOWN_FOR);
        since(*self.trial_begun.insert(before.unwrap_or(now))) < TRIAL
    }
}

impl Window {
    /// A read begins a window, and is not in it: its bytes arrived before.
    fn begin(now: Instant) -> Self {
        Self {
            begun: now,
            last: now,
            bytes: Vec::new(),
        }
    }

    fn add(&mut self, stream: u64, bytes: u64, now: Instant) {
        self.last = now;
        let is_full = self.bytes.len() >= MAX_STREAMS;
        let of_it = |(other, _): &&mut (u64, u64)| *other == stream || is_full;
        match self.bytes.iter_mut().find(of_it) {
            Some((_, sum)) => *sum += bytes,
            None => self.bytes.push((stream, bytes)),
        }
    }

    fn bytes_per_second(&self) -> Option<u64> {
        let span = self.last.saturating_duration_since(self.begun);
        let bytes: u64 = self.bytes.iter().map(|(_, bytes)| bytes).sum();
        (span >= LEAST_SPAN).then(|| (bytes as f64 / span.as_secs_f64()) as u64)
    }

    /// Whether one answer had the link for itself; `None`: nearly.
    fn is_alone(&self) -> Option<bool> {
        let all: u64 = self.bytes.iter().map(|(_, bytes)| bytes).sum();
        let most = self.bytes.iter().map(|(_, bytes)| *bytes).max()?;
        match most * 100 / all.max(1) {
            95.. => Some(true),
            69.. => None,
            _ => Some(false),
        }
    }
}

fn known(estimate: Option<Estimate>, now: Instant) -> Option<u64> {
    let estimate = estimate?;
    let age = now.saturating_duration_since(estimate.at);
    (age < KNOWN_FOR).then_some(estimate.bytes_per_second)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const RATE: u64 = 5_000_000;

    /// Feeds what answers get that are read at the same time: bytes of each in a millisecond.
    fn feed(rate: &mut LinkRate, begun: Instant, ms: std::ops::Range<u64>, streams: &[(u64, u64)]) {
        rate.settle(begun + Duration::from_millis(ms.start));
        for at in ms {
            for (stream, bytes) in streams {
                rate.take(*stream, *bytes, begun + Duration::from_millis(at));
            }
        }
    }

    #[test]
    fn a_link_is_full_if_a_second_answer_adds_nothing() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let one = RATE / 1000;
        for (second, is_full) in [(one / 2, true), (one, false)] {
            let first = if is_full { one / 2 } else { one };
            let mut rate = LinkRate::default();
            feed(&mut rate, begun, 0..1_000, &[(1, one)]);
            assert_eq!(rate.is_full(at(1_000)), None, "one answer shows nothing");
            let alone = rate.bytes_per_second(at(1_000)).unwrap();
            assert!(
                (RATE * 99 / 100..=RATE * 101 / 100).contains(&alone),
                "{alone}"
            );
            feed(&mut rate, begun, 1_000..2_000, &[(1, first), (2, second)]);
            assert_eq!(rate.is_full(at(2_000)), Some(is_full));
            assert_eq!(rate.is_full(at(2_000) + KNOWN_FOR), None, "long ago");
        }
    }

    #[test]
    fn what_one_answer_is_given_is_learnt_within_a_moment_or_not_at_all() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let (mut rate, one) = (LinkRate::default(), RATE / 1000);
        assert!(!rate.is_for_one(at(0)));
        feed(&mut rate, begun, 0..1_000, &[(1, one / 2), (2, one / 2)]);
        let mut other = rate.clone();
        assert!(rate.is_for_one(at(1_000)));
        feed(&mut rate, begun, 1_000..1_400, &[(3, one)]);
        assert!(rate.is_for_one(at(1_400)) && rate.is_full(at(1_400)) == Some(true));
        // Something else is always read beside it.
        assert!(other.is_for_one(at(1_000)) && other.is_for_one(at(2_900)));
        feed(
            &mut other,
            begun,
            2_000..60_000,
            &[(1, one / 2), (2, one / 2)],
        );
        assert!(!other.is_for_one(at(3_001)) && !other.is_for_one(at(60_000)));
        assert!(other.is_for_one(at(61_001)));
    }

    #[test]
    fn answers_one_after_the_other_are_not_together() {
        let begun = Instant::now();
        let mut rate = LinkRate::default();
        for number in 0..20 {
            let from = number * 100;
            feed(&mut rate, begun, from..from + 100, &[(number, RATE / 1000)]);
        }
        assert_eq!(rate.is_full(begun + Duration::from_secs(2)), None);
    }

    #[test]
    fn bursts_say_nothing_and_gaps_little() {
        let begun = Instant::now();
        let mut rate = LinkRate::default();
        for burst in 0..10 {
            let from = burst * 500;
            feed(&mut rate, begun, from..from + 10, &[(burst, 1 << 20)]);
        }
        assert_eq!(rate.bytes_per_second(begun + Duration::from_secs(5)), None);
        feed(&mut rate, begun, 5_000..6_000, &[(100, RATE / 1000)]);
        // A disk that is busy, say.
        feed(&mut rate, begun, 6_000..6_200, &[(101, 10)]);
        let known = rate
            .bytes_per_second(begun + Duration::from_secs(7))
            .unwrap();
        assert!(known > RATE / 2, "{known}");
    }
}
