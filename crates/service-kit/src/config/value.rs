//! Values and how their text is read. Every parser's error says what would be right and never
//! repeats the text: the caller adds it where it is no secret.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

const BYTES_EXPECTED: &str =
    "expected bytes as a plain whole number or with a unit: 10GiB, 2MiB, 64MB";
const DURATION_EXPECTED: &str =
    "expected a duration with its unit (us, ms, s, m, h, d): 250ms, 30s, 1m30s";

/// Binary units first: `KiB` must not be read as `KB` with something in between.
const BYTE_UNITS: [(&str, u64); 12] = [
    ("", 1),
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("pib", 1 << 50),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("pb", 1_000_000_000_000_000),
];

const DURATION_UNITS: [(&str, u64); 6] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

/// A value that no `Debug`, `Display` or error shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
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

/// A size given outright, or as a part of something known later.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BytesOrPercent {
    Bytes(u64),
    /// 0 to 100.
    Percent(f64),
}

impl BytesOrPercent {
    /// The bytes meant when the whole is `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            BytesOrPercent::Bytes(bytes) => bytes,
            // f64 rounds large totals up; never more than the whole.
            BytesOrPercent::Percent(percent) => {
                ((total as f64 * (percent / 100.0)) as u64).min(total)
            }
        }
    }
}

/// What an option's text became.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Text(String),
    Integer(u64),
    Ratio(f64),
    Share(BytesOrPercent),
    Duration(Duration),
    Url(Url),
    SocketAddress(SocketAddr),
    Path(PathBuf),
    Secret(Secret),
}

/// Types a [`Value`] can be taken out as.
pub trait FromValue: Sized {
    fn from_value(value: &Value) -> Option<Self>;
}

macro_rules! from_value {
    ($($type:ty => $variant:ident),* $(,)?) => {$(
        impl FromValue for $type {
            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    Value::$variant(inner) => Some(inner.clone()),
                    _ => None,
                }
            }
        }
    )*};
}

from_value! {
    bool => Bool,
    String => Text,
    u64 => Integer,
    f64 => Ratio,
    BytesOrPercent => Share,
    Duration => Duration,
    Url => Url,
    SocketAddr => SocketAddress,
    PathBuf => Path,
    Secret => Secret,
}

pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// `4096`, `10GiB` (1024-based), `10GB` (1000-based), `1.5GiB`; units in any case.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, factor) = BYTE_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| BYTES_EXPECTED.to_owned())?;
    scale(number, *factor, unit.is_empty(), BYTES_EXPECTED)
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

/// `30s`, `250ms`, `1m30s`, `0`. A bare number has no unit and is refused.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(DURATION_EXPECTED.to_owned());
    }
    let mut micros: u64 = 0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or(DURATION_EXPECTED)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let (_, factor) = DURATION_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or(DURATION_EXPECTED)?;
        let part = scale(number, *factor, false, DURATION_EXPECTED)?;
        micros = micros.checked_add(part).ok_or(DURATION_EXPECTED)?;
        rest = tail;
    }
    Ok(Duration::from_micros(micros))
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

/// `127.0.0.1:7400`, `[::1]:7400`, `localhost:7400`. Other names are refused: what a listener binds
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

/// `1.5 GiB`: three digits at most, for people.
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

/// `number` (digits, at most one point) times `factor`, exactly, rounded down; no overflow.
fn scale(number: &str, factor: u64, whole_only: bool, expected: &str) -> Result<u64, String> {
    let wrong = || expected.to_owned();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let has_point = number.contains('.');
    // 12 digits: a finer fraction of a TiB is less than a byte.
    let fraction_ok = is_digits(fraction) && fraction.len() <= 12;
    if !is_digits(whole) || (has_point && (whole_only || !fraction_ok)) {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let mut total = u128::from(whole) * u128::from(factor);
    if has_point {
        let digits: u64 = fraction.parse().map_err(|_| wrong())?;
        let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
        total += u128::from(digits) * u128::from(factor) / scale;
    }
    u64::try_from(total).map_err(|_| format!("too large: {expected}"))
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
            "10G",
            "GiB",
            "1..5GiB",
            "1.GiB",
            "99999999999PiB",
            "1e3",
            "5%",
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
        for bad in [
            "",
            "30",
            "s",
            "30 s",
            "5x",
            "1m30",
            "-1s",
            "99999999999999d",
        ] {
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
        assert!(!format!("{:?}", Value::Secret(Secret::new("hunter2"))).contains("hunter2"));
    }

    proptest! {
        #[test]
        fn plain_numbers_are_bytes(bytes: u64) {
            prop_assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes));
            prop_assert_eq!(parse_bytes(&format!("{bytes}B")), Ok(bytes));
        }

        #[test]
        fn units_multiply(count in 0_u64..1 << 13, unit in 0_usize..BYTE_UNITS.len()) {
            let (name, factor) = BYTE_UNITS[unit];
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
