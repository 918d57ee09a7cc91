//! Connections to coordinators: which one to try next, and the leader that a refusal names.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use chunkcache_proto::v1::edge_service_client::EdgeServiceClient;
use service_kit::{text_file, tls};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt;

/// Limit of the size of the token's file.
const MAX_TOKEN_BYTES: u64 = 64 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The credentials that this edge verifies and presents; read again for each connection, so that
/// renewed files take effect.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    pub ca: Option<PathBuf>,
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The bearer token's file.
    pub token: Option<PathBuf>,
}

/// A client of a coordinator's service; each call carries the edge's token.
pub type Service = EdgeServiceClient<InterceptedService<Channel, Bearer>>;

/// Adds the token, if there is one, to each call.
#[derive(Clone, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Bearer {
    async fn read(file: Option<&PathBuf>) -> anyhow::Result<Self> {
        let Some(file) = file else {
            return Ok(Self(None));
        };
        let path = file.clone();
        let read = tokio::task::spawn_blocking(move || text_file::read(&path, MAX_TOKEN_BYTES));
        let text = read
            .await?
            .with_context(|| format!("{} can not be read", file.display()))?;
        // The conversion's error is dropped, because it may contain the token.
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {}", text.trim()).parse().map_err(|_| {
                anyhow::anyhow!("{} holds characters no header may have", file.display())
            })?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

/// The coordinators' addresses, and the one to try next.
pub struct Coordinators {
    urls: Vec<String>,
    next: usize,
    /// The leader that a standby named; tried once before continuing with the list.
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

    /// The session at this address worked, so it is tried first next time.
    pub fn keep(&mut self, url: &str) {
        if let Some(at) = self.urls.iter().position(|known| known == url) {
            self.next = at;
        }
    }

    /// Tries the leader that a standby named.
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

/// Connects, within a time limit.
pub async fn connect(url: &str, credentials: &Credentials) -> anyhow::Result<Service> {
    let bearer = Bearer::read(credentials.token.as_ref()).await?;
    let mut endpoint = Endpoint::from_shared(url.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    if url.starts_with("https://") {
        let mut config = ClientTlsConfig::new();
        config = match &credentials.ca {
            Some(ca) => config.ca_certificate(Certificate::from_pem(tokio::fs::read(ca).await?)),
            None => config.trust_anchors(tls::system_roots()?.roots),
        };
        if let Some((cert, key)) = &credentials.identity {
            config = config.identity(Identity::from_pem(
                tokio::fs::read(cert).await?,
                tokio::fs::read(key).await?,
            ));
        }
        endpoint = endpoint.tls_config(config)?;
    }
    let channel = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await??;
    Ok(service(channel, bearer))
}

/// Adds the token to each call over the channel.
#[must_use]
pub fn service(channel: Channel, bearer: Bearer) -> Service {
    EdgeServiceClient::with_interceptor(channel, bearer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_token_is_in_each_call_and_in_no_message() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        std::fs::write(&path, "  secret-0123456789\n").unwrap();
        let mut bearer = Bearer::read(Some(&path)).await.unwrap();
        let request = bearer.call(Request::new(())).unwrap();
        let value = request.metadata().get("authorization").unwrap();
        assert_eq!(value, "Bearer secret-0123456789");
        assert!(!format!("{:?}", request.metadata()).contains("secret"));

        std::fs::write(&path, "secret\u{7}").unwrap();
        let error = Bearer::read(Some(&path)).await.err().unwrap();
        assert!(!format!("{error:#}").contains("secret"), "{error:#}");
        drop(file);
        let error = Bearer::read(Some(&path)).await.err().unwrap();
        assert!(error.to_string().contains("can not be read"));
        let mut none = Bearer::read(None).await.unwrap();
        assert!(none.call(Request::new(())).unwrap().metadata().is_empty());
    }
}
