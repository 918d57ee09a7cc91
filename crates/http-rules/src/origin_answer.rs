//! Checks an origin's answer against the request and the entry. Pure.
//!
//! RFC 9110, 15.3.7 lets a server answer a range request with other parts, and some servers do
//! worse. No byte of an answer is written unless the answer is exactly the requested range of
//! exactly this version.

use std::time::Duration;

use chunkcache_proto::{ByteRange, v1};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::{
    content_range::{self, ContentRange},
    freshness::{self, AnswerFacts},
    retry_after::{DEFAULT_RETRY_AFTER, retry_after},
    validator,
};

/// RFC 9213.
const CDN_CACHE_CONTROL: header::HeaderName = header::HeaderName::from_static(freshness::TARGETED);
/// A 206 that is shorter than requested must have at least this many bytes.
const SHORTEST_PART: u64 = 64 << 10;

/// Why an answer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// 5xx, 408, 425: may succeed in a moment.
    #[error("answered {status}")]
    Unavailable {
        status: u16,
        retry_after: Option<Duration>,
    },
    /// 429
    #[error("answered 429")]
    Busy { retry_after: Duration },
    /// Any other status without an object: 404, 410, 403, ...
    #[error("answered {status}")]
    Refused { status: u16 },
    /// Another validator or another size than the entry's.
    #[error("has another version of the object now")]
    Changed,
    /// Something that HTTP does not allow, or that a cache of ranges does not accept.
    #[error("{0}")]
    Protocol(String),
}

/// An object as described by one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMetadata {
    pub size: Option<u64>,
    pub validator: Option<String>,
    /// It has a date that would be strong if it were a second older.
    pub is_young: bool,
    pub etag: String,
    pub last_modified: String,
    pub content_type: String,
}

/// The bytes that an answer's body carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// 206: the requested bytes.
    Range(ByteRange),
    /// 200: the origin ignores ranges; the whole object from its first byte.
    Whole,
}

/// The condition to which an entry's origin answers 304.
#[must_use]
pub fn unchanged_condition(entry: &v1::Entry) -> (header::HeaderName, &str) {
    if entry.etag.is_empty() {
        (header::IF_MODIFIED_SINCE, &entry.last_modified)
    } else {
        (header::IF_NONE_MATCH, &entry.etag)
    }
}

/// The header for `[start, end)`, and the conditions that bind it to one version of the object.
pub fn range_headers(range: ByteRange, entry: Option<&v1::Entry>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let text = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(header::RANGE, value);
    }
    let Some(entry) = entry else { return headers };
    // If-Match rather than If-Range, so that a changed object costs a 412 instead of a body.
    let (name, value) = if validator::is_strong(&entry.etag) {
        (header::IF_MATCH, &entry.etag)
    } else {
        (header::IF_UNMODIFIED_SINCE, &entry.last_modified)
    };
    if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
        headers.insert(name, value);
    }
    headers
}

/// The request headers of the client for which the variant was made; without them the origin would
/// select another object.
pub fn variant_headers(variant: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in freshness::variant_headers(variant) {
        if let (Ok(name), Ok(value)) = (
            header::HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_bytes(&value),
        ) && !value.is_empty()
        {
            headers.insert(name, value);
        }
    }
    headers
}

/// Checks the answer to a request for `asked` of `entry`.
pub fn check(
    status: StatusCode,
    headers: &HeaderMap,
    asked: ByteRange,
    entry: &v1::Entry,
    now_ms: i64,
) -> Result<Part, AnswerError> {
    match status {
        StatusCode::PARTIAL_CONTENT => {
            refuse_encoded(headers)?;
            let (range, size) = satisfied(headers)?;
            if size.is_some_and(|size| size != entry.size) {
                return Err(AnswerError::Changed);
            }
            same_version(headers, entry)?;
            if range != asked && !is_shorter(range, asked) {
                return Err(AnswerError::Protocol(format!(
                    "asked for bytes {}-{}, it sends {}-{}",
                    asked.start,
                    asked.end.saturating_sub(1),
                    range.start,
                    range.end.saturating_sub(1)
                )));
            }
            if content_length(headers).is_some_and(|length| length != range.len()) {
                return Err(AnswerError::Protocol(
                    "its Content-Length is not that of its Content-Range".into(),
                ));
            }
            Ok(Part::Range(range))
        }
        StatusCode::OK => {
            refuse_encoded(headers)?;
            same_version(headers, entry)?;
            match content_length(headers) {
                Some(length) if length == entry.size => Ok(Part::Whole),
                Some(_) => Err(AnswerError::Changed),
                None => Err(AnswerError::Protocol(
                    "it no longer tells the object's length".into(),
                )),
            }
        }
        StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => {
            Err(AnswerError::Changed)
        }
        other => Err(status_error(other, headers, now_ms)),
    }
}

/// Whether a 206 ends before the requested range does (RFC 9110, 15.3.7): the rest is requested
/// next. Tiny parts do not count, because they would turn one request into thousands.
#[must_use]
pub fn is_shorter(range: ByteRange, asked: ByteRange) -> bool {
    range.start == asked.start && range.end < asked.end && range.len() >= SHORTEST_PART
}

/// The outcome of a revalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revalidation {
    /// 304: the object is unchanged.
    Confirmed,
    /// 200 or 206: the object, which may be another version.
    Object,
    /// 404, 410, 451: the object no longer exists.
    Gone,
    /// 416: the size does not fit a range from the first byte; repeat without a range.
    Unsatisfied,
    /// 412: `If-None-Match` of a GET must not be answered so (RFC 9110, 13.1.2); repeat without
    /// the condition, which is this edge's and no client's.
    Unmet,
    /// Any other 4xx: passed on, and never hidden behind the old object (RFC 5861, 4).
    Refused,
    /// 5xx, 408, 425, 429 and invalid answers: the old object may be served.
    Failed,
}

/// Classifies the status of a revalidation.
#[must_use]
pub fn judge_revalidation(status: StatusCode) -> Revalidation {
    match status.as_u16() {
        304 => Revalidation::Confirmed,
        200 | 206 => Revalidation::Object,
        404 | 410 | 451 => Revalidation::Gone,
        412 => Revalidation::Unmet,
        416 => Revalidation::Unsatisfied,
        // 407 is for proxies, and this edge is not a proxy to its origin.
        407 | 408 | 425 | 429 => Revalidation::Failed,
        400..=499 => Revalidation::Refused,
        _ => Revalidation::Failed,
    }
}

/// Whether an origin that refused this request may answer it without the range: some refuse a range
/// because it is long, or because it counts from the end.
#[must_use]
pub fn may_refuse_range(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 403 | 406 | 501)
}

/// The error for any other status.
pub fn status_error(status: StatusCode, headers: &HeaderMap, now_ms: i64) -> AnswerError {
    let retry_after = retry_after(headers, now_ms);
    match status.as_u16() {
        429 => AnswerError::Busy {
            retry_after: retry_after.unwrap_or(DEFAULT_RETRY_AFTER),
        },
        408 | 425 | 500..=599 => AnswerError::Unavailable {
            status: status.as_u16(),
            retry_after,
        },
        status => AnswerError::Refused { status },
    }
}

/// The offset in the entry at which an answer's body begins; `None` if the body is not an unencoded
/// part of this version.
#[must_use]
pub fn offset_in(status: StatusCode, headers: &HeaderMap, entry: &v1::Entry) -> Option<u64> {
    if is_encoded(headers) || same_version(headers, entry).is_err() {
        return None;
    }
    match status {
        StatusCode::OK => Some(0),
        StatusCode::PARTIAL_CONTENT => Some(satisfied(headers).ok()?.0.start),
        _ => None,
    }
}

/// `Content-Range` of a 206, which must have a single range.
pub fn satisfied(headers: &HeaderMap) -> Result<(ByteRange, Option<u64>), AnswerError> {
    match single(headers, header::CONTENT_RANGE).and_then(content_range::parse) {
        Some(ContentRange::Satisfied { range, size }) => Ok((range, size)),
        Some(ContentRange::Unsatisfied { .. }) | None => Err(AnswerError::Protocol(
            "its 206 has no usable Content-Range".into(),
        )),
    }
}

/// Describes the object of a 200 or 206 that arrived at `now_ms`.
pub fn describe(status: StatusCode, headers: &HeaderMap, now_ms: i64) -> ObjectMetadata {
    let size = match status {
        StatusCode::PARTIAL_CONTENT => satisfied(headers).ok().and_then(|(_, size)| size),
        _ => content_length(headers),
    };
    let etag = etag(headers).unwrap_or("").to_owned();
    // An invalid date cannot be sent back as a condition.
    let last_modified = single(headers, header::LAST_MODIFIED)
        .filter(|date| httpdate::parse_http_date(date).is_ok())
        .unwrap_or("")
        .to_owned();
    let validator = size
        .filter(|_| !has_unreadable_tag(headers))
        .and_then(|size| validator::validator(Some(&etag), Some(&last_modified), size));
    let is_young = !validator::is_strong(&etag)
        && date_ms(headers, header::LAST_MODIFIED).is_some_and(|modified| {
            // An answer without a date gets the date of its arrival (RFC 9110, 6.6.1).
            let date = date_ms(headers, header::DATE).unwrap_or(now_ms);
            !validator::is_date_strong(modified, date)
        });
    ObjectMetadata {
        size,
        validator: validator.filter(|_| !is_young),
        is_young,
        etag,
        last_modified,
        content_type: text(headers, header::CONTENT_TYPE)
            .unwrap_or("application/octet-stream")
            .to_owned(),
    }
}

/// The input of [`freshness`].
pub fn facts(headers: &HeaderMap, described: &ObjectMetadata) -> AnswerFacts {
    AnswerFacts {
        cache_control: joined(headers, header::CACHE_CONTROL),
        targeted: joined(headers, CDN_CACHE_CONTROL),
        pragma_no_cache: joined(headers, header::PRAGMA)
            .to_ascii_lowercase()
            .contains("no-cache"),
        expires_ms: date_ms(headers, header::EXPIRES),
        expires_invalid: headers.contains_key(header::EXPIRES)
            && date_ms(headers, header::EXPIRES).is_none(),
        date_ms: date_ms(headers, header::DATE),
        // If it is a list, the first member counts (RFC 9111, 5.1).
        age_seconds: text(headers, header::AGE)
            .and_then(|age| age.split(',').next())
            .map_or(0, |age| freshness::delta_seconds(age.trim()) as u32),
        vary: joined(headers, header::VARY)
            .split(',')
            .map(|name| name.trim().to_ascii_lowercase())
            .filter(|name| !name.is_empty())
            .collect(),
        has_validator: described.validator.is_some(),
        is_young: described.is_young,
        size: described.size,
        encoded: is_encoded(headers),
        is_part: names_another_size(headers, described.size),
        response_delay_ms: 0,
    }
}

/// Whether a `Content-Range` contradicts the size. In a 200 it has no meaning (RFC 9110, 14.4), but
/// some servers send a part with it, and as many bytes as the part has.
fn names_another_size(headers: &HeaderMap, described: Option<u64>) -> bool {
    let named = text(headers, header::CONTENT_RANGE).and_then(content_range::parse);
    match named {
        Some(ContentRange::Satisfied { size, .. }) => size != described,
        Some(ContentRange::Unsatisfied { .. }) | None => false,
    }
}

/// RFC 9111, 4.3.4: a 304 that names another version than the stored one confirms nothing.
#[must_use]
pub fn names_another(headers: &HeaderMap, entry: &v1::Entry) -> bool {
    let opaque = |tag: &str| validator::quoted(tag).trim_start_matches("W/").to_owned();
    match etag(headers) {
        _ if has_unreadable_tag(headers) => true,
        Some(etag) => opaque(etag) != opaque(&entry.etag),
        None if validator::is_strong(&entry.etag) => false,
        None => {
            single(headers, header::LAST_MODIFIED).is_some_and(|date| date != entry.last_modified)
        }
    }
}

fn same_version(headers: &HeaderMap, entry: &v1::Entry) -> Result<(), AnswerError> {
    let validator = validator::validator(
        etag(headers),
        single(headers, header::LAST_MODIFIED),
        entry.size,
    );
    if validator.as_deref() == Some(entry.validator.as_str()) && !has_unreadable_tag(headers) {
        Ok(())
    } else {
        Err(AnswerError::Changed)
    }
}

fn refuse_encoded(headers: &HeaderMap) -> Result<(), AnswerError> {
    if is_encoded(headers) {
        return Err(AnswerError::Protocol(
            "it encodes the content, which was asked for as it is".into(),
        ));
    }
    Ok(())
}

fn is_encoded(headers: &HeaderMap) -> bool {
    joined(headers, header::CONTENT_ENCODING)
        .split(',')
        .any(|coding| {
            // `aws-chunked` describes how an object was uploaded to its bucket, not how it is
            // downloaded.
            let plain = ["", "identity", "aws-chunked"];
            !plain
                .iter()
                .any(|it| coding.trim().eq_ignore_ascii_case(it))
        })
}

/// Whether the body has a transfer coding other than `chunked`, which nobody asked for (`TE`) and
/// nothing removes: its bytes are not the object's (RFC 9112, 7).
#[must_use]
pub fn is_coded_for_transfer(headers: &HeaderMap) -> bool {
    let text = joined(headers, header::TRANSFER_ENCODING).to_ascii_lowercase();
    let codings = text.split(',').map(str::trim);
    let mut codings = codings.filter(|coding| !coding.is_empty()).rev();
    let is_known = matches!(codings.next(), None | Some("chunked" | "identity"));
    !is_known || codings.any(|coding| coding != "identity")
}

fn date_ms(headers: &HeaderMap, name: header::HeaderName) -> Option<i64> {
    let date = httpdate::parse_http_date(text(headers, name)?).ok()?;
    Some(epoch_ms(date))
}

/// The declared length of the body. RFC 9112, 6.3: beside a `Transfer-Encoding` it is ignored.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    text(headers, header::CONTENT_LENGTH)?.parse().ok()
}

/// A field's first line, also if it has text beyond ASCII (RFC 9110, 5.5: `obs-text`).
pub(crate) fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    std::str::from_utf8(headers.get(name)?.as_bytes()).ok()
}

/// The value of a field that may have one only. Lines that differ have none: which of them belongs
/// to the body cannot be told.
pub fn single(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut lines = headers.get_all(&name).iter();
    let first = lines.next()?;
    lines.all(|line| line == first).then_some(())?;
    std::str::from_utf8(first.as_bytes()).ok()
}

/// The entity tag. An empty one is none: gateways send it for each object whose tag they do not
/// know.
pub fn etag(headers: &HeaderMap) -> Option<&str> {
    single(headers, header::ETAG).filter(|tag| !matches!(*tag, "" | "\"\"" | "W/\"\""))
}

/// All lines of a list. Bytes that are no text are replaced, so that the members beside them count.
pub(crate) fn joined(headers: &HeaderMap, name: header::HeaderName) -> String {
    String::from_utf8_lossy(&freshness::one_line(headers, name)).into_owned()
}

/// Whether there is an entity tag that is no text, or several: it cannot be compared, and the
/// object may be of another version although everything else is equal.
fn has_unreadable_tag(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ETAG) && single(headers, header::ETAG).is_none()
}

pub(crate) fn epoch_ms(time: std::time::SystemTime) -> i64 {
    let since = time
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "origin_answer_tests.rs"]
mod tests;
