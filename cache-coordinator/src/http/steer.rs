//! `GET /steer/{source}/{path}` and `GET /steer.json`, for players, and so without a token. The
//! answers contain addresses of edges and nothing else.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use http_rules::{
    path::TargetError,
    steering::{Direction, Question},
};

use super::dashboard::problem;
use crate::service::{Cluster, steer};

/// Any web page may ask, without credentials, as at the edges.
const ANY_ORIGIN: HeaderValue = HeaderValue::from_static("*");

pub async fn steer(State(cluster): State<Arc<Cluster>>, uri: Uri) -> Response {
    let mut response = answer(&cluster, &uri).await;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY_ORIGIN);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn answer(cluster: &Cluster, uri: &Uri) -> Response {
    let question = match Question::parse(uri.path(), uri.query()) {
        Ok(Some(question)) => question,
        Ok(None) => {
            return problem(
                StatusCode::NOT_FOUND,
                "objects are at /steer/{source}/{path}",
            );
        }
        Err(error @ TargetError::NotFound(_)) => {
            return problem(StatusCode::NOT_FOUND, &error.to_string());
        }
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    if let Some(object) = question.object()
        && cluster.is_leader()
        && cluster.source(&object.source).is_none()
    {
        return problem(StatusCode::NOT_FOUND, "there is no such source");
    }
    let candidates = steer::candidates(cluster, question.object()).await;
    match question.answer(&candidates) {
        Some(Direction::Location(to)) => {
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response()
        }
        Some(Direction::Manifest(text)) => {
            ([(header::CONTENT_TYPE, "application/json")], text).into_response()
        }
        None => {
            let detail = "no edge takes players here at the moment";
            let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, detail);
            let after = HeaderValue::from_static("2");
            response.headers_mut().insert(header::RETRY_AFTER, after);
            response
        }
    }
}
