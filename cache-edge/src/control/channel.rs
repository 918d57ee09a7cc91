//! Connections to coordinators: which one to try next, and the leader that a refusal names.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use chunkcache_proto::v1::edge_service_client::EdgeServiceClient;
use service_kit::{backoff::Backoff, causes::with_causes, text_file, tls};
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

    /// After a session at this address that worked: it is tried first next time, and soon.
    pub fn after_session(&mut self, url: &str, why: Why, backoff: &mut Backoff) {
        // One that hangs still takes connections, and would be waited for once more.
        if why != Why::Silent
            && let Some(at) = self.urls.iter().position(|known| known == url)
        {
            self.next = at;
        }
        // Two edges with one name end each other's sessions, and each drops the other's rows.
        if why != Why::Fenced {
            backoff.reset();
        }
    }

    /// Tries the leader that a standby named.
    pub fn try_leader(&mut self, url: String) {
        self.leader = Some(url);
    }
}

/// How a session ended.
pub enum Ended {
    NotLeader(String),
    Failed(Why, anyhow::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Another session has this edge's name.
    Fenced,
    /// The coordinator sent nothing for too long.
    Silent,
    Other,
}

impl From<anyhow::Error> for Ended {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(Why::Other, error)
    }
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        if let Some(leader) = named_leader(&status) {
            return Self::NotLeader(leader);
        }
        let info = status.get_details_error_info();
        let why = match info {
            Some(info) if info.reason == "STALE_EPOCH" => Why::Fenced,
            _ => Why::Other,
        };
        let said = format!("{}: {}", status.code(), status.message());
        Self::Failed(why, anyhow::anyhow!(with_causes(&said, &status)))
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

    #[test]
    fn a_coordinator_that_hangs_is_not_the_next_one_to_try() {
        let urls = ["http://a", "http://b"].map(str::to_owned);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        for (why, next) in [(Why::Other, "http://a"), (Why::Silent, "http://b")] {
            let mut coordinators = Coordinators::new(urls.to_vec());
            let url = coordinators.pick();
            coordinators.after_session(&url, why, &mut backoff);
            assert_eq!(coordinators.pick(), next, "{why:?}");
        }
    }

    #[test]
    fn a_refused_certificate_is_told() {
        let alert = std::io::Error::other("received fatal alert: CertificateExpired");
        let Ended::Failed(_, error) = Status::from_error(Box::new(alert)).into() else {
            panic!("another leader is named");
        };
        assert!(error.to_string().contains("CertificateExpired"), "{error}");
    }

    #[test]
    fn two_edges_with_one_name_leave_each_other_more_and_more_time() {
        let details = tonic_types::ErrorDetails::with_error_info(
            "STALE_EPOCH",
            "chunkcache.v1",
            std::collections::HashMap::new(),
        );
        let fenced = || {
            let code = tonic::Code::FailedPrecondition;
            Ended::from(Status::with_error_details(code, "x", details.clone()))
        };
        let mut coordinators = Coordinators::new(vec!["http://a".to_owned()]);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let waits = [0; 3].map(|_| {
            let Ended::Failed(why, _) = fenced() else {
                panic!("another leader is named");
            };
            coordinators.after_session("http://a", why, &mut backoff);
            backoff.wait(1.0).as_secs()
        });
        assert_eq!(waits, [1, 2, 4]);
        coordinators.after_session("http://a", Why::Other, &mut backoff);
        assert_eq!(backoff.wait(1.0).as_secs(), 1);
    }
}
