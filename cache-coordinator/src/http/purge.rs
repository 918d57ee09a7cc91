//! `PURGE /SOURCE/PATH`, for programs that only use HTTP.
//!
//! A path with `*` is a glob, one that ends in `/` is a prefix, and any other is an object. With
//! `Surrogate-Key`, the tags in it are purged instead, in the source of the path or, for `/`, in
//! all sources. `Soft-Purge: 1` keeps the bytes.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use chunkcache_proto::v1::{
    PurgeEntriesRequest, PurgeEntriesResponse, PurgeSelector, purge_selector::Objects,
};
use serde_json::json;

use super::{dashboard::RefusalResponse, guard};
use crate::{
    access::{Access, policy::Need},
    service::{Cluster, error::ServiceError, purge},
};

/// Maximum number of tags in one request.
const MAX_TAGS: usize = 16;

/// State for purge requests.
#[derive(Clone)]
pub(super) struct Purger {
    pub cluster: Arc<Cluster>,
    pub access: Arc<Access>,
    pub is_loopback: bool,
}

/// Answers requests of this method, whatever their path; passes others on.
pub(super) async fn purge(State(purger): State<Purger>, request: Request, next: Next) -> Response {
    if request.method().as_str() != "PURGE" {
        return next.run(request).await;
    }
    let need = (Need::Use, "to purge");
    if let Err(refused) = guard::caller_of(&purger.access, purger.is_loopback, &request, need) {
        return refused;
    }
    let target = request.uri().path_and_query();
    let target = target.map_or("/", |target| target.as_str());
    match carry_out(&purger.cluster, target, request.headers()).await {
        Ok(done) => {
            let status = if done.unconfirmed_edges.is_empty() {
                StatusCode::OK
            } else {
                StatusCode::ACCEPTED
            };
            let body = json!({
                "purged": done.purged,
                "confirmed_edges": done.confirmed_edges,
                "unconfirmed_edges": done.unconfirmed_edges,
            });
            (status, Json(body)).into_response()
        }
        Err(error) => RefusalResponse::from(error).into_response(),
    }
}

async fn carry_out(
    cluster: &Arc<Cluster>,
    target: &str,
    headers: &HeaderMap,
) -> Result<PurgeEntriesResponse, ServiceError> {
    let soft = headers.get("soft-purge").is_some_and(|value| value != "0");
    let mut all = PurgeEntriesResponse::default();
    for selector in selectors(target, headers)? {
        let request = PurgeEntriesRequest {
            selector: Some(selector),
            soft,
        };
        let done = purge::purge(cluster, request).await?;
        all.purged += done.purged;
        all.unconfirmed_edges.extend(done.unconfirmed_edges);
        all.confirmed_edges.extend(done.confirmed_edges);
    }
    all.unconfirmed_edges.sort();
    all.unconfirmed_edges.dedup();
    all.confirmed_edges.sort();
    all.confirmed_edges.dedup();
    // An edge confirmed only if it confirmed all of them.
    all.confirmed_edges
        .retain(|edge| !all.unconfirmed_edges.contains(edge));
    Ok(all)
}

fn selectors(target: &str, headers: &HeaderMap) -> Result<Vec<PurgeSelector>, ServiceError> {
    let target = target.strip_prefix('/').unwrap_or(target);
    let (source, path) = target.split_once('/').unwrap_or((target, ""));
    let selector = |objects| PurgeSelector {
        source: source.to_owned(),
        objects: Some(objects),
    };
    if let Some(tags) = headers.get("surrogate-key") {
        let tags = tags
            .to_str()
            .map_err(|_| ServiceError::invalid("Surrogate-Key", "expected ASCII"))?;
        let tags: Vec<&str> = tags.split_whitespace().collect();
        if tags.is_empty() || tags.len() > MAX_TAGS {
            return Err(ServiceError::invalid(
                "Surrogate-Key",
                format!("expected 1 to {MAX_TAGS} tags apart by spaces"),
            ));
        }
        let tags = tags.into_iter();
        return Ok(tags
            .map(|tag| selector(Objects::Tag(tag.to_owned())))
            .collect());
    }
    if source.is_empty() {
        let expected = "expected /SOURCE/PATH, or / with Surrogate-Key";
        return Err(ServiceError::invalid("path", expected));
    }
    Ok(vec![selector(if path.is_empty() {
        Objects::All(true)
    } else if path.contains('*') {
        Objects::Glob(path.to_owned())
    } else if path.ends_with('/') {
        Objects::Prefix(path.to_owned())
    } else {
        Objects::Key(path.to_owned())
    })])
}
