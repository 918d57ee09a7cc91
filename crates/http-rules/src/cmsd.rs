//! Data about a response and its delivery for players: Common Media Server Data (CTA-5006), as
//! structured fields (RFC 9651).

use std::fmt::Write as _;

use http::HeaderName;

use crate::cache_status::write_string;

/// Describes the object: a Dictionary.
pub const STATIC: HeaderName = HeaderName::from_static("cmsd-static");
/// Describes this delivery: a List with a member for each server, the last one nearest to the
/// player.
pub const DYNAMIC: HeaderName = HeaderName::from_static("cmsd-dynamic");

/// A server's figures of one delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// `etp`: estimated throughput of its connection to the client, in kbit/s.
    pub throughput_kbps: Option<u64>,
    /// `mb`: upper bound of the rate, in kbit/s.
    pub max_kbps: Option<u64>,
    /// `rd`: time from the request until the body can begin, in ms.
    pub response_delay_ms: u64,
    /// `rtt`: round trip time of its connection to the client, in ms.
    pub round_trip_ms: Option<u64>,
}

impl Delivery {
    /// The server's member of the list, e.g. `"edge-1";etp=24000;rd=3;rtt=12`.
    #[must_use]
    pub fn render(&self, server: &str) -> String {
        let mut member = String::with_capacity(48);
        write_string(&mut member, server);
        for (key, value) in [
            ("etp", self.throughput_kbps),
            ("mb", self.max_kbps),
            ("rd", Some(self.response_delay_ms)),
            ("rtt", self.round_trip_ms),
        ] {
            if let Some(value) = value {
                // Writing to a String cannot fail.
                let _ = write!(member, ";{key}={value}");
            }
        }
        member
    }
}

/// The properties that follow from a media type: a manifest and its format, audio only, or
/// captions. Nothing follows for video, which may have sound or not.
#[must_use]
pub fn of_type(content_type: &str) -> Option<&'static str> {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    match essence.as_str() {
        "application/vnd.apple.mpegurl"
        | "application/x-mpegurl"
        | "audio/mpegurl"
        | "audio/x-mpegurl" => Some("ot=m, sf=h"),
        "application/dash+xml" => Some("ot=m, sf=d"),
        "text/vtt" | "application/ttml+xml" => Some("ot=c"),
        audio if audio.starts_with("audio/") => Some("ot=a"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_of_the_list() {
        let known = Delivery {
            throughput_kbps: Some(24_000),
            max_kbps: Some(8_000),
            response_delay_ms: 3,
            round_trip_ms: Some(12),
        };
        assert_eq!(
            known.render("edge-1"),
            "\"edge-1\";etp=24000;mb=8000;rd=3;rtt=12"
        );
        let little = Delivery::default();
        assert_eq!(little.render("a \"b\""), "\"a \\\"b\\\"\";rd=0");
    }

    #[test]
    fn only_what_a_type_tells_for_certain() {
        for (content_type, told) in [
            ("application/vnd.apple.mpegurl", Some("ot=m, sf=h")),
            ("audio/mpegURL; charset=utf-8", Some("ot=m, sf=h")),
            ("application/dash+xml", Some("ot=m, sf=d")),
            ("audio/mp4", Some("ot=a")),
            ("text/vtt", Some("ot=c")),
            ("video/mp4", None),
            ("", None),
        ] {
            assert_eq!(of_type(content_type), told, "{content_type}");
        }
    }
}
