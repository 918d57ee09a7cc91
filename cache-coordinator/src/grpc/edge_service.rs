//! The service for edges.

use std::sync::Arc;

use chunkcache_proto::v1::{self, edge_service_server::EdgeService};
use http_rules::steering::SteeredObject;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    access::Caller,
    service::{Cluster, entries, resolve_key, steer},
    sessions::{
        connection,
        registry::{Outbox, OutboxStream},
    },
};

/// The service over a cluster.
#[derive(Clone)]
pub struct EdgeApi {
    cluster: Arc<Cluster>,
}

impl EdgeApi {
    #[must_use]
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster }
    }
}

/// The caller, as the guard identified it.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::internal("a call came past the guard"))
}

#[tonic::async_trait]
impl EdgeService for EdgeApi {
    type SessionStream = OutboxStream;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = caller(&request)?;
        self.cluster.require_leader()?;
        let (outbox, responses) = Outbox::new();
        let cluster = Arc::clone(&self.cluster);
        let inbound = request.into_inner();
        self.cluster
            .tasks
            .spawn(connection::run(cluster, caller, inbound, outbox));
        Ok(Response::new(responses))
    }

    async fn resolve_key(
        &self,
        request: Request<v1::ResolveKeyRequest>,
    ) -> Result<Response<v1::ResolveKeyResponse>, Status> {
        // The session gave the edge's address, against which a certificate of the form NAME.DOMAIN
        // is checked.
        let edge = &request.get_ref().edge;
        let live = self.cluster.registry.by_name(edge);
        let url = live.as_ref().map_or("", |live| live.url.as_str());
        caller(&request)?.speaks_for(edge, url)?;
        let response = resolve_key::resolve_key(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn lookup_entry(
        &self,
        request: Request<v1::LookupEntryRequest>,
    ) -> Result<Response<v1::LookupEntryResponse>, Status> {
        let response = entries::lookup_by_id(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn steer(
        &self,
        request: Request<v1::SteerRequest>,
    ) -> Result<Response<v1::SteerResponse>, Status> {
        self.cluster.require_leader()?;
        let object = request.into_inner().key.map(|key| SteeredObject {
            source: key.source,
            path: key.path,
            query: key.query,
        });
        let candidates = steer::candidates(&self.cluster, object.as_ref()).await;
        let edges = candidates.into_iter().map(|it| v1::SteeredEdge {
            name: it.name,
            url: it.url,
        });
        Ok(Response::new(v1::SteerResponse {
            edges: edges.collect(),
        }))
    }
}
