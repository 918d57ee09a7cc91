//! Access control: bearer tokens with roles, and certificates of edges.
//!
//! A leaf that both listeners call before anything else. Pure, except that `tokens` reads the file
//! of tokens. It knows the needs of a call (`policy`) and its caller (`Caller`), and a refusal
//! names the allowed roles (`Denied`). Invariant: a call that the policy does not list requires an
//! operator, and an edge may only use its own name.

mod caller;
pub mod policy;
mod revocable;
mod tokens;

use std::{path::PathBuf, sync::Arc};

pub use caller::{Caller, Denied, Refusal};
pub use policy::Role;
pub use revocable::{RevocableBody, Revoked};
use rustls::pki_types::CertificateDer;
pub use tokens::{CHECK_INTERVAL, Tokens, TokensError};

/// Identifies callers. Without a file of tokens, every caller that passes TLS may do everything.
#[derive(Clone, Default)]
pub struct Access {
    tokens: Option<Tokens>,
}

impl Access {
    /// Loads the tokens of this file, or none. Blocking: not for an async thread of a busy server.
    pub fn load(file: Option<PathBuf>) -> Result<Self, TokensError> {
        let tokens = file.map(Tokens::load).transpose()?;
        Ok(Self { tokens })
    }

    /// The tokens, so that the file can be watched.
    #[must_use]
    pub fn tokens(&self) -> Option<&Tokens> {
        self.tokens.as_ref()
    }

    /// Identifies the caller: by the `Authorization` header, otherwise by the connection's
    /// certificate.
    pub fn identify(
        &self,
        authorization: Option<&http::HeaderValue>,
        certificate: Option<Arc<CertificateDer<'static>>>,
    ) -> Result<Caller, Denied> {
        let Some(tokens) = &self.tokens else {
            return Ok(Caller::Anyone { certificate });
        };
        let Some(header) = authorization else {
            return Ok(certificate.map_or(Caller::Nobody, Caller::Certificate));
        };
        let token = header.to_str().ok().and_then(bearer);
        let token = token.ok_or_else(Denied::malformed)?;
        let (role, name) = tokens.find(token).ok_or_else(Denied::unknown)?;
        Ok(Caller::Token { role, name })
    }

    /// Completes when the header's token is taken back; `None`: no token counts, or none is given.
    pub fn revoked(&self, authorization: Option<&http::HeaderValue>) -> Option<Revoked> {
        let token = authorization?.to_str().ok().and_then(bearer)?;
        Some(Box::pin(self.tokens.as_ref()?.revoked(token)))
    }
}

/// The token of `Bearer TOKEN`; the scheme is case-insensitive (RFC 9110, 11.1).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests;
