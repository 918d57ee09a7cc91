//! The coordinator as shipped, in its own process, so that its memory can be measured.

use std::{
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use chunkcache_proto::v1::{
    GetStatusRequest, cache_service_client::CacheServiceClient,
    edge_service_client::EdgeServiceClient,
};
use tonic::transport::{Channel, Endpoint};

pub struct Process {
    child: Child,
    endpoint: Endpoint,
}

impl Process {
    /// Starts it; it leads when this returns.
    pub async fn start(database_url: &str) -> Self {
        // Free until another process takes them, which does not happen in these tests.
        let port = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            format!("127.0.0.1:{}", listener.local_addr().unwrap().port())
        };
        let (grpc, http) = (port(), port());
        let child = Command::new(env!("CARGO_BIN_EXE_cache-coordinator"))
            .args(["serve", "--database-url", database_url])
            .args(["--listen", &grpc, "--http-listen", &http])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{grpc}")).unwrap();
        let process = Self { child, endpoint };
        let leads = async {
            loop {
                if let Ok(channel) = process.endpoint.connect().await {
                    let status = CacheServiceClient::new(channel)
                        .get_status(GetStatusRequest {})
                        .await;
                    if status.is_ok_and(|status| status.get_ref().is_leader) {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), leads)
            .await
            .unwrap();
        process
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub async fn cache(&self) -> CacheServiceClient<Channel> {
        CacheServiceClient::new(self.endpoint.connect().await.unwrap())
    }

    /// A separate connection, as each edge has.
    pub async fn edge(&self) -> EdgeServiceClient<Channel> {
        EdgeServiceClient::new(self.endpoint.connect().await.unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
