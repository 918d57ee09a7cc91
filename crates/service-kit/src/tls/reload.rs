//! A configuration built from files, and rebuilt when they change.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::{TlsError, files};

/// How often files are checked. Certificates are renewed days before they expire; checking a few
/// small files costs nothing.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(30);

type Build<C> = dyn Fn() -> Result<C, TlsError> + Send + Sync;

/// The newest configuration that could be built.
pub struct Reloading<C> {
    current: ArcSwap<C>,
    paths: Vec<PathBuf>,
    build: Box<Build<C>>,
    /// Fingerprint of the contents last built, or last refused, so that a refusal is logged once.
    /// Times and lengths would miss a change within a clock tick.
    fingerprint: AtomicU64,
}

impl<C: Send + Sync + 'static> Reloading<C> {
    pub(super) fn load(
        paths: Vec<PathBuf>,
        build: impl Fn() -> Result<C, TlsError> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, TlsError> {
        let fingerprint = fingerprint(&paths)?;
        let current = ArcSwap::from_pointee(build()?);
        Ok(Arc::new(Reloading {
            current,
            paths,
            build: Box::new(build),
            fingerprint: AtomicU64::new(fingerprint),
        }))
    }

    /// The configuration for one connection; ask again for the next.
    pub fn current(&self) -> Arc<C> {
        self.current.load_full()
    }

    /// Checks the files and returns whether there is a new configuration. On an error the old one
    /// stays; the same broken contents are an error only once. Reads files: not for an async
    /// thread.
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        let seen = fingerprint(&self.paths)?;
        if self.fingerprint.swap(seen, Ordering::AcqRel) == seen {
            return Ok(false);
        }
        // Certificate and key are replaced one after the other: in between they do not match, which
        // is an error now and fixed at the next check, when the fingerprint differs again.
        self.current.store(Arc::new((self.build)()?));
        Ok(true)
    }

    /// Checks the files every `interval` until cancelled.
    pub async fn watch(self: Arc<Self>, interval: Duration, cancel: CancellationToken) {
        while cancel
            .run_until_cancelled(tokio::time::sleep(interval))
            .await
            .is_some()
        {
            let this = self.clone();
            match tokio::task::spawn_blocking(move || this.reload_if_changed()).await {
                Ok(Ok(true)) => tracing::info!(files = ?self.paths, "TLS files reloaded"),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(
                        %error,
                        "TLS files changed and can not be used; keeping the old ones"
                    );
                }
                Err(error) => tracing::error!(%error, "looking at the TLS files failed"),
            }
        }
    }
}

/// Not against an adversary: whoever can write the files needs no collision.
fn fingerprint(paths: &[PathBuf]) -> Result<u64, TlsError> {
    let mut hasher = DefaultHasher::new();
    for path in paths {
        files::read(path)?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}
