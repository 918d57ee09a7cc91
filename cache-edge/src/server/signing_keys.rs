//! The keys of signed URLs. Their files are read again when they change, so that a key can be
//! replaced without a restart.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use service_kit::text_file;

use crate::core::{
    access_token::{AccessTokens, JwksError},
    signed_url::Signer,
    signed_url_keys::{self, KeysError},
};

/// A file of this size holds thousands of keys.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why the files give no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysFileError {
    #[error("{path} can not be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}: {source}")]
    Keys { path: PathBuf, source: KeysError },
    #[error("{path}: {source}")]
    Jwks { path: PathBuf, source: JwksError },
}

impl KeysFileError {
    /// Whether an I/O error is the cause, whose text the message does not contain.
    #[must_use]
    pub fn is_of_the_system(&self) -> bool {
        matches!(self, Self::Read { .. })
    }
}

/// The files with keys; at least one is set.
#[derive(Clone, Debug, Default)]
pub struct KeyFiles {
    /// A line a key: `--signed-url-keys-file`.
    pub keys: Option<PathBuf>,
    /// A JWK Set: `--signed-url-jwks-file`.
    pub jwks: Option<PathBuf>,
}

/// The newest keys that could be read.
#[derive(Clone)]
pub struct SigningKeys {
    files: Arc<KeyFiles>,
    current: Arc<ArcSwap<(String, Signer)>>,
}

impl SigningKeys {
    /// Reads the files. Blocking: not for an async thread of a busy server.
    pub fn load(files: KeyFiles) -> Result<Self, KeysFileError> {
        let read = files.read()?;
        Ok(Self {
            files: Arc::new(files),
            current: Arc::new(ArcSwap::from_pointee(read)),
        })
    }

    /// Fixed keys, for tests.
    #[must_use]
    pub fn fixed(signer: Signer) -> Self {
        Self {
            files: Arc::default(),
            current: Arc::new(ArcSwap::from_pointee((String::new(), signer))),
        }
    }

    /// The present keys.
    pub fn with<T>(&self, use_them: impl FnOnce(&Signer) -> T) -> T {
        use_them(&self.current.load().1)
    }

    /// Checks the files every `interval`, for as long as the process runs. On errors the old keys
    /// stay in place.
    pub async fn watch(self, interval: Duration) {
        let mut refused = String::new();
        loop {
            tokio::time::sleep(interval).await;
            let files = Arc::clone(&self.files);
            match tokio::task::spawn_blocking(move || files.read()).await {
                Ok(Ok(new)) if new.0 != self.current.load().0 => {
                    self.current.store(Arc::new(new));
                    refused.clear();
                    tracing::info!(files = ?self.files, "keys of signed URLs reloaded");
                }
                Ok(Ok(_)) => refused.clear(),
                Ok(Err(error)) if error.to_string() != refused => {
                    tracing::warn!(
                        %error,
                        "keys of signed URLs can not be used; keeping the old ones"
                    );
                    refused = error.to_string();
                }
                Ok(Err(_)) => {}
                Err(error) => tracing::error!(%error, "looking at the keys of signed URLs failed"),
            }
        }
    }
}

impl KeyFiles {
    /// The text of the files, by which a change is detected, and the keys in it.
    pub fn read(&self) -> Result<(String, Signer), KeysFileError> {
        let mut texts = String::new();
        let mut signer = Signer::default();
        if let Some(path) = &self.keys {
            let text = read_text(path)?;
            signer = signed_url_keys::parse(&text).map_err(|source| KeysFileError::Keys {
                path: path.clone(),
                source,
            })?;
            texts.push_str(&text);
        }
        // No file contains this byte, so a line that moves from one file to the other counts as a
        // change.
        texts.push('\0');
        if let Some(path) = &self.jwks {
            let text = read_text(path)?;
            let tokens = AccessTokens::parse(&text).map_err(|source| KeysFileError::Jwks {
                path: path.clone(),
                source,
            })?;
            signer = signer.with_tokens(tokens);
            texts.push_str(&text);
        }
        Ok((texts, signer))
    }
}

fn read_text(path: &Path) -> Result<String, KeysFileError> {
    text_file::read(path, MAX_FILE_BYTES).map_err(|source| KeysFileError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::core::signed_url::Grant;

    #[tokio::test]
    async fn a_replaced_key_counts_and_a_broken_file_does_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "old 0123456789abcdef\n").unwrap();
        let files = |path: &Path| KeyFiles {
            keys: Some(path.to_owned()),
            jwks: None,
        };
        let keys = SigningKeys::load(files(file.path())).unwrap();
        tokio::spawn(keys.clone().watch(Duration::from_millis(1)));
        let has = |key_id| {
            let grant = Grant {
                key_id,
                expires_unix_seconds: 9,
                pattern: None,
                client: None,
            };
            keys.with(|signer| signer.sign("/a", "", &grant).is_some())
        };
        assert!(has("old") && !has("new"));
        std::fs::write(file.path(), "new 0123456789abcdef\n").unwrap();
        while !has("new") {
            tokio::task::yield_now().await;
        }
        assert!(!has("old"));
        let path = file.path().to_owned();
        drop(file);
        assert!(SigningKeys::load(files(&path)).is_err());
        assert!(has("new"));
    }
}
