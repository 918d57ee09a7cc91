//! When a job may fetch: its window of the day, and its rate. Pure: the time is an argument.

use std::time::{Duration, Instant};

use chunkcache_proto::v1;
use jiff::{Timestamp, civil::Time, tz::TimeZone};
use service_kit::config::parse_time_of_day;
use service_kit::token_bucket::{Rate, TokenBucket};

use super::super::error::ServiceError;
use crate::db::{JobTiming, JobWindow};

/// Time over which a rate holds: what was not fetched in it is not made up for.
const RATE_OVER: Duration = Duration::from_secs(10);
/// Days that are tried for the next opening: a change of the clock can skip a window.
const DAYS: u32 = 4;

/// Converts a caller's window and rate.
pub fn read(request: &v1::PrecacheRequest) -> Result<JobTiming, ServiceError> {
    let max_rate = request.max_rate_bytes_per_second;
    if i64::try_from(max_rate).is_err() {
        let description = "expected less than 2^63 bytes per second";
        return Err(ServiceError::invalid(
            "max_rate_bytes_per_second",
            description,
        ));
    }
    let Some(window) = &request.window else {
        return Ok(JobTiming {
            window: None,
            max_rate,
        });
    };
    let minute = |field: &str, text: &str| {
        parse_time_of_day(text)
            .map_err(|expected| ServiceError::invalid(field, format!("{expected}, not {text:?}")))
    };
    let window = JobWindow {
        start: minute("window.start", &window.start)?,
        end: minute("window.end", &window.end)?,
        time_zone: window.time_zone.clone(),
    };
    if window.start == window.end {
        let description = "is the window's start: leave the window out for the whole day";
        return Err(ServiceError::invalid("window.end", description));
    }
    if zone(&window.time_zone).is_none() {
        let name = &window.time_zone;
        let description =
            format!("{name:?} is no time zone: expected a name such as Europe/Berlin, or nothing");
        return Err(ServiceError::invalid("window.time_zone", description));
    }
    Ok(JobTiming {
        window: Some(window),
        max_rate,
    })
}

fn zone(name: &str) -> Option<TimeZone> {
    if name.is_empty() {
        return Some(TimeZone::UTC);
    }
    TimeZone::get(name).ok()
}

/// Converts to the wire format.
#[must_use]
pub fn to_proto(window: &JobWindow) -> v1::TimeWindow {
    let text = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
    v1::TimeWindow {
        start: text(window.start),
        end: text(window.end),
        time_zone: window.time_zone.clone(),
    }
}

/// A window that can be compared with the clock.
#[derive(Clone, Debug)]
pub struct Window {
    start: Time,
    end: Time,
    zone: TimeZone,
}

impl Window {
    /// A time zone that is not known any more counts as UTC. `None`: not minutes of a day.
    #[must_use]
    pub fn new(window: &JobWindow) -> Option<Self> {
        let time = |minute: u16| {
            let part = |number: u16| i8::try_from(number).ok();
            Time::new(part(minute / 60)?, part(minute % 60)?, 0, 0).ok()
        };
        Some(Self {
            start: time(window.start)?,
            end: time(window.end)?,
            zone: zone(&window.time_zone).unwrap_or(TimeZone::UTC),
        })
    }

    #[must_use]
    pub fn is_open(&self, now: Timestamp) -> bool {
        let time = now.to_zoned(self.zone.clone()).time();
        if self.start < self.end {
            self.start <= time && time < self.end
        } else {
            self.start <= time || time < self.end
        }
    }

    /// When it opens next.
    #[must_use]
    pub fn opens_after(&self, now: Timestamp) -> Option<Timestamp> {
        // A clock that is set forward may be set into the window.
        let jump = self.zone.following(now).next();
        let mut times: Vec<Timestamp> = jump.map(|jump| jump.timestamp()).into_iter().collect();
        let mut date = now.to_zoned(self.zone.clone()).date();
        for _ in 0..DAYS {
            // Where a clock is set back, the hour and so the window comes twice.
            let start = self
                .zone
                .to_ambiguous_timestamp(date.to_datetime(self.start));
            times.extend([start.earlier().ok()?, start.later().ok()?]);
            date = date.tomorrow().ok()?;
        }
        let later = times.into_iter().filter(|time| *time > now);
        later.filter(|time| self.is_open(*time)).min()
    }
}

/// Holds a job to its rate: whole chunks are taken from what the rate allowed since the last time.
#[derive(Clone, Debug)]
pub struct ChunkRateLimiter {
    /// Bytes.
    rate: Rate,
    chunk: f64,
    bucket: TokenBucket,
}

impl ChunkRateLimiter {
    /// Begins with one chunk.
    #[must_use]
    pub fn new(max_rate: u64, chunk_size: u32, now: Instant) -> Self {
        let chunk = f64::from(chunk_size.max(1));
        let per_second = max_rate as f64;
        let burst = (per_second * RATE_OVER.as_secs_f64()).max(chunk);
        Self {
            rate: Rate { per_second, burst },
            chunk,
            bucket: TokenBucket::new(chunk, now),
        }
    }

    /// Takes the chunks that may be requested now.
    pub fn take(&mut self, now: Instant) -> u64 {
        let chunks = (self.bucket.level(self.rate, now) / self.chunk).floor();
        let taken = self.bucket.take(chunks * self.chunk, self.rate, now);
        taken.map_or(0, |()| chunks as u64)
    }

    /// Takes back chunks that were not requested.
    pub fn give_back(&mut self, chunks: u64) {
        self.bucket.give_back(chunks as f64 * self.chunk, self.rate);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const CHUNK: u32 = 2 << 20;

    fn request(start: &str, end: &str, time_zone: &str) -> v1::PrecacheRequest {
        v1::PrecacheRequest {
            window: Some(v1::TimeWindow {
                start: start.to_owned(),
                end: end.to_owned(),
                time_zone: time_zone.to_owned(),
            }),
            ..v1::PrecacheRequest::default()
        }
    }

    fn window(start: &str, end: &str, zone: &str) -> Window {
        let timing = read(&request(start, end, zone)).unwrap();
        Window::new(&timing.window.unwrap()).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_window_that_can_not_be_names_its_field() {
        for (start, end, zone, field) in [
            ("", "06:00", "", "window.start"),
            ("1:00", "06:00", "", "window.start"),
            ("24:00", "06:00", "", "window.start"),
            ("01:00", "06:60", "", "window.end"),
            ("01:00", "+6:00", "", "window.end"),
            ("01:00", "01:00", "", "window.end"),
            ("01:00", "06:00", "Mars/Olympus", "window.time_zone"),
        ] {
            match read(&request(start, end, zone)) {
                Err(ServiceError::Invalid(fields)) => assert_eq!(fields[0].field, field),
                other => panic!("{start} {end} {zone}: {other:?}"),
            }
        }
        let rate = v1::PrecacheRequest {
            max_rate_bytes_per_second: u64::MAX,
            ..v1::PrecacheRequest::default()
        };
        assert!(read(&rate).is_err());
    }

    #[test]
    fn the_end_is_not_included() {
        let night = window("01:00", "06:00", "");
        for (time, is_open) in [
            ("2026-06-01T00:59:59Z", false),
            ("2026-06-01T01:00:00Z", true),
            ("2026-06-01T05:59:59Z", true),
            ("2026-06-01T06:00:00Z", false),
        ] {
            assert_eq!(night.is_open(at(time)), is_open, "{time}");
        }
        let opens = |now| night.opens_after(at(now)).unwrap();
        assert_eq!(opens("2026-06-01T00:00:00Z"), at("2026-06-01T01:00:00Z"));
        assert_eq!(opens("2026-06-01T06:00:00Z"), at("2026-06-02T01:00:00Z"));
    }

    #[test]
    fn it_may_include_midnight() {
        let night = window("22:30", "02:00", "");
        for (time, is_open) in [
            ("2026-06-01T22:29:00Z", false),
            ("2026-06-01T22:30:00Z", true),
            ("2026-06-02T00:00:00Z", true),
            ("2026-06-02T01:59:00Z", true),
            ("2026-06-02T02:00:00Z", false),
        ] {
            assert_eq!(night.is_open(at(time)), is_open, "{time}");
        }
        let opens = night.opens_after(at("2026-06-02T02:00:00Z"));
        assert_eq!(opens, Some(at("2026-06-02T22:30:00Z")));
        // Until midnight.
        assert!(window("18:00", "00:00", "").is_open(at("2026-06-01T23:59:00Z")));
    }

    #[test]
    fn it_is_of_its_time_zone_in_summer_and_winter() {
        let night = window("01:00", "06:00", "Europe/Berlin");
        assert!(night.is_open(at("2026-07-01T03:59:00Z")));
        assert!(!night.is_open(at("2026-07-01T04:00:00Z")));
        assert!(night.is_open(at("2026-12-01T04:00:00Z")));
        let opens = |now| night.opens_after(at(now)).unwrap();
        assert_eq!(opens("2026-07-01T12:00:00Z"), at("2026-07-01T23:00:00Z"));
        assert_eq!(opens("2026-12-01T12:00:00Z"), at("2026-12-02T00:00:00Z"));
    }

    #[test]
    fn a_window_within_the_hour_that_a_clock_skips_opens_on_the_next_day() {
        // On 29 March 2026, 02:00 is followed by 03:00.
        let skipped = window("02:00", "02:30", "Europe/Berlin");
        let opens = skipped.opens_after(at("2026-03-28T12:00:00Z"));
        assert_eq!(opens, Some(at("2026-03-30T00:00:00Z")));
    }

    #[test]
    fn a_window_that_a_clock_is_set_into_opens_then_and_one_that_comes_twice_opens_twice() {
        // 03:00 on that day.
        let cut = window("02:30", "03:30", "Europe/Berlin");
        let opens = |window: &Window, now| window.opens_after(at(now));
        let at_three = at("2026-03-29T01:00:00Z");
        assert!(cut.is_open(at_three));
        assert_eq!(opens(&cut, "2026-03-28T12:00:00Z"), Some(at_three));
        // On 25 October 2026, 03:00 is followed by 02:00.
        let twice = window("02:10", "02:20", "Europe/Berlin");
        let first = at("2026-10-25T00:10:00Z");
        assert_eq!(opens(&twice, "2026-10-24T12:00:00Z"), Some(first));
        let second = at("2026-10-25T01:10:00Z");
        assert_eq!(opens(&twice, "2026-10-25T00:20:00Z"), Some(second));
        assert!(twice.is_open(first) && twice.is_open(second));
    }

    #[test]
    fn a_job_gets_what_its_rate_allows() {
        let start = Instant::now();
        let mut pace = ChunkRateLimiter::new(u64::from(CHUNK), CHUNK, start);
        // A chunk a second, looked at twice a second.
        let mut taken = Vec::new();
        for half_seconds in 0..7 {
            taken.push(pace.take(start + Duration::from_millis(500 * half_seconds)));
        }
        assert_eq!(taken, [1, 0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn what_was_not_fetched_is_not_made_up_for() {
        let start = Instant::now();
        let mut pace = ChunkRateLimiter::new(u64::from(CHUNK), CHUNK, start);
        let hour = start + Duration::from_secs(3600);
        assert_eq!(pace.take(hour), 10);
        assert_eq!(pace.take(hour), 0);
        pace.give_back(3);
        assert_eq!(pace.take(hour), 3);
        pace.give_back(100);
        assert_eq!(pace.take(hour), 10);
    }

    #[test]
    fn a_rate_below_a_chunk_a_look_still_gets_there() {
        let start = Instant::now();
        let mut pace = ChunkRateLimiter::new(1024, CHUNK, start);
        assert_eq!(pace.take(start), 1);
        assert_eq!(pace.take(start + Duration::from_secs(2047)), 0);
        assert_eq!(pace.take(start + Duration::from_secs(2048)), 1);
    }
}
