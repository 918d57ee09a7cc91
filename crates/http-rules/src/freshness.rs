//! Freshness in a shared cache (RFC 9111, RFC 5861) under a source's policy.
//!
//! Decides whether an answer may be stored, how long it is fresh, and whether it may be served
//! while the origin cannot be reached. Times are milliseconds since the Unix epoch.

use std::time::{Duration, UNIX_EPOCH};

use chunkcache_proto::v1;
use http::{HeaderMap, header::AsHeaderName};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

/// The field for caches other than the client's (RFC 9213).
pub const TARGETED: &str = "cdn-cache-control";
/// Lifetime if neither the origin nor the policy gives one.
const DEFAULT_TTL_SECONDS: u32 = 60;
/// Default of the policy: an unreachable origin does not mean that the object was deleted.
const DEFAULT_STALE_IF_ERROR_SECONDS: u32 = 24 * 3600;
/// How long a 404 or 410 is remembered by default.
const DEFAULT_NEGATIVE_TTL_SECONDS: u32 = 5;
/// RFC 9111, 1.2.2: larger values count as this one.
const LARGEST_DELTA_SECONDS: u64 = 1 << 31;

/// The response directives that concern a shared cache (RFC 9111, 5.2.2; RFC 5861).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheControl {
    pub no_store: bool,
    pub private: bool,
    pub no_cache: bool,
    pub must_revalidate: bool,
    pub max_age: Option<u64>,
    pub s_maxage: Option<u64>,
    pub stale_if_error: Option<u64>,
    pub stale_while_revalidate: Option<u64>,
}

impl AnswerFacts {
    fn control(&self) -> CacheControl {
        CacheControl::parse(match self.targeted.trim() {
            "" => &self.cache_control,
            targeted => targeted,
        })
    }

    /// Shifts the origin's dates by the lead of the local clock.
    #[must_use]
    pub fn on_clock_ahead(mut self, by_ms: i64) -> Self {
        for date in [&mut self.date_ms, &mut self.expires_ms] {
            *date = date.map(|date| date.saturating_add(by_ms));
        }
        self
    }
}

impl CacheControl {
    /// Parses all field lines, joined by commas. Unknown directives are ignored. Of a repeated
    /// directive, the more restrictive value counts. An argument that is not a number makes the
    /// answer stale at once (RFC 9111, 4.2.1).
    #[must_use]
    pub fn parse(value: &str) -> Self {
        let mut parsed = Self::default();
        for directive in split_outside_quotes(value) {
            let (name, argument) = match directive.split_once('=') {
                Some((name, argument)) => (name.trim(), Some(argument.trim().trim_matches('"'))),
                None => (directive.trim(), None),
            };
            let delta = || argument.map_or(0, delta_seconds);
            let least = |old: Option<u64>| Some(old.map_or_else(delta, |old| old.min(delta())));
            match name.to_ascii_lowercase().as_str() {
                "no-store" => parsed.no_store = true,
                // With field names it applies only to those fields, which are not stored: see
                // `named_fields`.
                "private" => parsed.private |= argument.is_none(),
                "no-cache" => parsed.no_cache |= argument.is_none(),
                "must-revalidate" | "proxy-revalidate" => parsed.must_revalidate = true,
                "max-age" => parsed.max_age = least(parsed.max_age),
                "s-maxage" => parsed.s_maxage = least(parsed.s_maxage),
                "stale-if-error" => parsed.stale_if_error = least(parsed.stale_if_error),
                "stale-while-revalidate" => {
                    parsed.stale_while_revalidate = least(parsed.stale_while_revalidate);
                }
                _ => {}
            }
        }
        parsed
    }
}

/// The fields that `no-cache="…"` and `private="…"` name, in lower case (RFC 9111, 5.2.2.4 and
/// 5.2.2.7).
pub fn named_fields(cache_control: &str) -> impl Iterator<Item = String> + '_ {
    let directives = split_outside_quotes(cache_control).filter_map(|it| it.split_once('='));
    let naming = directives.filter(|(name, _)| {
        let name = name.trim();
        name.eq_ignore_ascii_case("no-cache") || name.eq_ignore_ascii_case("private")
    });
    naming
        .flat_map(|(_, names)| names.trim().trim_matches('"').split(','))
        .map(|name| name.trim().to_ascii_lowercase())
}

/// Splits at commas that are not in a quoted string (RFC 9110, 5.6.4). A quote that is never closed
/// quotes nothing: a directive that restricts must not disappear in it.
fn split_outside_quotes(value: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let text = rest?;
        let (member, after) = match end_of_member(text) {
            Some(end) => (&text[..end], Some(&text[end + 1..])),
            None => (text, None),
        };
        rest = after;
        Some(member)
    })
}

/// The index of the comma after the first member.
fn end_of_member(text: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        at += text[at..].find([',', '"'])?;
        if text[at..].starts_with(',') {
            return Some(at);
        }
        at += 1 + quoted_length(&text[at + 1..]).unwrap_or(0);
    }
}

/// The length of a quoted string with its closing quote, after which the member must end.
fn quoted_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    let close = text.find(|c| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes
    })?;
    let after = text[close + 1..].trim_start();
    (after.is_empty() || after.starts_with(',')).then_some(close + 1)
}

/// A number of seconds. A text that is not a number is 0, and one that is too large is 2³¹ (RFC
/// 9111, 1.2.2).
pub(crate) fn delta_seconds(text: &str) -> u64 {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return 0;
    }
    text.parse()
        .unwrap_or(LARGEST_DELTA_SECONDS)
        .min(LARGEST_DELTA_SECONDS)
}

/// The parts of an origin's answer that decide whether it is stored.
#[derive(Clone, Debug, Default)]
pub struct AnswerFacts {
    /// All `Cache-Control` lines joined by commas.
    pub cache_control: String,
    /// The same for `CDN-Cache-Control`, which is meant for caches like this one (RFC 9213): if it
    /// is present, `Cache-Control` and `Expires` are ignored.
    pub targeted: String,
    pub pragma_no_cache: bool,
    pub expires_ms: Option<i64>,
    /// `Expires` is not a valid date, which means: already expired (RFC 9111, 5.3).
    pub expires_invalid: bool,
    pub date_ms: Option<i64>,
    pub age_seconds: u32,
    /// Lower-case field names.
    pub vary: Vec<String>,
    /// The answer has a strong ETag or a Last-Modified.
    pub has_validator: bool,
    /// It will have a validator in a second: see [`crate::validator::is_date_strong`].
    pub is_young: bool,
    pub size: Option<u64>,
    /// `Content-Encoding` other than identity.
    pub encoded: bool,
    /// The answer is a 200 with a part of the object.
    pub is_part: bool,
    /// From the request to now: how much older the answer may be than it says (RFC 9111, 4.2.3).
    pub response_delay_ms: i64,
}

/// Why an answer is not stored now although it may be stored in a second.
pub const YOUNG: &str = "young-validator";

/// `Vary: *`: it answers this one request.
#[must_use]
pub fn varies_on_anything(facts: &AnswerFacts) -> bool {
    facts.vary.iter().any(|name| name == "*")
}

/// Whether a shared cache may have an answer at all, if it could be stored.
fn permitted(facts: &AnswerFacts) -> Result<(), &'static str> {
    let control = facts.control();
    if control.no_store {
        return Err("no-store");
    }
    if control.private {
        return Err("private");
    }
    if varies_on_anything(facts) {
        return Err("vary-any");
    }
    Ok(())
}

/// Whether an object stays stored after a 304, whose fields replace its own (RFC 9111, 4.3.4).
pub fn stays(not_modified: &AnswerFacts) -> Result<(), &'static str> {
    permitted(not_modified)
}

/// Whether an answer may be stored. The reason why not goes into `Cache-Status` as `detail`.
pub fn storable(facts: &AnswerFacts) -> Result<(), &'static str> {
    permitted(facts)?;
    if facts.is_part {
        return Err("content-range");
    }
    if facts.encoded {
        return Err("content-encoding");
    }
    if facts.size.is_none() {
        return Err("unknown-length");
    }
    if facts.is_young {
        return Err(YOUNG);
    }
    if !facts.has_validator {
        return Err("no-validator");
    }
    Ok(())
}

/// How long the key may be served without asking the origin, given an answer that arrived at
/// `now_ms`.
#[must_use]
pub fn freshness(facts: &AnswerFacts, policy: &v1::FreshnessPolicy, now_ms: i64) -> v1::Freshness {
    let lifetime = lifetime_seconds(facts, policy, now_ms);
    // RFC 9111, 4.2.3: the larger of Age and what Date implies.
    let apparent = facts
        .date_ms
        .map_or(0, |date| ((now_ms - date) / 1000).max(0));
    let age = i64::from(facts.age_seconds)
        .max(apparent)
        .min(LARGEST_DELTA_SECONDS as i64);
    // The policy's lifetimes count from our own confirmation, independent of the origin's clock and
    // caches.
    let left = match lifetime {
        Lifetime::Origin(seconds) => (seconds as i64 - age).max(0),
        Lifetime::Policy(seconds) => i64::from(seconds),
    };
    let asked_ms = now_ms.saturating_sub(facts.response_delay_ms.max(0));
    v1::Freshness {
        validated_at_ms: asked_ms,
        fresh_until_ms: asked_ms.saturating_add(left * 1000),
        initial_age_seconds: age as u32,
        cache_control: facts.cache_control.clone(),
        vary: facts.vary.clone(),
        sent_at_ms: 0,
        fields: Vec::new(),
        must_confirm: false,
    }
}

/// Statuses that may be stored if the answer gives a lifetime (RFC 9110, 15.1).
const KEPT_AS_A_WHOLE: [u16; 11] = [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501];

/// Whether an answer may be stored as a whole, and for how long: if it has an explicit lifetime, or
/// if it is a 200 and the source's policy gives one. It needs neither a validator nor a length.
#[must_use]
pub fn freshness_of_whole(
    status: u16,
    facts: &AnswerFacts,
    policy: &v1::FreshnessPolicy,
    now_ms: i64,
) -> Option<v1::Freshness> {
    let control = facts.control();
    let is_forbidden = control.no_store
        || control.private
        || control.no_cache
        || facts.encoded
        || facts.is_part
        || varies_on_anything(facts)
        || !KEPT_AS_A_WHOLE.contains(&status);
    let is_explicit = control.s_maxage.or(control.max_age).is_some() || facts.expires_ms.is_some();
    let by_policy = policy.override_ttl_seconds.or(policy.default_ttl_seconds);
    if is_forbidden || !(is_explicit || (status == 200 && by_policy.is_some())) {
        return None;
    }
    let fresh = freshness(facts, policy, now_ms);
    (now_ms < fresh.fresh_until_ms).then_some(fresh)
}

/// How long an answer without an object is remembered. The operator's setting takes precedence over
/// the origin's, which takes precedence over the default.
#[must_use]
pub fn negative_lifetime_ms(facts: &AnswerFacts, policy: &v1::FreshnessPolicy, now_ms: i64) -> i64 {
    let usual = i64::from(negative_ttl_seconds(policy)) * 1_000;
    let control = facts.control();
    if policy.negative_ttl_seconds.is_some() {
        return usual;
    }
    if control.no_store || control.private || control.no_cache || varies_on_anything(facts) {
        return 0;
    }
    let is_explicit = control.s_maxage.or(control.max_age).is_some() || facts.expires_ms.is_some();
    if !is_explicit {
        return usual;
    }
    freshness(facts, policy, now_ms).fresh_until_ms - now_ms
}

enum Lifetime {
    Origin(u64),
    Policy(u32),
}

fn lifetime_seconds(facts: &AnswerFacts, policy: &v1::FreshnessPolicy, now_ms: i64) -> Lifetime {
    if let Some(seconds) = policy.override_ttl_seconds {
        return Lifetime::Policy(seconds);
    }
    let control = facts.control();
    let is_targeted = !facts.targeted.trim().is_empty();
    let says_nothing = facts.cache_control.is_empty() && !is_targeted;
    if control.no_cache || (says_nothing && facts.pragma_no_cache) {
        return Lifetime::Origin(0);
    }
    if let Some(seconds) = control.s_maxage.or(control.max_age) {
        return Lifetime::Origin(seconds);
    }
    if is_targeted {
        return Lifetime::Policy(policy.default_ttl_seconds.unwrap_or(DEFAULT_TTL_SECONDS));
    }
    if facts.expires_invalid {
        return Lifetime::Origin(0);
    }
    let Some(expires) = facts.expires_ms else {
        return Lifetime::Policy(policy.default_ttl_seconds.unwrap_or(DEFAULT_TTL_SECONDS));
    };
    // An answer without a date gets the date of its arrival (RFC 9110, 6.6.1).
    let date = facts.date_ms.unwrap_or(now_ms);
    Lifetime::Origin(((expires - date) / 1000).max(0) as u64)
}

/// Whether a known binding may be used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fresh,
    /// Serve it and revalidate in the background (RFC 5861, 3).
    StaleWhileRevalidate,
    /// Ask the origin first.
    Stale,
}

/// `CDN-Cache-Control` among the fields of an object; empty: none.
#[must_use]
pub fn targeted(fields: &[v1::Header]) -> String {
    let lines = fields.iter().filter(|field| field.name == TARGETED);
    let lines: Vec<&str> = lines.map(|field| field.value.as_str()).collect();
    lines.join(", ")
}

/// The directives for caches like this one.
fn control_of(binding: &v1::Freshness) -> CacheControl {
    match targeted(&binding.fields).trim() {
        "" => CacheControl::parse(&binding.cache_control),
        targeted => CacheControl::parse(targeted),
    }
}

/// Judges a binding at `now_ms`.
#[must_use]
pub fn judge(binding: &v1::Freshness, now_ms: i64) -> Verdict {
    if now_ms < binding.fresh_until_ms {
        return Verdict::Fresh;
    }
    let control = control_of(binding);
    let grace_ms = control.stale_while_revalidate.unwrap_or(0) as i64 * 1000;
    if !control.must_revalidate
        && !control.no_cache
        && !binding.must_confirm
        && now_ms < binding.fresh_until_ms.saturating_add(grace_ms)
    {
        return Verdict::StaleWhileRevalidate;
    }
    Verdict::Stale
}

/// Whether the stale object may be served while its origin cannot be reached. An explicit setting
/// of the operator wins; otherwise the origin's `must-revalidate` and `no-cache` forbid it, and its
/// `stale-if-error` limits it.
#[must_use]
pub fn usable_on_error(binding: &v1::Freshness, policy: &v1::FreshnessPolicy, now_ms: i64) -> bool {
    let control = control_of(binding);
    let seconds = match policy.stale_if_error_seconds {
        Some(seconds) => u64::from(seconds),
        None if control.must_revalidate || control.no_cache => return false,
        // `s-maxage` means `proxy-revalidate` (5.2.2.10), unless the origin itself says more.
        None if control.s_maxage.is_some() && control.stale_if_error.is_none() => return false,
        None => control
            .stale_if_error
            .unwrap_or(u64::from(DEFAULT_STALE_IF_ERROR_SECONDS)),
    };
    now_ms < binding.fresh_until_ms.saturating_add(seconds as i64 * 1000)
}

/// Stamps a freshness that is sent to another machine: see [`receive`].
#[must_use]
pub fn stamp(mut freshness: v1::Freshness, now_ms: i64) -> v1::Freshness {
    freshness.sent_at_ms = now_ms;
    freshness
}

/// Converts the times of another machine's freshness to this machine's clock. A freshness without a
/// stamp is left as it is.
///
/// `ahead_ms`: how far this clock is ahead of the other one at most, as far as it is known. Without
/// it, a message that is late would prolong the freshness by the time it took.
#[must_use]
pub fn receive(mut freshness: v1::Freshness, now_ms: i64, ahead_ms: Option<i64>) -> v1::Freshness {
    if freshness.sent_at_ms != 0 {
        let seen = now_ms.saturating_sub(freshness.sent_at_ms);
        let ahead = ahead_ms.map_or(seen, |known| known.min(seen));
        for time in [
            &mut freshness.validated_at_ms,
            &mut freshness.fresh_until_ms,
        ] {
            *time = time.saturating_add(ahead);
        }
        // A confirmation in the future is impossible.
        freshness.validated_at_ms = freshness.validated_at_ms.min(now_ms);
        freshness.sent_at_ms = 0;
    }
    freshness
}

/// `Date` of an answer of this age: when the origin gave or confirmed it, by the local clock. It
/// goes with `Expires`, which counts from it: from the time of the delivery, caches nearer to the
/// client would count the age twice.
#[must_use]
pub fn date(age_seconds: u64, now_ms: i64) -> String {
    let now = Duration::from_millis(u64::try_from(now_ms).unwrap_or(0));
    let given = now.saturating_sub(Duration::from_secs(age_seconds));
    httpdate::fmt_http_date(UNIX_EPOCH + given)
}

/// The earliest time of [`date`], because ages are whole seconds.
#[must_use]
pub fn given_ms(age_seconds: u64, now_ms: i64) -> i64 {
    let age_ms = age_seconds.saturating_add(1).saturating_mul(1000);
    now_ms.saturating_sub(i64::try_from(age_ms).unwrap_or(i64::MAX))
}

/// `Age` of an answer given now (RFC 9111, 4.2.3).
#[must_use]
pub fn age_seconds(binding: &v1::Freshness, now_ms: i64) -> u64 {
    let resident = ((now_ms - binding.validated_at_ms) / 1000).max(0) as u64;
    u64::from(binding.initial_age_seconds) + resident
}

/// How long a 404 or 410 is remembered.
#[must_use]
pub fn negative_ttl_seconds(policy: &v1::FreshnessPolicy) -> u32 {
    policy
        .negative_ttl_seconds
        .unwrap_or(DEFAULT_NEGATIVE_TTL_SECONDS)
}

/// The name of the variant that a request selects: the headers that the origin varies on and that
/// are passed on to it. All other headers are the same in every request of this edge, so they
/// select nothing.
#[must_use]
pub fn variant(vary: &[String], forwarded: &[String], request: &HeaderMap) -> String {
    let mut names: Vec<&String> = vary
        .iter()
        .filter(|name| forwarded.iter().any(|f| f.eq_ignore_ascii_case(name)))
        .collect();
    names.sort_unstable();
    names.dedup();
    let parts: Vec<String> = names
        .iter()
        .map(|name| {
            // All lines and all bytes that the origin gets: what it can tell apart, the key tells
            // apart, too.
            let value = one_line(request, name.as_str());
            format!("{name}={}", percent_encode(&value, IN_VARIANT))
        })
        .collect();
    parts.join("&")
}

/// The lines of a field as one (RFC 9110, 5.3); empty: there is none.
#[must_use]
pub fn one_line(headers: &HeaderMap, name: impl AsHeaderName) -> Vec<u8> {
    let lines: Vec<&[u8]> = headers
        .get_all(name)
        .iter()
        .map(|line| line.as_bytes().trim_ascii())
        .collect();
    lines.join(&b", "[..])
}

/// Characters that would make two variants look like one.
const IN_VARIANT: &AsciiSet = &CONTROLS.add(b'%').add(b'&').add(b'=');

/// The header fields that selected a variant; an empty value: the request had none. The inverse of
/// [`variant`].
pub fn variant_headers(variant: &str) -> impl Iterator<Item = (&str, Vec<u8>)> {
    variant.split('&').filter_map(|part| {
        let (name, value) = part.split_once('=')?;
        Some((name, percent_decode_str(value).collect()))
    })
}

#[cfg(test)]
#[path = "freshness_tests.rs"]
mod tests;
