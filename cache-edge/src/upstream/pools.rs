//! Connections that are kept for the next request: a pool for each thread that asks.
//!
//! Why: a connection is driven by the event loop of the thread that opened it. Asked with from
//! another thread, each request and each part of its answer costs a switch between the two. But a
//! connection of another thread is better than none, which costs round trips.

use std::{
    sync::Arc,
    thread::{self, ThreadId},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::Client as HyperClient,
    rt::{TokioExecutor, TokioTimer},
};
use parking_lot::RwLock;

use super::{
    Turn,
    connections::{Connections, Counting},
    near::NearConnector,
};
use crate::lanes;

/// Idle connections kept to one host by one thread; more would outlast most origins' patience.
const IDLE_PER_HOST: usize = 4;
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Read from a connection at once: readers get the first of it while the rest comes, and a call
/// costs little beside it.
const READ_BYTES: usize = 128 << 10;

type Connector = HttpsConnector<NearConnector>;

/// The connections of one thread.
#[derive(Clone)]
pub(super) struct Pool {
    pub client: HyperClient<Counting<Connector>, Empty<Bytes>>,
    pub connections: Connections,
}

/// Of all threads.
pub(super) struct Pools {
    connector: Connector,
    by_thread: RwLock<Vec<Owned>>,
}

struct Owned {
    thread: ThreadId,
    group: Option<u64>,
    pool: Pool,
}

impl Pools {
    pub fn new(connector: Connector) -> Arc<Self> {
        Arc::new(Self {
            connector,
            by_thread: RwLock::default(),
        })
    }

    /// For a request to the authority: this thread's, or another's that has a connection to it
    /// where this one has none. Only a viewer's request takes one of threads that are there for
    /// something else, and burdens them.
    pub fn pool_for(&self, authority: &str, turn: Option<Turn>) -> Pool {
        let (here, group) = (thread::current().id(), lanes::group());
        let pools = self.by_thread.read();
        let own = pools.iter().find(|it| it.thread == here);
        let is_kept = |it: &&Owned| it.pool.connections.has_idle(authority);
        let is_near = |it: &&Owned| it.group == group;
        let kept = own
            .filter(is_kept)
            .or_else(|| pools.iter().filter(is_near).find(is_kept))
            .or_else(|| {
                let is_urgent = turn == Some(Turn::Viewer);
                pools.iter().filter(|_| is_urgent).find(is_kept)
            });
        if let Some(owned) = kept.or(own) {
            return owned.pool.clone();
        }
        drop(pools);
        let pool = self.make();
        self.by_thread.write().push(Owned {
            thread: here,
            group,
            pool: pool.clone(),
        });
        pool
    }

    /// Returns when no connection of any pool is open to the authority that nobody uses: see
    /// [`Connections::closed`].
    pub async fn closed(&self, authority: &str) {
        let pools: Vec<Connections> = {
            let pools = self.by_thread.read();
            pools.iter().map(|it| it.pool.connections.clone()).collect()
        };
        for connections in pools {
            connections.closed(authority).await;
        }
    }

    fn make(&self) -> Pool {
        let connections = Connections::default();
        let connector = Counting {
            inner: self.connector.clone(),
            connections: connections.clone(),
        };
        let client = HyperClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .http1_max_headers(128)
            .http1_read_buf_exact_size(READ_BYTES)
            .build(connector);
        Pool {
            client,
            connections,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http_body_util::BodyExt as _;
    use hyper_rustls::HttpsConnectorBuilder;
    use hyper_util::client::legacy::connect::HttpConnector;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::JoinSet,
    };

    use super::*;

    /// Answers each request on a connection with its connection's number.
    async fn an_origin() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let mut conversations = JoinSet::new();
            for number in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                conversations.spawn(async move {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
                    while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        authority
    }

    #[tokio::test]
    async fn a_kept_connection_goes_to_its_own_thread_first_and_to_viewers_of_all() {
        let authority = an_origin().await;
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
        let mut plain = HttpConnector::new();
        plain.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(NearConnector(plain));
        let pools = Pools::new(connector);
        let threads = |name| lanes::Threads::start(name, 1).unwrap();
        let (serving, fetching) = (threads("serve"), threads("fetch"));
        // The number of the connection it was answered on.
        let ask = |threads: &lanes::Threads, turn| {
            let (pools, authority) = (pools.clone(), authority.clone());
            let asked = threads.lanes().spawn(async move {
                let pool = pools.pool_for(&authority, Some(turn));
                let uri: http::Uri = format!("http://{authority}/").parse().unwrap();
                let _used = pool.connections.used(&uri);
                let answer = pool.client.get(uri).await.unwrap();
                answer.into_body().collect().await.unwrap().to_bytes()
            });
            async move {
                let number = asked.await.unwrap();
                // The connection is kept a moment after its answer was read.
                tokio::time::sleep(Duration::from_millis(50)).await;
                number
            }
        };
        assert_eq!(ask(&fetching, Turn::Assigned).await, "0");
        assert_eq!(ask(&serving, Turn::Viewer).await, "0", "round trips saved");
        assert_eq!(ask(&serving, Turn::Background).await, "1");
        assert_eq!(ask(&fetching, Turn::Assigned).await, "0");
        assert_eq!(ask(&serving, Turn::Viewer).await, "1", "its own first");
        pools.closed("other:1").await;
    }
}
