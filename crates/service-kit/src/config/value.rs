//! Value parsers. Every error says what is valid, without the given text, which clap adds.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytesize::ByteSize;
use url::Url;

const BYTES_EXPECTED: &str =
    "expected bytes as a plain whole number or with a unit: 10GiB, 2MiB, 64MB";
/// An instant this far ahead can still be represented.
const MAX_DURATION: Duration = Duration::from_hours(100 * 365 * 24);

/// A value that `Debug`, `Display` and errors never show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// Any text; the form that clap's `value_parser` takes.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Secret(text.to_owned()))
    }

    /// The value itself; the caller must not print it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// A size in bytes, or as a part of a total that is known later.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BytesOrPercent {
    Bytes(u64),
    /// 0 to 100.
    Percent(f64),
}

impl BytesOrPercent {
    /// Resolves to bytes, given a total of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            BytesOrPercent::Bytes(bytes) => bytes,
            // f64 rounds large totals up, but the result must not exceed the total.
            BytesOrPercent::Percent(percent) => {
                ((total as f64 * (percent / 100.0)) as u64).min(total)
            }
        }
    }
}

/// `4096`, `10GiB` (1024-based), `10GB` (1000-based), `1.5GiB`; units are case-insensitive.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let wrong = || BYTES_EXPECTED.to_owned();
    if text.ends_with(|c: char| c.is_ascii_digit()) {
        return text.parse().map_err(|_| wrong());
    }
    match text.parse::<ByteSize>() {
        // Its arithmetic saturates.
        Ok(size) if size.as_u64() < u64::MAX => Ok(size.as_u64()),
        _ => Err(wrong()),
    }
}

/// [`parse_bytes`], or `5%` (0 to 100, fractions allowed).
pub fn parse_bytes_or_percent(text: &str) -> Result<BytesOrPercent, String> {
    let expected = || format!("{BYTES_EXPECTED}, or percent from 0% to 100%");
    match text.trim().strip_suffix('%') {
        None => parse_bytes(text)
            .map(BytesOrPercent::Bytes)
            .map_err(|_| expected()),
        Some(number) if number.bytes().all(|b| b.is_ascii_digit() || b == b'.') => {
            match number.parse::<f64>() {
                Ok(percent) if percent <= 100.0 => Ok(BytesOrPercent::Percent(percent)),
                _ => Err(expected()),
            }
        }
        Some(_) => Err(expected()),
    }
}

/// Bytes per second: [`parse_bytes`], with or without `/s`.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let text = text.trim();
    parse_bytes(text.strip_suffix("/s").unwrap_or(text))
        .map_err(|_| "expected bytes per second: 10MiB, 10MiB/s, 1000000".to_owned())
}

/// A time of day, `HH:MM`, as minutes.
pub fn parse_time_of_day(text: &str) -> Result<u16, String> {
    let number = |text: &str, limit: u16| {
        let is_written = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u16>().ok().filter(|_| is_written);
        number.filter(|number| *number < limit)
    };
    let parts = text.split_once(':');
    let minutes = parts.and_then(|(hour, minute)| Some((number(hour, 24)?, number(minute, 60)?)));
    let (hour, minute) = minutes.ok_or("expected a time of day, HH:MM")?;
    Ok(hour * 60 + minute)
}

/// `30s`, `250ms`, `1m30s`, `0`. A bare number has no unit and is refused.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = "expected a duration such as 250ms, 30s or 1m30s";
    match humantime::parse_duration(text.trim()) {
        Ok(duration) if duration <= MAX_DURATION => Ok(duration),
        Ok(_) => Err(format!("{expected}, at most 100 years")),
        Err(error) => Err(format!("{expected}: {error}")),
    }
}

/// A number from 0 to 1, both inclusive.
pub fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

/// An absolute `http` or `https` URL with a host.
pub fn parse_url(text: &str) -> Result<Url, String> {
    let expected = || "expected a URL: http://host:port or https://host".to_owned();
    let url = Url::parse(text.trim()).map_err(|_| expected())?;
    if matches!(url.scheme(), "http" | "https") && url.has_host() {
        Ok(url)
    } else {
        Err(expected())
    }
}

/// A URL that others append a path to, without a `/` at its end.
pub fn parse_base_url(text: &str) -> Result<String, String> {
    let url = parse_url(text)?;
    let credentials = !url.username().is_empty() || url.password().is_some();
    if credentials || url.query().or(url.fragment()).is_some() {
        return Err("expected no credentials, no query and no fragment".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// `127.0.0.1:7400`, `[::1]:7400`, `localhost:7400`. Other names are refused: a listener's address
/// must not depend on a resolver.
pub fn parse_socket_address(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    if let Some(port) = text
        .strip_prefix("localhost:")
        .and_then(|port| port.parse().ok())
    {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse()
        .map_err(|_| "expected ADDRESS:PORT: 127.0.0.1:7400, 0.0.0.0:7400, [::1]:7400".to_owned())
}

/// `1.5 GiB`: at most three digits, for people.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 and up would print as 1024.0.
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// `3s`, `2m05s`, `1h02m`, `3d04h`: the two largest units, for people.
pub fn human_duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_of_every_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("2MiB", 2 << 20),
            ("2 mib", 2 << 20),
            ("10GiB", 10 << 30),
            ("64MB", 64_000_000),
            ("1.5GiB", 3 << 29),
            ("7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "-1",
            "1.5",
            "GiB",
            "1..5GiB",
            "99999999999PiB",
            "1e3",
            "5%",
            "inf",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, micros) in [
            ("30s", 30_000_000),
            ("250ms", 250_000),
            ("5m", 300_000_000),
            ("1m30s", 90_000_000),
            ("0", 0),
            ("1.5s", 1_500_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_micros(micros)),
                "{text}"
            );
        }
        for bad in ["", "30", "s", "5x", "1m30", "-1s", "99999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_and_rates() {
        assert_eq!(
            parse_bytes_or_percent("5%"),
            Ok(BytesOrPercent::Percent(5.0))
        );
        assert_eq!(
            parse_bytes_or_percent("1GiB"),
            Ok(BytesOrPercent::Bytes(1 << 30))
        );
        assert_eq!(BytesOrPercent::Percent(5.0).of(1000), 50);
        for bad in ["101%", "-1%", "%", "inf%", "1e1%"] {
            assert!(parse_bytes_or_percent(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_rate("10MiB/s"), Ok(10 << 20));
        assert_eq!(parse_rate("10MiB"), Ok(10 << 20));
    }

    #[test]
    fn addresses_and_urls() {
        assert_eq!(
            parse_socket_address("localhost:7400").unwrap().to_string(),
            "127.0.0.1:7400"
        );
        assert!(parse_socket_address("[::1]:1").is_ok());
        for bad in [
            "7400",
            ":7400",
            "example.org:7400",
            "127.0.0.1",
            "127.0.0.1:99999",
        ] {
            assert!(parse_socket_address(bad).is_err(), "{bad}");
        }
        assert!(parse_url("https://a.example/x").is_ok());
        for bad in ["a.example", "ftp://a.example/", "http://", "unix:/x"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
        let base = parse_base_url("https://a.example/x/");
        assert_eq!(base.as_deref(), Ok("https://a.example/x"));
        for bad in ["http://a/?q", "http://a/#f", "http://u@a/", "http://:p@a/"] {
            assert!(parse_base_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn for_people() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(human_duration(59), "59s");
        assert_eq!(human_duration(125), "2m05s");
        assert_eq!(human_duration(3720), "1h02m");
        assert_eq!(human_duration(273_600), "3d04h");
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
    }

    const UNITS: [(&str, u64); 5] = [
        ("", 1),
        ("KiB", 1 << 10),
        ("mib", 1 << 20),
        ("GB", 1_000_000_000),
        ("TiB", 1 << 40),
    ];

    proptest! {
        #[test]
        fn plain_numbers_are_bytes(bytes: u64) {
            prop_assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes));
            prop_assert_eq!(parse_bytes(&format!("{bytes}B")), Ok(bytes));
        }

        #[test]
        fn units_multiply(count in 0_u64..1 << 13, unit in 0_usize..UNITS.len()) {
            let (name, factor) = UNITS[unit];
            prop_assert_eq!(parse_bytes(&format!("{count}{name}")), Ok(count * factor));
            prop_assert_eq!(parse_rate(&format!("{count}{name}/s")), Ok(count * factor));
        }

        #[test]
        fn durations_add(hours in 0_u64..1000, seconds in 0_u64..1000, millis in 0_u64..1000) {
            let text = format!("{hours}h{seconds}s{millis}ms");
            let expected = Duration::from_millis((hours * 3600 + seconds) * 1000 + millis);
            prop_assert_eq!(parse_duration(&text), Ok(expected));
        }

        #[test]
        fn percents_stay_in_the_whole(percent in 0_u32..=100, total in 0_u64..1 << 60) {
            let share = parse_bytes_or_percent(&format!("{percent}%")).unwrap();
            prop_assert!(share.of(total) <= total);
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,24}") {
            let _ = parse_bytes(&text);
            let _ = parse_bytes_or_percent(&text);
            let _ = parse_duration(&text);
            let _ = parse_rate(&text);
            let _ = parse_url(&text);
            let _ = parse_socket_address(&text);
        }
    }
}
