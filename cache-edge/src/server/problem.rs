//! Errors for players: `application/problem+json` (RFC 9457), mapped in this one place.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::edge_body::EdgeBody;
use crate::{
    core::signed_url::SignatureError,
    resolve::ports::{ReadError, ServeError},
};
use http_rules::cache_status::{CacheStatus, Forward};
use http_rules::path::TargetError;

/// The description of an error response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// One sentence for people.
    pub detail: String,
    /// Set only if asking again can help.
    pub retry_after: Option<Duration>,
    /// Set if the error concerns an object.
    pub cache_status: Option<CacheStatus>,
}

impl Problem {
    /// Without `Retry-After`.
    #[must_use]
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            retry_after: None,
            cache_status: None,
        }
    }

    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    #[must_use]
    pub fn cache_status(mut self, forward: Forward, detail: &str) -> Self {
        self.cache_status = Some(CacheStatus {
            forward: Some(forward),
            detail: Some(detail.to_owned()),
            ..CacheStatus::default()
        });
        self
    }

    /// The response without `Cache-Status`, because only the server knows its own name. Caches in
    /// front of the edge must not store it: the problem may be over in a moment.
    #[must_use]
    pub fn into_response(self) -> Response<EdgeBody> {
        let json = serde_json::json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let text = Bytes::from(json.to_string());
        let mut response = Response::new(EdgeBody::empty());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(wait) = self.retry_after {
            // Whole seconds, rounded up, because zero would invite a storm of requests.
            let seconds = wait.as_millis().div_ceil(1000).clamp(1, 86_400);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds as u64));
        }
        *response.body_mut() = EdgeBody::full(text);
        response
    }
}

impl From<&ServeError> for Problem {
    fn from(error: &ServeError) -> Self {
        let status = match error {
            ServeError::UnknownSource(_) | ServeError::UnknownEntry(_) => StatusCode::NOT_FOUND,
            // RFC 9111, 5.2.1.7.
            ServeError::OnlyIfCached | ServeError::OriginUnreachable(_) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            ServeError::BadOrigin(_) => StatusCode::BAD_GATEWAY,
            ServeError::Loop => StatusCode::LOOP_DETECTED,
            ServeError::OriginBusy { .. } | ServeError::Overloaded(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ServeError::Internal(_) | ServeError::NotAhead => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let problem = Self::new(status, error.to_string());
        match error {
            ServeError::UnknownSource(_) | ServeError::UnknownEntry(_) => problem,
            ServeError::OnlyIfCached => problem.cache_status(Forward::Not, "only-if-cached"),
            ServeError::BadOrigin(_) => problem.cache_status(Forward::Miss, "bad-origin"),
            ServeError::Loop => problem.cache_status(Forward::Miss, "loop"),
            ServeError::OriginUnreachable(_) => {
                problem.cache_status(Forward::Miss, "origin-unreachable")
            }
            ServeError::OriginBusy { retry_after, .. } => problem
                .retry_after(*retry_after)
                .cache_status(Forward::Miss, "origin-busy"),
            ServeError::Overloaded(_) => problem
                .retry_after(Duration::from_secs(1))
                .cache_status(Forward::Not, "overloaded"),
            ServeError::Internal(_) | ServeError::NotAhead => {
                problem.cache_status(Forward::Not, "internal")
            }
        }
    }
}

/// For the first byte only; later errors abort the body.
impl From<&ReadError> for Problem {
    fn from(error: &ReadError) -> Self {
        let problem = |status| Self::new(status, error.to_string());
        match error {
            ReadError::TimedOut { .. } => problem(StatusCode::SERVICE_UNAVAILABLE)
                .retry_after(Duration::from_secs(5))
                .cache_status(Forward::Miss, "timed-out"),
            // The object changes with each request: retry later.
            ReadError::Changed => problem(StatusCode::SERVICE_UNAVAILABLE)
                .retry_after(Duration::from_secs(1))
                .cache_status(Forward::Miss, "changed"),
            ReadError::Origin(_) => {
                problem(StatusCode::BAD_GATEWAY).cache_status(Forward::Miss, "bad-origin")
            }
            ReadError::Disk(_) => {
                problem(StatusCode::INTERNAL_SERVER_ERROR).cache_status(Forward::Not, "disk")
            }
        }
    }
}

impl From<TargetError> for Problem {
    fn from(error: TargetError) -> Self {
        let status = match error {
            TargetError::Bad(_) => StatusCode::BAD_REQUEST,
            TargetError::NotFound(_) => StatusCode::NOT_FOUND,
            TargetError::TooLong => StatusCode::URI_TOO_LONG,
        };
        Self::new(status, error.to_string())
    }
}

impl From<SignatureError> for Problem {
    fn from(error: SignatureError) -> Self {
        Self::new(StatusCode::FORBIDDEN, error.to_string())
    }
}
