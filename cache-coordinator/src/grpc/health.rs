//! `grpc.health.v1`: the answer of `/readyz`, in one word.
//!
//! A check reads the present state. A watch reports changes of the leadership at once, and of the
//! database within [`LOOK_EVERY`].

use std::{sync::Arc, time::Duration};

use tonic::{Request, Response, Status};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, HealthCheckResponse, health_server::Health},
    server::{HealthReporter, HealthService, WatchStream},
};

use crate::service::{Cluster, readiness::readiness};

/// Time between checks of the database for watches.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The whole server and each service, which all have the same state.
const SERVICES: [&str; 3] = [
    "",
    "chunkcache.v1.CacheService",
    "chunkcache.v1.EdgeService",
];

/// The service over a cluster.
#[derive(Clone)]
pub struct HealthApi {
    cluster: Arc<Cluster>,
    reporter: HealthReporter,
    watched: Arc<HealthService>,
}

impl HealthApi {
    pub fn new(cluster: Arc<Cluster>) -> Self {
        let reporter = HealthReporter::new();
        let watched = Arc::new(HealthService::from_health_reporter(reporter.clone()));
        Self {
            cluster,
            reporter,
            watched,
        }
    }

    async fn look(&self) {
        let status = if readiness(&self.cluster).await.ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Updates watches. Never returns.
    pub async fn keep_true(&self) {
        let mut leadership = self.cluster.leadership.clone();
        loop {
            self.look().await;
            tokio::select! {
                // An error means that the lease task has ended, and soon the process will.
                Ok(()) = leadership.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
}

#[tonic::async_trait]
impl Health for HealthApi {
    type WatchStream = WatchStream;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.look().await;
        self.watched.check(request).await
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        self.watched.watch(request).await
    }
}
