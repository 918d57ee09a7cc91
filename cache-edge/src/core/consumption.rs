//! Measures how much a reader has really consumed, and so how much may be fetched ahead of it; and
//! keeps what its player reports.
//!
//! The first bytes that a reader takes fill buffers, of its player and of the sockets in between,
//! and say nothing about how far it will read. So its lookahead starts at two chunks, and grows
//! with the bytes that it consumes beyond those buffers, up to a minute of playback at its rate.
//!
//! A player may report its rate, its throughput and its buffer (CMCD). None is trusted: a reported
//! rate counts up to the assumed one or twice the observed one, a throughput counts only if it is
//! less and no more was observed, and an empty buffer gains nothing, because an unreported one
//! counts as empty.

use std::time::Duration;

use http_rules::cmcd::Cmcd;

use super::{lookahead::DEFAULT_LOOKAHEAD_CHUNKS, viewers::Viewer};

/// Lookahead of a reader that has earned nothing yet.
pub const START_CHUNKS: u32 = 2;
/// Bytes that may lie in buffers between the edge and a viewer's screen.
const BUFFERED: u64 = 8 << 20;
/// A rate is measured over at least this long.
const RATE_WINDOW: Duration = Duration::from_secs(1);
/// The rate that the coordinator assumes for a reader of unknown rate: 20 Mbit/s.
const ASSUMED_RATE: u64 = 2_500_000;

/// A player's report of itself in its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlayerReport {
    /// The rate at which it plays the requested object, if reported.
    pub bytes_per_second: Option<u64>,
    /// The throughput that it measured, if reported.
    pub throughput: Option<u64>,
    /// The playing time that it has left before it needs the first byte, if reported.
    pub buffer: Option<Duration>,
    /// Whose it is; none: it did not say.
    pub viewer: Option<Viewer>,
}

impl From<&Cmcd> for PlayerReport {
    fn from(cmcd: &Cmcd) -> Self {
        let rate = |kbps: Option<u64>| Some(kbps?.saturating_mul(125)).filter(|rate| *rate > 0);
        Self {
            bytes_per_second: rate(cmcd.encoded_kbps),
            throughput: rate(cmcd.measured_kbps),
            buffer: cmcd.time_left(),
            viewer: None,
        }
    }
}

/// The consumption of one reader. Times are on any one clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consumption {
    total: u64,
    /// By its viewer's earlier readers, before it sought. Counts again once this one has consumed
    /// more than fits in buffers.
    before: u64,
    /// Since the player reported.
    sent: u64,
    window_start: Duration,
    window_bytes: u64,
    /// The observed rate.
    rate: u64,
    player: PlayerReport,
    reported_at: Duration,
}

impl Consumption {
    #[must_use]
    pub fn new(player: PlayerReport, now: Duration) -> Self {
        Self {
            window_start: now,
            player,
            reported_at: now,
            ..Self::default()
        }
    }

    /// The consumption of a viewer that continues with another reader. After a seek, the viewer has
    /// to read on first: bytes in buffers prove nothing, and one that keeps seeking stays nowhere.
    #[must_use]
    pub fn going_on(self, is_seek: bool, player: PlayerReport, now: Duration) -> Self {
        let (total, before) = match is_seek {
            true => (0, self.before.saturating_add(self.total)),
            false => (self.total, self.before),
        };
        Self {
            total,
            before,
            rate: self.rate,
            ..Self::new(player, now)
        }
    }

    /// Takes the earned bytes for another reader.
    pub fn give(&mut self) -> Self {
        let given = *self;
        (self.total, self.before) = (0, 0);
        given
    }

    /// Counts bytes that the reader took.
    pub fn add(&mut self, bytes: u64, now: Duration) {
        self.sent = self.sent.saturating_add(bytes);
        self.total = self.total.saturating_add(bytes);
        self.window_bytes = self.window_bytes.saturating_add(bytes);
        let passed = now.saturating_sub(self.window_start);
        if passed < RATE_WINDOW {
            return;
        }
        let rate = u128::from(self.window_bytes) * 1_000_000 / passed.as_micros().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX).max(1);
        // The first window is mostly buffers; later ones soon outweigh it.
        self.rate = match self.rate {
            0 => rate,
            before => before / 2 + rate / 2,
        };
        (self.window_start, self.window_bytes) = (now, 0);
    }

    /// Bytes per second that the reader consumes: at most its player's throughput, unless it was
    /// observed to take more. 0: not known yet, and not known to be less than the coordinator
    /// assumes.
    #[must_use]
    pub fn rate(&self) -> u64 {
        let rate = self.play_rate();
        match self.player.throughput {
            Some(throughput) if rate == 0 => match throughput {
                slow if slow < ASSUMED_RATE => slow,
                _ => 0,
            },
            Some(throughput) => rate.min(throughput.max(self.rate)),
            None => rate,
        }
    }

    /// Bytes a second: as its player reports it, else as observed over seconds, because a burst
    /// into a buffer is not a rate. 0: not known yet.
    fn play_rate(&self) -> u64 {
        let plausible = ASSUMED_RATE.max(self.rate.saturating_mul(2));
        match self.player.bytes_per_second {
            Some(rate) => rate.min(plausible),
            None => self.rate,
        }
    }

    /// The playing time that the player has left before it needs the reader's next byte: the
    /// reported one, plus the playing time of the bytes sent since, minus the time passed. `None`:
    /// it did not report.
    #[must_use]
    pub fn player_buffer(&self, now: Duration) -> Option<Duration> {
        let rate = self.play_rate();
        let ms = u128::from(self.sent) * 1_000 / u128::from(rate.max(1));
        let sent = match rate {
            0 => Duration::ZERO,
            _ => Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)),
        };
        let passed = now.saturating_sub(self.reported_at);
        let reported = self.player.buffer?;
        Some(reported.saturating_add(sent).saturating_sub(passed))
    }

    /// Bytes that may be fetched ahead of the reader: at most as many as it plays in `longest`, but
    /// at least ten chunks for a reader that keeps reading.
    #[must_use]
    pub fn earned_bytes(&self, chunk_size: u64, longest: Duration) -> u64 {
        let chunks = |count: u32| u64::from(count).saturating_mul(chunk_size);
        let total = match self.total {
            little if little <= BUFFERED => little,
            total => total.saturating_add(self.before),
        };
        let earned = chunks(START_CHUNKS).saturating_add(total.saturating_sub(BUFFERED));
        let rate = self.rate();
        if rate == 0 {
            return earned;
        }
        let played = u128::from(rate) * longest.as_millis() / 1_000;
        let played = u64::try_from(played).unwrap_or(u64::MAX);
        earned.min(played.max(chunks(DEFAULT_LOOKAHEAD_CHUNKS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 2 << 20;
    const MINUTE: Duration = Duration::from_secs(60);

    /// A reader that took a burst, and then the same amount each second.
    fn consumed(burst: u64, each_second: u64, seconds: u64) -> Consumption {
        let mut consumption = Consumption::new(PlayerReport::default(), Duration::ZERO);
        consumption.add(burst, Duration::from_millis(20));
        for second in 1..=seconds {
            consumption.add(each_second, Duration::from_secs(second));
        }
        consumption
    }

    #[test]
    fn what_fits_into_buffers_earns_nothing() {
        assert_eq!(
            consumed(0, 0, 0).earned_bytes(CHUNK, MINUTE),
            2 * CHUNK,
            "at first"
        );
        assert_eq!(
            consumed(BUFFERED, 0, 0).earned_bytes(CHUNK, MINUTE),
            2 * CHUNK
        );
        assert_eq!(
            consumed(BUFFERED, CHUNK, 5).earned_bytes(CHUNK, MINUTE),
            7 * CHUNK
        );
    }

    #[test]
    fn it_is_no_more_than_is_played_in_a_minute_and_no_less_than_ten_chunks() {
        let fast = consumed(0, 1_000_000, 600).earned_bytes(CHUNK, MINUTE);
        assert_eq!(fast, 60_000_000);
        let slow = consumed(0, 50_000, 3_600).earned_bytes(CHUNK, MINUTE);
        assert_eq!(slow, 10 * CHUNK);
    }

    fn reported(text: &str) -> Consumption {
        let query = format!("CMCD={text}");
        let cmcd = Cmcd::from_request(&http::HeaderMap::new(), Some(&query)).unwrap_or_default();
        Consumption::new(PlayerReport::from(&cmcd), Duration::ZERO)
    }

    #[test]
    fn a_reported_rate_counts_as_far_as_it_is_plausible() {
        assert_eq!(reported("br%3D8000").rate(), 1_000_000);
        assert_eq!(reported("br%3D0").rate(), 0, "that is none");
        let mut liar = reported("br%3D10000000");
        assert_eq!(liar.rate(), ASSUMED_RATE, "as if it had said nothing");
        liar.add(4_000_000, Duration::from_secs(1));
        assert_eq!(liar.rate(), 8_000_000, "twice what it consumes");
        let mut slow = reported("br%3D8000");
        slow.add(100_000, Duration::from_secs(1));
        assert_eq!(slow.rate(), 1_000_000, "its link is slow, not its film");
    }

    #[test]
    fn a_reader_consumes_no_more_than_reaches_its_player() {
        let ten_minutes = Duration::from_secs(600);
        let rate = |text: &str, each_second: u64| {
            let mut consumption = reported(text);
            if each_second > 0 {
                for second in 1..=20 {
                    consumption.add(each_second, Duration::from_secs(second));
                }
            }
            (
                consumption.rate(),
                consumption.earned_bytes(CHUNK, ten_minutes),
            )
        };
        assert_eq!(rate("br%3D8000%2Cmtp%3D4000", 0).0, 500_000);
        assert_eq!(rate("br%3D8000%2Cmtp%3D40000", 0).0, 1_000_000);
        assert_eq!(rate("mtp%3D4000", 0).0, 500_000, "less than is assumed");
        assert_eq!(rate("mtp%3D40000", 0).0, 0, "as if it had said nothing");
        assert_eq!(rate("br%3D8000%2Cmtp%3D0", 0).0, 1_000_000);
        assert_eq!(
            rate("br%3D8000%2Cmtp%3D4000", 800_000).0,
            800_000,
            "it was seen"
        );
        let (silent, lies) = (rate("", 1_000_000), rate("mtp%3D10000000", 1_000_000));
        assert_eq!(silent, lies, "a high one gains nothing");
    }

    #[test]
    fn a_buffer_grows_by_what_is_sent_and_shrinks_with_time() {
        let left = |text, bytes, seconds| {
            let mut consumption = reported(text);
            consumption.add(bytes, Duration::from_millis(10));
            let left = consumption.player_buffer(Duration::from_secs(seconds));
            left.map(|left| left.as_millis())
        };
        assert_eq!(left("br%3D8000%2Cbl%3D30000", 0, 0), Some(30_000));
        assert_eq!(left("br%3D8000%2Cbl%3D30000", 5_000_000, 2), Some(33_000));
        assert_eq!(left("br%3D8000%2Cbl%3D3000", 0, 60), Some(0));
        let slow = "br%3D8000%2Cmtp%3D800%2Cbl%3D30000";
        assert_eq!(
            left(slow, 5_000_000, 2),
            Some(33_000),
            "it plays at its own rate"
        );
        assert_eq!(left("bl%3D3000", 5_000_000, 1), Some(2_000), "no rate yet");
        assert_eq!(left("su%2Cbl%3D3000", 0, 0), Some(0));
        assert_eq!(left("bs%2Cbl%3D3000", 0, 0), Some(0));
        assert_eq!(left("br%3D8000", 5_000_000, 1), None);
    }

    #[test]
    fn what_is_earned_goes_on_once_and_after_a_seek_when_more_than_buffers_is_read() {
        let at = Duration::from_secs(20);
        let mut first = consumed(BUFFERED, CHUNK, 16);
        let earned = |reader: &Consumption| reader.earned_bytes(CHUNK, MINUTE) / CHUNK;
        assert_eq!(earned(&first), 18);
        let given = first.give();
        assert_eq!(earned(&first), 2, "it has gone on");
        let after = |is_seek| given.going_on(is_seek, PlayerReport::default(), at);
        assert_eq!((earned(&after(false)), earned(&after(true))), (18, 2));
        assert_eq!(after(true).rate(), given.rate());
        let again = after(true).going_on(true, PlayerReport::default(), at);
        for mut sought in [after(true), again] {
            sought.add(BUFFERED, at);
            assert_eq!(earned(&sought), 2, "what fits in buffers");
            sought.add(CHUNK, at);
            assert_eq!(
                earned(&sought),
                2 + 16 + 4 + 1,
                "all that was read, less a buffer"
            );
        }
        let full = reported("br%3D8000%2Cbl%3D3000").player;
        let left = given.going_on(true, full, at).player_buffer(at);
        assert_eq!(
            left,
            Some(Duration::from_secs(3)),
            "sent before it was reported"
        );
    }

    #[test]
    fn a_rate_is_of_seconds_and_follows_what_is_consumed() {
        assert_eq!(consumed(6 << 20, 0, 0).rate(), 0, "a burst");
        let slow = consumed(6 << 20, 100_000, 12).rate();
        assert!((100_000..110_000).contains(&slow), "{slow}");
    }
}
