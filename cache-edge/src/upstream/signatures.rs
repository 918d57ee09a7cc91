//! Clients' signatures of presigned URLs: read from what a client asks for, remembered when an
//! origin accepted them, and sent with requests for the object.

use chunkcache_proto::v1;
use http_rules::presigned;
use parking_lot::Mutex;
use url::Url;

use super::{Catalogue, OriginError, Source};
use crate::{clock::now_ms, core::permissions::Permissions};

/// How long a signature that was just accepted is good at least.
const LEAST_PERMITTED_MS: i64 = 5_000;

impl Source {
    /// The signature of a client's name, if the origin is asked about each; empty: it has none.
    #[must_use]
    pub fn signature(&self, named: &v1::Key) -> Option<String> {
        self.checks_signatures()
            .then(|| presigned::signature(&named.query, &self.key_rules))
    }

    /// Whether clients need a signature that the origin accepts.
    #[must_use]
    pub fn checks_signatures(&self) -> bool {
        presigned::is_checked(&self.key_rules)
    }

    /// Whether requests to the origin need one too: the source has no credentials of its own.
    #[must_use]
    pub fn needs_signature(&self) -> bool {
        self.checks_signatures() && self.signer.is_none()
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
    /// The URL to ask for an object, with a signature that its origin accepted where it needs one.
    pub fn url_of(&self, source: &Source, key: &v1::Key) -> Result<Url, OriginError> {
        if !source.needs_signature() {
            return source.signed_url(key, "");
        }
        let object = permission_object(source, key);
        let signature = self.permissions.lock().any(&object, now_ms());
        source.signed_url(key, &signature.ok_or(OriginError::Unsigned)?)
    }

    /// Until when a signature is known to be accepted for an object.
    #[must_use]
    pub fn permitted_until(&self, source: &Source, key: &v1::Key, signature: &str) -> Option<i64> {
        let object = permission_object(source, key);
        self.permissions.lock().until(&object, signature, now_ms())
    }

    /// Remembers that a signature was accepted for an object. Returns until when.
    pub fn permit(&self, source: &Source, key: &v1::Key, signature: &str) -> i64 {
        let now = now_ms();
        // The request that was accepted is answered, whatever this machine's clock says.
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

/// What a signature is good for: an object at one place, in all its versions and variants.
fn permission_object(source: &Source, key: &v1::Key) -> String {
    let base_url = source.base_url();
    format!("{}\0{base_url}\0{}\0{}", key.source, key.path, key.query)
}
