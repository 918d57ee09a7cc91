//! `Retry-After` (RFC 9110, 10.2.3): seconds or a date, bounded.

use std::time::Duration;

use http::{HeaderMap, header};

use crate::origin_answer::{epoch_ms, text};

/// The longest `Retry-After` that is obeyed: an origin's typo must not disable a source for a year.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);
/// Used for a 429 without one.
pub const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long the answer asks to wait; `None` if it has no valid value.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now_ms: i64) -> Option<Duration> {
    let value = text(headers, header::RETRY_AFTER)?.trim();
    let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let wait = if is_number {
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let at = epoch_ms(httpdate::parse_http_date(value).ok()?);
        Duration::from_millis(u64::try_from(at.saturating_sub(now_ms)).unwrap_or(0))
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn wait(value: &str) -> Option<Duration> {
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]);
        // Sun, 06 Nov 1994 08:49:37 GMT
        retry_after(&headers, 784_111_777_000)
    }

    #[test]
    fn seconds_and_dates_within_bounds() {
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait(" 0 "), Some(Duration::ZERO));
        assert_eq!(
            wait("Sun, 06 Nov 1994 08:50:07 GMT"),
            Some(Duration::from_secs(30))
        );
        assert_eq!(wait("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(
            wait("99999999999999999999999"),
            Some(LONGEST_RETRY_AFTER),
            "a number beyond every integer is a long wait, not none"
        );
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-1"), None);
    }
}
