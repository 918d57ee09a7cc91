//! Signatures of presigned URLs: their parameters, and when they expire.
//!
//! A presigned URL is a permission, not only a name. Its signature is not part of the key, so that
//! all clients that have one share the object's bytes; the origin decides whether it is accepted.

use base64::Engine as _;
use chunkcache_proto::v1::KeyRules;

use crate::{pattern::matches, query_rules};

/// The name of the preset among the parameters that are left out of the key.
pub const PRESIGNED: &str = "presigned";

/// The parameters that S3, Google Cloud Storage and CloudFront put into presigned URLs.
const PARAMETERS: [&str; 8] = [
    "X-Amz-*",
    "X-Goog-*",
    "AWSAccessKeyId",
    "GoogleAccessId",
    "Signature",
    "Policy",
    "Key-Pair-Id",
    "Expires",
];

/// How long a signature without an expiry is considered valid.
const DEFAULT_LIFETIME_MS: i64 = 3_600_000;

/// Whether the origin is asked about each signature. Operators may instead trust every client that
/// can name an object.
#[must_use]
pub fn is_checked(rules: &KeyRules) -> bool {
    !rules.trust_cache && rules.ignore_query.iter().any(|rule| rule == PRESIGNED)
}

/// The parameters of a query that are its signature; empty: it has none.
#[must_use]
pub fn signature(query: &str, rules: &KeyRules) -> String {
    let ignored = query_rules::split(query, rules).ignored;
    let parameters = ignored.split('&');
    let signing: Vec<&str> = parameters
        .filter(|parameter| is_parameter(query_rules::name_of(parameter)))
        .collect();
    signing.join("&")
}

pub(crate) fn is_parameter(name: &str) -> bool {
    PARAMETERS.iter().any(|pattern| matches(pattern, name))
}

/// When a signature expires, in milliseconds since the epoch: at the earliest of the times that it
/// contains, in an hour if it contains none, and now if one of them cannot be parsed. A client may
/// have added parameters that its origin ignores, or have spelled them differently.
#[must_use]
pub fn expires_ms(signature: &str, now_ms: i64) -> i64 {
    let parameters = || {
        signature
            .split('&')
            .map(|it| it.split_once('=').unwrap_or((it, "")))
    };
    let values = |name: &'static str| {
        let named = parameters().filter(move |(key, _)| *key == name);
        named.map(|(_, value)| value).collect::<Vec<_>>()
    };
    let dated = |date, seconds| match (&*values(date), &*values(seconds)) {
        ([], []) => vec![],
        ([date], [seconds]) => vec![end(date, seconds)],
        _ => vec![None],
    };
    let mut ends = dated("X-Amz-Date", "X-Amz-Expires");
    ends.extend(dated("X-Goog-Date", "X-Goog-Expires"));
    ends.extend(values("Expires").iter().map(|it| it.parse().ok()));
    ends.extend(values("Policy").iter().map(|it| policy_end(it)));
    let told = ends.into_iter().map(|seconds: Option<i64>| {
        let ms = seconds.and_then(|seconds| seconds.checked_mul(1_000));
        ms.unwrap_or(now_ms)
    });
    told.min()
        .unwrap_or_else(|| now_ms.saturating_add(DEFAULT_LIFETIME_MS))
}

/// Seconds since the epoch, for a date plus a number of seconds.
fn end(date: &str, seconds: &str) -> Option<i64> {
    basic_time(date)?.checked_add(seconds.parse().ok()?)
}

/// Seconds since the epoch of `20261130T092200Z`.
fn basic_time(text: &str) -> Option<i64> {
    let is_time = text.len() == 16
        && text.bytes().enumerate().all(|(place, byte)| match place {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
    if !is_time {
        return None;
    }
    let part = |from: usize, to: usize| text[from..to].parse::<i64>().ok();
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    // Counted from March, so that leap days are at the end of a year.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let of_years = 365 * year + year / 4 - year / 100 + year / 400;
    let of_months = (153 * month + 2) / 5;
    /// Days from the first of March of the year 0 to the epoch.
    const TO_EPOCH: i64 = 719_468;
    let days = of_years + of_months + day - 1 - TO_EPOCH;
    Some(days * 86_400 + part(9, 11)? * 3_600 + part(11, 13)? * 60 + part(13, 15)?)
}

/// When a CloudFront policy ends.
fn policy_end(policy: &str) -> Option<i64> {
    // Its base64 uses other letters, which need no escapes in URLs.
    let standard = policy.replace('-', "+").replace('_', "=").replace('~', "/");
    let json = base64::engine::general_purpose::STANDARD
        .decode(standard)
        .ok()?;
    let policy: serde_json::Value = serde_json::from_slice(&json).ok()?;
    policy["Statement"][0]["Condition"]["DateLessThan"]["AWS:EpochTime"].as_i64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    #[test]
    fn it_expires_when_it_says() {
        let check = |signature: &str, seconds: i64| {
            assert_eq!(expires_ms(signature, NOW), seconds * 1_000, "{signature}");
        };
        check(
            "X-Amz-Date=19700101T000100Z&X-Amz-Expires=30&X-Amz-Signature=s",
            90,
        );
        check(
            "X-Amz-Expires=60&X-Amz-Date=20261130T092200Z",
            1_796_030_580,
        );
        check(
            "X-Goog-Date=20240229T235959Z&X-Goog-Expires=1",
            1_709_251_200,
        );
        check(
            "Expires=1700000000&Signature=s&Key-Pair-Id=k",
            1_700_000_000,
        );
        let policy = r#"{"Statement":[{"Resource":"*","Condition":
            {"DateLessThan":{"AWS:EpochTime":1700000001}}}]}"#;
        let encoded = base64::engine::general_purpose::STANDARD.encode(policy);
        let encoded = encoded
            .replace('+', "-")
            .replace('=', "_")
            .replace('/', "~");
        check(&format!("Policy={encoded}&Signature=s"), 1_700_000_001);
    }

    #[test]
    fn one_that_does_not_say_is_good_for_an_hour() {
        for signature in ["", "Signature=s", "X-Amz-Signature=s"] {
            assert_eq!(
                expires_ms(signature, NOW),
                NOW + DEFAULT_LIFETIME_MS,
                "{signature}"
            );
        }
    }

    /// Otherwise a client could extend its permission by spelling the expiry differently.
    #[test]
    fn one_that_is_not_understood_is_good_for_no_time() {
        for signature in [
            "X-Amz-Date=20261130T092200Z",
            "X-Amz-Expires=60&X-Amz-Signature=s",
            "X-Amz-Date=2026-11-30T09:22Z&X-Amz-Expires=60",
            "X-Amz-Date=20261130T092200Z&X-Amz-Expires=9223372036854775807",
            "X-Amz-Date=20261130T092200Z&X-Amz-Expires=60&X-Amz-Expires=60",
            "Expires=9223372036854775807",
            "Expires=tomorrow",
            "Expires=1700000000%20",
            "Expires",
            "Policy=e30_",
            "Policy=***",
            "X-Amz-Date=2026113\u{e9}T092200Z&X-Amz-Expires=1",
        ] {
            assert_eq!(expires_ms(signature, NOW), NOW, "{signature}");
        }
    }

    #[test]
    fn of_several_ends_the_first_counts() {
        let amz = "X-Amz-Date=19700101T000100Z&X-Amz-Expires=30";
        for (more, seconds) in [("Expires=80", 80), ("Expires=9999", 90)] {
            for signature in [format!("{amz}&{more}"), format!("{more}&{amz}")] {
                assert_eq!(expires_ms(&signature, NOW), seconds * 1_000, "{signature}");
            }
        }
        assert_eq!(expires_ms("Expires=70&Expires=60", NOW), 60_000);
    }

    #[test]
    fn it_is_what_the_preset_leaves_out() {
        let rules = |ignore: &[&str], trust_cache| KeyRules {
            ignore_query: ignore.iter().map(|&rule| rule.to_owned()).collect(),
            keep_query: vec!["X-Amz-Kept".into()],
            trust_cache,
            ..KeyRules::default()
        };
        let checked = rules(&["utm_*", PRESIGNED], false);
        assert!(is_checked(&checked));
        let query = "v=1&X-Amz-Date=d&utm_source=x&X-Amz-Kept=k&Signature=s&CMCD=c";
        assert_eq!(signature(query, &checked), "X-Amz-Date=d&Signature=s");
        assert_eq!(signature("v=1&CMCD=c", &checked), "");
        assert!(!is_checked(&rules(&[PRESIGNED], true)));
        assert!(!is_checked(&rules(&["utm_*"], false)));
    }
}
