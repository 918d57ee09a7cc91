//! The service for other services.

use std::sync::Arc;

use chunkcache_proto::v1::{self, cache_service_server::CacheService};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::service::{
    Cluster, availability, edges, entries, error::ServiceError, explain, invalidate, jobs, purge,
    sources, status, title, watch,
};

/// The service over a cluster.
#[derive(Clone)]
pub struct CacheApi {
    cluster: Arc<Cluster>,
}

impl CacheApi {
    #[must_use]
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster }
    }

    /// Completes a change even if its caller disconnects: a source that is recorded but not sent to
    /// the edges is half a change.
    async fn complete<F, T>(
        &self,
        change: impl FnOnce(Arc<Cluster>) -> F,
    ) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
        T: Send + 'static,
    {
        use tracing::Instrument as _;
        let change = change(Arc::clone(&self.cluster)).in_current_span();
        match self.cluster.tasks.spawn(change).await {
            Ok(result) => Ok(Response::new(result?)),
            Err(_) => Err(ServiceError::Internal("the change ended unexpectedly".into()).into()),
        }
    }
}

#[tonic::async_trait]
impl CacheService for CacheApi {
    async fn put_source(
        &self,
        request: Request<v1::PutSourceRequest>,
    ) -> Result<Response<v1::PutSourceResponse>, Status> {
        let request = request.into_inner();
        self.complete(|c| async move { sources::put(&c, request).await })
            .await
    }

    async fn get_source(
        &self,
        request: Request<v1::GetSourceRequest>,
    ) -> Result<Response<v1::GetSourceResponse>, Status> {
        let response = sources::get(&self.cluster, &request.into_inner().name).await?;
        Ok(Response::new(response))
    }

    async fn list_sources(
        &self,
        _request: Request<v1::ListSourcesRequest>,
    ) -> Result<Response<v1::ListSourcesResponse>, Status> {
        Ok(Response::new(sources::list(&self.cluster).await?))
    }

    async fn remove_source(
        &self,
        request: Request<v1::RemoveSourceRequest>,
    ) -> Result<Response<v1::RemoveSourceResponse>, Status> {
        let name = request.into_inner().name;
        self.complete(|c| async move { sources::remove(&c, &name).await })
            .await
    }

    async fn open_entry(
        &self,
        request: Request<v1::OpenEntryRequest>,
    ) -> Result<Response<v1::OpenEntryResponse>, Status> {
        let response = entries::open(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn get_entry(
        &self,
        request: Request<v1::GetEntryRequest>,
    ) -> Result<Response<v1::GetEntryResponse>, Status> {
        let response = entries::get(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn list_entries(
        &self,
        request: Request<v1::ListEntriesRequest>,
    ) -> Result<Response<v1::ListEntriesResponse>, Status> {
        let response = entries::list(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn has_byte_range(
        &self,
        request: Request<v1::HasByteRangeRequest>,
    ) -> Result<Response<v1::HasByteRangeResponse>, Status> {
        let response = availability::has_range(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn get_availability(
        &self,
        request: Request<v1::GetAvailabilityRequest>,
    ) -> Result<Response<v1::GetAvailabilityResponse>, Status> {
        let response = availability::availability(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn request_range(
        &self,
        request: Request<v1::RequestRangeRequest>,
    ) -> Result<Response<v1::RequestRangeResponse>, Status> {
        let response = availability::request(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn wait_for_range(
        &self,
        request: Request<v1::WaitForRangeRequest>,
    ) -> Result<Response<v1::WaitForRangeResponse>, Status> {
        let response = availability::wait(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn list_title(
        &self,
        request: Request<v1::ListTitleRequest>,
    ) -> Result<Response<v1::ListTitleResponse>, Status> {
        let response = title::list(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn precache(
        &self,
        request: Request<v1::PrecacheRequest>,
    ) -> Result<Response<v1::PrecacheResponse>, Status> {
        let request = request.into_inner();
        self.complete(|c| async move { jobs::precache(&c, request).await })
            .await
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let response = jobs::list(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let request = request.into_inner();
        self.complete(|c| async move { jobs::cancel(&c, request).await })
            .await
    }

    type WatchJobStream = ReceiverStream<Result<v1::WatchJobResponse, Status>>;

    async fn watch_job(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let watched = jobs::watch(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(ReceiverStream::new(watched)))
    }

    async fn pin_entry(
        &self,
        request: Request<v1::PinEntryRequest>,
    ) -> Result<Response<v1::PinEntryResponse>, Status> {
        let request = request.into_inner();
        self.complete(|c| async move { invalidate::pin(&c, request).await })
            .await
    }

    async fn invalidate_entry(
        &self,
        request: Request<v1::InvalidateEntryRequest>,
    ) -> Result<Response<v1::InvalidateEntryResponse>, Status> {
        let request = request.into_inner();
        self.complete(|c| async move { invalidate::invalidate(&c, request).await })
            .await
    }

    async fn purge_entries(
        &self,
        request: Request<v1::PurgeEntriesRequest>,
    ) -> Result<Response<v1::PurgeEntriesResponse>, Status> {
        let request = request.into_inner();
        self.complete(|c| async move { purge::purge(&c, request).await })
            .await
    }

    type WatchEntryStream = ReceiverStream<Result<v1::WatchEntryResponse, Status>>;

    async fn watch_entry(
        &self,
        request: Request<v1::WatchEntryRequest>,
    ) -> Result<Response<Self::WatchEntryStream>, Status> {
        let watched = watch::watch_entry(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(ReceiverStream::new(watched)))
    }

    type WatchClusterStream = ReceiverStream<Result<v1::WatchClusterResponse, Status>>;

    async fn watch_cluster(
        &self,
        request: Request<v1::WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        let watched = watch::watch_cluster(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(ReceiverStream::new(watched)))
    }

    async fn list_edges(
        &self,
        _request: Request<v1::ListEdgesRequest>,
    ) -> Result<Response<v1::ListEdgesResponse>, Status> {
        Ok(Response::new(edges::list(&self.cluster).await?))
    }

    async fn drain_edge(
        &self,
        request: Request<v1::DrainEdgeRequest>,
    ) -> Result<Response<v1::DrainEdgeResponse>, Status> {
        let request = request.into_inner();
        self.complete(|c| async move { edges::drain(&c, request).await })
            .await
    }

    async fn forget_edge(
        &self,
        request: Request<v1::ForgetEdgeRequest>,
    ) -> Result<Response<v1::ForgetEdgeResponse>, Status> {
        let request = request.into_inner();
        self.complete(|c| async move { edges::forget(&c, request).await })
            .await
    }

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(status::status(&self.cluster).await?))
    }

    async fn explain_chunk(
        &self,
        request: Request<v1::ExplainChunkRequest>,
    ) -> Result<Response<v1::ExplainChunkResponse>, Status> {
        let response = explain::explain(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn verify_edge(
        &self,
        request: Request<v1::VerifyEdgeRequest>,
    ) -> Result<Response<v1::VerifyEdgeResponse>, Status> {
        let response = edges::verify(&self.cluster, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn step_down(
        &self,
        _request: Request<v1::StepDownRequest>,
    ) -> Result<Response<v1::StepDownResponse>, Status> {
        self.cluster.require_leader()?;
        self.complete(|c| async move {
            c.step_down.step_down().await;
            Ok(v1::StepDownResponse {})
        })
        .await
    }
}
