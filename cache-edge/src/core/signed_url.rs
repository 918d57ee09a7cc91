//! Signed URLs: whoever has one may read one object, or all objects below a path, until it expires.
//!
//! The parameters `cc-expires=<unix seconds>&cc-key=<key
//! id>[&cc-path=<pattern>][&cc-client=<address or prefix>]&cc-signature=<base64url>` are in the
//! query, or, as one opaque word, in the path's first segment or in a cookie
//! ([`http_rules::credential`]). The signature is HMAC-SHA256 over these fields and, without a
//! pattern, the normalised path and the query before them. Parameters that follow them in the query
//! are the player's own. They are removed before the cache key is made, so that an object that was
//! signed twice has one key.
//!
//! Values are compared in decoded form, because players re-encode queries.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use http_rules::pattern;
use ipnet::IpNet;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::Sha256;

use super::{
    access_token::{AccessTokens, Claims},
    cat,
};

/// Verifies and makes signatures. It has several keys, so that one can be replaced while URLs
/// signed with another are still in use.
#[derive(Clone, Default)]
pub struct Signer {
    keys: BTreeMap<String, Vec<u8>>,
    tokens: AccessTokens,
}

/// Why a request may not be answered. Always 403.
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

/// The terms of a signature, besides the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant<'a> {
    pub key_id: &'a str,
    pub expires_unix_seconds: u64,
    /// `/films/a/*`: all these paths with any query, instead of one object.
    pub pattern: Option<&'a str>,
    /// `192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`; `None`: any client.
    pub client: Option<&'a str>,
}

const PREFIX: &str = "cc-";
const EXPIRES: &str = "cc-expires";
const KEY: &str = "cc-key";
const PATH: &str = "cc-path";
const CLIENT: &str = "cc-client";
const SIGNATURE: &str = "cc-signature";
/// A JSON Web Token or a Common Access Token, instead of all other parameters.
pub const TOKEN: &str = "cc-token";
/// Players' reports about themselves, which they add to any query.
const CMCD: &str = "CMCD";
const MAX_PARAMETERS: usize = 256;

/// Everything but RFC 3986's unreserved characters.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

impl Signer {
    /// Keys by their id. Without keys no signature is valid.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        Self {
            keys: keys.into_iter().collect(),
            tokens: AccessTokens::default(),
        }
    }

    /// Accepts tokens of these keys as well.
    #[must_use]
    pub fn with_tokens(mut self, tokens: AccessTokens) -> Self {
        self.tokens = tokens;
        self
    }

    /// The query to append to `path`, which begins with a slash and is normalised. `None`: no such
    /// key.
    #[must_use]
    pub fn sign(&self, path: &str, query: &str, grant: &Grant<'_>) -> Option<String> {
        let parameters = self.parameters(path, query, grant)?;
        Some(match query {
            "" => parameters,
            query => format!("{query}&{parameters}"),
        })
    }

    /// The parameters alone. With a pattern neither `path` nor `query` is covered.
    #[must_use]
    pub fn parameters(&self, path: &str, query: &str, grant: &Grant<'_>) -> Option<String> {
        let expires = grant.expires_unix_seconds.to_string();
        let client = grant.client.unwrap_or("");
        let scope = match grant.pattern {
            Some(pattern) => Scope::Paths(pattern),
            None => Scope::Object(path, Cow::Owned(canonical(query.split('&'))?)),
        };
        let mac = self.mac(grant.key_id, &scope, &expires, client)?;
        let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
        let mut fields = vec![(EXPIRES, expires.as_str()), (KEY, grant.key_id)];
        fields.extend(grant.pattern.map(|pattern| (PATH, pattern)));
        fields.extend(grant.client.map(|client| (CLIENT, client)));
        fields.push((SIGNATURE, &signature));
        let fields = fields.iter().map(|(name, value)| {
            // Kept readable where possible; re-encoding it changes nothing.
            let value = utf8_percent_encode(value, ENCODED).to_string();
            format!("{name}={}", value.replace("%2F", "/").replace("%3A", ":"))
        });
        Some(fields.collect::<Vec<_>>().join("&"))
    }

    /// A token instead of parameters, signed with the secret of the grant's key. `None`: no such
    /// key.
    #[must_use]
    pub fn token(&self, path: &str, grant: &Grant<'_>) -> Option<String> {
        let secret = self.keys.get(grant.key_id)?;
        super::access_token::sign_with_secret(secret, grant.key_id, &Claims::of(path, grant))
    }

    /// The same, a Common Access Token.
    #[must_use]
    pub fn cat(&self, claims: &cat::Claims, grant: &Grant<'_>) -> Option<String> {
        let secret = self.keys.get(grant.key_id)?;
        super::access_token::sign_cat_with_secret(secret, grant.key_id, claims)
    }

    /// Checks the request and returns its query without the signature's parameters. `opaque`: the
    /// word from the path or a cookie; parameters in the query take precedence.
    pub fn verify(
        &self,
        path: &str,
        query: &str,
        opaque: Option<&str>,
        client: IpAddr,
        now_unix_seconds: u64,
    ) -> Result<String, SignatureError> {
        let mut parameters = Parameters::split(query)?;
        if parameters.are_absent()
            && let Some(opaque) = opaque
        {
            let text = URL_SAFE_NO_PAD.decode(opaque).ok();
            let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
            parameters.fields = Parameters::split(&text.ok_or(SignatureError::Malformed)?)?.fields;
        }
        let fields = &parameters.fields;
        let field = |name: &str| fields.get(name).map(String::as_str);
        let (expires, allowed) = if let Some(token) = field(TOKEN)
            // The parts of a JSON Web Token have dots between them.
            && !token.contains('.')
        {
            let claims = self.tokens.verify_cat(token, |id| self.keys.get(id))?;
            if !claims.covers(path) || now_unix_seconds < claims.not_before {
                return Err(SignatureError::Mismatch);
            }
            (claims.expires, String::new())
        } else if let Some(token) = field(TOKEN) {
            let claims = self.tokens.verify(token, |id| self.keys.get(id))?;
            check_pattern(&claims.path, path)?;
            (claims.exp, claims.client.unwrap_or_default())
        } else {
            let (Some(expires), Some(key), Some(signature)) =
                (field(EXPIRES), field(KEY), field(SIGNATURE))
            else {
                return Err(SignatureError::Missing);
            };
            let signature = URL_SAFE_NO_PAD
                .decode(signature)
                .map_err(|_| SignatureError::Malformed)?;
            let allowed = field(CLIENT).unwrap_or("");
            let scope = match field(PATH) {
                Some(pattern) => Scope::Paths(pattern),
                None => Scope::Object(path, Cow::Borrowed(&parameters.signed)),
            };
            // `verify_slice` compares in constant time. No other error about the fields is returned
            // before the signature is verified.
            self.mac(key, &scope, expires, allowed)
                .ok_or(SignatureError::Mismatch)?
                .verify_slice(&signature)
                .map_err(|_| SignatureError::Mismatch)?;
            if let Scope::Paths(pattern) = scope {
                check_pattern(pattern, path)?;
            }
            let expires = expires.parse().map_err(|_| SignatureError::Malformed)?;
            (expires, allowed.to_owned())
        };
        if now_unix_seconds >= expires {
            return Err(SignatureError::Expired);
        }
        if !allowed.is_empty() && !in_prefix(client, &allowed)? {
            return Err(SignatureError::OtherClient);
        }
        Ok(parameters.rest)
    }

    fn mac(
        &self,
        key: &str,
        scope: &Scope<'_>,
        expires: &str,
        client: &str,
    ) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.keys.get(key)?).ok()?;
        let (version, scope) = match scope {
            Scope::Object(path, query) => ("chunk cache signed URL 1", vec![*path, query]),
            Scope::Paths(pattern) => ("chunk cache signed URL 2", vec![*pattern]),
        };
        let fields = [&[version, key], &scope[..], &[expires, client]].concat();
        // Each field is preceded by its length, so that no two lists of fields give the same
        // message.
        for field in fields {
            mac.update(&(field.len() as u64).to_be_bytes());
            mac.update(field.as_bytes());
        }
        Some(mac)
    }
}

/// The part of a request that a signature covers.
enum Scope<'a> {
    /// A path with a query.
    Object(&'a str, Cow<'a, str>),
    Paths(&'a str),
}

#[derive(Default)]
struct Parameters {
    /// Our parameters, decoded.
    fields: BTreeMap<String, String>,
    /// The parameters before ours, which the signature covers, in their canonical form.
    signed: String,
    /// The query without our parameters.
    rest: String,
}

impl Parameters {
    fn split(query: &str) -> Result<Self, SignatureError> {
        let mut parameters = Self::default();
        let (mut before, mut after): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        let mut pairs = query.split('&');
        for pair in pairs.by_ref().take(MAX_PARAMETERS) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name);
            let is_ours = name.as_deref().is_some_and(|name| {
                matches!(name, EXPIRES | KEY | PATH | CLIENT | SIGNATURE | TOKEN)
            });
            if !is_ours {
                let to = if parameters.fields.is_empty() {
                    &mut before
                } else {
                    &mut after
                };
                to.push(pair);
                continue;
            }
            let (Some(name), Some(value)) = (name, decode(value)) else {
                return Err(SignatureError::Malformed);
            };
            if parameters.fields.insert(name, value).is_some() {
                return Err(SignatureError::Malformed);
            }
        }
        if pairs.next().is_some() {
            return Err(SignatureError::Malformed);
        }
        // A second parameter with the name of a signed one must not overrule it.
        let names = before.iter().map(|pair| name_of(pair));
        let names: Vec<_> = names.filter(|name| name.as_deref() != Some(CMCD)).collect();
        if after.iter().any(|pair| names.contains(&name_of(pair))) {
            return Err(SignatureError::Malformed);
        }
        parameters.signed = canonical(before.iter().copied()).ok_or(SignatureError::Malformed)?;
        parameters.rest = [before, after].concat().join("&");
        Ok(parameters)
    }

    fn are_absent(&self) -> bool {
        self.fields.is_empty()
    }
}

fn name_of(pair: &str) -> Option<String> {
    decode(pair.split_once('=').map_or(pair, |(name, _)| name))
}

/// Decodes as for forms, because that is how players' libraries re-encode queries.
fn decode(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    let decoded = percent_decode_str(&text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// One spelling for all texts that decode alike, without what players report about themselves.
fn canonical<'a>(pairs: impl Iterator<Item = &'a str>) -> Option<String> {
    let encode = |text: &str| Some(utf8_percent_encode(&decode(text)?, ENCODED).to_string());
    let pairs = pairs.filter(|pair| name_of(pair).as_deref() != Some(CMCD));
    let pairs = pairs.map(|pair| match pair.split_once('=') {
        Some((name, value)) => Some(format!("{}={}", encode(name)?, encode(value)?)),
        None => encode(pair),
    });
    Some(pairs.collect::<Option<Vec<_>>>()?.join("&"))
}

/// Checks that the pattern covers the path, both in decoded form.
fn check_pattern(pattern: &str, path: &str) -> Result<(), SignatureError> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    if pattern::matches(&decoded(pattern), &decoded(path)) {
        Ok(())
    } else {
        Err(SignatureError::Mismatch)
    }
}

/// Whether `address` equals `prefix` or is in it. An IPv4-mapped IPv6 address counts as IPv4.
fn in_prefix(address: IpAddr, prefix: &str) -> Result<bool, SignatureError> {
    let network = match prefix.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address.to_canonical()),
        Err(_) => prefix.parse().map_err(|_| SignatureError::Malformed)?,
    };
    Ok(network.contains(&address.to_canonical()))
}

/// Whether the parameter is one of ours, which is secret wherever a URL is logged.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
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
            pattern: None,
            client,
        }
    }

    #[test]
    fn a_signed_url_verifies_and_loses_its_parameters() {
        let query = signer().sign("/films/a", "x=1", &grant(None)).unwrap();
        assert_eq!(
            signer()
                .verify("/films/a", &query, None, client(), 999)
                .as_deref(),
            Ok("x=1")
        );
        let bare = signer().sign("/films/a", "", &grant(None)).unwrap();
        assert_eq!(
            signer()
                .verify("/films/a", &bare, None, client(), 0)
                .as_deref(),
            Ok("")
        );
    }

    #[test]
    fn what_was_changed_does_not_verify() {
        let query = signer()
            .sign("/films/a", "x=1", &grant(Some("192.0.2.9")))
            .unwrap();
        let verify = |path: &str, query: &str| signer().verify(path, query, None, client(), 0);
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
            signer().verify("/films/a", &query, None, client(), 1000),
            Err(SignatureError::Expired)
        );
        let rotated = Signer::new([("a".to_owned(), b"old secret".to_vec())]);
        assert_eq!(
            rotated.verify("/films/a", &query, None, client(), 0),
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
                .verify("/films/a", &query, None, from.parse().unwrap(), 0)
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

    #[test]
    fn players_write_queries_anew_and_add_to_them() {
        let query = signer()
            .sign("/films/a", "t=a b&x=1", &grant(Some("192.0.2.0/24")))
            .unwrap();
        let verify = |query: &str| signer().verify("/films/a", query, None, client(), 0);
        let written_anew = query
            .replace('/', "%2F")
            .replace(' ', "+")
            .replace('-', "%2D");
        assert!(written_anew.contains("192.0.2.0%2F24"));
        for (changed, rest) in [
            (query.replace('/', "%2F"), "t=a b&x=1"),
            (written_anew, "t=a+b&x=1"),
            (query.replace(' ', "%20"), "t=a%20b&x=1"),
            (
                format!("{query}&CMCD=bl%3D1&_q=2"),
                "t=a b&x=1&CMCD=bl%3D1&_q=2",
            ),
            (format!("CMCD=su&{query}"), "CMCD=su&t=a b&x=1"),
        ] {
            assert_eq!(verify(&changed).as_deref(), Ok(rest), "{changed}");
        }
        // Signed parameters must remain unchanged.
        for changed in [
            format!("{query}&x=2"),
            format!("{query}&%78=2"),
            format!("y=1&{query}"),
            query.replace("t=a b&", ""),
        ] {
            assert!(verify(&changed).is_err(), "{changed}");
        }
        assert!(verify(&format!("{query}{}", "&a=1".repeat(300))).is_err());
    }

    #[test]
    fn a_pattern_covers_a_ladder() {
        let ladder = Grant {
            pattern: Some("/films/a b/*"),
            ..grant(None)
        };
        let parameters = signer().parameters("", "", &ladder).unwrap();
        let verify = |path: &str, query: &str, opaque: Option<&str>| {
            signer().verify(path, query, opaque, client(), 999)
        };
        let opaque = URL_SAFE_NO_PAD.encode(&parameters);
        for path in ["/films/a%20b/master.m3u8", "/films/a%20b/720p/1.m4s"] {
            let with_own = format!("part=3&{parameters}&CMCD=su");
            let rest = verify(path, &with_own, None);
            assert_eq!(rest.as_deref(), Ok("part=3&CMCD=su"));
            let rest = verify(path, "part=3", Some(&opaque));
            assert_eq!(rest.as_deref(), Ok("part=3"));
        }
        for path in ["/films/a%20b", "/films/b/1.m4s", "/x/films/a%20b/1.m4s"] {
            let outside = Err(SignatureError::Mismatch);
            assert_eq!(verify(path, &parameters, None), outside, "{path}");
        }
        let wider = parameters.replace("a%20b", "%2A");
        assert!(verify("/films/a%20b/1.m4s", &wider, None).is_err());
        assert_eq!(
            verify("/films/a%20b/1", "", Some("!")),
            Err(SignatureError::Malformed)
        );
        assert_eq!(
            verify("/films/a%20b/1", "", None),
            Err(SignatureError::Missing)
        );
    }

    #[test]
    fn a_token_of_a_known_secret() {
        let grant = Grant {
            pattern: Some("/films/*"),
            expires_unix_seconds: 4_102_444_800,
            ..grant(Some("192.0.2.0/24"))
        };
        let token = signer().token("", &grant).unwrap();
        let verify = |path: &str, token: &str, from: &str| {
            let query = format!("{TOKEN}={token}&x=1");
            signer().verify(path, &query, None, from.parse().unwrap(), 0)
        };
        assert_eq!(
            verify("/films/a", &token, "192.0.2.9").as_deref(),
            Ok("x=1")
        );
        let other = Err(SignatureError::OtherClient);
        assert_eq!(verify("/films/a", &token, "198.51.100.1"), other);
        let outside = Err(SignatureError::Mismatch);
        assert_eq!(verify("/other/a", &token, "192.0.2.9"), outside);
        let cut = &token[..token.len() - 2];
        assert_eq!(verify("/films/a", cut, "192.0.2.9"), outside);
    }

    proptest! {
        #[test]
        fn arbitrary_queries_never_verify(query in "[ -~]{0,60}", now: u64) {
            prop_assert!(signer().verify("/films/a", &query, None, client(), now).is_err());
        }
    }
}
