//! Cross-origin reading by browsers (the Fetch standard's CORS protocol).

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::edge_body::EdgeBody;

/// The permissions of pages from other origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    pub origins: AllowedOrigins,
    /// Request headers that scripts may set, in lower case; `None`: all that a preflight names.
    pub request_headers: Option<Vec<String>>,
    /// `Cross-Origin-Resource-Policy`: pages that may embed a response without CORS.
    pub resource_policy: Option<HeaderValue>,
}

/// Origins whose pages may read responses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// `*`: media are public to all who may fetch them, and no credentials are involved.
    #[default]
    Any,
    /// These origins, e.g. `https://player.example`; they may send credentials.
    Listed(Vec<String>),
    /// No CORS headers at all.
    None,
}

impl Default for Cors {
    fn default() -> Self {
        Self {
            origins: AllowedOrigins::Any,
            request_headers: None,
            resource_policy: Some(HeaderValue::from_static("cross-origin")),
        }
    }
}

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static(
    "Accept-Ranges, Age, Cache-Status, CMSD-Dynamic, CMSD-Static, Content-Length, Content-Range, \
     Date, ETag, Last-Modified, Retry-After",
);
/// Browsers cap it at two hours or less; a preflight before each seek would cost a round trip.
const MAX_AGE_SECONDS: HeaderValue = HeaderValue::from_static("7200");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const TIMING_ALLOW_ORIGIN: HeaderName = HeaderName::from_static("timing-allow-origin");
const OVERRULED: [HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    TIMING_ALLOW_ORIGIN,
];
/// Limits for the list of headers in a preflight: its length and the number of names.
const MAX_REQUESTED_BYTES: usize = 2048;
const MAX_REQUESTED_NAMES: usize = 64;

impl Cors {
    /// Adds the headers that a browser needs to let a page read the response.
    pub fn decorate(&self, request: &HeaderMap, response: &mut HeaderMap) {
        if let Some(policy) = &self.resource_policy {
            response.insert(RESOURCE_POLICY, policy.clone());
        }
        if self.origins != AllowedOrigins::Any {
            // The origin server's own CORS headers must not widen what the operator allows.
            for name in OVERRULED {
                response.remove(name);
            }
        }
        if matches!(self.origins, AllowedOrigins::Listed(_)) {
            // Also if it is not allowed: a cache must not give that answer to a page that is
            // allowed.
            response.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        let Some(allowed) = self.allow_origin(request) else {
            return;
        };
        if matches!(self.origins, AllowedOrigins::Listed(_)) {
            let credentials = header::ACCESS_CONTROL_ALLOW_CREDENTIALS;
            response.insert(credentials, HeaderValue::from_static("true"));
        }
        response.insert(TIMING_ALLOW_ORIGIN, allowed.clone());
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
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECONDS);
            let vary = HeaderValue::from_static("Access-Control-Request-Headers");
            headers.append(header::VARY, vary);
            if let Some(names) = self.allowed_headers(request) {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
            }
        }
        response
    }

    /// The allowed headers among those that a preflight names. They are listed by name, because `*`
    /// covers neither `Authorization` nor a request with credentials.
    fn allowed_headers(&self, request: &HeaderMap) -> Option<HeaderValue> {
        let requested = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS)?;
        let requested = requested.to_str().ok()?;
        if requested.len() > MAX_REQUESTED_BYTES {
            return None;
        }
        let names: Vec<String> = requested
            .split(',')
            .take(MAX_REQUESTED_NAMES)
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .map(|name| name.as_str().to_owned())
            .filter(|name| match &self.request_headers {
                Some(allowed) => allowed.contains(name),
                None => true,
            })
            .collect();
        HeaderValue::try_from(names.join(", ")).ok()
    }

    fn allow_origin(&self, request: &HeaderMap) -> Option<HeaderValue> {
        match &self.origins {
            AllowedOrigins::Any => Some(HeaderValue::from_static("*")),
            AllowedOrigins::Listed(origins) => {
                let origin = request.get(header::ORIGIN)?;
                origins
                    .iter()
                    .any(|allowed| allowed.as_bytes() == origin.as_bytes())
                    .then(|| origin.clone())
            }
            AllowedOrigins::None => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn request(origin: &'static str, requested_headers: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        headers.insert(
            header::ACCESS_CONTROL_REQUEST_METHOD,
            HeaderValue::from_static("GET"),
        );
        headers.insert(
            header::ACCESS_CONTROL_REQUEST_HEADERS,
            HeaderValue::from_str(requested_headers).unwrap(),
        );
        headers
    }

    fn listed() -> Cors {
        Cors {
            origins: AllowedOrigins::Listed(vec!["https://a.example".to_owned()]),
            ..Cors::default()
        }
    }

    fn allowed(cors: &Cors, requested: &str) -> Option<String> {
        let response = cors.preflight(&request("https://a.example", requested));
        let value = response.headers().get(header::ACCESS_CONTROL_ALLOW_HEADERS);
        value.map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_preflight_allows_what_it_asks_for() {
        let players =
            "range, authorization, cmcd-request,CMCD-Session, content-type, accept-encoding";
        assert_eq!(
            allowed(&Cors::default(), players).unwrap(),
            "range, authorization, cmcd-request, cmcd-session, content-type, accept-encoding"
        );
        assert_eq!(allowed(&Cors::default(), "x y, ok, \u{e9}"), None);
        assert_eq!(allowed(&Cors::default(), "x y, ok").unwrap(), "ok");
        assert_eq!(allowed(&Cors::default(), &"a,".repeat(2000)), None);
        let many = "a,".repeat(500);
        assert!(allowed(&Cors::default(), &many).unwrap().len() < 64 * 3);
    }

    #[test]
    fn allowed_headers_can_be_narrowed() {
        let cors = Cors {
            request_headers: Some(vec!["range".to_owned()]),
            ..Cors::default()
        };
        assert_eq!(allowed(&cors, "Range, authorization").unwrap(), "range");
    }

    #[test]
    fn listed_origins_only() {
        let mut headers = HeaderMap::new();
        listed().decorate(&request("https://b.example", ""), &mut headers);
        for absent in [
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            TIMING_ALLOW_ORIGIN,
        ] {
            assert!(!headers.contains_key(&absent), "{absent}");
        }
        assert_eq!(headers[header::VARY], "Origin");
        let mut headers = HeaderMap::new();
        listed().decorate(&request("https://a.example", ""), &mut headers);
        assert_eq!(
            headers[header::ACCESS_CONTROL_ALLOW_ORIGIN],
            "https://a.example"
        );
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        assert_eq!(headers[TIMING_ALLOW_ORIGIN], "https://a.example");
        assert_eq!(headers[header::VARY], "Origin");
    }

    #[test]
    fn an_origin_server_does_not_widen_what_is_allowed() {
        let none = Cors {
            origins: AllowedOrigins::None,
            ..Cors::default()
        };
        for cors in [listed(), none] {
            let mut headers = HeaderMap::new();
            for name in OVERRULED {
                headers.insert(name, HeaderValue::from_static("*"));
            }
            cors.decorate(&request("https://b.example", ""), &mut headers);
            for name in OVERRULED {
                assert!(!headers.contains_key(&name), "{name}");
            }
        }
    }

    #[test]
    fn any_origin_is_without_credentials() {
        let mut headers = HeaderMap::new();
        Cors::default().decorate(&request("https://a.example", ""), &mut headers);
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert_eq!(headers[RESOURCE_POLICY], "cross-origin");
        assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS));
        assert!(!headers.contains_key(header::VARY));
    }
}
