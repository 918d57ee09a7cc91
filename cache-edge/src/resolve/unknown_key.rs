//! Resolves a key that is unknown here: asks the cluster first, then the origin.

use std::sync::{Arc, atomic::Ordering};

use chunkcache_proto::v1;

use super::{
    bindings::Bound,
    objects::EdgeObjects,
    pass_through,
    ports::{Freshness, ObjectRequest, ServeError},
    probe::{self, Finding},
    revalidate,
    whole_answer::{AS_A_WHOLE, shares_whole},
};
use crate::clock::now_ms;
use crate::upstream::Source;
use http_rules::freshness::{self, Verdict};

/// Who is asked about a key.
pub(super) enum Whom {
    /// The cluster, and the origin if the cluster says so.
    Cluster,
    /// The same, after this edge was named and had no answer to give.
    ClusterBut(String),
    Origin,
}

impl EdgeObjects {
    pub(super) async fn ask_cluster_or_origin(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        whom: Whom,
    ) -> Result<Finding, ServeError> {
        use v1::resolve_key_response::Outcome;
        let passed_over = match whom {
            Whom::Cluster => String::new(),
            Whom::ClusterBut(edge) => edge,
            Whom::Origin => return self.ask_origin(source, key, request).await,
        };
        let parts = self.parts();
        let since = parts.bindings.now();
        // Requests a permit while the cluster is asked, to save a round trip.
        let expected = source.quota.expect();
        let resolved = parts
            .directory
            .resolve(key.clone(), passed_over.clone())
            .await;
        let still = |then: &dyn Fn() -> Option<Arc<Bound>>| {
            let bound = parts.bindings.unless_invalidated(since, key, then);
            bound.flatten()
        };
        match resolved {
            Some(Outcome::Known(v1::KeyBinding {
                entry: Some(entry),
                freshness,
            })) => {
                let freshness = freshness.unwrap_or_default();
                let bind = || parts.bindings.bind(entry.clone(), freshness.clone());
                // If the binding was invalidated meanwhile, the coordinator's answer does not
                // count.
                if let Some(bound) = still(&bind) {
                    if freshness::judge(&bound.freshness, now_ms()) == Verdict::Fresh {
                        return Ok(Finding::Object(bound, Freshness::Fresh));
                    }
                    let headers = pass_through::allowed_headers(source, &request.headers);
                    let stale = bound.clone();
                    return match revalidate::revalidate(self, source, key, &headers, bound).await {
                        Err(_)
                            if self.is_bound(key, &stale)
                                && freshness::usable_on_error(
                                    &stale.freshness,
                                    &source.policy(&key.path),
                                    now_ms(),
                                ) =>
                        {
                            Ok(Finding::Object(stale, Freshness::StaleOnError))
                        }
                        other => other,
                    };
                }
            }
            Some(Outcome::Negative(negative)) => {
                let status = u16::try_from(negative.http_status).unwrap_or(404);
                let now = now_ms();
                let until_ms = now + i64::from(negative.valid_for_ms);
                let remember = || parts.bindings.set_negative(key, status, until_ms, now);
                let remembered = parts.bindings.unless_invalidated(since, key, remember);
                if remembered.is_some() {
                    return Ok(Finding::Negative(status));
                }
            }
            Some(Outcome::Probe(lease)) if lease.chunk_size > 0 => {
                parts.chunk_size.store(lease.chunk_size, Ordering::Relaxed);
            }
            Some(Outcome::Keeper(keeper)) if shares_whole(source) && keeper.edge != passed_over => {
                return Ok(Finding::Kept(Arc::new(keeper)));
            }
            Some(Outcome::Known(_) | Outcome::Probe(_) | Outcome::Keeper(_)) | None => {}
        }
        drop(expected);
        self.ask_origin(source, key, request).await
    }

    async fn ask_origin(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
    ) -> Result<Finding, ServeError> {
        let found = probe::probe(self, source, key, request).await;
        let announce = &self.parts().announce;
        match &found {
            Ok(Finding::Object(..) | Finding::Negative(404 | 410 | 451)) => {}
            Ok(Finding::Whole { .. } | Finding::Unstorable(AS_A_WHOLE)) if shares_whole(source) => {
                announce.whole(key);
            }
            // There is nothing to remember, but the question is over: other edges need not wait for
            // it.
            _ => announce.negative(key, 0, 0),
        }
        found
    }
}
