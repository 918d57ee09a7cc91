//! Signed URLs: whoever has one may read one object until it expires.
//!
//! `?cc-expires=<unix seconds>&cc-key=<key id>[&cc-client=<address or
//! prefix>]&cc-signature=<base64url>`, HMAC-SHA256 over the normalised path, the rest of the query,
//! and these fields. The parameters are removed before the cache key is made: the same object
//! signed twice is one object.

use std::{collections::BTreeMap, net::IpAddr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Verifies and makes signatures. Several keys, so that one can be replaced while URLs signed with
/// another are still valid.
#[derive(Clone, Default)]
pub struct Signer {
    keys: BTreeMap<String, Vec<u8>>,
}

/// Why a request may not be answered. All are 403.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the URL is not signed")]
    Missing,
    #[error("the signature parameters can not be read")]
    Malformed,
    #[error("the signature does not match the URL")]
    Mismatch,
    #[error("the signed URL has expired")]
    Expired,
    #[error("the URL was signed for another client")]
    OtherClient,
}

/// The signed fields, besides the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant<'a> {
    pub key_id: &'a str,
    pub expires_unix_seconds: u64,
    /// `192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`; none: any client.
    pub client: Option<&'a str>,
}

const EXPIRES: &str = "cc-expires";
const KEY: &str = "cc-key";
const CLIENT: &str = "cc-client";
const SIGNATURE: &str = "cc-signature";

impl Signer {
    /// Keys by their id. Without keys nothing verifies.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        Self {
            keys: keys.into_iter().collect(),
        }
    }

    /// The query to append to `path`, which begins with a slash and is normalised. `None`: no such
    /// key.
    #[must_use]
    pub fn sign(&self, path: &str, query: &str, grant: &Grant<'_>) -> Option<String> {
        let expires = grant.expires_unix_seconds.to_string();
        let signature = self
            .mac(
                grant.key_id,
                path,
                query,
                &expires,
                grant.client.unwrap_or(""),
            )?
            .finalize();
        let mut signed = query.to_owned();
        let mut push = |name: &str, value: &str| {
            if !signed.is_empty() {
                signed.push('&');
            }
            signed.push_str(name);
            signed.push('=');
            signed.push_str(value);
        };
        push(EXPIRES, &expires);
        push(KEY, grant.key_id);
        if let Some(client) = grant.client {
            push(CLIENT, client);
        }
        push(SIGNATURE, &URL_SAFE_NO_PAD.encode(signature.into_bytes()));
        Some(signed)
    }

    /// Checks the query's signature parameters and returns the query without them.
    pub fn verify(
        &self,
        path: &str,
        query: &str,
        client: IpAddr,
        now_unix_seconds: u64,
    ) -> Result<String, SignatureError> {
        let parameters = Parameters::split(query)?;
        let (Some(expires), Some(key), Some(signature)) =
            (parameters.expires, parameters.key, parameters.signature)
        else {
            return Err(SignatureError::Missing);
        };
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| SignatureError::Malformed)?;
        // `verify_slice` compares in constant time; no error about the fields is returned before
        // the signature is verified.
        let allowed = parameters.client.unwrap_or("");
        self.mac(key, path, &parameters.rest, expires, allowed)
            .ok_or(SignatureError::Mismatch)?
            .verify_slice(&signature)
            .map_err(|_| SignatureError::Mismatch)?;
        let expires: u64 = expires.parse().map_err(|_| SignatureError::Malformed)?;
        if now_unix_seconds >= expires {
            return Err(SignatureError::Expired);
        }
        if !allowed.is_empty() && !in_prefix(client, allowed)? {
            return Err(SignatureError::OtherClient);
        }
        Ok(parameters.rest)
    }

    fn mac(
        &self,
        key: &str,
        path: &str,
        query: &str,
        expires: &str,
        client: &str,
    ) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.keys.get(key)?).ok()?;
        // Lengths go before the fields, so that no two lists of fields are one message.
        for field in [
            "chunk cache signed URL 1",
            key,
            path,
            query,
            expires,
            client,
        ] {
            mac.update(&(field.len() as u64).to_be_bytes());
            mac.update(field.as_bytes());
        }
        Some(mac)
    }
}

#[derive(Default)]
struct Parameters<'a> {
    expires: Option<&'a str>,
    key: Option<&'a str>,
    client: Option<&'a str>,
    signature: Option<&'a str>,
    rest: String,
}

impl<'a> Parameters<'a> {
    fn split(query: &'a str) -> Result<Self, SignatureError> {
        let mut parameters = Self::default();
        let mut rest: Vec<&str> = Vec::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = match name {
                EXPIRES => &mut parameters.expires,
                KEY => &mut parameters.key,
                CLIENT => &mut parameters.client,
                SIGNATURE => &mut parameters.signature,
                _ => {
                    rest.push(pair);
                    continue;
                }
            };
            if slot.replace(value).is_some() {
                return Err(SignatureError::Malformed);
            }
        }
        parameters.rest = rest.join("&");
        Ok(parameters)
    }
}

/// Whether `address` equals `prefix` or is in it. An IPv4-mapped IPv6 address counts as IPv4.
fn in_prefix(address: IpAddr, prefix: &str) -> Result<bool, SignatureError> {
    let prefix = prefix.replace("%2F", "/");
    let (network, length) = match prefix.split_once('/') {
        Some((network, length)) => (
            network,
            Some(
                length
                    .parse::<u32>()
                    .map_err(|_| SignatureError::Malformed)?,
            ),
        ),
        None => (prefix.as_str(), None),
    };
    let network: IpAddr = network.parse().map_err(|_| SignatureError::Malformed)?;
    let (address, network, width) = match (address.to_canonical(), network.to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(n)) => (u128::from(a.to_bits()), u128::from(n.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(n)) => (a.to_bits(), n.to_bits(), 128),
        _ => return Ok(false),
    };
    let length = length.unwrap_or(width);
    if length > width {
        return Err(SignatureError::Malformed);
    }
    // A shift by the whole width would overflow: the empty prefix contains everything.
    Ok((address ^ network).checked_shr(width - length).unwrap_or(0) == 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signer() -> Signer {
        Signer::new([
            ("a".to_owned(), b"old secret".to_vec()),
            ("b".to_owned(), b"new secret".to_vec()),
        ])
    }

    fn client() -> IpAddr {
        "192.0.2.9".parse().unwrap()
    }

    fn grant(client: Option<&'static str>) -> Grant<'static> {
        Grant {
            key_id: "b",
            expires_unix_seconds: 1000,
            client,
        }
    }

    #[test]
    fn a_signed_url_verifies_and_loses_its_parameters() {
        let query = signer().sign("/films/a", "x=1", &grant(None)).unwrap();
        assert_eq!(
            signer()
                .verify("/films/a", &query, client(), 999)
                .as_deref(),
            Ok("x=1")
        );
        let bare = signer().sign("/films/a", "", &grant(None)).unwrap();
        assert_eq!(
            signer().verify("/films/a", &bare, client(), 0).as_deref(),
            Ok("")
        );
    }

    #[test]
    fn what_was_changed_does_not_verify() {
        let query = signer()
            .sign("/films/a", "x=1", &grant(Some("192.0.2.9")))
            .unwrap();
        let verify = |path: &str, query: &str| signer().verify(path, query, client(), 0);
        assert!(verify("/films/a", &query).is_ok());
        assert_eq!(verify("/films/b", &query), Err(SignatureError::Mismatch));
        for (from, to) in [
            ("x=1", "x=2"),
            ("1000", "9000"),
            ("cc-key=b", "cc-key=a"),
            ("cc-key=b", "cc-key=c"),
            ("192.0.2.9", "192.0.2.0"),
        ] {
            assert_eq!(
                verify("/films/a", &query.replace(from, to)),
                Err(SignatureError::Mismatch),
                "{to}"
            );
        }
        assert_eq!(
            verify("/films/a", &query.replace("&cc-client=192.0.2.9", "")),
            Err(SignatureError::Mismatch)
        );
        assert_eq!(verify("/films/a", "x=1"), Err(SignatureError::Missing));
        assert_eq!(
            verify("/films/a", &format!("{query}&cc-key=a")),
            Err(SignatureError::Malformed)
        );
        assert_eq!(
            verify("/films/a", &format!("{query}!")),
            Err(SignatureError::Malformed)
        );
    }

    #[test]
    fn expiry_and_retired_keys() {
        let query = signer().sign("/films/a", "", &grant(None)).unwrap();
        assert_eq!(
            signer().verify("/films/a", &query, client(), 1000),
            Err(SignatureError::Expired)
        );
        let rotated = Signer::new([("a".to_owned(), b"old secret".to_vec())]);
        assert_eq!(
            rotated.verify("/films/a", &query, client(), 0),
            Err(SignatureError::Mismatch)
        );
    }

    #[test]
    fn clients_by_prefix() {
        let check = |allowed: &'static str, from: &str| {
            let query = signer()
                .sign("/films/a", "", &grant(Some(allowed)))
                .unwrap();
            signer()
                .verify("/films/a", &query, from.parse().unwrap(), 0)
                .map(|_| ())
        };
        assert_eq!(check("192.0.2.0/24", "192.0.2.200"), Ok(()));
        assert_eq!(check("192.0.2.0/24", "::ffff:192.0.2.200"), Ok(()));
        assert_eq!(
            check("192.0.2.0/24", "192.0.3.1"),
            Err(SignatureError::OtherClient)
        );
        assert_eq!(check("2001:db8::/32", "2001:db8:9::1"), Ok(()));
        assert_eq!(
            check("2001:db8::/32", "192.0.2.1"),
            Err(SignatureError::OtherClient)
        );
        assert_eq!(check("0.0.0.0/0", "203.0.113.1"), Ok(()));
        assert_eq!(check("::/0", "2001:db8::1"), Ok(()));
        assert_eq!(
            check("192.0.2.0/33", "192.0.2.1"),
            Err(SignatureError::Malformed)
        );
    }

    proptest! {
        #[test]
        fn arbitrary_queries_never_verify(query in "[ -~]{0,60}", now: u64) {
            prop_assert!(signer().verify("/films/a", &query, client(), now).is_err());
        }
    }
}
