//! Answers requests from answers stored as a whole, and stores such answers.

use std::sync::Arc;

use bytes::Bytes;
use chunkcache_proto::v1;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_rules::{
    cache_status::{CacheStatus, Forward},
    conditional::{self, SELECTING, Validators, Verdict},
    fields, freshness, origin_answer,
    range::{self, Selection},
};

use super::{
    bindings::InvalidationEpoch,
    objects::EdgeObjects,
    pass_through,
    ports::{ObjectRequest, PassBody, PassThrough, ServeError},
    probe::Finding,
    whole::{PumpFuture, Whole, WholeDescription, full},
    whole_store::{Asking, Claim, Claimed},
};
use crate::clock::now_ms;
use crate::upstream::{Response, Source};

/// Why an object is not stored in chunks, if it may be stored as a whole.
pub(super) const AS_A_WHOLE: &str = "as-a-whole";
/// Why it is not stored at all.
const NOT_FRESH: &str = "no-explicit-freshness";

/// Fields that an entry stores separately; here they are stored among the others.
const ALSO_KEPT: [HeaderName; 5] = [
    header::CACHE_CONTROL,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::VARY,
];

/// The origin's answer to a question for the whole object.
pub(super) enum Answer {
    Kept(Arc<Whole>),
    /// It must not be stored.
    Passed(PassThrough),
}

/// Whether other edges may have answers of the source. Where clients need signatures, an answer may
/// be for one client alone.
pub(super) fn shares_whole(source: &Source) -> bool {
    source.mode() == v1::SourceMode::Serve && !source.needs_signature()
}

impl EdgeObjects {
    pub(super) fn whole_id(&self, source: &Source, key: &v1::Key, request: &ObjectRequest) -> u128 {
        let selecting = pass_through::allowed_headers(source, &request.headers);
        let id = super::objects::question_id(key, &selecting);
        self.parts().bindings.hash(&id)
    }

    /// A fresh answer that is stored, or arriving.
    pub(super) async fn find_whole(
        &self,
        source: &Source,
        key: &v1::Key,
        request: &ObjectRequest,
    ) -> Option<PassThrough> {
        let whole = self.parts().bindings.whole();
        let found = whole.get(|| self.whole_id(source, key, request), now_ms())?;
        self.answer_from(&found, request, CacheStatus::default())
            .await
    }

    /// Requests the whole object, once for all who want it; `None`: it must not be stored, and each
    /// request is passed through on its own.
    pub(super) async fn ask_for_whole(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        why: &'static str,
    ) -> Result<Option<PassThrough>, ServeError> {
        if request.only_if_cached || request.head_only {
            return Ok(None);
        }
        let (whole, id) = (
            self.parts().bindings.whole(),
            self.whole_id(source, key, request),
        );
        match whole.claim_or_wait(id, false, now_ms, |_| true).await {
            None => Ok(None),
            Some(Claimed::Kept(whole)) => {
                Ok(self.answer_as_it_arrives(&whole, request, true).await)
            }
            Some(Claimed::Ask(asking)) => {
                match self.ask_as(asking, source, key, request, why).await? {
                    Answer::Kept(whole) => {
                        Ok(self.answer_as_it_arrives(&whole, request, false).await)
                    }
                    Answer::Passed(passed) => {
                        let headers = &request.headers;
                        let is_plain = !SELECTING.iter().any(|it| headers.contains_key(it));
                        Ok(is_plain.then_some(passed))
                    }
                }
            }
        }
    }

    /// Asks the origin. From then on, this edge is the key's keeper.
    pub(super) async fn ask_as(
        &self,
        asking: Asking,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        why: &'static str,
    ) -> Result<Answer, ServeError> {
        let parts = self.parts();
        let since = parts.bindings.now();
        let mut plain = request.clone();
        // The whole object is requested, without ranges and conditions.
        SELECTING.iter().for_each(|name| {
            plain.headers.remove(name);
        });
        let passed = match self.pass_own(source, key, &plain, why, None).await {
            Ok(passed) => passed,
            Err(error) => {
                asking.fail();
                return Err(error);
            }
        };
        let Some(described) = self.describe_whole(source, key, since, &passed) else {
            parts.bindings.set_unstorable(key, NOT_FRESH, now_ms());
            asking.fail();
            return Ok(Answer::Passed(passed));
        };
        if shares_whole(source) {
            parts.announce.whole(key);
        }
        let whole = asking.keep(described, passed.body, |pump| self.spawn_pump(pump));
        Ok(Answer::Kept(whole))
    }

    /// Stores an answer to the first question for a key. `None`: it must not be stored, another one
    /// is, or it may not be given to this client.
    pub(super) fn keep_whole(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        since: InvalidationEpoch,
        response: Response,
    ) -> Option<Finding> {
        if request.head_only || !shares_whole(source) {
            return None;
        }
        let parts = self.parts();
        let key = &without_variant(key);
        let id = self.whole_id(source, key, request);
        let Claim::Ask(claimed) = parts.bindings.whole().claim(id, false, now_ms()) else {
            return None;
        };
        let url = source.signed_url(key, "").ok()?;
        let headers = pass_through::allowed_headers(source, &request.headers);
        let asking = pass_through::asking(parts, source, url, headers);
        let passed = pass_through::hand_on(parts, asking, response, request, AS_A_WHOLE, None);
        let Some(described) = self.describe_whole(source, key, since, &passed) else {
            claimed.fail();
            return None;
        };
        let whole = claimed.keep(described, passed.body, |pump| self.spawn_pump(pump));
        Some(Finding::Whole {
            whole,
            collapsed: false,
        })
    }

    /// For a request whose question brought the answer, or that waited for that question.
    pub(super) async fn answer_as_it_arrives(
        &self,
        whole: &Arc<Whole>,
        request: &ObjectRequest,
        collapsed: bool,
    ) -> Option<PassThrough> {
        let status = whole.described.status.as_u16();
        let status_words = CacheStatus {
            forward: Some(Forward::Miss),
            forward_status: (!collapsed).then_some(status),
            stored: !collapsed,
            collapsed,
            ..CacheStatus::default()
        };
        self.answer_from(whole, request, status_words).await
    }

    pub(super) fn spawn_pump(&self, pump: PumpFuture) {
        self.parts().downloads.workers().spawn(pump);
    }

    fn describe_whole(
        &self,
        source: &Source,
        key: &v1::Key,
        since: InvalidationEpoch,
        passed: &PassThrough,
    ) -> Option<WholeDescription> {
        let parts = self.parts();
        let (now, headers) = (now_ms(), &passed.headers);
        let described = origin_answer::describe(passed.status, headers, now);
        let ahead_ms = parts.downloads.fetcher().counters.clock_ahead_ms();
        let facts = origin_answer::facts(headers, &described).on_clock_ahead(ahead_ms);
        let status = passed.status.as_u16();
        let freshness =
            freshness::freshness_of_whole(status, &facts, &source.policy(&key.path), now)?;
        let mut kept = fields::to_headers(&fields::kept(headers));
        for name in &ALSO_KEPT {
            for value in headers.get_all(name) {
                kept.append(name.clone(), value.clone());
            }
        }
        if kept.contains_key(header::EXPIRES) {
            let age = freshness::age_seconds(&freshness, now);
            if let Ok(date) = HeaderValue::try_from(freshness::date(age, now)) {
                kept.insert(header::DATE, date);
            }
        }
        let described = WholeDescription {
            key: key.clone(),
            status: passed.status,
            headers: kept,
            freshness,
        };
        // An answer from before an invalidation is not used after it.
        parts.bindings.unless_invalidated(since, key, || described)
    }

    /// `None`: it is no longer available there.
    async fn answer_from(
        &self,
        whole: &Arc<Whole>,
        request: &ObjectRequest,
        status_words: CacheStatus,
    ) -> Option<PassThrough> {
        let described = &whole.described;
        let mut headers = described.headers.clone();
        let age = freshness::age_seconds(&described.freshness, now_ms());
        headers.insert(header::AGE, HeaderValue::from(age));
        let answer = |status, headers, body| PassThrough {
            source: described.key.source.clone(),
            status,
            headers,
            body,
            why: "whole",
            status_words: Some(status_words.clone()),
        };
        let is_ok = described.status == StatusCode::OK;
        if is_ok {
            headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        let validators = Validators {
            etag: origin_answer::etag(&described.headers),
            last_modified: origin_answer::single(&described.headers, header::LAST_MODIFIED),
            given_ms: freshness::given_ms(age, now_ms()),
        };
        let ignore_range = match conditional::evaluate(&request.headers, validators) {
            _ if !is_ok => true,
            Verdict::Proceed { ignore_range } => ignore_range,
            Verdict::NotModified => {
                return Some(answer(StatusCode::NOT_MODIFIED, headers, empty()));
            }
            Verdict::PreconditionFailed => {
                return Some(answer(StatusCode::PRECONDITION_FAILED, headers, empty()));
            }
        };
        let asked = range::requested(&request.headers).filter(|_| !ignore_range);
        let body = match asked {
            Some(_) => whole.arrived().await,
            None => whole.body(),
        };
        let Some(body) = body else {
            if request.head_only {
                return Some(answer(described.status, headers, empty()));
            }
            let stream = whole.stream()?;
            return Some(answer(described.status, headers, stream));
        };
        let size = body.len() as u64;
        let (status, part) = match asked.map(|ranges| ranges.resolve(size)) {
            Some(Selection::Single(part)) => {
                insert(&mut headers, range::content_range(part, size));
                let (start, end) = (part.start as usize, part.end as usize);
                (StatusCode::PARTIAL_CONTENT, body.slice(start..end))
            }
            Some(Selection::NotSatisfiable) => {
                insert(&mut headers, range::unsatisfied_range(size));
                (StatusCode::RANGE_NOT_SATISFIABLE, Bytes::new())
            }
            // Several ranges of something this small: send all of it.
            Some(Selection::Whole | Selection::Several(_)) | None => (described.status, body),
        };
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(part.len()));
        let body = if request.head_only {
            empty()
        } else {
            full(part)
        };
        Some(answer(status, headers, body))
    }
}

/// The key of an answer that is stored as a whole. It has no variant, because the selecting headers
/// are part of the question.
pub(super) fn without_variant(key: &v1::Key) -> v1::Key {
    v1::Key {
        variant: String::new(),
        ..key.clone()
    }
}

fn insert(headers: &mut HeaderMap, content_range: String) {
    if let Ok(value) = HeaderValue::try_from(content_range) {
        headers.insert(header::CONTENT_RANGE, value);
    }
}

fn empty() -> PassBody {
    full(Bytes::new())
}
