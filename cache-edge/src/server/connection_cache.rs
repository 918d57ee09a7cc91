//! Caches the last resolution of a connection, so that its next request for the same target needs
//! no look-up.
//!
//! A player reads one title in many ranges over one connection. Resolving the title again each time
//! would cost several allocations, and locks that all connections share.

use std::sync::Arc;

use chunkcache_proto::v1;
use http::{HeaderMap, HeaderValue, request::Parts};
use parking_lot::Mutex;

use super::{
    metrics::Metrics,
    response::{self, ResponseFields},
    sent_bytes::SentBytes,
};
use crate::resolve::ports::{Freshness, Object, Standing};
use chunk_store::EntryFile;

/// A larger header map, left from a request with a long head, is not kept.
const MAX_SPARE_FIELDS: usize = 64;

/// A resolved object, and its head.
pub(super) struct CachedResolution<R> {
    pub entry: Arc<EntryFile>,
    pub description: v1::Entry,
    pub freshness: Freshness,
    pub readers: Arc<R>,
    pub head: ResponseFields,
    /// Its age when it was resolved.
    pub age_seconds: u64,
    /// The counters of its source.
    pub sent: Arc<SentBytes>,
    standing: Option<Box<dyn Standing>>,
}

impl<R> CachedResolution<R> {
    pub fn new(object: Object<R>, metrics: &Metrics) -> Self {
        let fields = response::with_date(&object.fields, object.age_seconds);
        let description = object.entry.description();
        Self {
            sent: metrics.sent.of(object.entry.source()),
            head: ResponseFields::of(&description, &object.cache_control, &fields),
            entry: object.entry,
            description,
            freshness: object.freshness,
            readers: Arc::new(object.readers),
            age_seconds: object.age_seconds,
            standing: object.standing,
        }
    }

    /// The present age, if the same target would still be resolved to it.
    fn age_seconds_now(&self) -> Option<u64> {
        self.standing.as_ref()?.age_seconds()
    }
}

/// The cache of one connection, whose requests are sequential or, in HTTP/2, seldom concurrent, so
/// that the lock is not contended.
pub(super) struct ConnectionCache<R>(Mutex<Last<R>>);

struct Last<R> {
    target: String,
    known: Option<Arc<CachedResolution<R>>>,
    /// A Host that was found valid.
    host: Option<HeaderValue>,
    /// An empty map with capacity. hyper reuses a response's map for the next request's head, and
    /// this is that request's map.
    spare: HeaderMap,
}

impl<R> ConnectionCache<R> {
    pub fn new() -> Self {
        Self(Mutex::new(Last {
            target: String::new(),
            known: None,
            host: None,
            spare: HeaderMap::new(),
        }))
    }

    /// The resolution of the same target, and its present age, if it is still valid.
    pub fn recall(&self, request: &Parts) -> Option<(Arc<CachedResolution<R>>, u64)> {
        let last = self.0.lock();
        let known = last.known.as_ref()?;
        if last.target != target(request)? {
            return None;
        }
        let age_seconds = known.age_seconds_now()?;
        Some((Arc::clone(known), age_seconds))
    }

    pub fn remember(&self, request: &Parts, known: &Arc<CachedResolution<R>>) {
        let Some(target) = target(request).filter(|_| known.standing.is_some()) else {
            return self.forget();
        };
        let mut last = self.0.lock();
        target.clone_into(&mut last.target);
        last.known = Some(Arc::clone(known));
    }

    pub fn forget(&self) {
        self.0.lock().known = None;
    }

    /// An empty map with capacity for a response's head.
    pub fn take_headers(&self) -> HeaderMap {
        std::mem::take(&mut self.0.lock().spare)
    }

    /// Takes back the headers of an answered request.
    pub fn recycle(&self, mut headers: HeaderMap) {
        if headers.capacity() <= MAX_SPARE_FIELDS {
            headers.clear();
            self.0.lock().spare = headers;
        }
    }

    pub fn is_known_host(&self, host: &HeaderValue) -> bool {
        self.0.lock().host.as_ref() == Some(host)
    }

    pub fn remember_host(&self, host: &HeaderValue) {
        // A copy, because a clone would hold the whole buffer of the request for as long as the
        // connection lasts.
        self.0.lock().host = HeaderValue::from_bytes(host.as_bytes()).ok();
    }
}

fn target(request: &Parts) -> Option<&str> {
    request.uri.path_and_query().map(|target| target.as_str())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// hyper reads a request into one buffer, and each header value is a part of it.
    #[test]
    fn a_host_that_is_remembered_holds_no_buffer() {
        let read = Bytes::from(vec![b'a'; 8192]);
        let host = HeaderValue::from_maybe_shared(read.slice(..9)).unwrap();
        let memory = ConnectionCache::<()>::new();
        memory.remember_host(&host);
        assert!(memory.is_known_host(&host));
        drop(host);
        assert!(read.is_unique(), "the buffer is still in use");
    }
}
