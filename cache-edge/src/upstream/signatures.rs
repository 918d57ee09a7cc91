//! Clients' signatures of presigned URLs: read from clients' requests, remembered when an origin
//! accepted them, and sent with requests for the object.

use std::sync::Arc;

use chunkcache_proto::v1;
use http::{HeaderName, StatusCode, header};
use http_rules::presigned;
use parking_lot::Mutex;
use url::Url;

use super::{Catalogue, OriginError, Response, Source, origin::Origin};
use crate::{clock::now_ms, core::permissions::Permissions};

/// How long a signature that was just accepted is considered valid, at least.
const LEAST_PERMITTED_MS: i64 = 5_000;
/// How many signatures are tried for one request, one after the other, while they are refused.
const MOST_TRIED: usize = 4;

impl Source {
    /// The signature in a client's query, if the origin is asked about each; empty: it has none.
    #[must_use]
    pub fn signature(&self, query: &str) -> Option<String> {
        self.checks_signatures()
            .then(|| presigned::signature(query, &self.key_rules))
    }

    /// Whether clients need a signature that the origin accepts.
    #[must_use]
    pub fn checks_signatures(&self) -> bool {
        presigned::is_checked(&self.key_rules)
    }

    /// Whether requests to the origin need one too, because the source has no credentials of its
    /// own.
    #[must_use]
    pub fn needs_signature(&self) -> bool {
        self.checks_signatures() && self.signer.is_none()
    }

    /// Whether the source has access to its objects that its clients do not have.
    #[must_use]
    pub fn has_own_right(&self) -> bool {
        self.signer.is_some()
            || self.headers.iter().any(|(name, _)| is_right(name))
            || self.origins().iter().any(Origin::has_credentials)
    }

    /// Like [`url`](Self::url), with a client's signature.
    pub fn signed_url(&self, key: &v1::Key, signature: &str) -> Result<Url, OriginError> {
        let query = match (key.query.as_str(), signature) {
            (query, "") => query.to_owned(),
            ("", signature) => signature.to_owned(),
            (query, signature) => format!("{query}&{signature}"),
        };
        let outside = || OriginError::Protocol("the path leaves the source".into());
        self.url(&key.path, &query).ok_or_else(outside)
    }
}

impl Catalogue {
    /// Requests an object, with a signature that its origin accepted if it needs one. If that
    /// signature is refused now, forgets it and tries another.
    pub async fn ask_signed<F>(
        &self,
        source: &Source,
        key: &v1::Key,
        mut ask: impl FnMut(Url) -> F,
    ) -> Result<Response, OriginError>
    where
        F: Future<Output = Result<Response, OriginError>>,
    {
        if !source.needs_signature() {
            return ask(source.signed_url(key, "")?).await;
        }
        let mut signature = self
            .signature_for(source, key)
            .ok_or(OriginError::Unsigned)?;
        for tried in 1.. {
            let response = ask(source.signed_url(key, &signature)?).await?;
            // Another origin's refusal says nothing about the first one's verdict.
            if response.passed_over().is_some() || !refuses_signature(response.status) {
                return Ok(response);
            }
            self.take_back(source, key, &signature);
            match self.signature_for(source, key) {
                // Close the connection of the refusal first, because only one may be allowed.
                Some(other) if tried < MOST_TRIED => signature = other,
                _ => return Ok(response),
            }
        }
        Err(OriginError::Unsigned)
    }

    fn signature_for(&self, source: &Source, key: &v1::Key) -> Option<Arc<str>> {
        let object = permission_object(source, key);
        self.permissions.lock().any(&object, now_ms())
    }

    /// Forgets that a signature was accepted for an object.
    pub fn take_back(&self, source: &Source, key: &v1::Key, signature: &str) {
        let object = permission_object(source, key);
        self.permissions.lock().take_back(&object, signature);
    }

    /// Until when a signature is known to be accepted for an object.
    #[must_use]
    pub fn permitted_until(&self, source: &Source, key: &v1::Key, signature: &str) -> Option<i64> {
        let object = permission_object(source, key);
        self.permissions.lock().until(&object, signature, now_ms())
    }

    /// Remembers that a signature was accepted for an object. Returns until when it counts.
    pub fn permit(&self, source: &Source, key: &v1::Key, signature: &str) -> i64 {
        let now = now_ms();
        // The request that was accepted gets its answer, whatever this machine's clock says.
        let until = presigned::expires_ms(signature, now).max(now + LEAST_PERMITTED_MS);
        let object = permission_object(source, key);
        self.permissions.lock().give(&object, signature, until);
        until
    }

    /// The signatures that origins accepted.
    #[must_use]
    pub fn permissions(&self) -> &Mutex<Permissions> {
        &self.permissions
    }
}

/// Whether a request with a signature was refused because of it, as far as the status shows: S3
/// answers 400 if the credentials behind the signature have expired.
#[must_use]
pub fn refuses_signature(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
    )
}

/// Whether a header carries its sender's credentials.
pub(super) fn is_right(name: &HeaderName) -> bool {
    matches!(*name, header::AUTHORIZATION | header::COOKIE)
}

/// The object that a signature is valid for: at one place, in all its versions and variants.
fn permission_object(source: &Source, key: &v1::Key) -> String {
    let base_url = source.base_url();
    format!("{}\0{base_url}\0{}\0{}", key.source, key.path, key.query)
}
