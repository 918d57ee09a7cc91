//! The file of tokens, read again when it changes, so that tokens can be issued or revoked without
//! a restart.
//!
//! One line per token: `ROLE NAME TOKEN`. The token may be replaced by `sha256:` and 64 hexadecimal
//! digits, so that readers of the file cannot use it. Only digests are kept in memory.

use std::{
    hint::black_box,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chunkcache_proto::source_name::check_name;
use service_kit::text_file;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Role;

/// How often the file is checked, and so how long a revoked token still counts.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Bounded, because each call's token is compared with all of them.
const MAX_TOKENS: usize = 1000;
/// Limit for the size of the file.
const MAX_BYTES: u64 = 1 << 20;
/// Shorter ones can be guessed.
const LEAST_TOKEN_BYTES: usize = 16;

/// Why a file's tokens cannot be used. Never shows a token.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error("{path} can not be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}, line {line}: {problem}")]
    Line {
        path: PathBuf,
        line: usize,
        problem: &'static str,
    },
    #[error("{path} {problem}")]
    File {
        path: PathBuf,
        problem: &'static str,
    },
}

type Sum = [u8; 32];

struct TokenRecord {
    role: Role,
    name: Arc<str>,
    sum: Sum,
}

/// The newest valid tokens.
#[derive(Clone)]
pub struct Tokens {
    path: Arc<PathBuf>,
    current: watch::Sender<(Sum, Vec<TokenRecord>)>,
}

/// Who a token is of.
type Owner = (Role, Arc<str>);

impl Tokens {
    pub fn load(path: PathBuf) -> Result<Self, TokensError> {
        let read = read(&path)?;
        Ok(Self {
            path: Arc::new(path),
            current: watch::Sender::new(read),
        })
    }

    /// The owner of a token.
    #[must_use]
    pub fn find(&self, token: &str) -> Option<Owner> {
        owner(&self.current.borrow().1, &sum(token.as_bytes()))
    }

    /// Completes when the token is no longer what it is now: taken back, or given to another.
    pub fn revoked(&self, token: &str) -> impl Future<Output = ()> + Send + use<> {
        let (sum, mut newest) = (sum(token.as_bytes()), self.current.subscribe());
        let now = owner(&newest.borrow().1, &sum);
        async move {
            let is_other = |(_, known): &(Sum, Vec<TokenRecord>)| owner(known, &sum) != now;
            if newest.wait_for(is_other).await.is_err() {
                // The process is ending, and nothing is taken back any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Checks the file every `interval` until cancelled. If the file is invalid, the old tokens
    /// stay in place.
    pub async fn watch(self, interval: Duration, stop: CancellationToken) {
        let mut refused = String::new();
        while stop
            .run_until_cancelled(tokio::time::sleep(interval))
            .await
            .is_some()
        {
            let path = Arc::clone(&self.path);
            match tokio::task::spawn_blocking(move || read(&path)).await {
                Ok(Ok(new)) if new.0 != self.current.borrow().0 => {
                    tracing::info!(
                        file = %self.path.display(),
                        tokens = new.1.len(),
                        "tokens reloaded"
                    );
                    self.current.send_replace(new);
                    refused.clear();
                }
                Ok(Ok(_)) => refused.clear(),
                Ok(Err(error)) if error.to_string() != refused => {
                    tracing::warn!(%error, "the tokens can not be used; keeping the old ones");
                    refused = error.to_string();
                }
                Ok(Err(_)) => {}
                Err(error) => tracing::error!(%error, "looking at the tokens failed"),
            }
        }
    }
}

/// The owner of the token with this digest. The time it takes reveals nothing about any token,
/// because all digests are compared in full.
fn owner(known: &[TokenRecord], sum: &Sum) -> Option<Owner> {
    let mut found = None;
    for known in known {
        if is_equal(&known.sum, sum) {
            found = Some((known.role, Arc::clone(&known.name)));
        }
    }
    found
}

fn sum(bytes: &[u8]) -> Sum {
    Sha256::digest(bytes).into()
}

/// Compares in a time that does not depend on where the sums differ.
fn is_equal(left: &Sum, right: &Sum) -> bool {
    let differing = left
        .iter()
        .zip(right)
        .fold(0, |bits, (a, b)| black_box(bits | (a ^ b)));
    black_box(differing) == 0
}

fn read(path: &Path) -> Result<(Sum, Vec<TokenRecord>), TokensError> {
    let unreadable = |source| TokensError::Read {
        path: path.to_owned(),
        source,
    };
    let unusable = |problem| TokensError::File {
        path: path.to_owned(),
        problem,
    };
    let text = text_file::read(path, MAX_BYTES).map_err(unreadable)?;
    let mut known: Vec<TokenRecord> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |problem| TokensError::Line {
            path: path.to_owned(),
            line: index + 1,
            problem,
        };
        let token = parse(line).map_err(wrong)?;
        if known.iter().any(|other| other.sum == token.sum) {
            return Err(wrong("the same token stands on an earlier line"));
        }
        known.push(token);
    }
    match known.len() {
        0 => Err(unusable("has no token in it")),
        count if count > MAX_TOKENS => Err(unusable("has more than 1000 tokens")),
        _ => Ok((sum(text.as_bytes()), known)),
    }
}

fn parse(line: &str) -> Result<TokenRecord, &'static str> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [role, name, token] = fields[..] else {
        return Err("expected a role, a name and a token");
    };
    let role = Role::parse(role).ok_or("expected the role viewer, service, operator or edge")?;
    check_name(name).map_err(
        |_| "a name is 1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit",
    )?;
    let sum = match token.strip_prefix("sha256:") {
        Some(digits) => parse_sum(digits).ok_or("expected 64 hexadecimal digits after sha256:")?,
        None if token.len() < LEAST_TOKEN_BYTES => {
            return Err("a token has at least 16 characters");
        }
        // RFC 6750, 2.1: the characters allowed in the header.
        None if !token
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b)) =>
        {
            return Err("a token is letters, digits and -._~+/=");
        }
        None => sum(token.as_bytes()),
    };
    Ok(TokenRecord {
        role,
        name: name.into(),
        sum,
    })
}

fn parse_sum(digits: &str) -> Option<Sum> {
    let mut sum = Sum::default();
    if digits.len() != 2 * sum.len() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in sum.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(sum)
}
