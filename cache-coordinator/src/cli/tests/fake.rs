//! A coordinator that knows one source, one entry and one job, and records the requests it gets.

use std::collections::HashMap;
use std::sync::Arc;

use chunkcache_proto::v1::cache_service_server::{CacheService, CacheServiceServer};
use chunkcache_proto::v1::*;
use parking_lot::Mutex;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

pub(super) const ENTRY_ID: &str = "018f6a0e-0000-8000-8000-000000000001";

#[derive(Default)]
pub(super) struct Fake {
    /// If set, every request is refused and this leader is named.
    pub leader: Option<String>,
    /// Number of initial requests during which there is no leader.
    pub without_leader: usize,
    /// Debug text of each request.
    pub asked: Arc<Mutex<Vec<String>>>,
    /// Value of the `authorization` header of each request.
    pub tokens: Arc<Mutex<Vec<String>>>,
    /// How the followed job ends.
    pub job_ends: JobState,
}

impl Fake {
    /// Serves on a free port of loopback until the test's runtime ends; returns the URL.
    pub(super) async fn start(self) -> String {
        self.start_on(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// Like [`Fake::start`] with TLS, and requires client certificates.
    pub(super) async fn start_with_mutual_tls(self) -> String {
        let pem = |name| std::fs::read(fixture(name)).unwrap();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(pem("server-a.pem"), pem("server-a.key")))
            .client_ca_root(Certificate::from_pem(pem("ca.pem")));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(CacheServiceServer::new(self));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        format!("https://{address}")
    }

    pub(super) fn start_on(self, listener: tokio::net::TcpListener) -> String {
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(CacheServiceServer::new(self));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        format!("http://{address}")
    }

    fn note<T: std::fmt::Debug>(&self, request: &Request<T>) -> Result<(), Status> {
        self.asked.lock().push(format!("{:?}", request.get_ref()));
        if let Some(token) = request.metadata().get("authorization") {
            self.tokens.lock().push(token.to_str().unwrap().to_owned());
        }
        let nobody = self.asked.lock().len() <= self.without_leader;
        let Some(leader) = self.leader.clone().or(nobody.then(String::new)) else {
            return Ok(());
        };
        let metadata = HashMap::from([("leader".to_owned(), leader)]);
        let details = ErrorDetails::with_error_info("NOT_LEADER", "chunkcache", metadata);
        Err(Status::with_error_details(
            Code::FailedPrecondition,
            "a standby",
            details,
        ))
    }
}

/// A certificate or key made for tests, valid for 127.0.0.1.
pub(super) fn fixture(name: &str) -> String {
    format!(
        "{}/../crates/service-kit/tests/tls/{name}",
        env!("CARGO_MANIFEST_DIR")
    )
}

pub(super) fn source_use() -> SourceUse {
    let origin = |origin: &str, down_ms: Option<u64>, last_error: &str| OriginHealth {
        first_byte_us: down_ms.is_none().then_some(12_300),
        origin: origin.to_owned(),
        down_ms,
        last_error: last_error.to_owned(),
        last_error_ms: 65_000,
    };
    SourceUse {
        source: "films".to_owned(),
        edge: "east".to_owned(),
        uptime_ms: 3_720_000,
        bytes_used: 1 << 30,
        quota_bytes: 4 << 30,
        bytes_sent_total: 2_000,
        bytes_hit_total: 1_500,
        bytes_origin_total: 500,
        origin_errors_total: 3,
        origins: vec![
            origin("a:81", Some(5_000), "answered 503"),
            origin("b", None, ""),
        ],
        origins_down: 1,
    }
}

pub(super) fn source() -> Source {
    Source {
        name: "films".to_owned(),
        base_url: "http://127.0.0.1:9/films".to_owned(),
        headers: vec![Header {
            name: "X-Key".to_owned(),
            value: "***".to_owned(),
        }],
        max_rate_bytes_per_second: 10 << 20,
        mode: SourceMode::Serve.into(),
        ..Source::default()
    }
}

pub(super) fn entry() -> Entry {
    Entry {
        id: ENTRY_ID.to_owned(),
        key: Some(Key {
            source: "films".to_owned(),
            path: "a.mp4".to_owned(),
            ..Key::default()
        }),
        size: 5 << 20,
        chunk_size: 2 << 20,
        validator: "\"v1\"".to_owned(),
        etag: "\"v1\"".to_owned(),
        content_type: "video/mp4".to_owned(),
        ..Entry::default()
    }
}

pub(super) fn detail() -> EntryDetail {
    EntryDetail {
        entry: Some(entry()),
        freshness: None,
        complete: false,
        edges: vec![EdgeRanges {
            edge: "east".to_owned(),
            url: "http://127.0.0.1:7500".to_owned(),
            state: EdgeState::Active.into(),
            ranges: vec![ByteRange {
                start: 0,
                end: 2 << 20,
            }],
            bytes: 2 << 20,
        }],
    }
}

pub(super) fn edge() -> Edge {
    Edge {
        name: "east".to_owned(),
        state: EdgeState::Active.into(),
        url: "http://127.0.0.1:7500".to_owned(),
        bytes_used: 2 << 20,
        bytes_allowed: 10 << 30,
        chunks: 1,
        ..Edge::default()
    }
}

pub(super) fn job(state: JobState, bytes_done: u64) -> Job {
    Job {
        id: "j1".to_owned(),
        entry: Some(entry()),
        state: state.into(),
        bytes_done,
        bytes_total: 5 << 20,
        rate_bytes_per_second: 1 << 20,
        eta_seconds: Some(3),
        priority: Priority::Medium.into(),
        ..Job::default()
    }
}

fn check_known(name: &Option<EntryName>) -> Result<(), Status> {
    match name.as_ref().and_then(|name| name.name.as_ref()) {
        Some(entry_name::Name::SourcePath(at)) if at.source != "films" => {
            let details =
                ErrorDetails::with_resource_info("source", &at.source, "", "add it first");
            Err(Status::with_error_details(
                Code::NotFound,
                "no such source",
                details,
            ))
        }
        _ => Ok(()),
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

#[tonic::async_trait]
impl CacheService for Fake {
    type WatchJobStream = Stream<WatchJobResponse>;
    type WatchEntryStream = Stream<WatchEntryResponse>;
    type WatchClusterStream = Stream<WatchClusterResponse>;

    async fn put_source(&self, request: Request<PutSourceRequest>) -> Answer<PutSourceResponse> {
        self.note(&request)?;
        let source = request.into_inner().source.unwrap();
        if source.name == "Bad" {
            let details = ErrorDetails::with_bad_request_violation(
                "source.name",
                "is not a name: expected a-z, 0-9",
            );
            let message = "the source can not be kept";
            return Err(Status::with_error_details(
                Code::InvalidArgument,
                message,
                details,
            ));
        }
        Ok(Response::new(PutSourceResponse {
            source: Some(source),
            unconfirmed_edges: vec![],
            unchanged: false,
            unchecked: String::new(),
        }))
    }

    async fn get_source(&self, request: Request<GetSourceRequest>) -> Answer<GetSourceResponse> {
        self.note(&request)?;
        Ok(Response::new(GetSourceResponse {
            source: Some(source()),
            uses: vec![source_use()],
        }))
    }

    async fn list_sources(
        &self,
        request: Request<ListSourcesRequest>,
    ) -> Answer<ListSourcesResponse> {
        self.note(&request)?;
        Ok(Response::new(ListSourcesResponse {
            sources: vec![source()],
            uses: Vec::new(),
        }))
    }

    async fn remove_source(
        &self,
        request: Request<RemoveSourceRequest>,
    ) -> Answer<RemoveSourceResponse> {
        self.note(&request)?;
        Ok(Response::new(RemoveSourceResponse::default()))
    }

    async fn open_entry(&self, request: Request<OpenEntryRequest>) -> Answer<OpenEntryResponse> {
        self.note(&request)?;
        Ok(Response::new(OpenEntryResponse {
            entry: Some(entry()),
            play_url: "http://127.0.0.1:7500/films/a.mp4".to_owned(),
            edge: "east".to_owned(),
            ..OpenEntryResponse::default()
        }))
    }

    async fn get_entry(&self, request: Request<GetEntryRequest>) -> Answer<GetEntryResponse> {
        self.note(&request)?;
        check_known(&request.get_ref().entry)?;
        Ok(Response::new(GetEntryResponse {
            entry: Some(detail()),
        }))
    }

    /// Two pages of one entry each.
    async fn list_entries(
        &self,
        request: Request<ListEntriesRequest>,
    ) -> Answer<ListEntriesResponse> {
        self.note(&request)?;
        let is_first = request.get_ref().page_token.is_empty();
        let next_page_token = if is_first {
            "2".to_owned()
        } else {
            String::new()
        };
        Ok(Response::new(ListEntriesResponse {
            entries: vec![detail()],
            next_page_token,
        }))
    }

    async fn precache(&self, request: Request<PrecacheRequest>) -> Answer<PrecacheResponse> {
        self.note(&request)?;
        Ok(Response::new(PrecacheResponse {
            job: Some(job(JobState::Running, 0)),
        }))
    }

    async fn list_title(&self, request: Request<ListTitleRequest>) -> Answer<ListTitleResponse> {
        self.note(&request)?;
        let object = |path: &str, ranges| TitleObject {
            path: path.to_owned(),
            ranges,
        };
        let half = ByteRange { start: 0, end: 99 };
        Ok(Response::new(ListTitleResponse {
            source: "films".to_owned(),
            objects: vec![object("a/1.ts?x=1", vec![]), object("a/2.ts", vec![half])],
        }))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Answer<ListJobsResponse> {
        self.note(&request)?;
        Ok(Response::new(ListJobsResponse {
            jobs: vec![job(JobState::Running, 1 << 20)],
        }))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Answer<CancelJobResponse> {
        self.note(&request)?;
        Ok(Response::new(CancelJobResponse {
            job: Some(job(JobState::Cancelled, 1 << 20)),
        }))
    }

    async fn watch_job(&self, request: Request<WatchJobRequest>) -> Answer<Self::WatchJobStream> {
        self.note(&request)?;
        let update = |job| Ok(WatchJobResponse { job: Some(job) });
        let updates = vec![
            update(job(JobState::Running, 1 << 20)),
            update(job(self.job_ends, 5 << 20)),
        ];
        Ok(Response::new(tokio_stream::iter(updates)))
    }

    async fn pin_entry(&self, request: Request<PinEntryRequest>) -> Answer<PinEntryResponse> {
        self.note(&request)?;
        Ok(Response::new(PinEntryResponse {
            entry: Some(entry()),
        }))
    }

    async fn invalidate_entry(
        &self,
        request: Request<InvalidateEntryRequest>,
    ) -> Answer<InvalidateEntryResponse> {
        self.note(&request)?;
        Ok(Response::new(InvalidateEntryResponse {
            confirmed_edges: vec!["east".to_owned()],
            unconfirmed_edges: vec![],
        }))
    }

    async fn purge_entries(
        &self,
        request: Request<PurgeEntriesRequest>,
    ) -> Answer<PurgeEntriesResponse> {
        self.note(&request)?;
        Ok(Response::new(PurgeEntriesResponse {
            purged: 3,
            confirmed_edges: vec!["east".to_owned()],
            unconfirmed_edges: vec![],
        }))
    }

    /// A snapshot and a change; then the stream ends.
    async fn watch_entry(
        &self,
        request: Request<WatchEntryRequest>,
    ) -> Answer<Self::WatchEntryStream> {
        self.note(&request)?;
        check_known(&request.get_ref().entry)?;
        let event = |revision, event| {
            Ok(WatchEntryResponse {
                revision,
                event: Some(event),
            })
        };
        let snapshot = GetAvailabilityResponse {
            entry: Some(entry()),
            edges: detail().edges,
            revision: 4,
        };
        let stored = ChunksChanged {
            entry_id: ENTRY_ID.to_owned(),
            ..ChunksChanged::default()
        };
        let events = vec![
            event(4, watch_entry_response::Event::Snapshot(snapshot)),
            event(5, watch_entry_response::Event::Stored(stored)),
        ];
        Ok(Response::new(tokio_stream::iter(events)))
    }

    async fn list_edges(&self, request: Request<ListEdgesRequest>) -> Answer<ListEdgesResponse> {
        self.note(&request)?;
        Ok(Response::new(ListEdgesResponse {
            edges: vec![edge()],
        }))
    }

    async fn drain_edge(&self, request: Request<DrainEdgeRequest>) -> Answer<DrainEdgeResponse> {
        self.note(&request)?;
        Ok(Response::new(DrainEdgeResponse { edge: Some(edge()) }))
    }

    async fn forget_edge(&self, request: Request<ForgetEdgeRequest>) -> Answer<ForgetEdgeResponse> {
        self.note(&request)?;
        Ok(Response::new(ForgetEdgeResponse { chunks_removed: 7 }))
    }

    async fn get_status(&self, request: Request<GetStatusRequest>) -> Answer<GetStatusResponse> {
        self.note(&request)?;
        Ok(Response::new(GetStatusResponse {
            version: "0.1.0".to_owned(),
            queued_by_level: vec![1, 2, 3, 4],
            ..GetStatusResponse::default()
        }))
    }

    async fn explain_chunk(
        &self,
        request: Request<ExplainChunkRequest>,
    ) -> Answer<ExplainChunkResponse> {
        self.note(&request)?;
        Ok(Response::new(ExplainChunkResponse {
            entry_id: ENTRY_ID.to_owned(),
            chunk: request.get_ref().chunk,
            decisions: vec![ChunkDecision {
                edge: "east".to_owned(),
                ..ChunkDecision::default()
            }],
            summary: "nobody wants it".to_owned(),
            ..ExplainChunkResponse::default()
        }))
    }

    /// The edge `east` differs from its rows.
    async fn verify_edge(&self, request: Request<VerifyEdgeRequest>) -> Answer<VerifyEdgeResponse> {
        self.note(&request)?;
        let rows_without_bytes = u64::from(request.get_ref().name == "east");
        Ok(Response::new(VerifyEdgeResponse {
            rows_without_bytes,
            ..VerifyEdgeResponse::default()
        }))
    }

    async fn watch_cluster(
        &self,
        _: Request<WatchClusterRequest>,
    ) -> Answer<Self::WatchClusterStream> {
        Err(Status::unimplemented("not needed"))
    }

    async fn has_byte_range(
        &self,
        _: Request<HasByteRangeRequest>,
    ) -> Answer<HasByteRangeResponse> {
        Err(Status::unimplemented("no command asks for it"))
    }

    async fn get_availability(
        &self,
        _: Request<GetAvailabilityRequest>,
    ) -> Answer<GetAvailabilityResponse> {
        Err(Status::unimplemented("no command asks for it"))
    }

    async fn request_range(&self, _: Request<RequestRangeRequest>) -> Answer<RequestRangeResponse> {
        Err(Status::unimplemented("no command asks for it"))
    }

    async fn wait_for_range(
        &self,
        _: Request<WaitForRangeRequest>,
    ) -> Answer<WaitForRangeResponse> {
        Err(Status::unimplemented("no command asks for it"))
    }

    async fn step_down(&self, _: Request<StepDownRequest>) -> Answer<StepDownResponse> {
        Err(Status::unimplemented("no command asks for it"))
    }
}
