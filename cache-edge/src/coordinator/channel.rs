//! Connections to coordinators: which one next, and what a refusal says.

use std::{path::PathBuf, time::Duration};

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_types::StatusExt;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// TLS toward coordinators; read anew for each connection, so that renewed files count.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    pub ca: Option<PathBuf>,
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// The addresses, and the one to try next.
pub struct Coordinators {
    urls: Vec<String>,
    next: usize,
    /// Named by a standby; tried once before the list goes on.
    leader: Option<String>,
}

impl Coordinators {
    #[must_use]
    pub fn new(urls: Vec<String>) -> Self {
        Self {
            urls,
            next: 0,
            leader: None,
        }
    }

    /// The address to try now.
    pub fn pick(&mut self) -> String {
        if let Some(leader) = self.leader.take() {
            return leader;
        }
        let url = self
            .urls
            .get(self.next % self.urls.len().max(1))
            .cloned()
            .unwrap_or_default();
        self.next = self.next.wrapping_add(1);
        url
    }

    /// The session with this one worked: it is tried first next time.
    pub fn keep(&mut self, url: &str) {
        if let Some(at) = self.urls.iter().position(|known| known == url) {
            self.next = at;
        }
    }

    /// A standby named the leader.
    pub fn try_leader(&mut self, url: String) {
        self.leader = Some(url);
    }
}

/// The leader's address in a standby's refusal.
#[must_use]
pub fn named_leader(status: &tonic::Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    if info.reason != "NOT_LEADER" {
        return None;
    }
    info.metadata
        .get("leader")
        .filter(|leader| !leader.is_empty())
        .map(|leader| {
            if leader.contains("://") {
                leader.clone()
            } else {
                format!("http://{leader}")
            }
        })
}

/// Connects; bounded.
pub async fn connect(url: &str, tls: &TlsFiles) -> anyhow::Result<Channel> {
    let mut endpoint = Endpoint::from_shared(url.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    if url.starts_with("https://") {
        let mut config = ClientTlsConfig::new();
        if let Some(ca) = &tls.ca {
            config = config.ca_certificate(Certificate::from_pem(tokio::fs::read(ca).await?));
        }
        if let Some((cert, key)) = &tls.identity {
            config = config.identity(Identity::from_pem(
                tokio::fs::read(cert).await?,
                tokio::fs::read(key).await?,
            ));
        }
        endpoint = endpoint.tls_config(config)?;
    }
    Ok(tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await??)
}
