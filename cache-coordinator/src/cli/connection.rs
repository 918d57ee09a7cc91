//! The connection to one coordinator: the first that answers, or the leader that it names.

use std::time::Duration;

use chunkcache_proto::v1::cache_service_client::CacheServiceClient;
use service_kit::tls;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use super::failure::{CliError, chain, refused, unreachable};
use super::globals::Globals;

pub(super) type Service = CacheServiceClient<Channel>;

/// Limit of redirections: a leader that has just lost its lease names the next one, but more hops
/// than this are a cycle.
const MAX_LEADER_HOPS: usize = 3;
/// How long there may be no leader after one is lost.
const TAKEOVER: Duration = Duration::from_secs(5);
const TAKEOVER_PAUSE: Duration = Duration::from_millis(250);
/// Limited, so that one dead address does not use up the time for the others.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The snapshot of a heavily fragmented entry takes about 40 bytes per range.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

pub(super) struct Client {
    globals: Globals,
    /// The present connection, with its address.
    connected: Option<(String, Service)>,
}

impl Client {
    pub(super) fn new(globals: Globals) -> Self {
        Client {
            globals,
            connected: None,
        }
    }

    /// Another client of the same coordinator, for concurrent calls.
    pub(super) fn another(&self) -> Self {
        Client {
            globals: self.globals.clone(),
            connected: self.connected.clone(),
        }
    }

    /// Makes one call within the time-out, at the leader if the method requires it. Only a refusal
    /// that says "not I" is tried elsewhere: a call that may have been carried out is never
    /// repeated.
    pub(super) async fn call<Q, R>(
        &mut self,
        message: Q,
        method: impl AsyncFn(Service, Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, CliError>
    where
        Q: Clone,
    {
        let timeout = self.globals.timeout;
        self.send(message, Some(timeout), method).await
    }

    /// Like [`Client::call`] for a stream, without a time-out, because a watch has no end.
    pub(super) async fn open<Q, R>(
        &mut self,
        message: Q,
        method: impl AsyncFn(Service, Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, CliError>
    where
        Q: Clone,
    {
        self.send(message, None, method).await
    }

    async fn send<Q, R>(
        &mut self,
        message: Q,
        timeout: Option<Duration>,
        method: impl AsyncFn(Service, Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, CliError>
    where
        Q: Clone,
    {
        let mut hops = 0;
        let begun = Instant::now();
        loop {
            let (endpoint, service) = self.service().await?;
            let mut request = Request::new(message.clone());
            if let Some(value) = self.bearer()? {
                request.metadata_mut().insert("authorization", value);
            }
            let answer = match timeout {
                None => method(service, request).await,
                Some(timeout) => {
                    request.set_timeout(timeout);
                    // The server may ignore the deadline, or be gone.
                    tokio::time::timeout(timeout, method(service, request))
                        .await
                        .unwrap_or_else(|_| Err(Status::deadline_exceeded("time-out")))
                }
            };
            let status = match answer {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            match leader_of(&status) {
                Some(Leader::Nobody) if begun.elapsed() < TAKEOVER.min(self.globals.timeout) => {
                    tokio::time::sleep(TAKEOVER_PAUSE).await;
                    // Any of them may be the next leader.
                    self.reset();
                }
                Some(Leader::At(leader)) if hops < MAX_LEADER_HOPS => {
                    hops += 1;
                    let leader = with_scheme(&leader, &endpoint);
                    let service = self.connect(&leader).await.map_err(|reason| {
                        unreachable(&[(format!("{leader} (the leader)"), reason)])
                    })?;
                    self.connected = Some((leader, service));
                }
                _ => return Err(refused(&status, &endpoint)),
            }
        }
    }

    /// Drops the connection, so that the next call looks for a coordinator again.
    pub(super) fn reset(&mut self) {
        self.connected = None;
    }

    pub(super) fn endpoint(&self) -> &str {
        self.connected
            .as_ref()
            .map_or("the coordinator", |(endpoint, _)| endpoint)
    }

    async fn service(&mut self) -> Result<(String, Service), CliError> {
        if let Some(connected) = &self.connected {
            return Ok(connected.clone());
        }
        let mut attempts = Vec::new();
        for endpoint in self.globals.endpoints.clone() {
            match self.connect(&endpoint).await {
                Ok(service) => {
                    let connected = (endpoint, service);
                    self.connected = Some(connected.clone());
                    return Ok(connected);
                }
                Err(reason) => attempts.push((endpoint, reason)),
            }
        }
        Err(unreachable(&attempts))
    }

    async fn connect(&self, address: &str) -> Result<Service, String> {
        let mut endpoint = Endpoint::from_shared(address.to_owned())
            .map_err(|error| chain(&error))?
            .connect_timeout(CONNECT_TIMEOUT.min(self.globals.timeout));
        if address.starts_with("https:") {
            endpoint = endpoint
                .tls_config(self.tls()?)
                .map_err(|error| chain(&error))?;
        }
        let channel = endpoint.connect().await.map_err(|error| chain(&error))?;
        Ok(CacheServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    fn tls(&self) -> Result<ClientTlsConfig, String> {
        let read = |path: &std::path::Path| {
            std::fs::read(path)
                .map_err(|error| format!("{} can not be read: {error}", path.display()))
        };
        let mut config = ClientTlsConfig::new();
        config = match &self.globals.ca {
            Some(path) => config.ca_certificate(Certificate::from_pem(read(path)?)),
            None => {
                let roots = tls::system_roots().map_err(|error| error.to_string())?;
                config.trust_anchors(roots.roots)
            }
        };
        if let Some((cert, key)) = &self.globals.identity {
            config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(config)
    }

    fn bearer(&self) -> Result<Option<MetadataValue<Ascii>>, CliError> {
        let Some(token) = &self.globals.token else {
            return Ok(None);
        };
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {}", token.expose()).parse().map_err(|_| {
                CliError::Usage("--token-file: the token has characters no header may have".into())
            })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// The leader as known to a coordinator that refused because it does not lead.
enum Leader {
    At(String),
    /// There is no leader yet, or the coordinator does not know it.
    Nobody,
}

fn leader_of(status: &Status) -> Option<Leader> {
    if status.code() != Code::FailedPrecondition {
        return None;
    }
    let info = status.get_details_error_info()?;
    if info.reason != "NOT_LEADER" {
        return None;
    }
    match info.metadata.get("leader") {
        Some(leader) if !leader.is_empty() => Some(Leader::At(leader.clone())),
        _ => Some(Leader::Nobody),
    }
}

/// A leader may be named as `host:port`: adds the scheme that worked for the standby.
fn with_scheme(leader: &str, endpoint: &str) -> String {
    match (leader.contains("://"), endpoint.split_once("://")) {
        (false, Some((scheme, _))) => format!("{scheme}://{leader}"),
        _ => leader.to_owned(),
    }
}
