//! The client for other edges, rebuilt when the files of its certificate or authority change.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use service_kit::tls::Reloading;

use super::Client;

/// Cheap to call. Running requests keep the client with which they began.
pub struct PeerClient {
    tls: Arc<Reloading<ClientConfig>>,
    stall: Duration,
    made: ArcSwap<(Arc<ClientConfig>, Client)>,
}

impl PeerClient {
    /// `stall`: how long a peer may send nothing.
    #[must_use]
    pub fn new(tls: Arc<Reloading<ClientConfig>>, stall: Duration) -> Self {
        let made = make(tls.current(), stall);
        Self {
            tls,
            stall,
            made: ArcSwap::from_pointee(made),
        }
    }

    /// The client built from the newest usable files.
    pub fn get(&self) -> Client {
        let (made, now) = (self.made.load(), self.tls.current());
        if Arc::ptr_eq(&made.0, &now) {
            return made.1.clone();
        }
        let made = make(now, self.stall);
        let client = made.1.clone();
        self.made.store(Arc::new(made));
        client
    }

    /// The files, to be watched.
    #[must_use]
    pub fn tls(&self) -> &Arc<Reloading<ClientConfig>> {
        &self.tls
    }
}

fn make(config: Arc<ClientConfig>, stall: Duration) -> (Arc<ClientConfig>, Client) {
    let client = Client::new(config.as_ref().clone()).with_stall_timeout(stall);
    (config, client)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use service_kit::tls::{self, ClientFiles};

    use super::*;

    #[tokio::test]
    async fn a_renewed_authority_makes_a_new_client() {
        let fixtures =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/service-kit/tests/tls");
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::copy(fixtures.join("ca.pem"), &ca).unwrap();
        let files = ClientFiles {
            ca: Some(ca.clone()),
            ..ClientFiles::default()
        };
        let peers = PeerClient::new(tls::client(files).unwrap(), Duration::from_secs(1));
        let made = || Arc::clone(&peers.made.load().0);
        let first = made();
        let _ = peers.get();
        assert!(Arc::ptr_eq(&first, &made()), "nothing changed");
        let twice = std::fs::read(&ca).unwrap().repeat(2);
        std::fs::write(&ca, twice).unwrap();
        assert!(peers.tls().reload_if_changed().unwrap());
        let _ = peers.get();
        assert!(!Arc::ptr_eq(&first, &made()));
    }
}
