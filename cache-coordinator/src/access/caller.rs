//! The caller of a request, and refusals of calls that it may not make.

use std::{fmt, sync::Arc};

use rustls::{
    client::verify_server_name,
    pki_types::{CertificateDer, ServerName},
    server::ParsedCertificate,
};

use super::policy::{Need, Role};

/// The caller of a request. Stored in the request's extensions.
#[derive(Clone, Debug)]
pub enum Caller {
    /// No tokens are configured: TLS, or loopback, is the only requirement.
    Anyone {
        /// The client certificate of the connection, if clients must have one.
        certificate: Option<Arc<CertificateDer<'static>>>,
    },
    /// A known token.
    Token {
        role: Role,
        /// The token's owner; for an edge, the only name it may use.
        name: Arc<str>,
    },
    /// No token, but a certificate from the clients' authority. That suffices for an edge, because
    /// it has a name and needs no role.
    Certificate(Arc<CertificateDer<'static>>),
    /// Neither a token nor a certificate.
    Nobody,
}

/// The two ways in which a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The caller is unknown: 401, `UNAUTHENTICATED`.
    Unauthenticated,
    /// The caller is known but not allowed: 403, `PERMISSION_DENIED`.
    Forbidden,
}

/// Why a call was refused, and what it needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denied {
    pub refusal: Refusal,
    /// Stable, for programs: `UPPER_SNAKE`.
    pub reason: &'static str,
    /// For people. Never contains a token.
    pub message: String,
    /// The roles that are allowed; empty if the role is not the problem.
    pub needed: &'static str,
}

impl Denied {
    fn unauthenticated(reason: &'static str, message: String, needed: &'static str) -> Self {
        Self {
            refusal: Refusal::Unauthenticated,
            reason,
            message,
            needed,
        }
    }

    fn forbidden(reason: &'static str, message: String, needed: &'static str) -> Self {
        Self {
            refusal: Refusal::Forbidden,
            reason,
            message,
            needed,
        }
    }

    pub(super) fn malformed() -> Self {
        let message = "the authorization is not a bearer token: expected 'Bearer TOKEN'";
        Self::unauthenticated("TOKEN_MALFORMED", message.to_owned(), "")
    }

    pub(crate) fn revoked() -> Self {
        let message = "the bearer token was taken back";
        Self::unauthenticated("TOKEN_REVOKED", message.to_owned(), "")
    }

    pub(super) fn unknown() -> Self {
        let message = "the bearer token is not one of this coordinator's";
        Self::unauthenticated("TOKEN_UNKNOWN", message.to_owned(), "")
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone { .. } => f.write_str("anyone"),
            Self::Token { role, name } => write!(f, "{role} {name}"),
            Self::Certificate(_) => f.write_str("a certificate"),
            Self::Nobody => f.write_str("nobody"),
        }
    }
}

impl Caller {
    /// Checks that the caller may do `what`, which requires `need`.
    pub fn require(&self, need: Need, what: &str) -> Result<(), Denied> {
        let needed = need.roles();
        match self {
            Self::Anyone { .. } => Ok(()),
            Self::Token { role, .. } if role.may(need) => Ok(()),
            Self::Token { role, name } => Err(Denied::forbidden(
                "ROLE_MISSING",
                format!("token {name:?} has the role {role}, and {what} needs {needed}"),
                needed,
            )),
            Self::Certificate(_) if need == Need::BeEdge => Ok(()),
            Self::Certificate(_) | Self::Nobody => Err(Denied::unauthenticated(
                "TOKEN_MISSING",
                format!("{what} needs a bearer token of the role {needed}"),
                needed,
            )),
        }
    }

    /// Checks that the caller may speak as the edge `name` with this `url` (empty: not given).
    pub fn speaks_for(&self, name: &str, url: &str) -> Result<(), Denied> {
        match self {
            Self::Anyone { certificate: None } => Ok(()),
            Self::Anyone {
                certificate: Some(certificate),
            }
            | Self::Certificate(certificate) => names_edge(certificate, name, url),
            Self::Token {
                role: Role::Edge,
                name: own,
            } if own.as_ref() == name => Ok(()),
            Self::Token {
                role: Role::Edge,
                name: own,
            } => Err(Denied::forbidden(
                "NOT_THIS_EDGE",
                format!(
                    "the token is edge {own:?}'s, and an edge speaks for itself alone: not for \
                     {name:?}"
                ),
                "",
            )),
            Self::Token { .. } | Self::Nobody => self.require(Need::BeEdge, "a session of an edge"),
        }
    }
}

/// Checks that the certificate is valid for the edge's name, or for the host of its URL if that is
/// the name followed by a domain (so a wildcard certificate vouches for each edge of its domain).
fn names_edge(certificate: &CertificateDer<'_>, name: &str, url: &str) -> Result<(), Denied> {
    let host = url::Url::parse(url).ok();
    let host = host.as_ref().and_then(url::Url::host_str).filter(|host| {
        host.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('.'))
    });
    let is_valid_for = |host: &str| {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        let host = ServerName::try_from(host).ok()?;
        verify_server_name(&parsed, &host).ok()
    };
    let is_named = is_valid_for(name).or_else(|| is_valid_for(host?));
    is_named.ok_or_else(|| {
        Denied::forbidden(
            "NOT_THIS_EDGE",
            format!(
                "the client certificate is not edge {name:?}'s: it must have the name {name} (or \
                 {name}.DOMAIN, which the edge also advertises) among its DNS names"
            ),
            "",
        )
    })
}
