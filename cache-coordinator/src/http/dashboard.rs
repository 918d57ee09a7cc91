//! The dashboard: one page with embedded assets, JSON data, and live updates by server-sent events.
//!
//! Nothing is fetched from elsewhere and no script is inline, so the content security policy can
//! forbid both. Actions are POSTs with a header that no other site can send without our consent (no
//! CORS is granted), which protects against CSRF without a cookie.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::to_bytes,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use chunkcache_proto::{EntryId, v1};
use futures_util::{Stream, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::{entry_view, guard, live::LiveView};
use crate::{
    access::{Access, Caller, Denied, Refusal, policy::Need},
    service::{Cluster, edges, error::ServiceError, explain, jobs},
};

/// The chunk map is sent at most this often to each viewer of the page.
const ENTRY_EVERY: Duration = Duration::from_millis(500);

/// Limit of a refusal's text.
const MAX_REASON_BYTES: usize = 4096;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors \
                      'none'";

const ASSETS: [(&str, &str, &str); 8] = [
    (
        "app.js",
        "text/javascript; charset=utf-8",
        include_str!("dashboard/app.js"),
    ),
    (
        "session.js",
        "text/javascript; charset=utf-8",
        include_str!("dashboard/session.js"),
    ),
    (
        "plots.js",
        "text/javascript; charset=utf-8",
        include_str!("dashboard/plots.js"),
    ),
    (
        "worth.js",
        "text/javascript; charset=utf-8",
        include_str!("dashboard/worth.js"),
    ),
    (
        "seeks.js",
        "text/javascript; charset=utf-8",
        include_str!("dashboard/seeks.js"),
    ),
    (
        "chunkmap.js",
        "text/javascript; charset=utf-8",
        include_str!("dashboard/chunkmap.js"),
    ),
    (
        "style.css",
        "text/css; charset=utf-8",
        include_str!("dashboard/style.css"),
    ),
    (
        "icon.svg",
        "image/svg+xml",
        include_str!("dashboard/icon.svg"),
    ),
];

#[derive(Clone)]
struct Parts {
    cluster: Arc<Cluster>,
    live: Arc<LiveView>,
}

/// Routes `/`, `/assets/*` and `/api/v1/*`. The page and its assets contain no data of the cluster
/// and are open to all; their requests for data and actions need a token.
pub fn router(
    cluster: Arc<Cluster>,
    access: Arc<Access>,
    live: Arc<LiveView>,
    is_loopback: bool,
) -> Router {
    let api = Router::new()
        .route("/api/v1/overview", get(overview))
        .route("/api/v1/stream", get(overview_stream))
        .route("/api/v1/history", get(history))
        .route("/api/v1/history/sources", get(source_history))
        .route("/api/v1/entries", get(list_entries))
        .route("/api/v1/entries/{id}", get(one_entry))
        .route("/api/v1/entries/{id}/stream", get(entry_stream))
        .route("/api/v1/explain", get(explain_chunk))
        .route("/api/v1/jobs/{id}/cancel", post(cancel_job))
        .route("/api/v1/edges/{name}/drain", post(drain_edge))
        .layer(middleware::from_fn_with_state(
            (access, is_loopback),
            guard::identify,
        ));
    Router::new()
        .route(
            "/",
            get(|| async {
                page(
                    "text/html; charset=utf-8",
                    include_str!("dashboard/index.html"),
                )
            }),
        )
        .route("/assets/{name}", get(asset))
        .merge(api)
        .layer(middleware::from_fn(protect))
        .with_state(Parts { cluster, live })
}

fn page(content_type: &'static str, body: &'static str) -> Response {
    (
        [
            (header::CONTENT_TYPE, content_type),
            (header::CACHE_CONTROL, "no-cache"),
        ],
        body,
    )
        .into_response()
}

async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(known, ..)| *known == name) {
        Some((_, content_type, body)) => page(content_type, body),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Adds headers to every answer, and requires the CSRF header for every action.
async fn protect(request: Request, next: Next) -> Response {
    let acts = !matches!(
        *request.method(),
        axum::http::Method::GET | axum::http::Method::HEAD
    );
    if acts && !is_ours(request.headers()) {
        return problem(
            StatusCode::FORBIDDEN,
            "send the header X-Requested-With: chunkcache",
        );
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        // nginx would hold events back until they fill a buffer.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn is_ours(headers: &HeaderMap) -> bool {
    headers
        .get("x-requested-with")
        .is_some_and(|value| value == "chunkcache")
}

async fn overview(State(parts): State<Parts>) -> Response {
    let mut receiver = parts.live.overview();
    let fresh = tokio::time::timeout(Duration::from_secs(3), receiver.changed()).await;
    if fresh.is_err() {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "no sample yet");
    }
    let body = receiver.borrow().to_string();
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn overview_stream(
    State(parts): State<Parts>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let end = parts.cluster.shutdown.clone();
    let events = stream::unfold(
        (parts.live.overview(), end),
        |(mut receiver, end)| async move {
            tokio::select! {
                changed = receiver.changed() => changed.ok()?,
                () = end.cancelled() => return None,
            }
            let event = Event::default()
                .event("overview")
                .data(receiver.borrow_and_update().as_ref());
            Some((Ok(event), (receiver, end)))
        },
    );
    Sse::new(events).keep_alive(KeepAlive::default())
}

#[derive(Deserialize)]
struct OfEdge {
    edge: Option<String>,
}

async fn history(State(parts): State<Parts>, Query(of): Query<OfEdge>) -> Json<Value> {
    Json(parts.live.history(of.edge.as_deref()))
}

async fn source_history(State(parts): State<Parts>) -> Json<Value> {
    Json(parts.live.source_history())
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    source: String,
    #[serde(default)]
    after: String,
}

async fn list_entries(
    State(parts): State<Parts>,
    Query(page): Query<Page>,
) -> Result<Json<Value>, RefusalResponse> {
    Ok(Json(
        entry_view::entries(&parts.cluster, page.source, page.after).await?,
    ))
}

async fn one_entry(
    State(parts): State<Parts>,
    Path(id): Path<EntryId>,
) -> Result<Json<Value>, RefusalResponse> {
    Ok(Json(entry_view::entry(&parts.cluster, id).await?))
}

/// Sends the entry's state whenever something changed, at most twice a second; ends when the entry
/// no longer exists.
async fn entry_stream(
    State(parts): State<Parts>,
    Path(id): Path<EntryId>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, RefusalResponse> {
    let mut viewed = entry_view::EntryView::new(id);
    viewed.picture(&parts.cluster).await?;
    let mut ticks = tokio::time::interval(ENTRY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let events = stream::unfold(
        (parts, ticks, viewed, String::new()),
        move |(parts, mut ticks, mut viewed, last)| async move {
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = parts.cluster.shutdown.cancelled() => return None,
                }
                let Ok(picture) = viewed.picture(&parts.cluster).await else {
                    continue;
                };
                let text = picture.to_string();
                if text != last {
                    return Some((
                        Ok(Event::default().event("entry").data(&text)),
                        (parts, ticks, viewed, text),
                    ));
                }
            }
        },
    );
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

#[derive(Deserialize)]
struct Chunk {
    entry: EntryId,
    chunk: u32,
}

async fn explain_chunk(
    State(parts): State<Parts>,
    Query(asked): Query<Chunk>,
) -> Result<Json<Value>, RefusalResponse> {
    let name = v1::EntryName {
        name: Some(v1::entry_name::Name::Id(asked.entry.to_string())),
    };
    let why = explain::explain(
        &parts.cluster,
        v1::ExplainChunkRequest {
            entry: Some(name),
            chunk: asked.chunk,
        },
    )
    .await?;
    let reasons: Vec<_> = why
        .decisions
        .iter()
        .map(|d| format!("{}: {}", d.edge, d.reason))
        .collect();
    let summary = if reasons.is_empty() {
        why.summary
    } else {
        format!("{} ({})", why.summary, reasons.join("; "))
    };
    Ok(Json(json!({ "summary": summary })))
}

async fn cancel_job(
    State(parts): State<Parts>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<StatusCode, RefusalResponse> {
    caller.require(Need::Use, "to cancel a job")?;
    jobs::cancel(&parts.cluster, v1::CancelJobRequest { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct DrainBody {
    drain: bool,
}

async fn drain_edge(
    State(parts): State<Parts>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Json(body): Json<DrainBody>,
) -> Result<StatusCode, RefusalResponse> {
    caller.require(Need::Operate, "to drain an edge")?;
    edges::drain(
        &parts.cluster,
        v1::DrainEdgeRequest {
            name,
            drain: body.drain,
        },
    )
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The response for a refusal by a use case.
pub(super) struct RefusalResponse(ServiceError);

impl<E: Into<ServiceError>> From<E> for RefusalResponse {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for RefusalResponse {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            ServiceError::Invalid(_) | ServiceError::Refused(_) => StatusCode::BAD_REQUEST,
            ServiceError::NotFound { .. } => StatusCode::NOT_FOUND,
            ServiceError::Denied(Denied { refusal, .. }) => match refusal {
                Refusal::Unauthenticated => StatusCode::UNAUTHORIZED,
                Refusal::Forbidden => StatusCode::FORBIDDEN,
            },
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let mut response = problem(status, &self.0.to_string());
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// Writes the refusals of the router and its extractors, empty or plain text, as problems.
pub(super) async fn explained(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE);
    let is_text = kind.is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !is_text || !(parts.status.is_client_error() || parts.status.is_server_error()) {
        return Response::from_parts(parts, body);
    }
    let text = to_bytes(body, MAX_REASON_BYTES).await.unwrap_or_default();
    let detail = match parts.status {
        _ if !text.is_empty() => &String::from_utf8_lossy(&text),
        StatusCode::NOT_FOUND => "nothing is here; /openapi.json and / name what is",
        StatusCode::METHOD_NOT_ALLOWED => "the path exists, but not with this method",
        status => status.canonical_reason().unwrap_or_default(),
    };
    let problem = problem(parts.status, detail);
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.extend(problem.headers().clone());
    Response::from_parts(parts, problem.into_body())
}

pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    let body =
        json!({ "status": status.as_u16(), "title": status.canonical_reason(), "detail": detail })
            .to_string();
    (
        status,
        [(header::CONTENT_TYPE, "application/problem+json")],
        body,
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::body::Body;

    use super::*;

    #[tokio::test]
    async fn refusals_without_a_kind_of_their_own_become_problems() {
        let mut plain = (StatusCode::BAD_REQUEST, "no id").into_response();
        plain
            .headers_mut()
            .insert("x", HeaderValue::from_static("y"));
        for (refusal, detail) in [
            (plain, "no id"),
            (StatusCode::NOT_FOUND.into_response(), "/openapi.json"),
            (StatusCode::METHOD_NOT_ALLOWED.into_response(), "method"),
        ] {
            let (status, kept) = (refusal.status(), refusal.headers().get("x").cloned());
            let problem = explained(refusal).await;
            assert_eq!(problem.status(), status);
            assert_eq!(problem.headers().get("x").cloned(), kept);
            let kind = &problem.headers()[header::CONTENT_TYPE];
            assert_eq!(kind, "application/problem+json");
            let body = to_bytes(problem.into_body(), 4096).await.unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["status"], status.as_u16());
            assert!(body["detail"].as_str().unwrap().contains(detail), "{body}");
        }
        let own = (StatusCode::BAD_REQUEST, Json(json!({ "code": "internal" })));
        let body = explained(own.into_response()).await.into_body();
        let body = to_bytes(body, 4096).await.unwrap();
        assert_eq!(&body[..], br#"{"code":"internal"}"#);
        let page = explained(Body::from("ok").into_response()).await;
        assert_eq!(page.status(), StatusCode::OK);
        assert_eq!(&to_bytes(page.into_body(), 16).await.unwrap()[..], b"ok");
    }
}
