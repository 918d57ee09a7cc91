//! Signatures of requests to buckets (SigV4), and the credentials for them.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use chunkcache_proto::v1;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use reqsign_aws_v4::{
    Credential, DefaultCredentialProvider, RequestSigner, StaticCredentialProvider,
};
use reqsign_core::{Context, FileRead, HttpSend, OsEnv, Signer as RequestSigning};
use service_kit::tls;
use tokio::time::Instant;

use super::OriginError;

pub(super) const DEFAULT_REGION: &str = "us-east-1";

/// Time limit for one request to the instance's metadata or to the token service.
const CREDENTIALS_WITHIN: Duration = Duration::from_secs(5);
/// Limit for their answers, which are a few KiB.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Credentials that a server refuses are read again, at most this often.
const RENEWED_AT_MOST_EVERY: Duration = Duration::from_secs(5);
/// The bytes of a path that are escaped in the signed text.
const UNSIGNED_LETTERS: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');
/// Request bodies are empty, and over TLS signing them gains nothing.
const UNSIGNED_PAYLOAD: HeaderValue = HeaderValue::from_static("UNSIGNED-PAYLOAD");
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// Signs the requests of one source.
pub struct Signer {
    settings: v1::S3Settings,
    signing: ArcSwap<RequestSigning<Credential>>,
    renewed: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// `None` if the source is not a bucket.
    #[must_use]
    pub fn of(source: &v1::Source) -> Option<Self> {
        if !source.base_url.starts_with("s3://") {
            return None;
        }
        let settings = source.s3.clone().unwrap_or_default();
        Some(Self {
            signing: ArcSwap::from_pointee(signing(&settings)),
            settings,
            renewed: Mutex::new(None),
        })
    }

    /// Adds the signature. Headers that proxies may change are not signed.
    pub async fn sign(&self, request: &mut Request<Empty<Bytes>>) -> Result<(), OriginError> {
        let unsendable = |_| OriginError::Protocol("its path can not be sent".into());
        *request.uri_mut() = as_signed(request.uri()).map_err(unsendable)?;
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = request.method().clone();
        parts.uri = request.uri().clone();
        parts.headers.insert(CONTENT_SHA256, UNSIGNED_PAYLOAD);
        let signing = self.signing.load_full();
        signing.sign(&mut parts, None).await.map_err(|error| {
            tracing::debug!(%error, "no signature");
            OriginError::Unreachable("its bucket's credentials can not be had".to_owned())
        })?;
        for (name, value) in parts.headers {
            if let Some(name) = name.filter(|name| name != header::HOST) {
                request.headers_mut().insert(name, value);
            }
        }
        Ok(())
    }

    /// Handles the refusal of a signed request. Returns true if the credentials can be renewed, and
    /// so the request is worth another attempt.
    pub fn renew(&self, status: StatusCode) -> bool {
        let is_refused = matches!(status.as_u16(), 400 | 401 | 403);
        if !is_refused || !self.settings.access_key_id.is_empty() {
            return false;
        }
        let mut renewed = self.renewed.lock();
        if renewed.is_some_and(|at| at.elapsed() < RENEWED_AT_MOST_EVERY) {
            return false;
        }
        *renewed = Some(Instant::now());
        self.signing.store(Arc::new(signing(&self.settings)));
        true
    }
}

/// The URI with its path as signatures cover it: everything except letters, digits, `-._~` and `/`
/// is escaped. A server may compute the signature over the path as it arrived, and take a `+` for a
/// space.
fn as_signed(uri: &Uri) -> Result<Uri, http::Error> {
    let decoded: Vec<u8> = percent_decode_str(uri.path()).collect();
    let path = percent_encode(&decoded, UNSIGNED_LETTERS).to_string();
    let path_and_query = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.parse()?);
    Ok(Uri::from_parts(parts)?)
}

fn signing(settings: &v1::S3Settings) -> RequestSigning<Credential> {
    let context = Context::new()
        .with_env(OsEnv)
        .with_file_read(Files)
        .with_http_send(MetadataClient);
    let region = match settings.region.as_str() {
        "" => DEFAULT_REGION,
        region => region,
    };
    let signer = RequestSigner::new("s3", region);
    if settings.access_key_id.is_empty() {
        return RequestSigning::new(context, DefaultCredentialProvider::new(), signer);
    }
    let mut credentials =
        StaticCredentialProvider::new(&settings.access_key_id, &settings.secret_access_key);
    if !settings.session_token.is_empty() {
        credentials = credentials.with_session_token(&settings.session_token);
    }
    RequestSigning::new(context, credentials, signer)
}

/// Reads the files that the settings of the SDKs name.
#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        let read = tokio::fs::read(path).await;
        read.map_err(|error| unexpected("a file of credentials can not be read", error))
    }
}

/// Asks the instance's metadata and the token service for credentials.
#[derive(Debug, Default)]
struct MetadataClient;

impl MetadataClient {
    fn client()
    -> Result<HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>, reqsign_core::Error> {
        let tls = tls::system_roots()
            .and_then(|roots| tls::client_of(roots, None))
            .map_err(|error| unexpected("tls can not be set up", error))?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(HyperClient::builder(TokioExecutor::new()).build(connector))
    }
}

impl HttpSend for MetadataClient {
    async fn http_send(&self, request: Request<Bytes>) -> reqsign_core::Result<Response<Bytes>> {
        let client = Self::client()?;
        let asked = async {
            let response = client
                .request(request.map(Full::new))
                .await
                .map_err(|error| unexpected("credentials can not be asked for", error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| {
                reqsign_core::Error::unexpected(format!("an answer broke off: {error}"))
            })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        tokio::time::timeout(CREDENTIALS_WITHIN, asked)
            .await
            .map_err(|error| unexpected("credentials did not come in time", error))?
    }
}

fn unexpected(
    message: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> reqsign_core::Error {
    reqsign_core::Error::unexpected(message).with_source(error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::str::FromStr as _;

    use super::*;

    fn bucket(session_token: &str) -> Signer {
        Signer::of(&v1::Source {
            base_url: "s3://films".into(),
            s3: Some(v1::S3Settings {
                access_key_id: "AKID".into(),
                secret_access_key: "canary-secret".into(),
                session_token: session_token.into(),
                ..Default::default()
            }),
            ..Default::default()
        })
        .unwrap()
    }

    async fn signed(signer: &Signer) -> http::HeaderMap {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = "http://127.0.0.1:9000/films/a%20b".parse().unwrap();
        request
            .headers_mut()
            .insert(header::RANGE, HeaderValue::from_static("bytes=0-1"));
        signer.sign(&mut request).await.unwrap();
        request.headers().clone()
    }

    #[test]
    fn paths_are_sent_as_they_are_signed() {
        for (asked, signed) in [
            ("/a/b.mp4", "/a/b.mp4"),
            ("/a//b+c%2Bd%2bé?v=1+2", "/a//b%2Bc%2Bd%2B%C3%A9?v=1+2"),
            ("/100%2525~(x)'=%20", "/100%2525~%28x%29%27%3D%20"),
        ] {
            let uri = Uri::from_str(&format!("http://s3{}", asked.replace('é', "%C3%A9")));
            let sent = as_signed(&uri.unwrap()).unwrap();
            assert_eq!(sent.to_string(), format!("http://s3{signed}"));
        }
    }

    #[tokio::test]
    async fn requests_are_signed_and_secrets_stay_here() {
        let headers = signed(&bucket("")).await;
        let authorization = headers[header::AUTHORIZATION].to_str().unwrap();
        assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKID/"));
        assert!(
            authorization.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date,"),
            "{authorization}"
        );
        assert_eq!(headers[CONTENT_SHA256], "UNSIGNED-PAYLOAD");
        assert_eq!(headers[header::RANGE], "bytes=0-1");
        assert!(!headers.contains_key("x-amz-security-token"));
        let signer = bucket("token");
        assert_eq!(signed(&signer).await["x-amz-security-token"], "token");
        assert!(!format!("{signer:?} {headers:?}").contains("canary"));
    }

    #[tokio::test]
    async fn only_credentials_that_can_change_are_renewed() {
        assert!(!bucket("").renew(StatusCode::FORBIDDEN));
        let found = Signer::of(&v1::Source {
            base_url: "s3://films".into(),
            ..Default::default()
        })
        .unwrap();
        assert!(!found.renew(StatusCode::NOT_FOUND));
        assert!(found.renew(StatusCode::FORBIDDEN));
        assert!(!found.renew(StatusCode::FORBIDDEN), "not at once again");
        assert!(Signer::of(&v1::Source::default()).is_none());
    }
}
