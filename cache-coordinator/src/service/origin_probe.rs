//! Asks an origin whether it has an object, so that an entry can be made without a player.
//!
//! One byte is asked for and no body is read. Redirects are followed only inside the source's own
//! authority: no request ever goes to a host that is not registered.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chunkcache_proto::v1;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use service_kit::telemetry;
use tracing::Instrument as _;
use url::Url;

use super::{
    error::{Resource, ServiceError},
    names::display_key,
    origin_answer::{self, Found, Refusal},
    resolve_key::now_ms,
};

/// For one object, redirects included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Hops inside the source's authority.
const MAX_REDIRECTS: usize = 5;

/// A client for origins.
#[derive(Clone)]
pub struct OriginProbe {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl OriginProbe {
    /// Trusts the system's authorities for https.
    pub fn new(tls: Arc<rustls::ClientConfig>) -> Self {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls.as_ref().clone())
            .https_or_http()
            .enable_http1()
            .build();
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// The object behind a key, as the origin has it now.
    pub async fn probe(
        &self,
        source: &v1::Source,
        key: &v1::Key,
        chunk_size: u32,
    ) -> Result<Found, ServiceError> {
        let failed = |message: String| ServiceError::Origin {
            source_name: source.name.clone(),
            message,
        };
        let response = tokio::time::timeout(TIMEOUT, self.ask(source, key))
            .await
            .map_err(|_| failed(format!("it did not answer within {} s", TIMEOUT.as_secs())))?
            .map_err(failed)?;
        let (parts, _body) = response.into_parts();
        origin_answer::read(
            parts.status,
            &parts.headers,
            source,
            key,
            chunk_size,
            now_ms(),
        )
        .map_err(|refusal| match refusal {
            Refusal::Absent(_) => ServiceError::not_found(Resource::Object, display_key(key)),
            Refusal::Uncacheable(_) => ServiceError::Precondition {
                reason: "UNCACHEABLE",
                message: refusal.to_string(),
            },
            Refusal::Failed(message) => failed(message),
        })
    }

    async fn ask(&self, source: &v1::Source, key: &v1::Key) -> Result<Response<Incoming>, String> {
        let mut url = object_url(source, key)?;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = request(source, &url)?;
            // Without the query, which may be signed.
            let span = tracing::info_span!(
                "origin",
                otel.kind = "client",
                source = source.name,
                path = url.path()
            );
            telemetry::inject(&span, request.headers_mut());
            let response = self
                .client
                .request(request)
                .instrument(span)
                .await
                .map_err(|error| deepest(&error))?;
            let Some(next) = redirect_target(&response, &url)? else {
                return Ok(response);
            };
            url = next;
        }
        Err(format!("it redirects more than {MAX_REDIRECTS} times"))
    }
}

fn object_url(source: &v1::Source, key: &v1::Key) -> Result<Url, String> {
    let mut text = format!("{}/{}", source.base_url, key.path);
    if !key.query.is_empty() {
        text.push('?');
        text.push_str(&key.query);
    }
    Url::parse(&text).map_err(|error| error.to_string())
}

fn request(source: &v1::Source, url: &Url) -> Result<Request<Empty<Bytes>>, String> {
    let uri: Uri = url
        .as_str()
        .parse()
        .map_err(|_| "its URL can not be asked for".to_owned())?;
    let mut request = Request::get(uri)
        .header(header::RANGE, "bytes=0-0")
        .header(header::ACCEPT_ENCODING, "identity")
        .header(
            header::USER_AGENT,
            concat!("chunkcache/", env!("CARGO_PKG_VERSION")),
        )
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    for pair in &source.headers {
        let name = HeaderName::from_bytes(pair.name.as_bytes()).map_err(|e| e.to_string())?;
        let mut value = HeaderValue::from_str(&pair.value).map_err(|e| e.to_string())?;
        value.set_sensitive(true);
        request.headers_mut().append(name, value);
    }
    Ok(request)
}

/// Where a redirect leads, if it is one and stays inside.
fn redirect_target<B>(response: &Response<B>, from: &Url) -> Result<Option<Url>, String> {
    let is_redirect = matches!(
        response.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    if !is_redirect {
        return Ok(None);
    }
    let target = response
        .headers()
        .get(header::LOCATION)
        .and_then(|location| location.to_str().ok())
        .and_then(|location| from.join(location).ok())
        .ok_or_else(|| "it redirects to nowhere".to_owned())?;
    if target.origin() == from.origin() {
        Ok(Some(target))
    } else {
        Err("it redirects outside its own authority".to_owned())
    }
}

/// The cause that says most: the client wraps it twice.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn redirect(location: &str) -> Result<Option<Url>, String> {
        let response = Response::builder()
            .status(302)
            .header(header::LOCATION, location)
            .body(())
            .unwrap();
        redirect_target(&response, &Url::parse("http://origin:81/a/b").unwrap())
    }

    #[test]
    fn redirects_stay_inside_the_authority() {
        assert_eq!(
            redirect("../c").unwrap().unwrap().as_str(),
            "http://origin:81/c"
        );
        assert!(redirect("http://origin:81/x").unwrap().is_some());
        for outside in [
            "http://origin/x",
            "https://origin:81/x",
            "http://169.254.169.254/",
            "//other/x",
        ] {
            assert!(redirect(outside).is_err(), "{outside}");
        }
    }
}
