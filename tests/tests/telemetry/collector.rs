//! A stand-in for an OpenTelemetry collector: it keeps whatever it receives.

use std::sync::{Arc, Mutex};

use chunkcache_tests::ports;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
struct Received {
    traces: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    logs: Arc<Mutex<Vec<ExportLogsServiceRequest>>>,
    metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
    /// The `x-tenant` of each message of metrics.
    tenants: Arc<Mutex<Vec<String>>>,
}

/// See the module.
pub struct Collector {
    pub address: std::net::SocketAddr,
    received: Received,
    _runtime: tokio::runtime::Runtime,
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.traces.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Received {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.logs.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Received {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let tenant = request.metadata().get("x-tenant");
        let tenant = tenant.map(|it| it.to_str().unwrap().to_owned());
        self.tenants.lock().unwrap().extend(tenant);
        self.metrics.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Collector {
    pub fn start() -> Collector {
        Self::start_with(None)
    }

    /// With TLS, by this certificate and key.
    pub fn start_with(identity: Option<tonic::transport::Identity>) -> Collector {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (address, received) = (ports::reserve(), Received::default());
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(address))
            .unwrap();
        let mut server = tonic::transport::Server::builder();
        if let Some(identity) = identity {
            let tls = tonic::transport::ServerTlsConfig::new().identity(identity);
            server = server.tls_config(tls).unwrap();
        }
        runtime.spawn(
            server
                .add_service(TraceServiceServer::new(received.clone()))
                .add_service(LogsServiceServer::new(received.clone()))
                .add_service(MetricsServiceServer::new(received.clone()))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Collector {
            address,
            received,
            _runtime: runtime,
        }
    }

    /// All spans so far, with their services.
    pub fn spans(&self) -> Vec<(String, Span)> {
        let mut all = Vec::new();
        for request in self.received.traces.lock().unwrap().iter() {
            for of_resource in &request.resource_spans {
                let service = service(of_resource.resource.as_ref());
                let spans = of_resource.scope_spans.iter().flat_map(|it| &it.spans);
                all.extend(spans.map(|span| (service.clone(), span.clone())));
            }
        }
        all
    }

    /// All log records so far, with their services and scopes.
    pub fn logs(&self) -> Vec<(String, String, LogRecord)> {
        let mut all = Vec::new();
        for request in self.received.logs.lock().unwrap().iter() {
            for of_resource in &request.resource_logs {
                let service = service(of_resource.resource.as_ref());
                for of_scope in &of_resource.scope_logs {
                    let scope = of_scope.scope.clone().unwrap_or_default().name;
                    let records = of_scope.log_records.iter();
                    all.extend(records.map(|it| (service.clone(), scope.clone(), it.clone())));
                }
            }
        }
        all
    }

    /// All metrics so far, with their services.
    pub fn metrics(&self) -> Vec<(String, Metric)> {
        let mut all = Vec::new();
        for request in self.received.metrics.lock().unwrap().iter() {
            for of_resource in &request.resource_metrics {
                let service = service(of_resource.resource.as_ref());
                let metrics = of_resource.scope_metrics.iter().flat_map(|it| &it.metrics);
                all.extend(metrics.map(|metric| (service.clone(), metric.clone())));
            }
        }
        all
    }

    /// The header `x-tenant` of each message of metrics that had one.
    pub fn tenants(&self) -> Vec<String> {
        self.received.tenants.lock().unwrap().clone()
    }

    /// Everything, to look for what should not be there.
    pub fn text(&self) -> String {
        format!(
            "{:?}\n{:?}\n{:?}",
            self.received.traces.lock().unwrap(),
            self.received.metrics.lock().unwrap(),
            self.received.logs.lock().unwrap()
        )
    }
}

fn service(resource: Option<&Resource>) -> String {
    let attributes = resource.into_iter().flat_map(|it| &it.attributes);
    let name: String = attributes
        .filter(|it| it.key == "service.name")
        .map(|it| format!("{:?}", it.value))
        .collect();
    let known = ["cache-edge", "cache-coordinator"].into_iter();
    known.filter(|it| name.contains(it)).collect()
}
