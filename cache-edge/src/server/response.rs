//! The heads of responses for an object.

use std::sync::Arc;

use chunkcache_proto::v1;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::clock::now_ms;
use crate::resolve::ports::{Freshness, Presence};
use http_rules::cache_status::{CacheStatus, Forward, MissClass, Missing};
use http_rules::conditional::Validators;
use http_rules::{freshness, validator};

pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Used if the origin gave no type (RFC 9110, 8.3: the client may then guess; it will not render
/// this one).
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// The entry's media type.
#[must_use]
pub fn content_type(entry: &v1::Entry) -> &str {
    if entry.content_type.is_empty() {
        UNKNOWN_TYPE
    } else {
        &entry.content_type
    }
}

/// The entry's validators, if it is of this age now.
#[must_use]
pub fn validators(entry: &v1::Entry, age_seconds: u64) -> Validators<'_> {
    Validators {
        etag: non_empty(&entry.etag),
        last_modified: non_empty(&entry.last_modified),
        given_ms: freshness::given_ms(age_seconds, now_ms()),
    }
}

/// Validators, freshness and `Accept-Ranges`: the fields shared by 200, 206, 304, 412 and 416. Made
/// once per object.
pub struct ResponseFields {
    fields: Vec<(HeaderName, HeaderValue)>,
    content_type: HeaderValue,
    kept: Arc<HeaderMap>,
}

impl ResponseFields {
    #[must_use]
    /// `kept`: other fields of the origin's answer.
    pub fn of(entry: &v1::Entry, cache_control: &str, kept: &Arc<HeaderMap>) -> Self {
        // List the headers that selected this entry. Other headers that the origin varies on are
        // the same in all requests from this edge.
        let key = entry.key.as_ref();
        let vary: Vec<&str> = key
            .into_iter()
            .flat_map(|key| freshness::variant_headers(&key.variant))
            .map(|(name, _)| name)
            .collect();
        let fields = [
            (header::ACCEPT_RANGES, "bytes"),
            (header::ETAG, &validator::quoted(&entry.etag)),
            (header::LAST_MODIFIED, &entry.last_modified),
            (header::CACHE_CONTROL, cache_control),
            (header::VARY, &vary.join(", ")),
        ];
        let fields = fields
            .into_iter()
            .filter_map(|(name, text)| Some((name, value(text)?)))
            .collect();
        Self {
            fields,
            kept: kept.clone(),
            content_type: value(content_type(entry))
                .unwrap_or(HeaderValue::from_static(UNKNOWN_TYPE)),
        }
    }

    pub fn insert(&self, headers: &mut HeaderMap, age_seconds: u64) {
        for (name, value) in &self.fields {
            headers.insert(name.clone(), value.clone());
        }
        headers.insert(header::AGE, HeaderValue::from(age_seconds));
    }

    /// Adds the origin's other fields, for answers with the object, or a 304.
    pub fn append_kept(&self, headers: &mut HeaderMap) {
        for (name, value) in self.kept.iter() {
            headers.append(name.clone(), value.clone());
        }
    }

    /// The origin's other fields.
    #[must_use]
    pub fn kept(&self) -> &HeaderMap {
        &self.kept
    }

    /// The object's content type.
    #[must_use]
    pub fn content_type(&self) -> HeaderValue {
        self.content_type.clone()
    }
}

/// The fields with the `Date` that their `Expires` counts from, if there is one.
#[must_use]
pub fn with_date(fields: &Arc<HeaderMap>, age_seconds: u64) -> Arc<HeaderMap> {
    if !fields.contains_key(header::EXPIRES) {
        return Arc::clone(fields);
    }
    let mut fields = HeaderMap::clone(fields);
    let date = freshness::date(age_seconds, now_ms());
    insert_text(&mut fields, header::DATE, date);
    Arc::new(fields)
}

/// A stored field value, if the origin sent it and it is still valid.
fn value(text: &str) -> Option<HeaderValue> {
    non_empty(text).and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok())
}

/// Inserts a text made by this edge.
pub fn insert_text(headers: &mut HeaderMap, name: HeaderName, text: String) {
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(name, value);
    }
}

/// `Cache-Status` of an object, from how its binding was confirmed and how much of the range is
/// here. `missing` is called if it is not a hit.
#[must_use]
pub fn cache_status(
    freshness: Freshness,
    presence: Presence,
    missing: impl FnOnce() -> Option<Missing>,
) -> CacheStatus {
    let is_expired = matches!(freshness, Freshness::Revalidated { .. });
    let mut status = status_words(freshness, presence);
    if status.forward.is_some() && status.detail.is_none() {
        // After a probe, bytes that are here now may have been brought by the probe itself.
        let is_known = !matches!(freshness, Freshness::Probed { .. });
        let class = missing().map(|missing| {
            let partly_here = missing.partly_here && is_known;
            MissClass::of(
                is_expired,
                Missing {
                    partly_here,
                    ..missing
                },
            )
        });
        status.detail = class.map(|class| class.token().to_owned());
    }
    status
}

fn status_words(freshness: Freshness, presence: Presence) -> CacheStatus {
    let by_presence = match presence {
        Presence::All => None,
        Presence::Some => Some(Forward::Partial),
        Presence::None => Some(Forward::Miss),
    };
    let missing = presence != Presence::All;
    match freshness {
        Freshness::Fresh => CacheStatus {
            forward: by_presence,
            stored: missing,
            ..CacheStatus::default()
        },
        Freshness::Probed { collapsed, status } => CacheStatus {
            forward: Some(Forward::Miss),
            forward_status: Some(status),
            stored: true,
            collapsed,
            detail: None,
        },
        Freshness::Revalidated { collapsed, status } => CacheStatus {
            forward: Some(Forward::Stale),
            forward_status: Some(status),
            stored: missing,
            collapsed,
            detail: None,
        },
        Freshness::StaleOnError => CacheStatus {
            forward: Some(Forward::Stale),
            stored: missing,
            detail: Some("stale-if-error".to_owned()),
            ..CacheStatus::default()
        },
        Freshness::StaleMeanwhile => CacheStatus {
            forward: by_presence,
            stored: missing,
            detail: Some("stale-while-revalidate".to_owned()),
            ..CacheStatus::default()
        },
    }
}

fn non_empty(text: &str) -> Option<&str> {
    if text.is_empty() { None } else { Some(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_freshness_and_presence_has_its_words() {
        let words = |freshness, presence| cache_status(freshness, presence, || None).render("e");
        let expired = Freshness::Revalidated {
            collapsed: false,
            status: 304,
        };
        let status = cache_status(expired, Presence::All, || Some(Missing::default()));
        assert_eq!(
            status.render("e"),
            "e; fwd=stale; fwd-status=304; detail=\"expired\""
        );
        assert_eq!(words(Freshness::Fresh, Presence::All), "e; hit");
        assert_eq!(
            words(Freshness::Fresh, Presence::Some),
            "e; fwd=partial; stored"
        );
        assert_eq!(
            words(Freshness::Fresh, Presence::None),
            "e; fwd=miss; stored"
        );
        assert_eq!(
            words(
                Freshness::Probed {
                    collapsed: true,
                    status: 206
                },
                Presence::None
            ),
            "e; fwd=miss; fwd-status=206; stored; collapsed"
        );
        assert_eq!(
            words(
                Freshness::Revalidated {
                    collapsed: false,
                    status: 304
                },
                Presence::All
            ),
            "e; fwd=stale; fwd-status=304"
        );
        assert_eq!(
            words(Freshness::StaleOnError, Presence::All),
            "e; fwd=stale; detail=\"stale-if-error\""
        );
        assert_eq!(
            words(Freshness::StaleMeanwhile, Presence::All),
            "e; hit; detail=\"stale-while-revalidate\""
        );
    }
}
