//! Access by JSON Web Tokens (RFC 7519) instead of signatures of our own: HS256, RS256 and ES256,
//! with the keys of a JWK Set (RFC 7517). Common Access Tokens ([`cat`]) with the same keys.
//!
//! Claims: `exp`, `path` (a pattern such as `/films/a/*`), and optionally `nbf` and `client` (an
//! address or a network).

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Header, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, JwkSet},
};
use serde::{Deserialize, Serialize};

use super::{
    cat, jwt_crypto,
    signed_url::{Grant, SignatureError},
};

/// A token of one kilobyte is long; a request's head is at most 64 KiB.
const MAX_TOKEN_BYTES: usize = 8 << 10;
const MAX_KEYS: usize = 256;
/// RFC 7518, 3.2, requires 32; our own key files require 16.
const LEAST_SECRET_BYTES: usize = 16;

/// The claims of a token that are used here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    #[serde(deserialize_with = "whole_seconds")]
    pub exp: u64,
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// A date may have a fraction (RFC 7519, 2): scripts divide milliseconds.
fn whole_seconds<'de, D: serde::Deserializer<'de>>(date: D) -> Result<u64, D::Error> {
    let seconds = <f64 as serde::Deserialize>::deserialize(date)?;
    let is_date = seconds >= 0.0;
    is_date
        .then_some(seconds as u64)
        .ok_or_else(|| serde::de::Error::custom("no date"))
}

impl Claims {
    /// The grant's pattern, or the path itself if it has none.
    #[must_use]
    pub fn of(path: &str, grant: &Grant<'_>) -> Self {
        Self {
            exp: grant.expires_unix_seconds,
            path: grant.pattern.unwrap_or(path).to_owned(),
            client: grant.client.map(str::to_owned),
        }
    }
}

/// Why a JWK Set is refused. Never shows a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    #[error("it is no JWK Set: {0}")]
    Json(String),
    #[error(
        "key {0}: its parameters are wrong, or a secret has fewer than {LEAST_SECRET_BYTES} bytes"
    )]
    Key(usize),
    #[error("key {0}: its kid was there before")]
    Twice(usize),
    #[error("it has no RSA, P-256 or octet key, or more than {MAX_KEYS} keys")]
    Number,
}

struct TokenKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Keys that tokens are verified with.
#[derive(Clone, Default)]
pub struct AccessTokens(Arc<Vec<TokenKey>>);

impl fmt::Debug for AccessTokens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("AccessTokens")
            .field(&self.0.len())
            .finish()
    }
}

impl AccessTokens {
    /// Ignores keys of other kinds (RFC 7517, 5).
    pub fn parse(jwks: &str) -> Result<Self, JwksError> {
        jwt_crypto::install();
        let set: JwkSet =
            serde_json::from_str(jwks).map_err(|error| JwksError::Json(describe(&error)))?;
        let mut keys: Vec<TokenKey> = Vec::new();
        for (index, jwk) in set.keys.iter().enumerate() {
            let algorithm = match &jwk.algorithm {
                AlgorithmParameters::RSA(_) => Algorithm::RS256,
                AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
                AlgorithmParameters::EllipticCurve(it) if it.curve == EllipticCurve::P256 => {
                    Algorithm::ES256
                }
                _ => continue,
            };
            let key = DecodingKey::from_jwk(jwk).map_err(|_| JwksError::Key(index + 1))?;
            let is_short = key.family() == AlgorithmFamily::Hmac
                && key.try_get_as_bytes().map_or(0, <[u8]>::len) < LEAST_SECRET_BYTES;
            if is_short {
                return Err(JwksError::Key(index + 1));
            }
            let id = jwk.common.key_id.clone();
            if id.is_some() && keys.iter().any(|known| known.id == id) {
                return Err(JwksError::Twice(index + 1));
            }
            keys.push(TokenKey { id, algorithm, key });
        }
        if keys.is_empty() || keys.len() > MAX_KEYS {
            return Err(JwksError::Number);
        }
        Ok(Self(Arc::new(keys)))
    }

    /// The claims of a token that was signed with one of these keys, or with a shared secret that
    /// `secret` finds by its id. The key determines the algorithm, never the token.
    pub fn verify<'a>(
        &self,
        token: &str,
        secret: impl Fn(&str) -> Option<&'a Vec<u8>>,
    ) -> Result<Claims, SignatureError> {
        jwt_crypto::install();
        if token.len() > MAX_TOKEN_BYTES {
            return Err(SignatureError::Malformed);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| SignatureError::Malformed)?;
        let (algorithm, key) = self.find(header.kid.as_deref(), secret)?;
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        validation.validate_nbf = true;
        // The caller checks it, with its own clock.
        validation.validate_exp = false;
        let decoded = jsonwebtoken::decode::<Claims>(token, &key, &validation);
        decoded
            .map(|data| data.claims)
            .map_err(|_| SignatureError::Mismatch)
    }

    /// The same for a Common Access Token.
    pub fn verify_cat<'a>(
        &self,
        token: &str,
        secret: impl Fn(&str) -> Option<&'a Vec<u8>>,
    ) -> Result<cat::Claims, SignatureError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(SignatureError::Malformed);
        }
        let token = URL_SAFE_NO_PAD.decode(token);
        let signed = cat::Signed::parse(&token.map_err(|_| SignatureError::Malformed)?)?;
        let (algorithm, key) = self.find(signed.key_id.as_deref(), secret)?;
        let (message, signature) = (&signed.message, &signed.signature);
        if signed.algorithm != algorithm
            || !jwt_crypto::verifies(algorithm, &key, message, signature)
        {
            return Err(SignatureError::Mismatch);
        }
        signed.claims()
    }

    /// The key of this id, and the algorithm that it is for.
    fn find<'a>(
        &self,
        id: Option<&str>,
        secret: impl Fn(&str) -> Option<&'a Vec<u8>>,
    ) -> Result<(Algorithm, DecodingKey), SignatureError> {
        let Some(id) = id else {
            // Unnamed: only where no choice is left.
            return match &self.0[..] {
                [only] => Ok((only.algorithm, only.key.clone())),
                _ => Err(SignatureError::Mismatch),
            };
        };
        if let Some(known) = self.0.iter().find(|key| key.id.as_deref() == Some(id)) {
            return Ok((known.algorithm, known.key.clone()));
        }
        let secret = secret(id).ok_or(SignatureError::Mismatch)?;
        let key = DecodingKey::from_secret(secret).map_err(|_| SignatureError::Mismatch)?;
        Ok((Algorithm::HS256, key))
    }
}

/// The position of the error, without its text, which may contain a key.
fn describe(error: &serde_json::Error) -> String {
    format!("line {}, column {}", error.line(), error.column())
}

/// HS256.
#[must_use]
pub fn sign_with_secret(secret: &[u8], id: &str, claims: &Claims) -> Option<String> {
    sign(
        &EncodingKey::from_secret(secret).ok()?,
        Algorithm::HS256,
        id,
        claims,
    )
}

/// ES256 or RS256, depending on the private key (PKCS #8, DER). `None`: it is neither.
#[must_use]
pub fn sign_with_private_key(pkcs8: &[u8], id: &str, claims: &Claims) -> Option<String> {
    let elliptic = EncodingKey::from_ec_der(pkcs8);
    let rsa = || EncodingKey::from_rsa_der(pkcs8);
    sign(&elliptic, Algorithm::ES256, id, claims)
        .or_else(|| sign(&rsa(), Algorithm::RS256, id, claims))
}

/// A Common Access Token, HS256.
#[must_use]
pub fn sign_cat_with_secret(secret: &[u8], id: &str, claims: &cat::Claims) -> Option<String> {
    sign_cat(
        &EncodingKey::from_secret(secret).ok()?,
        Algorithm::HS256,
        id,
        claims,
    )
}

/// A Common Access Token, ES256. `None`: the private key (PKCS #8, DER) is not P-256.
#[must_use]
pub fn sign_cat_with_private_key(pkcs8: &[u8], id: &str, claims: &cat::Claims) -> Option<String> {
    sign_cat(
        &EncodingKey::from_ec_der(pkcs8),
        Algorithm::ES256,
        id,
        claims,
    )
}

fn sign_cat(
    key: &EncodingKey,
    algorithm: Algorithm,
    id: &str,
    claims: &cat::Claims,
) -> Option<String> {
    let sign = |message: &[u8]| jwt_crypto::sign(algorithm, key, message);
    let token = cat::sign(algorithm, id, claims, sign)?;
    Some(URL_SAFE_NO_PAD.encode(token))
}

fn sign(key: &EncodingKey, algorithm: Algorithm, id: &str, claims: &Claims) -> Option<String> {
    jwt_crypto::install();
    let header = Header {
        kid: Some(id.to_owned()),
        ..Header::new(algorithm)
    };
    jsonwebtoken::encode(&header, claims, key).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };

    use super::*;

    fn claims() -> Claims {
        Claims {
            exp: 4_102_444_800,
            path: "/films/*".to_owned(),
            client: None,
        }
    }

    /// A private key, and a set with its public half and a secret.
    fn keys() -> (Vec<u8>, String) {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let point = pair.public_key().as_ref();
        let coordinate = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let set = serde_json::json!({ "keys": [
            { "kty": "EC", "crv": "P-256", "kid": "e", "x": coordinate(&point[1..33]),
                "y": coordinate(&point[33..]) },
            { "kty": "oct", "kid": "s", "k": coordinate(b"0123456789abcdef") },
            { "kty": "OKP", "crv": "Ed25519", "kid": "o", "x": coordinate(&[0; 32]) },
        ]});
        (pkcs8.as_ref().to_vec(), set.to_string())
    }

    fn none(_: &str) -> Option<&'static Vec<u8>> {
        None
    }

    #[test]
    fn a_key_verifies_its_own_algorithm_alone() {
        let (private, set) = keys();
        let tokens = AccessTokens::parse(&set).unwrap();
        let elliptic = sign_with_private_key(&private, "e", &claims()).unwrap();
        assert_eq!(tokens.verify(&elliptic, none), Ok(claims()));
        let secret = sign_with_secret(b"0123456789abcdef", "s", &claims()).unwrap();
        assert_eq!(tokens.verify(&secret, none), Ok(claims()));
        // A public key is not a secret, whatever the token's header says.
        let (_, other) = keys();
        for token in [
            sign_with_secret(b"0123456789abcdef", "e", &claims()).unwrap(),
            sign_with_secret(b"0123456789abcdeg", "s", &claims()).unwrap(),
            sign_with_private_key(&private, "s", &claims()).unwrap(),
            sign_with_private_key(&private, "unknown", &claims()).unwrap(),
        ] {
            assert_eq!(tokens.verify(&token, none), Err(SignatureError::Mismatch));
        }
        let strangers = AccessTokens::parse(&other).unwrap();
        assert_eq!(
            strangers.verify(&elliptic, none),
            Err(SignatureError::Mismatch)
        );
        let unsigned = format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"e"}"#),
            "e30"
        );
        for token in ["", "a.b.c", &unsigned, &"a".repeat(9000)] {
            assert!(tokens.verify(token, none).is_err());
        }
        assert!(sign_with_private_key(b"nonsense", "e", &claims()).is_none());
    }

    #[test]
    fn a_date_may_have_a_fraction() {
        let tokens = AccessTokens::parse(&keys().1).unwrap();
        let token = |exp: serde_json::Value| {
            let claims = serde_json::json!({ "exp": exp, "path": "/films/*" });
            let header = Header {
                kid: Some("s".to_owned()),
                ..Header::default()
            };
            let key = EncodingKey::from_secret(b"0123456789abcdef").unwrap();
            jsonwebtoken::encode(&header, &claims, &key).unwrap()
        };
        for exp in ["4102444800", "4102444800.75", "4.1024448e9"] {
            let exp = serde_json::from_str(exp).unwrap();
            assert_eq!(tokens.verify(&token(exp), none), Ok(claims()));
        }
        for exp in ["\"4102444800\"", "-1", "null", "true"] {
            let exp = serde_json::from_str(exp).unwrap();
            assert!(tokens.verify(&token(exp), none).is_err());
        }
    }

    #[test]
    fn a_common_access_token_is_verified_by_the_key_of_its_algorithm() {
        let (private, set) = keys();
        let tokens = AccessTokens::parse(&set).unwrap();
        let grant = Grant {
            key_id: "e",
            expires_unix_seconds: 5,
            pattern: Some("/films/*"),
            client: None,
        };
        let claims = cat::Claims::of("/films/a", &grant).unwrap();
        let secret = b"0123456789abcdef";
        let elliptic = sign_cat_with_private_key(&private, "e", &claims).unwrap();
        assert_eq!(tokens.verify_cat(&elliptic, none), Ok(claims.clone()));
        let shared = sign_cat_with_secret(secret, "s", &claims).unwrap();
        assert_eq!(tokens.verify_cat(&shared, none), Ok(claims.clone()));
        let of_file = secret.to_vec();
        let by_file = AccessTokens::default().verify_cat(&shared, |_| Some(&of_file));
        assert_eq!(by_file, Ok(claims.clone()));
        for token in [
            sign_cat_with_secret(secret, "e", &claims).unwrap(),
            sign_cat_with_secret(b"0123456789abcdeg", "s", &claims).unwrap(),
            sign_cat_with_private_key(&private, "s", &claims).unwrap(),
            sign_cat_with_private_key(&private, "unknown", &claims).unwrap(),
        ] {
            assert_eq!(
                tokens.verify_cat(&token, none),
                Err(SignatureError::Mismatch)
            );
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(&shared).unwrap();
        let at = bytes.iter().rposition(|byte| *byte == b'f').unwrap();
        bytes[at] = b'g';
        let changed = URL_SAFE_NO_PAD.encode(bytes);
        assert!(tokens.verify_cat(&changed, none).is_err());
        for token in ["", "a.b.c", &"a".repeat(9000)] {
            assert!(tokens.verify_cat(token, none).is_err());
        }
        assert!(sign_cat_with_private_key(b"nonsense", "e", &claims).is_none());
    }

    /// Made by the Python package `cwt`, with and without the tag of a CWT.
    #[test]
    fn tokens_of_another_implementation_are_read() {
        let set = r#"{"keys":[
            {"kty":"oct","kid":"s","k":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"},
            {"kty":"EC","crv":"P-256","kid":"e","x":"GU63_erv15Fh4zK8lBFbC1Ld9fQ1WjryNbpPNxvEUk8",
             "y":"kUBj3BonxlGgT_1pJnm-Cl7cqroVte5rNAIm57dzoKw"}]}"#;
        let tokens = AccessTokens::parse(set).unwrap();
        for token in [
            "0YRDoQEFoQRBc1g4pgFuaXNzdWVyLmV4YW1wbGUEGvSGVwAFGQPoBhkD6BkBNgEZATihA6IBZy9maWxtcy8C\
             ZC5tNHNYIJqtff8rwHEWEYUEWiI_5epIZv06XSSXq0uMiiEPEQw5",
            "2D3RhEOhAQWhBEFzWDimAW5pc3N1ZXIuZXhhbXBsZQQa9IZXAAUZA-gGGQPoGQE2ARkBOKEDogFnL2ZpbG1z\
             LwJkLm00c1ggmq19_yvAcRYRhQRaIj_l6khm_TpdJJerS4yKIQ8RDDk",
            "0oRDoQEmoQRBZVg4pgFuaXNzdWVyLmV4YW1wbGUEGvSGVwAFGQPoBhkD6BkBNgEZATihA6IBZy9maWxtcy8C\
             ZC5tNHNYQL8vPgfrVkUreLhp62eJQE9404DaRfDOm4jnboHTGJFdVay8HGEy85Yf-ntg7b-iLbA5wwKQSjFZ\
             1n-I1uBeKaE",
        ] {
            let claims = tokens.verify_cat(token, none).unwrap();
            assert_eq!((claims.expires, claims.not_before), (4_102_444_800, 1_000));
            assert!(claims.covers("/films/a.m4s") && !claims.covers("/films/a.mp4"));
        }
    }

    #[test]
    fn sets_that_are_none() {
        let error = |set: &str| AccessTokens::parse(set).err();
        assert!(matches!(error("{"), Some(JwksError::Json(_))));
        assert_eq!(error(r#"{"keys":[]}"#), Some(JwksError::Number));
        let short = r#"{"keys":[{"kty":"oct","k":"c2hvcnQ"}]}"#;
        assert_eq!(error(short), Some(JwksError::Key(1)));
        let (_, set) = keys();
        let twice = set.replace(r#""kid":"s""#, r#""kid":"e""#);
        assert_eq!(error(&twice), Some(JwksError::Twice(2)));
    }
}
