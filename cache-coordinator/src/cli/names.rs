//! Parses entries and ranges from the command line.

use std::time::Duration;

use chunkcache_proto::v1::{ByteRange, EntryName, SourcePath, entry_name::Name};
use service_kit::config::{parse_bytes, parse_duration, parse_time_of_day};
use uuid::Uuid;

use super::failure::CliError;

/// `SOURCE/PATH`, an entry's id, or an absolute URL inside a source.
pub(super) fn entry_name(text: &str) -> Result<EntryName, CliError> {
    let name = if text.starts_with("http://") || text.starts_with("https://") {
        Name::Url(text.to_owned())
    } else if let Ok(id) = Uuid::try_parse(text) {
        Name::Id(id.to_string())
    } else {
        match text.trim_start_matches('/').split_once('/') {
            Some((source, path)) if !source.is_empty() && !path.is_empty() => {
                Name::SourcePath(SourcePath {
                    source: source.to_owned(),
                    path: path.to_owned(),
                })
            }
            _ => {
                return Err(CliError::Usage(format!(
                    "{text:?} names no entry: expected SOURCE/PATH, an entry's id, or a URL"
                )));
            }
        }
    };
    Ok(EntryName { name: Some(name) })
}

/// A range as written, with inclusive bytes as in HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WrittenRange {
    /// `A-B` and `A-`, here half-open; without an end it is `u64::MAX`, which the coordinator cuts
    /// to the size.
    FromTo { start: u64, end: u64 },
    /// `-N`: the last N bytes.
    Last(u64),
}

impl From<ByteRange> for WrittenRange {
    fn from(range: ByteRange) -> Self {
        Self::FromTo {
            start: range.start,
            end: range.end,
        }
    }
}

impl WrittenRange {
    /// Resolves it to half-open bytes of an object of `size` bytes.
    pub(super) fn resolve(self, size: u64) -> ByteRange {
        match self {
            WrittenRange::FromTo { start, end } => ByteRange { start, end },
            WrittenRange::Last(count) => ByteRange {
                start: size.saturating_sub(count),
                end: size,
            },
        }
    }
}

/// `A-B`, `A-` or `-N`; numbers may have units, as in `10MiB`.
pub(super) fn parse_range(text: &str) -> Result<WrittenRange, String> {
    let expected = || {
        "expected A-B (inclusive bytes), A- or -N (the last N): 0-1048575, 10MiB-, -1MiB".to_owned()
    };
    let (first, last) = text.trim().split_once('-').ok_or_else(expected)?;
    let number = |text: &str| parse_bytes(text).map_err(|_| expected());
    match (first, last) {
        ("", count) => match number(count)? {
            0 => Err(expected()),
            count => Ok(WrittenRange::Last(count)),
        },
        (start, "") => Ok(WrittenRange::FromTo {
            start: number(start)?,
            end: u64::MAX,
        }),
        (start, last) => {
            let (start, last) = (number(start)?, number(last)?);
            match last.checked_add(1) {
                Some(end) if start <= last => Ok(WrittenRange::FromTo { start, end }),
                _ => Err(expected()),
            }
        }
    }
}

/// A part of each day as written; the coordinator knows the time zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WrittenWindow {
    pub start: String,
    pub end: String,
}

/// `HH:MM-HH:MM`
pub(super) fn parse_window(text: &str) -> Result<WrittenWindow, String> {
    let expected = "expected HH:MM-HH:MM, for example 01:00-06:00";
    let is_time = |text: &str| parse_time_of_day(text).is_ok();
    match text.trim().split_once('-') {
        Some((start, end)) if is_time(start) && is_time(end) => {
            if start == end {
                return Err("expected an end that is not the start".to_owned());
            }
            Ok(WrittenWindow {
                start: start.to_owned(),
                end: end.to_owned(),
            })
        }
        _ => Err(expected.to_owned()),
    }
}

/// The beginning of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    Bytes(WrittenRange),
    /// What plays in it.
    Time(Duration),
}

/// `--first 60MiB`, or `30s` of a title.
pub(super) fn parse_first(text: &str) -> Result<Beginning, String> {
    if let Ok(end) = parse_bytes(text) {
        return match end {
            0 => Err("expected more than 0 bytes".to_owned()),
            end => Ok(Beginning::Bytes(WrittenRange::FromTo { start: 0, end })),
        };
    }
    match parse_duration(text.trim()) {
        Ok(time) if !time.is_zero() => Ok(Beginning::Time(time)),
        _ => Err("expected bytes, for example 60MiB, or of a manifest a time, 30s".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let name = |text: &str| entry_name(text).unwrap().name.unwrap();
        assert!(matches!(
            name("films/a/b.mp4?x=1"),
            Name::SourcePath(p) if p.source == "films" && p.path == "a/b.mp4?x=1"
        ));
        assert!(matches!(name("http://o.example/a.mp4"), Name::Url(_)));
        assert!(matches!(
            name("018f6a0e-0000-8000-8000-000000000001"),
            Name::Id(_)
        ));
        for bad in ["films", "", "/", "films/"] {
            assert!(entry_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn windows() {
        let window = parse_window("22:00-06:30").unwrap();
        assert_eq!((&*window.start, &*window.end), ("22:00", "06:30"));
        for bad in [
            "",
            "1:00-2:00",
            "24:00-01:00",
            "01:60-02:00",
            "01:00",
            "+1:00-02:00",
            "01:00-01:00",
        ] {
            assert!(parse_window(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_inclusive_as_written() {
        let range = |text: &str| parse_range(text).unwrap().resolve(1000);
        assert_eq!(range("0-99"), ByteRange { start: 0, end: 100 });
        assert_eq!(range("5-5"), ByteRange { start: 5, end: 6 });
        assert_eq!(
            range("1KiB-"),
            ByteRange {
                start: 1024,
                end: u64::MAX
            }
        );
        assert_eq!(
            range("-100"),
            ByteRange {
                start: 900,
                end: 1000
            }
        );
        assert_eq!(
            range("-5000"),
            ByteRange {
                start: 0,
                end: 1000
            }
        );
        let first = WrittenRange::FromTo {
            start: 0,
            end: 60 << 20,
        };
        assert_eq!(parse_first("60MiB"), Ok(Beginning::Bytes(first)));
        let minute = Duration::from_secs(60);
        assert_eq!(parse_first("60s"), Ok(Beginning::Time(minute)));
        for bad in ["0", "0s", "x", ""] {
            assert!(parse_first(bad).is_err(), "{bad}");
        }
        for bad in ["", "-", "5", "9-1", "a-b", "-0", "1-2-3"] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
    }
}
