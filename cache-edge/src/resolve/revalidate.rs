//! Revalidates a stale binding: one conditional request that transfers no body.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::v1;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    bindings::{Bound, InvalidationEpoch},
    objects::EdgeObjects,
    pass_through, patience,
    ports::{Freshness, ServeError},
    probe::{Finding, refused, register},
};
use crate::clock::now_ms;
use crate::upstream::{OriginError, RequestClass, Response, Source, answer};
use http_rules::{
    fields, freshness,
    origin_answer::{Revalidation, judge_revalidation},
    validator,
};

/// How long a reader is held at most if the stale object may be served instead.
const PATIENCE_WITH_STALE: Duration = Duration::from_secs(3);

/// Asks the origin. An error means that the origin could not be asked.
pub async fn revalidate(
    objects: &EdgeObjects,
    source: &Arc<Source>,
    key: &v1::Key,
    forwarded: &HeaderMap,
    bound: Arc<Bound>,
) -> Result<Finding, ServeError> {
    let asking = || ask(objects, source, key, forwarded, &bound);
    let counters = &objects.parts().downloads.fetcher().counters;
    let result =
        if freshness::usable_on_error(&bound.freshness, &source.policy(&key.path), now_ms()) {
            let asked = tokio::time::timeout(PATIENCE_WITH_STALE, patience::believed(asking)).await;
            let asked = asked.unwrap_or(Err(OriginError::Stalled(PATIENCE_WITH_STALE)));
            if let Err(error) = &asked {
                patience::count(counters, source.name(), error);
            }
            asked
        } else {
            patience::ask(source, counters, asking).await
        };
    objects.note_health(source, key, result.as_ref().err());
    result.map_err(|error| pass_through::serve_error(&error))
}

async fn ask(
    objects: &EdgeObjects,
    source: &Arc<Source>,
    key: &v1::Key,
    forwarded: &HeaderMap,
    bound: &Arc<Bound>,
) -> Result<Finding, OriginError> {
    let since = objects.parts().bindings.now();
    let mut headers = forwarded.clone();
    // If the object did change, one byte is transferred instead of all of it.
    if bound.entry.size > 0 {
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
    }
    let unconditional = headers.clone();
    let (name, value) = answer::unchanged_condition(&bound.entry);
    if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
        headers.insert(name, value);
    }
    let (catalogue, client) = (&objects.parts().catalogue, &objects.parts().client);
    let get = |url| client.get(source, url, &headers, RequestClass::Foreground);
    let mut response = catalogue.ask_signed(source, key, get).await?;
    let again = match judge_revalidation(response.status) {
        Revalidation::Confirmed if answer::names_another(&response.headers, &bound.entry) => {
            Some(unconditional)
        }
        Revalidation::Unmet => Some(unconditional),
        // The object is empty by now, or the origin rejects the range.
        Revalidation::Unsatisfied => Some(forwarded.clone()),
        _ => None,
    };
    if let Some(headers) = again {
        // Close its connection first, because the origin may allow only one.
        drop(response);
        let get = |url| client.get(source, url, &headers, RequestClass::Foreground);
        response = catalogue.ask_signed(source, key, get).await?;
    }
    if pass_through::is_redirect(response.status) {
        return Ok(Finding::Unstorable("redirect"));
    }
    match judge_revalidation(response.status) {
        Revalidation::Confirmed => refreshed(objects, source, bound, since, &response),
        Revalidation::Object => {
            let described = answer::describe(response.status, &response.headers, now_ms());
            if described.validator.as_deref() == Some(bound.entry.validator.as_str())
                && described.size == Some(bound.entry.size)
            {
                return refreshed(objects, source, bound, since, &response);
            }
            // Another origin's version says nothing about the version of the first one.
            if let Some(error) = response.passed_over() {
                return Err(error.clone());
            }
            // Readers of the old entry finish with the chunks that are here.
            if let Some(file) = objects.parts().store.entry(&bound.id) {
                objects.parts().incoming.of(&file).set_changed();
            }
            let key = v1::Key {
                variant: String::new(),
                ..key.clone()
            };
            match register(objects, source, &key, forwarded, since, &response)? {
                Ok(new) => Ok(Finding::Object(new, answered(response.status))),
                Err(why) => Ok(Finding::Unstorable(why)),
            }
        }
        Revalidation::Gone | Revalidation::Refused => {
            // An origin that was passed over may have it.
            if let Some(error) = response.passed_over() {
                return Err(error.clone());
            }
            let answer = (response.status, &response.headers);
            refused(objects, source, key, forwarded, since, answer, false)
        }
        Revalidation::Unsatisfied | Revalidation::Unmet | Revalidation::Failed => {
            Err(answer::status_error(response.status, &response.headers, now_ms()).into())
        }
    }
}

/// RFC 9111, 4.3.4: fields of the 304 replace the old ones, all others remain.
fn refreshed(
    objects: &EdgeObjects,
    source: &Source,
    bound: &Arc<Bound>,
    since: InvalidationEpoch,
    response: &Response,
) -> Result<Finding, OriginError> {
    let parts = objects.parts();
    let headers = &response.headers;
    let mut described = answer::describe(StatusCode::NOT_MODIFIED, headers, now_ms());
    described.size = Some(bound.entry.size);
    described.validator = Some(bound.entry.validator.clone());
    let ahead_ms = parts.downloads.fetcher().counters.clock_ahead_ms();
    let mut facts = answer::facts(headers, &described).on_clock_ahead(ahead_ms);
    let kept = fields::refreshed(&bound.freshness.fields, headers);
    facts.targeted = freshness::targeted(&kept);
    if !headers.contains_key(header::CACHE_CONTROL) && !headers.contains_key(header::EXPIRES) {
        facts
            .cache_control
            .clone_from(&bound.freshness.cache_control);
    }
    if facts.vary.is_empty() {
        facts.vary.clone_from(&bound.freshness.vary);
    }
    debug_assert!(validator::is_strong(&bound.entry.etag) || !bound.entry.last_modified.is_empty());
    let key = bound.entry.key.clone().unwrap_or_default();
    let forwarded = &source.config.forward_headers;
    parts
        .bindings
        .add_known_vary(&key, forwarded, &mut facts.vary);
    let now = now_ms();
    if let Err(why) = freshness::stays(&facts) {
        // It is for others no longer, as it was before.
        parts.bindings.unbind(&key);
        parts.bindings.set_unstorable(&key, why, now);
        return Ok(Finding::Unstorable(why));
    }
    facts.response_delay_ms = now - response.asked_ms;
    let mut fresh = freshness::freshness(&facts, &source.policy(&key.path), now);
    fresh.fields = kept;
    let take_in = || {
        parts.announce.observed(&bound.entry, &fresh);
        if let Some(file) = parts.store.entry(&bound.id) {
            parts.incoming.of(&file).set_current();
        }
        parts.bindings.bind(bound.entry.clone(), fresh)
    };
    let renewed = parts.bindings.unless_invalidated(since, &key, take_in);
    let renewed = renewed.ok_or(OriginError::Overtaken)?;
    let renewed = renewed.unwrap_or_else(|| bound.clone());
    Ok(Finding::Object(renewed, answered(response.status)))
}

fn answered(status: StatusCode) -> Freshness {
    Freshness::Revalidated {
        collapsed: false,
        status: status.as_u16(),
    }
}
