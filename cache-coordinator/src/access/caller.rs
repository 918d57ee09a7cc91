//! Who calls, and the refusals of what they may not.

use std::{fmt, sync::Arc};

use rustls::{
    client::verify_server_name,
    pki_types::{CertificateDer, ServerName},
    server::ParsedCertificate,
};

use super::policy::{Need, Role};

/// Whoever made a call. In the extensions of its request.
#[derive(Clone, Debug)]
pub enum Caller {
    /// No tokens are configured: TLS, or loopback, is what is asked for.
    Anyone {
        /// Of the connection, where clients must have one.
        certificate: Option<Arc<CertificateDer<'static>>>,
    },
    /// A known token.
    Token {
        /// What it allows.
        role: Role,
        /// Whose it is; of an edge, the only name it may use.
        name: Arc<str>,
    },
    /// No token, but a certificate of the clients' authority: enough for an edge, for it has a name
    /// and no role.
    Certificate(Arc<CertificateDer<'static>>),
    /// Neither.
    Nobody,
}

/// Which of the two ways a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody knows who it is: 401, `UNAUTHENTICATED`.
    Unauthenticated,
    /// Known, and not allowed: 403, `PERMISSION_DENIED`.
    Forbidden,
}

/// Why a call was refused, and what would have done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denied {
    /// Which way.
    pub refusal: Refusal,
    /// Stable, for programs: `UPPER_SNAKE`.
    pub reason: &'static str,
    /// For people. Never has a token in it.
    pub message: String,
    /// The roles that would do; empty where the role is not what is wrong.
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
    /// Whether it may do `what`, which needs `need`.
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

    /// Whether it may speak as the edge `name` that says it is reached at `url` (empty: not said).
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
                    "the token is edge {own:?}'s, and an edge speaks for itself alone: not for {name:?}"
                ),
                "",
            )),
            Self::Token { .. } | Self::Nobody => self.require(Need::BeEdge, "a session of an edge"),
        }
    }
}

/// The certificate is valid for the edge's name, or for the host of its URL where that is the name
/// with a domain after it (then a wildcard certificate vouches for each edge of its domain).
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
                "the client certificate is not edge {name:?}'s: it must have the name {name} (or {name}.DOMAIN, which \
                 the edge also advertises) among its DNS names"
            ),
            "",
        )
    })
}
