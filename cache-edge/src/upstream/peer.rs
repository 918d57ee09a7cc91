//! Authentication between edges, and the form of their requests (RFC 0001, 10).

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chunkcache_proto::{ByteRange, EntryId, Level, v1};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use prost::Message as _;
use sha2::Sha256;

/// The path prefix on the player listener.
pub const PEER_PREFIX: &str = "/_peer/v1/entries/";
/// The path prefix of requests for answers that a peer keeps as a whole.
pub const KEEPER_PREFIX: &str = "/_peer/v1/answers/";
/// Set by an edge that received bytes that do not match this hash: the peer then checks its copy.
pub const MISMATCH: HeaderName = HeaderName::from_static("x-chunk-mismatch");
/// How urgent the request is (RFC 9218).
pub const PRIORITY: HeaderName = HeaderName::from_static("priority");
const SCHEME: &str = "ChunkCache-Peer ";
/// Clocks of edges may differ by this much; a request cannot be replayed for longer.
const LARGEST_SKEW_SECONDS: u64 = 60;

/// The level of a request to a peer.
#[must_use]
pub fn urgency(level: Level) -> HeaderValue {
    HeaderValue::from_static(match level {
        Level::Critical => "u=0",
        Level::High => "u=1",
        Level::Medium => "u=2",
        Level::Low => "u=3",
    })
}

/// The level that a peer's request carries.
#[must_use]
pub fn level(headers: &HeaderMap) -> Level {
    let value = headers.get(PRIORITY);
    let asked = |level: &Level| value == Some(&urgency(*level));
    let levels = [Level::Critical, Level::High, Level::Medium];
    levels.into_iter().find(asked).unwrap_or(Level::Low)
}

/// The keys that all edges share, newest first. Set by the coordinator.
#[derive(Default)]
pub struct PeerKeys(ArcSwap<Vec<Vec<u8>>>);

impl PeerKeys {
    pub fn replace(&self, keys: Vec<Vec<u8>>) {
        self.0.store(std::sync::Arc::new(keys));
    }

    /// Headers of a request for the range, signed with the newest key; `None` without a key.
    #[must_use]
    pub fn request_headers(
        &self,
        entry: &EntryId,
        range: ByteRange,
        now_seconds: u64,
    ) -> Option<HeaderMap> {
        let range = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let mut headers = self.signed(&path(entry), &range, now_seconds)?;
        headers.insert(header::RANGE, HeaderValue::from_str(&range).ok()?);
        Some(headers)
    }

    /// Headers of a request to a keeper, which is in its path.
    #[must_use]
    pub fn keeper_headers(&self, path: &str, now_seconds: u64) -> Option<HeaderMap> {
        self.signed(path, "", now_seconds)
    }

    fn signed(&self, path: &str, range: &str, now_seconds: u64) -> Option<HeaderMap> {
        let mac = sign(self.0.load().first()?, path, range, now_seconds)?;
        let token = format!(
            "{SCHEME}{now_seconds}.{}",
            hex(&mac.finalize().into_bytes())
        );
        let mut headers = HeaderMap::new();
        let mut token = HeaderValue::from_str(&token).ok()?;
        token.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, token);
        Some(headers)
    }

    /// Whether the request was recently signed with one of the keys.
    #[must_use]
    pub fn accepts(&self, path: &str, headers: &HeaderMap, now_seconds: u64) -> bool {
        let text = |name| {
            headers
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
        };
        let Some(token) = text(header::AUTHORIZATION) else {
            return false;
        };
        let range = text(header::RANGE).unwrap_or_default();
        let Some((seconds, signature)) = token
            .strip_prefix(SCHEME)
            .and_then(|rest| rest.split_once('.'))
        else {
            return false;
        };
        let (Ok(seconds), Some(signature)) = (seconds.parse::<u64>(), unhex(signature)) else {
            return false;
        };
        seconds.abs_diff(now_seconds) <= LARGEST_SKEW_SECONDS
            && self.0.load().iter().any(|key| {
                sign(key, path, range, seconds)
                    .is_some_and(|mac| mac.verify_slice(&signature).is_ok())
            })
    }
}

/// The request path; the same on every edge.
#[must_use]
pub fn path(entry: &EntryId) -> String {
    format!("{PEER_PREFIX}{entry}")
}

/// The path of a request to a keeper, with the whole request in it.
#[must_use]
pub fn keeper_path(request: &v1::KeeperRequest) -> String {
    let encoded = URL_SAFE_NO_PAD.encode(request.encode_to_vec());
    format!("{KEEPER_PREFIX}{encoded}")
}

/// The request in a path; `None`: there is none.
#[must_use]
pub fn keeper_request(path: &str) -> Option<v1::KeeperRequest> {
    let encoded = path.strip_prefix(KEEPER_PREFIX)?;
    let request = URL_SAFE_NO_PAD.decode(encoded).ok()?;
    v1::KeeperRequest::decode(request.as_slice()).ok()
}

fn sign(key: &[u8], path: &str, range: &str, seconds: u64) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(format!("GET\n{path}\n{range}\n{seconds}").as_bytes());
    Some(mac)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_is_asked_with_a_signed_path() {
        let request = v1::KeeperRequest {
            key: Some(v1::Key {
                source: "live".into(),
                path: "a%20b/index.m3u8".into(),
                query: "_HLS_msn=3&x=%2F".into(),
                variant: String::new(),
            }),
            headers: vec![v1::Header {
                name: "user-agent".into(),
                value: "a player".into(),
            }],
            invalidation_epoch: 7,
        };
        let path = keeper_path(&request);
        assert_eq!(keeper_request(&path), Some(request));
        assert_eq!(keeper_request("/_peer/v1/answers/&"), None);
        let keys = PeerKeys::default();
        keys.replace(vec![b"key".to_vec()]);
        let headers = keys.keeper_headers(&path, 1_000).unwrap();
        assert!(keys.accepts(&path, &headers, 1_000));
        assert!(!keys.accepts(&format!("{path}A"), &headers, 1_000));
    }

    #[test]
    fn only_the_signed_request_is_accepted_and_only_for_a_while() {
        let keys = PeerKeys::default();
        let entry = EntryId::nil();
        assert!(
            keys.request_headers(&entry, ByteRange::new(0, 9), 1_000)
                .is_none()
        );
        keys.replace(vec![b"new".to_vec(), b"old".to_vec()]);
        let headers = keys
            .request_headers(&entry, ByteRange::new(0, 9), 1_000)
            .unwrap();
        assert!(keys.accepts(&path(&entry), &headers, 1_030));
        assert!(!keys.accepts(&path(&entry), &headers, 1_061));
        assert!(!keys.accepts("/_peer/v1/entries/x", &headers, 1_000));
        let mut other = headers.clone();
        other.insert(header::RANGE, HeaderValue::from_static("bytes=0-9"));
        assert!(!keys.accepts(&path(&entry), &other, 1_000));
        keys.replace(vec![b"newer".to_vec(), b"new".to_vec()]);
        assert!(
            keys.accepts(&path(&entry), &headers, 1_000),
            "a rotated key is accepted still"
        );
        keys.replace(vec![b"other".to_vec()]);
        assert!(!keys.accepts(&path(&entry), &headers, 1_000));
    }
}
