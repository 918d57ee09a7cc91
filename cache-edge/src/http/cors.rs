//! Cross-origin reading by browsers (the Fetch standard's CORS protocol).

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::edge_body::EdgeBody;

/// Who may read from a page of another origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cors {
    /// `*`: media are public to whoever may fetch them, and no credentials are involved.
    #[default]
    AnyOrigin,
    /// These origins, e.g. `https://player.example`.
    Origins(Vec<String>),
    /// No CORS headers at all.
    Off,
}

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "Range, If-Range, If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since, Cache-Control, Traceparent",
);
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static(
    "Accept-Ranges, Age, Cache-Status, Content-Length, Content-Range, Date, ETag, Last-Modified",
);
/// Browsers cap it at two hours or less; a preflight before each seek would cost a round trip.
const MAX_AGE_SECONDS: HeaderValue = HeaderValue::from_static("7200");

impl Cors {
    /// Adds what a browser needs to let a page read the response.
    pub fn decorate(&self, request: &HeaderMap, response: &mut HeaderMap) {
        if matches!(self, Self::Origins(_)) {
            // Also where it is not allowed: a cache must not give that answer to a page that is.
            response.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        let Some(allowed) = self.allow_origin(request) else {
            return;
        };
        response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
    }

    /// The answer to OPTIONS, preflight or not.
    #[must_use]
    pub fn preflight(&self, request: &HeaderMap) -> Response<EdgeBody> {
        let mut response = Response::new(EdgeBody::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(header::ALLOW, METHODS);
        let preflight = request.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if preflight && self.allow_origin(request).is_some() {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECONDS);
        }
        response
    }

    fn allow_origin(&self, request: &HeaderMap) -> Option<HeaderValue> {
        match self {
            Self::AnyOrigin => Some(HeaderValue::from_static("*")),
            Self::Origins(origins) => {
                let origin = request.get(header::ORIGIN)?;
                origins
                    .iter()
                    .any(|allowed| allowed.as_bytes() == origin.as_bytes())
                    .then(|| origin.clone())
            }
            Self::Off => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn request(origin: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        headers.insert(
            header::ACCESS_CONTROL_REQUEST_METHOD,
            HeaderValue::from_static("GET"),
        );
        headers
    }

    #[test]
    fn a_preflight_allows_range() {
        let response = Cors::AnyOrigin.preflight(&request("https://a.example"));
        let allowed = response.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS]
            .to_str()
            .unwrap();
        assert!(allowed.contains("Range"));
    }

    #[test]
    fn listed_origins_only() {
        let cors = Cors::Origins(vec!["https://a.example".to_owned()]);
        let mut headers = HeaderMap::new();
        cors.decorate(&request("https://b.example"), &mut headers);
        assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
        assert_eq!(headers[header::VARY], "Origin");
        let mut headers = HeaderMap::new();
        cors.decorate(&request("https://a.example"), &mut headers);
        assert_eq!(
            headers[header::ACCESS_CONTROL_ALLOW_ORIGIN],
            "https://a.example"
        );
        assert_eq!(headers[header::VARY], "Origin");
    }
}
