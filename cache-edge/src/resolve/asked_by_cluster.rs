//! The coordinator's question whether an origin has an object, handled like a player's request.

use chunkcache_proto::v1;
use v1::probe_report::Outcome;

use super::{
    objects::EdgeObjects,
    permission::Access,
    ports::{FirstBytes, ObjectName, ObjectRequest, ServeError},
    probe::Finding,
    unknown_key::Whom,
    whole_answer::AS_A_WHOLE,
};
use crate::clock::now_ms;
use http_rules::freshness;

impl EdgeObjects {
    /// Handled like a HEAD request without client headers: no body is transferred, and only the
    /// entry is stored.
    pub async fn probe_for_cluster(&self, key: v1::Key) -> Outcome {
        match self.find(key).await {
            Ok(Finding::Object(bound, _)) => Outcome::Found(v1::KeyBinding {
                entry: Some(bound.entry.clone()),
                freshness: Some(freshness::stamp(bound.freshness.clone(), now_ms())),
            }),
            Ok(Finding::Negative(status @ (404 | 410))) => Outcome::AbsentStatus(status.into()),
            Ok(Finding::Negative(status)) => Outcome::Failed(format!("it answered {status}")),
            Ok(Finding::Whole { .. } | Finding::Kept(_)) => Outcome::Uncacheable(AS_A_WHOLE.into()),
            Ok(Finding::Unstorable(why)) => Outcome::Uncacheable(why.into()),
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    async fn find(&self, named: v1::Key) -> Result<Finding, ServeError> {
        let parts = self.parts();
        let source = parts
            .catalogue
            .get(&named.source)
            .ok_or_else(|| ServeError::UnknownSource(named.source.clone()))?;
        let key = source.key(named.clone());
        let request = ObjectRequest {
            name: ObjectName::Key {
                source: key.source.clone(),
                path: key.path.clone(),
                query: key.query.clone(),
            },
            first_bytes: FirstBytes::From {
                start: 0,
                end: Some(1),
            },
            only_if_cached: false,
            headers: http::HeaderMap::new(),
            head_only: true,
            past_the_cache: false,
            asker: None,
            ahead: None,
        };
        if let Access::Refused(status) = self.permit(&source, &named, &key, &request).await? {
            return Ok(Finding::Negative(status.as_u16()));
        }
        let (key, _) = self.with_variant(&source, key, &request);
        if let Some(status) = parts.bindings.negative(&key, now_ms()) {
            return Ok(Finding::Negative(status));
        }
        match parts.bindings.get(&key) {
            Some(bound) => self.confirmed(&source, &key, &request, bound).await,
            None => self.unknown(&source, &key, &request, Whom::Cluster).await,
        }
    }
}
