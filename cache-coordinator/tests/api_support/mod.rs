//! A coordinator in this process, an edge that speaks the session protocol.
#![allow(dead_code)]

pub mod fake_edge;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use cache_coordinator::{app::App, config::ServeOptions};
use chunkcache_proto::v1::{
    self, cache_service_client::CacheServiceClient, edge_service_client::EdgeServiceClient,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::support::postgres::Server;

pub const WAIT: Duration = Duration::from_secs(20);
pub const CHUNK: u64 = 2 << 20;

pub struct Coordinator {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub shutdown: CancellationToken,
    pub database_url: String,
    run: JoinHandle<anyhow::Result<()>>,
    server: Arc<Server>,
}

/// A coordinator on its own database; it leads when this returns.
pub async fn coordinator() -> Coordinator {
    let server = Server::shared();
    let url = server.create_database().await;
    let coordinator = start(server, url).await;
    coordinator.leads().await;
    coordinator
}

/// Starts without waiting.
pub async fn start(server: Arc<Server>, database_url: String) -> Coordinator {
    let database = format!("--database-url={database_url}");
    let options = service_kit::config::parse_from::<ServeOptions>(&[
        &database,
        "--database-connections=8",
        "--listen=127.0.0.1:0",
        "--http-listen=127.0.0.1:0",
    ])
    .unwrap();
    let shutdown = CancellationToken::new();
    let app = App::bind(options, shutdown.clone()).await.unwrap();
    let (grpc, http) = (app.grpc_address().unwrap(), app.http_address().unwrap());
    Coordinator {
        grpc,
        http,
        shutdown,
        database_url,
        run: tokio::spawn(app.run()),
        server,
    }
}

impl Coordinator {
    /// Another coordinator on the same database.
    pub async fn standby(&self) -> Coordinator {
        start(Arc::clone(&self.server), self.database_url.clone()).await
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    pub async fn cache(&self) -> CacheServiceClient<Channel> {
        let channel = Channel::from_shared(self.url()).unwrap().connect().await;
        CacheServiceClient::new(channel.unwrap())
    }

    /// A client without a timer of its own: it sends its deadline and leaves it to the coordinator.
    pub fn patient(&self) -> CacheServiceClient<Client<HttpConnector, tonic::body::Body>> {
        let plain = Client::builder(TokioExecutor::new())
            .http2_only(true)
            .build_http();
        CacheServiceClient::with_origin(plain, self.url().parse().unwrap())
    }

    pub async fn edge(&self) -> EdgeServiceClient<Channel> {
        let channel = Channel::from_shared(self.url()).unwrap().connect().await;
        EdgeServiceClient::new(channel.unwrap())
    }

    /// Waits until it leads: there is no other way to know from outside.
    pub async fn leads(&self) {
        self.until(|status| status.is_leader).await;
    }

    pub async fn until(&self, is_so: impl Fn(&v1::GetStatusResponse) -> bool) {
        let mut client = self.cache().await;
        let asked = async {
            loop {
                let status = client.get_status(v1::GetStatusRequest {}).await;
                if status.is_ok_and(|status| is_so(status.get_ref())) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(WAIT, asked).await.unwrap();
    }

    pub async fn add_source(&self, name: &str, base_url: &str) {
        let source = v1::Source {
            name: name.into(),
            base_url: base_url.into(),
            background_fill: Some(false),
            ..Default::default()
        };
        let request = v1::PutSourceRequest {
            validate_only: false,
            check: false,
            source: Some(source),
        };
        self.cache().await.put_source(request).await.unwrap();
    }

    /// Stops it as SIGTERM does.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        tokio::time::timeout(WAIT, self.run).await.unwrap().unwrap()
    }
}

pub fn by_id(id: &str) -> Option<v1::EntryName> {
    Some(v1::EntryName {
        name: Some(v1::entry_name::Name::Id(id.into())),
    })
}

pub fn by_path(source: &str, path: &str) -> Option<v1::EntryName> {
    Some(v1::EntryName {
        name: Some(v1::entry_name::Name::SourcePath(v1::SourcePath {
            source: source.into(),
            path: path.into(),
        })),
    })
}

pub fn chunks(range: std::ops::Range<u64>) -> Option<v1::ByteRange> {
    Some(v1::ByteRange {
        start: range.start * CHUNK,
        end: range.end * CHUNK,
    })
}
