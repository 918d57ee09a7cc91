//! The keys of signed URLs from their file, read again when it changes: a key can be replaced
//! without a restart.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;

use crate::core::{
    signed_url::Signer,
    signed_url_keys::{self, KeysError},
};

/// Why a file's keys can not be used.
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
}

/// The newest keys that could be read.
#[derive(Clone)]
pub struct SigningKeys {
    path: Arc<PathBuf>,
    current: Arc<ArcSwap<(String, Signer)>>,
}

impl SigningKeys {
    /// Reads the file: not for an async thread of a busy server.
    pub fn load(path: PathBuf) -> Result<Self, KeysFileError> {
        let read = read(&path)?;
        Ok(Self {
            path: Arc::new(path),
            current: Arc::new(ArcSwap::from_pointee(read)),
        })
    }

    /// Fixed keys, for tests.
    #[must_use]
    pub fn fixed(signer: Signer) -> Self {
        Self {
            path: Arc::default(),
            current: Arc::new(ArcSwap::from_pointee((String::new(), signer))),
        }
    }

    /// The present keys.
    pub fn with<T>(&self, use_them: impl FnOnce(&Signer) -> T) -> T {
        use_them(&self.current.load().1)
    }

    /// Checks the file every `interval`, for as long as the process lives. Errors leave the old
    /// keys in place.
    pub async fn watch(self, interval: Duration) {
        let mut refused = String::new();
        loop {
            tokio::time::sleep(interval).await;
            let path = Arc::clone(&self.path);
            match tokio::task::spawn_blocking(move || read(&path)).await {
                Ok(Ok(new)) if new.0 != self.current.load().0 => {
                    self.current.store(Arc::new(new));
                    refused.clear();
                    tracing::info!(file = %self.path.display(), "keys of signed URLs reloaded");
                }
                Ok(Ok(_)) => refused.clear(),
                Ok(Err(error)) if error.to_string() != refused => {
                    tracing::warn!(%error, "keys of signed URLs can not be used; keeping the old ones");
                    refused = error.to_string();
                }
                Ok(Err(_)) => {}
                Err(error) => tracing::error!(%error, "looking at the keys of signed URLs failed"),
            }
        }
    }
}

fn read(path: &PathBuf) -> Result<(String, Signer), KeysFileError> {
    let text = std::fs::read_to_string(path).map_err(|source| KeysFileError::Read {
        path: path.clone(),
        source,
    })?;
    let signer = signed_url_keys::parse(&text).map_err(|source| KeysFileError::Keys {
        path: path.clone(),
        source,
    })?;
    Ok((text, signer))
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
        let keys = SigningKeys::load(file.path().to_owned()).unwrap();
        tokio::spawn(keys.clone().watch(Duration::from_millis(1)));
        let has = |key_id| {
            let grant = Grant {
                key_id,
                expires_unix_seconds: 9,
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
        assert!(SigningKeys::load(path).is_err());
        assert!(has("new"));
    }
}
