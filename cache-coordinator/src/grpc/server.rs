//! The gRPC listener: both services, health and reflection.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::{
    FILE_DESCRIPTOR_SET,
    v1::{cache_service_server::CacheServiceServer, edge_service_server::EdgeServiceServer},
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::transport::Server;
use tonic_health::pb::health_server::HealthServer;

use super::{CacheApi, EdgeApi, guard::GuardedService, health::HealthApi};
use crate::{access::Access, listen::Connection, service::Cluster};

/// The inventory of one entry of 100 GB takes less than 1 MiB; a request for many entries may be
/// larger.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Ping interval, and the time after which a peer without an answer is gone.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// Serves until the cluster shuts down, then lets calls end.
pub async fn serve(
    cluster: Arc<Cluster>,
    access: Arc<Access>,
    connections: mpsc::Receiver<Connection>,
) -> anyhow::Result<()> {
    let health = HealthApi::new(Arc::clone(&cluster));
    let watched = health.clone();
    let reflect = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let cache = CacheServiceServer::new(CacheApi::new(Arc::clone(&cluster)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let edge = EdgeServiceServer::new(EdgeApi::new(Arc::clone(&cluster)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let server = Server::builder()
        .trace_fn(|request| {
            let span = tracing::info_span!(
                "grpc",
                otel.kind = "server",
                path = %request.uri().path(),
                trace_id = tracing::field::Empty
            );
            service_kit::telemetry::set_parent(&span, request.headers());
            span
        })
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .add_service(HealthServer::new(health))
        .add_service(reflect().build_v1()?)
        .add_service(reflect().build_v1alpha()?)
        // Health and reflection are open to all: probes have no token, and the protocol is not a
        // secret.
        .add_service(GuardedService::new(Arc::clone(&access), cache))
        .add_service(GuardedService::new(access, edge));
    let incoming = ReceiverStream::new(connections).map(Ok::<_, std::io::Error>);
    let shutdown = cluster.shutdown.clone();
    let serving = server.serve_with_incoming_shutdown(incoming, shutdown.cancelled());
    tokio::select! {
        served = serving => served?,
        // Ends only with the server.
        () = watched.keep_true() => {}
    }
    Ok(())
}
