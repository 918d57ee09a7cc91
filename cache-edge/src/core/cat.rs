//! Common Access Tokens (CTA-5007): CBOR Web Tokens (RFC 8392) in COSE (RFC 9052), with HS256 in a
//! COSE_Mac0, or ES256 in a COSE_Sign1.
//!
//! A claim may restrict a token, so tokens with an unknown claim are refused.

use coset::{
    AsCborValue as _, CborSerializable as _, CoseMac0, CoseSign1, HeaderBuilder,
    RegisteredLabelWithPrivate, TaggedCborSerializable, cbor::value::Value,
    iana::Algorithm as CoseAlgorithm, mac_structure_data,
};
use jsonwebtoken::Algorithm;
use percent_encoding::percent_decode_str;

use super::signed_url::{Grant, SignatureError};

/// Optional tag around either message (RFC 8392, 6).
const CWT_TAG: u64 = 61;
const MAC: CoseAlgorithm = CoseAlgorithm::HMAC_256_256;
const ES256: CoseAlgorithm = CoseAlgorithm::ES256;
/// Limit of matches of the path.
const MAX_MATCHES: usize = 8;

const ISSUER: i128 = 1;
const SUBJECT: i128 = 2;
const EXPIRES: i128 = 4;
const NOT_BEFORE: i128 = 5;
const ISSUED_AT: i128 = 6;
const TOKEN_ID: i128 = 7;
const REPLAY: i128 = 308;
const VERSION: i128 = 310;
const URI: i128 = 312;
const METHODS: i128 = 313;
/// How a server refuses a token, and how it renews one. Edges do neither.
const IF_DATA: i128 = 320;
const IF: i128 = 322;
const RENEWAL: i128 = 323;
/// Claims that do not restrict a token.
const HARMLESS: [i128; 7] = [ISSUER, SUBJECT, ISSUED_AT, TOKEN_ID, IF_DATA, IF, RENEWAL];

/// The only component of a URI that an edge can check, because it may be reached by any name.
const PATH: i128 = 3;

/// How a path is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Exact = 0,
    Prefix = 1,
    Suffix = 2,
    Contains = 3,
}

/// A received token. Its content is untrusted until its signature is verified.
#[derive(Debug)]
pub struct Signed {
    pub algorithm: Algorithm,
    pub key_id: Option<String>,
    /// The signed bytes.
    pub message: Vec<u8>,
    pub signature: Vec<u8>,
    payload: Vec<u8>,
}

impl Signed {
    pub fn parse(token: &[u8]) -> Result<Self, SignatureError> {
        let value = Value::from_slice(token).map_err(|_| SignatureError::Malformed)?;
        Self::read(value).ok_or(SignatureError::Malformed)
    }

    fn read(value: Value) -> Option<Self> {
        let value = match value {
            Value::Tag(CWT_TAG, inner) => *inner,
            value => value,
        };
        let (tag, value) = match value {
            Value::Tag(tag, inner) => (Some(tag), *inner),
            value => (None, value),
        };
        // Both messages have the same four elements.
        let signed = CoseSign1::from_cbor_value(value).ok()?;
        let header = &signed.protected.header;
        if !header.crit.is_empty() {
            return None;
        }
        let key_id = [&header.key_id, &signed.unprotected.key_id];
        let key_id = key_id.into_iter().find(|id| !id.is_empty());
        let key_id = key_id.map(|id| String::from_utf8(id.clone())).transpose();
        let payload = signed.payload.clone()?;
        let (algorithm, expected, message) = match &header.alg {
            Some(RegisteredLabelWithPrivate::Assigned(ES256)) => {
                (Algorithm::ES256, CoseSign1::TAG, signed.tbs_data(&[]))
            }
            Some(RegisteredLabelWithPrivate::Assigned(MAC)) => {
                let context = coset::MacContext::CoseMac0;
                let header = signed.protected.clone();
                let message = mac_structure_data(context, header, &[], &payload);
                (Algorithm::HS256, CoseMac0::TAG, message)
            }
            _ => return None,
        };
        (tag.is_none_or(|tag| tag == expected)).then_some(Self {
            algorithm,
            key_id: key_id.ok()?,
            message,
            signature: signed.signature,
            payload,
        })
    }

    /// The claims. The caller must have verified the signature.
    pub fn claims(&self) -> Result<Claims, SignatureError> {
        let Ok(Value::Map(entries)) = Value::from_slice(&self.payload) else {
            return Err(SignatureError::Malformed);
        };
        Claims::read(&entries).ok_or(SignatureError::Mismatch)
    }
}

/// The restrictions of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub expires: u64,
    pub not_before: u64,
    /// All of them must match.
    path: Vec<(Match, String)>,
}

impl Claims {
    /// Claims for the path, or for a pattern with at most one `*`. `None`: this kind of token
    /// cannot express the grant.
    #[must_use]
    pub fn of(path: &str, grant: &Grant<'_>) -> Option<Self> {
        let pattern = grant.pattern.unwrap_or(path);
        let path = match pattern.split_once('*') {
            None => vec![(Match::Exact, pattern.to_owned())],
            Some((_, after)) if after.contains('*') => return None,
            Some((before, "")) => vec![(Match::Prefix, before.to_owned())],
            Some((before, after)) => vec![
                (Match::Prefix, before.to_owned()),
                (Match::Suffix, after.to_owned()),
            ],
        };
        grant.client.is_none().then_some(Self {
            expires: grant.expires_unix_seconds,
            not_before: 0,
            path,
        })
    }

    /// Whether the path matches. Decoded forms are compared.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let path = decoded(path);
        self.path.iter().all(|(how, text)| {
            let text = decoded(text);
            match how {
                Match::Exact => path == text,
                Match::Prefix => path.starts_with(&text),
                Match::Suffix => path.ends_with(&text),
                Match::Contains => path.contains(&text),
            }
        })
    }

    fn read(entries: &[(Value, Value)]) -> Option<Self> {
        let (mut expires, mut not_before, mut path) = (None, 0, None);
        let mut seen = Vec::new();
        for (key, value) in entries {
            let key = integer(key)?;
            if seen.contains(&key) {
                return None;
            }
            seen.push(key);
            match key {
                EXPIRES => expires = Some(seconds(value)?),
                NOT_BEFORE => not_before = seconds(value)?,
                URI => path = Some(path_of(value)?),
                // A token for GET allows HEAD as well, which reveals less.
                METHODS => value
                    .as_array()?
                    .iter()
                    .any(|method| method.as_text() == Some("GET"))
                    .then_some(())?,
                VERSION => (integer(value)? == 1).then_some(())?,
                // A player sends many requests, so a token for a single use is useless.
                REPLAY => (integer(value)? == 0).then_some(())?,
                key if HARMLESS.contains(&key) => {}
                _ => return None,
            }
        }
        Some(Self {
            expires: expires?,
            not_before,
            path: path?,
        })
    }

    fn encoded(&self) -> Option<Vec<u8>> {
        let number = |number: i128| Value::Integer(number.try_into().unwrap_or(0.into()));
        let matches = self.path.iter();
        let matches = matches.map(|(how, text)| (number(*how as i128), text.as_str().into()));
        let uri = Value::Map(vec![(number(PATH), Value::Map(matches.collect()))]);
        let claims = Value::Map(vec![
            (number(EXPIRES), self.expires.into()),
            (number(VERSION), 1.into()),
            (number(URI), uri),
        ]);
        claims.to_vec().ok()
    }
}

/// The matches of the path. Fails if the URI has other components.
fn path_of(uri: &Value) -> Option<Vec<(Match, String)>> {
    let [(component, matches)] = &uri.as_map()?[..] else {
        return None;
    };
    let matches = matches
        .as_map()
        .filter(|_| integer(component) == Some(PATH))?;
    if matches.is_empty() || matches.len() > MAX_MATCHES {
        return None;
    }
    let read = matches.iter().map(|(how, text)| {
        let how = match integer(how)? {
            0 => Match::Exact,
            1 => Match::Prefix,
            2 => Match::Suffix,
            3 => Match::Contains,
            _ => return None,
        };
        Some((how, text.as_text()?.to_owned()))
    });
    read.collect()
}

fn integer(value: &Value) -> Option<i128> {
    value.as_integer().map(i128::from)
}

/// A NumericDate (RFC 8392, 2).
fn seconds(value: &Value) -> Option<u64> {
    match value {
        Value::Float(seconds) if (0.0..1e15).contains(seconds) => Some(*seconds as u64),
        value => integer(value)?.try_into().ok(),
    }
}

/// Encodes a token. `sign` returns the signature of a message. `None`: it cannot sign it.
#[must_use]
pub fn sign(
    algorithm: Algorithm,
    key_id: &str,
    claims: &Claims,
    sign: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    let payload = claims.encoded()?;
    let header = |algorithm| {
        let header = HeaderBuilder::new().algorithm(algorithm);
        header.key_id(key_id.as_bytes().to_vec()).build()
    };
    let sign = |message: &[u8]| sign(message).ok_or(());
    let signed = match algorithm {
        Algorithm::ES256 => coset::CoseSign1Builder::new()
            .protected(header(ES256))
            .payload(payload)
            .try_create_signature(&[], sign)
            .ok()?
            .build()
            .to_tagged_vec(),
        Algorithm::HS256 => coset::CoseMac0Builder::new()
            .protected(header(MAC))
            .payload(payload)
            .try_create_tag(&[], sign)
            .ok()?
            .build()
            .to_tagged_vec(),
        _ => return None,
    };
    signed.ok()
}

#[cfg(test)]
#[path = "cat_tests.rs"]
#[allow(clippy::unwrap_used)]
mod tests;
