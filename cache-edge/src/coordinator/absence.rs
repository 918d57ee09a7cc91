//! While no coordinator is heard, each edge has its part of the connections that an origin bears,
//! and nobody tells it what the others have.
//!
//! So all come down first, and grow after that. From the moment a session ends nothing is opened
//! beyond what was open, what is above the part is not renewed, and ends with its chunk; a moment
//! later it is cut, the bytes that came kept. Only when all have done so does an edge open what it
//! did not have. A coordinator that dies is missed by all at once. One that hangs is missed by its
//! heartbeat, which comes to each edge at another time: both steps come later then. Should it go on
//! after that, the session is begun anew, since it knows nothing of what was opened meanwhile.
//!
//! Sources without a limit have nothing to do with it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::Link;
use crate::upstream::{Catalogue, Downloads, downloads::ComeDown};

/// Of a coordinator that says something every second.
pub const SILENT_AFTER: Duration = Duration::from_millis(2_500);
/// From then on, or from the session's end.
const CUT_AFTER: Duration = Duration::from_millis(600);
/// Later than others cut, however late a message or a thread is.
const ALONE_AFTER: Duration = Duration::from_secs(1);
/// Heartbeats of one coordinator come to two edges up to a second apart.
const ALONE_AFTER_SILENCE: Duration = Duration::from_secs(2);

/// How an edge stands to its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    Heard,
    ComingDown,
    Cut,
    Alone,
}

/// When it was heard last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// In this life of the edge never: it has nothing open.
    Never,
    /// There is a session.
    At(Instant),
    /// The session ended then.
    Until { heard: Instant, ended: Instant },
}

/// Where that leaves an edge, and after which time that may change by itself.
#[must_use]
pub fn presence(heard: Heard, now: Instant) -> (Presence, Option<Duration>) {
    let (silent_since, ended) = match heard {
        Heard::Never => return (Presence::Alone, None),
        Heard::At(heard) => (heard + SILENT_AFTER, None),
        Heard::Until { heard, ended } => (heard + SILENT_AFTER, Some(ended)),
    };
    let of_silence = [
        (silent_since, Presence::ComingDown),
        (silent_since + CUT_AFTER, Presence::Cut),
        (silent_since + ALONE_AFTER_SILENCE, Presence::Alone),
    ];
    let of_end = ended.map(|ended| {
        [
            (ended, Presence::ComingDown),
            (ended + CUT_AFTER, Presence::Cut),
            (ended + ALONE_AFTER, Presence::Alone),
        ]
    });
    let steps = || of_silence.into_iter().chain(of_end.into_iter().flatten());
    let past = steps().filter(|&(at, _)| at <= now).map(|(_, it)| it);
    let presence = past.max().unwrap_or(Presence::Heard);
    let next = steps().filter(|&(at, it)| at > now && it > presence);
    (presence, next.map(|(at, _)| at - now).min())
}

/// See the module.
pub struct Absence {
    pub link: Arc<Link>,
    pub catalogue: Arc<Catalogue>,
    pub downloads: Downloads,
}

impl Absence {
    /// Until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut before = Presence::Alone;
        loop {
            let (presence, next) = presence(self.link.last_heard(), Instant::now());
            if presence != before {
                tracing::debug!(?presence, "the coordinator");
                before = presence;
                self.follow(presence);
            }
            let next = next.unwrap_or(Duration::from_secs(3_600));
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.link.session_changed() => {}
                () = tokio::time::sleep(next) => {}
            }
        }
    }

    fn follow(&self, presence: Presence) {
        let mut limited = false;
        for source in self.catalogue.all() {
            source.pace.set_alone(presence == Presence::Alone);
            let how = match presence {
                Presence::Heard => {
                    source.places.heard_again();
                    continue;
                }
                Presence::ComingDown => ComeDown::Soon,
                Presence::Cut | Presence::Alone => ComeDown::Now,
            };
            if let Some((part, own)) = source.places.come_down() {
                limited = true;
                self.downloads.come_down(source.name(), part, own, how);
            }
            if presence == Presence::Alone {
                source.places.stand_alone();
            }
        }
        if limited && presence >= Presence::Cut {
            self.link.came_down();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Each presence with the time it begins.
    fn course(heard: Heard, from: Instant) -> Vec<(u64, Presence)> {
        let mut course = Vec::new();
        let mut now = from;
        loop {
            let (presence, next) = presence(heard, now);
            let at = u64::try_from((now - from).as_millis()).unwrap_or(u64::MAX);
            course.push((at, presence));
            match next {
                Some(next) => now += next,
                None => return course,
            }
        }
    }

    #[test]
    fn who_was_never_heard_left_nothing_behind() {
        let now = Instant::now();
        assert_eq!(presence(Heard::Never, now), (Presence::Alone, None));
    }

    #[test]
    fn a_session_that_ends_is_followed_at_once() {
        let ended = Instant::now();
        let heard = Heard::Until {
            heard: ended,
            ended,
        };
        let expected = [
            (0, Presence::ComingDown),
            (600, Presence::Cut),
            (1_000, Presence::Alone),
        ];
        assert_eq!(course(heard, ended), expected);
    }

    #[test]
    fn a_coordinator_that_hangs_is_missed_by_its_heartbeat() {
        let heard = Instant::now();
        let expected = [
            (0, Presence::Heard),
            (2_500, Presence::ComingDown),
            (3_100, Presence::Cut),
            (4_500, Presence::Alone),
        ];
        assert_eq!(course(Heard::At(heard), heard), expected);
        // Its session is given up later: that is no reason to begin anew.
        let ended = Heard::Until {
            heard,
            ended: heard + ms(10_000),
        };
        assert_eq!(presence(ended, heard + ms(10_000)), (Presence::Alone, None));
    }

    #[test]
    fn nobody_grows_before_all_have_come_down() {
        let died = Instant::now();
        // Heard at times of their own, at most a heartbeat before.
        for (one, other) in [(0, 999), (999, 0), (500, 400)] {
            let cut = course(Heard::At(died - ms(one)), died)[2];
            let grown = course(Heard::At(died - ms(other)), died)[3];
            assert_eq!((cut.1, grown.1), (Presence::Cut, Presence::Alone));
            assert!(cut.0 < grown.0, "{cut:?} {grown:?}");
        }
    }
}
