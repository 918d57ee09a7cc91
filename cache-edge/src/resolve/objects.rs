//! Finds the object of a request: from the binding, the coordinator or the origin, in this order.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use chunkcache_proto::{Geometry, v1};
use http::HeaderMap;

use super::{
    ailing::{Advice, Ailing},
    bindings::{Bindings, Bound, key_id},
    directory::Directory,
    keeper::Unbound,
    pass_through,
    permission::Access,
    ports::{
        Freshness, Object, ObjectName, ObjectRequest, Objects, Resolution, ServeError, Standing,
    },
    probe::Finding,
    revalidate,
    singleflight::{Outcome, Singleflight},
    unknown_key::Whom,
    whole_answer::AS_A_WHOLE,
};
use crate::clock::now_ms;
use crate::fetch::Downloads;
use crate::{
    readers::{Announce, DemandRegistry, DirectBytes, IncomingChunks, ReaderFactory},
    upstream::{Catalogue, Client, OriginError, Source, loops::CDN_LOOP},
};
use chunk_store::{EntryFile, Store};
use http_rules::freshness::{self, Verdict};

/// The parts of the edge that a resolution needs.
pub struct Parts {
    pub store: Store,
    pub catalogue: Arc<Catalogue>,
    pub bindings: Arc<Bindings>,
    pub incoming: Arc<IncomingChunks>,
    pub demand: Arc<DemandRegistry>,
    pub direct: Arc<dyn DirectBytes>,
    pub downloads: Downloads,
    pub client: Client,
    pub directory: Arc<dyn Directory>,
    pub announce: Arc<dyn Announce>,
    /// Chunk size of new entries, as set by the coordinator.
    pub chunk_size: Arc<AtomicU32>,
    pub chunk_wait_timeout: Duration,
    /// Number of chunks that a probe fetches beyond the requested one.
    pub start_chunks: u32,
}

/// Change counters read by a resolution.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    bindings: u64,
    sources: u64,
    incoming: u64,
}

/// A fresh binding that no request header selects.
struct StandingBinding {
    objects: EdgeObjects,
    bound: Arc<Bound>,
    file: Arc<EntryFile>,
    seen: Seen,
    /// The client's signature expires.
    until_ms: i64,
}

impl Standing for StandingBinding {
    fn age_seconds(&self) -> Option<u64> {
        let now = now_ms();
        let stands = self.objects.seen() == self.seen
            && now < self.until_ms
            && freshness::judge(&self.bound.freshness, now) == Verdict::Fresh
            && !self.file.is_removed();
        stands.then(|| freshness::age_seconds(&self.bound.freshness, now))
    }
}

/// Finds objects. Cheap to clone.
#[derive(Clone)]
pub struct EdgeObjects(Arc<Inner>);

struct Inner {
    parts: Parts,
    questions: Singleflight,
    /// Singleflight of the checks whether an origin accepts a client's signature.
    signatures: Singleflight<Access>,
    ailing: Ailing,
}

impl EdgeObjects {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let questions = Singleflight::new(parts.downloads.workers().clone());
        let signatures = Singleflight::new(parts.downloads.workers().clone());
        Self(Arc::new(Inner {
            parts,
            questions,
            signatures,
            ailing: Ailing::default(),
        }))
    }

    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.0.parts
    }

    pub(super) fn signatures(&self) -> &Singleflight<Access> {
        &self.0.signatures
    }

    /// The store's entry for a description; created if it is unknown.
    pub fn entry_file(&self, entry: &v1::Entry) -> Result<Arc<EntryFile>, ServeError> {
        let internal = |error: &dyn std::fmt::Display| ServeError::Internal(error.to_string());
        if let Ok(id) = entry.id.parse()
            && let Some(file) = self.parts().store.entry(&id)
        {
            return Ok(file);
        }
        let geometry =
            Geometry::new(entry.size, entry.chunk_size).map_err(|error| internal(&error))?;
        if geometry.chunk_size() < Geometry::MIN_SERVED_CHUNK_SIZE {
            return Err(internal(&"the entry has chunks of less than 2 MiB"));
        }
        let file = self.parts().store.put_entry(entry, geometry);
        file.map_err(|error| internal(&error))
    }

    /// `seen`: the counters from before the look-up, and the time until which the client may have
    /// the object; `None`: the next request must be resolved again.
    fn object(
        &self,
        bound: &Arc<Bound>,
        freshness: Freshness,
        seen: Option<(Seen, i64)>,
    ) -> Result<Resolution<ReaderFactory>, ServeError> {
        let file = self.entry_file(&bound.entry)?;
        let parts = self.parts();
        let readers = ReaderFactory {
            file: file.clone(),
            incoming: parts.incoming.clone(),
            demand: parts.demand.clone(),
            direct: parts.direct.clone(),
            chunk_wait_timeout: self.patience(bound),
            is_under_way: freshness.is_own_answer(),
        };
        let age_seconds = freshness::age_seconds(&bound.freshness, now_ms());
        let standing = seen
            .filter(|_| freshness == Freshness::Fresh)
            .map(|(seen, until_ms)| {
                Box::new(StandingBinding {
                    objects: self.clone(),
                    bound: bound.clone(),
                    file: file.clone(),
                    seen,
                    until_ms,
                }) as Box<dyn Standing>
            });
        Ok(Resolution::Object(Object {
            standing,
            entry: file,
            age_seconds,
            freshness,
            cache_control: bound.freshness.cache_control.clone(),
            fields: bound.fields.clone(),
            readers,
        }))
    }

    /// How long a reader waits for a byte.
    fn patience(&self, bound: &Bound) -> Duration {
        let parts = self.parts();
        let key = bound.entry.key.as_ref();
        let source = key.and_then(|key| parts.catalogue.get(&key.source));
        source.map_or(parts.chunk_wait_timeout, |source| {
            source.patience(parts.chunk_wait_timeout)
        })
    }

    async fn by_key(
        &self,
        request: &ObjectRequest,
        named: v1::Key,
    ) -> Result<Resolution<ReaderFactory>, ServeError> {
        let parts = self.parts();
        let seen = self.seen();
        let source = parts
            .catalogue
            .get(&named.source)
            .ok_or_else(|| ServeError::UnknownSource(named.source.clone()))?;
        let key = source.key(named.clone());
        let until_ms = match self.permit(&source, &named, &key, request).await? {
            Access::Until(until_ms) => until_ms,
            Access::Refused(status) => {
                return self.refuse(&source, &key, request, status).await;
            }
        };
        if request.ahead.is_some() && source.mode() != v1::SourceMode::Serve {
            return Err(ServeError::NotAhead);
        }
        let credentials = source.config.forward_credentials
            && (request.headers.contains_key(http::header::AUTHORIZATION)
                || request.headers.contains_key(http::header::COOKIE));
        if source.mode() == v1::SourceMode::Passthrough {
            return self.pass(&source, &key, request, "passthrough").await;
        }
        if credentials {
            return self.pass(&source, &key, request, "credentials").await;
        }
        if request.past_the_cache {
            return self.pass(&source, &key, request, "changing").await;
        }
        let serves = source.mode() == v1::SourceMode::Serve;
        if serves && let Some(kept) = self.find_whole(&source, &key, request).await {
            return Ok(Resolution::PassThrough(kept));
        }
        let (key, varies) = self.with_variant(&source, key, request);
        if !chunkcache_proto::key::is_key_recordable(&key) {
            return self.pass(&source, &key, request, "key-too-long").await;
        }
        // Then the next request's headers may select something else.
        let by_headers = varies || source.config.forward_credentials;
        let now = now_ms();
        if let Some(status) = parts.bindings.negative(&key, now) {
            return negative(status, true);
        }
        if let Some(why) = parts.bindings.unstorable(&key, now) {
            return self.unstorable(&source, &key, request, why).await;
        }
        let found = match parts.bindings.get(&key) {
            Some(bound) => self.confirmed(&source, &key, request, bound).await?,
            None => match self.unbound(&source, &key, request).await? {
                Unbound::Found(found) => found,
                Unbound::Answered(answer) => return Ok(Resolution::PassThrough(answer)),
            },
        };
        match found {
            Finding::Object(bound, freshness) if source.mode() == v1::SourceMode::Record => {
                let _ = freshness;
                let file = self.record(&bound, request)?;
                self.pass_compared(&source, &key, request, "record", Some(file))
                    .await
            }
            Finding::Object(bound, freshness) => {
                self.object(&bound, freshness, (!by_headers).then_some((seen, until_ms)))
            }
            Finding::Whole { whole, collapsed } => {
                match self.answer_as_it_arrives(&whole, request, collapsed).await {
                    Some(answer) => Ok(Resolution::PassThrough(answer)),
                    None => self.unstorable(&source, &key, request, AS_A_WHOLE).await,
                }
            }
            // `unbound` follows keepers, and a binding has none.
            Finding::Kept(_) => self.unstorable(&source, &key, request, AS_A_WHOLE).await,
            Finding::Negative(status) => negative(status, false),
            Finding::Unstorable(why) => self.unstorable(&source, &key, request, why).await,
        }
    }

    fn seen(&self) -> Seen {
        let parts = self.parts();
        Seen {
            bindings: parts.bindings.changes(),
            sources: parts.catalogue.changes(),
            incoming: parts.incoming.changes(),
        }
    }

    /// Adds the variant to the key; also returns whether the request's headers select anything.
    pub(super) fn with_variant(
        &self,
        source: &Source,
        key: v1::Key,
        request: &ObjectRequest,
    ) -> (v1::Key, bool) {
        let vary = self.parts().bindings.vary(&key);
        if vary.is_empty() {
            return (key, false);
        }
        let forwarded = &source.config.forward_headers;
        let key = v1::Key {
            variant: freshness::variant(&vary, forwarded, &request.headers),
            ..key
        };
        (key, true)
    }

    /// Confirms a known binding: fresh, confirmed by the origin, or stale under the policy.
    pub(super) async fn confirmed(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        bound: Arc<Bound>,
    ) -> Result<Finding, ServeError> {
        let now = now_ms();
        let verdict = if self.is_changed(&bound) {
            // A fetch found another version at the origin, so the binding is stale before its time.
            Verdict::Stale
        } else {
            freshness::judge(&bound.freshness, now)
        };
        match verdict {
            Verdict::Fresh => return Ok(Finding::Object(bound, Freshness::Fresh)),
            Verdict::StaleWhileRevalidate => {
                self.revalidate_beside(source, key, request, &bound);
                return Ok(Finding::Object(bound, Freshness::StaleMeanwhile));
            }
            Verdict::Stale if request.only_if_cached => return Err(ServeError::OnlyIfCached),
            Verdict::Stale => {}
        }
        if freshness::usable_on_error(&bound.freshness, &source.policy(&key.path), now)
            && let Some(advice) = self.advice(source, key, now)
        {
            if advice == Advice::ServeStaleAndAsk {
                self.revalidate_beside(source, key, request, &bound);
            }
            return Ok(Finding::Object(bound, Freshness::StaleOnError));
        }
        let asked = match self.revalidation(source, key, request, bound.clone()) {
            Ok(asked) => asked.answer().await,
            Err(refused) => Err(refused),
        };
        match asked {
            Ok(found) => Ok(found),
            Err(error)
                if freshness::usable_on_error(&bound.freshness, &source.policy(&key.path), now)
                    && self.is_bound(key, &bound) =>
            {
                tracing::debug!(%error, "served stale");
                Ok(Finding::Object(bound, Freshness::StaleOnError))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the binding was neither invalidated nor replaced.
    pub(super) fn is_bound(&self, key: &v1::Key, bound: &Bound) -> bool {
        let held = self.parts().bindings.get(key);
        held.is_some_and(|held| held.id == bound.id)
    }

    pub(super) fn is_changed(&self, bound: &Bound) -> bool {
        let parts = self.parts();
        let file = parts.store.entry(&bound.id);
        file.is_some_and(|file| parts.incoming.is_changed(&file))
    }

    /// Revalidates in the background. Refused under load: the next request asks.
    fn revalidate_beside(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        bound: &Arc<Bound>,
    ) {
        if let Ok(asked) = self.revalidation(source, key, request, bound.clone()) {
            self.parts().downloads.workers().spawn(async move {
                // Wait for it, because a question without waiters is cancelled.
                let _ = asked.answer().await;
            });
        }
    }

    /// Records the outcome of a revalidation for later requests.
    pub(super) fn note_health(&self, source: &Source, key: &v1::Key, failed: Option<&OriginError>) {
        let ailing = &self.0.ailing;
        match failed {
            Some(error) if error.is_transient() => {
                ailing.failed(&key_id(key), now_ms());
                if error.status().is_none() {
                    ailing.failed(source.name(), now_ms());
                }
            }
            Some(_) => {}
            None => {
                ailing.answered(&key_id(key));
                ailing.answered(source.name());
            }
        }
    }

    fn advice(&self, source: &Source, key: &v1::Key, now_ms: i64) -> Option<Advice> {
        let ailing = &self.0.ailing;
        let of_source = ailing.advise(source.name(), now_ms);
        of_source.or_else(|| ailing.advise(&key_id(key), now_ms))
    }

    fn revalidation(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        bound: Arc<Bound>,
    ) -> Result<Outcome, ServeError> {
        let (this, source, key_of) = (self.clone(), source.clone(), key.clone());
        let headers = pass_through::allowed_headers(&source, &request.headers);
        let selecting = headers.clone();
        self.ask_once(key, &selecting, request.asker, move || async move {
            revalidate::revalidate(&this, &source, &key_of, &headers, bound).await
        })
    }

    /// Resolves a key that is unknown here.
    pub(super) async fn unknown(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        whom: Whom,
    ) -> Result<Finding, ServeError> {
        if request.only_if_cached {
            return Err(ServeError::OnlyIfCached);
        }
        let (this, source_of, key_of, request_of) =
            (self.clone(), source.clone(), key.clone(), request.clone());
        let headers = pass_through::allowed_headers(source, &request.headers);
        let asked = self.ask_once(key, &headers, request.asker, move || async move {
            this.ask_cluster_or_origin(&source_of, &key_of, &request_of, whom)
                .await
        });
        asked?.answer().await
    }

    /// `selecting`: the client's headers that are sent to the origin. Two requests that differ in
    /// them may select two objects.
    fn ask_once<F>(
        &self,
        key: &v1::Key,
        selecting: &HeaderMap,
        asker: Option<u128>,
        question: impl FnOnce() -> F,
    ) -> Result<Outcome, ServeError>
    where
        F: Future<Output = Result<Finding, ServeError>> + Send + 'static,
    {
        let id = self.parts().bindings.hash(&question_id(key, selecting));
        let settled = || self.settled(key);
        self.0
            .questions
            .ask((&key.source, asker), id, settled, question)
    }

    /// The answer, if neither the cluster nor the origin has to be asked now.
    fn settled(&self, key: &v1::Key) -> Option<Finding> {
        let (bindings, now) = (&self.parts().bindings, now_ms());
        if let Some(status) = bindings.negative(key, now) {
            return Some(Finding::Negative(status));
        }
        if let Some(why) = bindings.unstorable(key, now) {
            return Some(Finding::Unstorable(why));
        }
        if let Some(keeper) = bindings.keeper(key, now) {
            return Some(Finding::Kept(keeper));
        }
        let bound = bindings.get(key)?;
        let is_fresh = freshness::judge(&bound.freshness, now) == Verdict::Fresh;
        (is_fresh && !self.is_changed(&bound)).then_some(Finding::Object(bound, Freshness::Fresh))
    }
}

pub(super) fn question_id(key: &v1::Key, selecting: &HeaderMap) -> String {
    let mut id = key_id(key);
    // `CDN-Loop` records a request's path through other caches and selects nothing.
    for (name, value) in selecting.iter().filter(|(name, _)| *name != CDN_LOOP) {
        id.push('\0');
        // Escaped, because bytes that are no text are different headers, too.
        let value = value.as_bytes().escape_ascii();
        let _ = write!(id, "{name}={value}");
    }
    id
}

pub(super) fn negative(
    status: u16,
    remembered: bool,
) -> Result<Resolution<ReaderFactory>, ServeError> {
    let status = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::NOT_FOUND);
    Ok(Resolution::Negative { status, remembered })
}

impl Objects for EdgeObjects {
    type Open = ReaderFactory;

    fn resolve_link(&self, source: &str, path: &str, reference: &str) -> Option<ObjectName> {
        let known = self.parts().catalogue.get(source)?;
        let (path, query) = known.resolve_link(path, reference)?;
        Some(ObjectName::Key {
            source: source.to_owned(),
            path,
            query,
        })
    }

    async fn resolve(
        &self,
        request: &ObjectRequest,
    ) -> Result<Resolution<ReaderFactory>, ServeError> {
        if self.parts().client.sees_loop(&request.headers) {
            return Err(ServeError::Loop);
        }
        match request.name.clone() {
            ObjectName::Key {
                source,
                path,
                query,
            } => {
                self.by_key(
                    request,
                    v1::Key {
                        source,
                        path,
                        query,
                        variant: String::new(),
                    },
                )
                .await
            }
            ObjectName::Entry(id) => {
                let parts = self.parts();
                let bound = match parts.store.entry(&id) {
                    Some(file) => {
                        let freshness = v1::Freshness {
                            validated_at_ms: file.description().created_at_ms,
                            ..v1::Freshness::default()
                        };
                        Bound::new(id, file.description(), freshness)
                    }
                    None => {
                        let binding = parts
                            .directory
                            .lookup(id)
                            .await
                            .ok_or(ServeError::UnknownEntry(id))?;
                        Bound::of(binding).ok_or(ServeError::UnknownEntry(id))?
                    }
                };
                let source = bound.entry.key.as_ref().map(|key| &key.source);
                let source = source.and_then(|source| parts.catalogue.get(source));
                // Without its registered source, it is unknown which clients may have it.
                if source.is_none_or(|source| source.checks_signatures()) {
                    return Err(ServeError::UnknownEntry(id));
                }
                self.object(&Arc::new(bound), Freshness::Fresh, None)
            }
        }
    }
}
