//! Traces and logs: one trace from a player's request to the origin, its ids in the logs, and no
//! secret in any of it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::services::program;
use chunkcache_tests::{Cluster, ClusterOptions, MIB, Object, eventually, ports};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

const WAIT: Duration = Duration::from_secs(30);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

type Received = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// Replaces an OpenTelemetry collector.
struct Collector {
    address: std::net::SocketAddr,
    received: Received,
    _runtime: tokio::runtime::Runtime,
}

struct Receiver(Received);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn start() -> Collector {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (address, received) = (ports::reserve(), Received::default());
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(address))
            .unwrap();
        let service = TraceServiceServer::new(Receiver(received.clone()));
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Collector {
            address,
            received,
            _runtime: runtime,
        }
    }

    /// All spans so far, with their services.
    fn spans(&self) -> Vec<(String, Span)> {
        let mut all = Vec::new();
        for request in self.received.lock().unwrap().iter() {
            for resource in &request.resource_spans {
                let name = resource.resource.iter().flat_map(|it| &it.attributes);
                let name = name
                    .filter(|it| it.key == "service.name")
                    .map(|it| format!("{:?}", it.value));
                let service = name.collect::<String>();
                let service = ["cache-edge", "cache-coordinator"]
                    .into_iter()
                    .find(|it| service.contains(it))
                    .unwrap();
                for scope in &resource.scope_spans {
                    all.extend(
                        scope
                            .spans
                            .iter()
                            .map(|span| (service.to_owned(), span.clone())),
                    );
                }
            }
        }
        all
    }

    fn text(&self) -> String {
        format!("{:?}", self.received.lock().unwrap())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Both services at the most verbose level, as JSON, with every span sent to the collector.
fn traced(collector: &Collector) -> Cluster {
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: 1,
        edge_arguments: vec![
            "--background-fill=false",
            "--log-format=json",
            "--log-level=trace",
            "--trace-sample-ratio=1",
        ],
        coordinator_arguments: vec![
            "--log-format=json",
            "--log-level=trace",
            "--trace-sample-ratio=1",
        ],
    });
    let endpoint = format!("--otlp-endpoint=http://{}", collector.address);
    cluster.coordinator.arguments.push(endpoint.clone());
    cluster.edges[0].arguments.push(endpoint);
    cluster
}

fn traceparent() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

#[test]
fn one_trace_from_the_player_to_the_origin() {
    let collector = Collector::start();
    let mut cluster = traced(&collector);
    cluster.start_prepared();
    let film = cluster.put("/film.mp4", Object::generated(21, 4 * MIB));
    // The coordinator answers for a new key without its table; for this one it must read it.
    cluster.edge().get(&film).expect(200);
    let invalidate = ["entry", "invalidate", "media/film.mp4"];
    assert!(cluster.coordinator.cli(&invalidate).status.success());
    Call::get(&film)
        .range(0, 1000)
        .header("traceparent", &traceparent())
        .send(cluster.edge().http)
        .expect(206);

    // To the origin: the same trace, from a span of ours.
    let hits = cluster.origin.hits("/film.mp4");
    let sent = hits
        .iter()
        .filter_map(|hit| hit.header("traceparent"))
        .find(|sent| sent.starts_with(&format!("00-{TRACE}-")))
        .expect("the origin is told of the trace");
    assert!(sent.ends_with("-01"), "{sent}");
    let asked_by = sent.split('-').nth(2).unwrap().to_owned();

    let find = |spans: &[(String, Span)], service: &str, name: &str| {
        let found = spans
            .iter()
            .find(|(of, span)| of == service && span.name == name);
        found.map(|(_, span)| (hex(&span.span_id), hex(&span.parent_span_id)))
    };
    let spans = eventually("the spans came to the collector", WAIT, || {
        let mut spans = collector.spans();
        spans.retain(|(_, span)| hex(&span.trace_id) == TRACE);
        let all = [
            ("cache-edge", "request"),
            ("cache-edge", "ask"),
            ("cache-coordinator", "grpc"),
            ("cache-coordinator", "database"),
        ];
        all.iter()
            .all(|(service, name)| find(&spans, service, name).is_some())
            .then_some(spans)
    });
    // Each below its cause.
    let (request, caller) = find(&spans, "cache-edge", "request").unwrap();
    assert_eq!(caller, CALLER);
    let (ask, asker) = find(&spans, "cache-edge", "ask").unwrap();
    assert_eq!((asker, asked_by), (request.clone(), ask));
    let (grpc, called_by) = find(&spans, "cache-coordinator", "grpc").unwrap();
    assert_eq!(called_by, request);
    assert_eq!(
        find(&spans, "cache-coordinator", "database").unwrap().1,
        grpc
    );

    // Log lines within it carry its id, as one field of the JSON.
    for log in [
        cluster.edge_mut().process().output(),
        cluster.coordinator.process().output(),
    ] {
        let lines = log.lines().filter(|line| line.contains(TRACE));
        let parsed: Vec<serde_json::Value> = lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(
            parsed
                .iter()
                .any(|line| line["span"]["trace_id"] == TRACE
                    || line["spans"][0]["trace_id"] == TRACE),
            "no line carries the trace: {parsed:?}"
        );
    }

    // A client without a trace begins one here, if traces are exported.
    Call::get(&film)
        .range(0, 10)
        .send(cluster.edge().http)
        .expect(206);
    eventually("a trace of our own", WAIT, || {
        let mut spans = collector.spans();
        spans.retain(|(of, span)| {
            of == "cache-edge" && span.name == "request" && span.parent_span_id.is_empty()
        });
        spans.first().cloned()
    });
}

#[test]
fn no_secret_is_logged_traced_or_counted() {
    let collector = Collector::start();
    let mut cluster = traced(&collector);
    let directory = cluster.directory.path().to_owned();
    let put = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let tokens = put(
        "tokens",
        "operator alice canary-operator-token\nedge edge-a canary-edge-token\n",
    );
    let operator = format!("--token-file={}", put("operator", "canary-operator-token"));
    let edge_token = put("edge", "canary-edge-token");
    let keys = put("keys", "k1 canary-signing-key\n");
    cluster
        .coordinator
        .arguments
        .push(format!("--access-tokens-file={tokens}"));
    cluster.edges[0]
        .arguments
        .push(format!("--coordinator-token-file={edge_token}"));
    cluster.edges[0]
        .arguments
        .push(format!("--signed-url-keys-file={keys}"));
    cluster.postgres.start_again();
    cluster.coordinator.start();
    let origin = cluster.origin.url();
    let add = [
        "source",
        "add",
        "media",
        &origin,
        "--header=X-Api-Key: canary-origin-key",
        "--forward-credentials",
        &operator,
    ];
    let added = cluster.coordinator.cli(&add);
    assert!(added.status.success(), "{added:?}");
    let add = [
        "source",
        "add",
        "stored",
        &origin,
        "--header=X-Api-Key: canary-origin-key",
        &operator,
    ];
    assert!(cluster.coordinator.cli(&add).status.success());
    cluster.edge_mut().start();

    let sign = |target: &str| {
        let output = Command::new(program("cache-edge"))
            .args(["sign", "--key=k1", &format!("--keys-file={keys}"), target])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let mut secrets = vec!["canary-".to_owned()];
    let http = cluster.edge().http;
    let ask = |target: &str, status: u16| {
        Call::get(target)
            .range(0, 1000)
            .header("traceparent", &traceparent())
            .header("Authorization", "Bearer canary-player-token")
            .header("Cookie", "session=canary-player-cookie")
            .send(http)
            .expect(status)
    };
    cluster.put(
        "/film.mp4?policy=canary-query",
        Object::generated(22, 4 * MIB),
    );
    for source in ["stored", "media"] {
        let signed = sign(&format!("/{source}/film.mp4?policy=canary-query"));
        secrets.push(signed.split("cc-signature=").nth(1).unwrap().to_owned());
        ask(&signed, 206);
        // A wrong signature, and none.
        ask(&signed.replace("cc-signature=", "cc-signature=A"), 403);
        ask(&format!("/{source}/film.mp4?policy=canary-query"), 403);
        ask(
            &sign(&format!("/{source}/absent.mp4?policy=canary-query")),
            404,
        );
    }
    let with_key =
        |hit: &chunkcache_tests::origin::Hit| hit.header("x-api-key") == Some("canary-origin-key");
    assert!(cluster.origin.all_hits().iter().any(with_key));
    // Errors give a reason without the secret: an origin that is away, jobs, a lookup by URL, wrong
    // tokens.
    let cli = |arguments: &[&str]| {
        cluster
            .coordinator
            .cli(&[arguments, &[operator.as_str()]].concat())
    };
    for command in [
        &[
            "precache",
            "stored/film.mp4?policy=canary-query",
            "--follow",
        ][..],
        &["precache", "stored/gone.mp4?policy=canary-query"],
        &["entry", "show", "stored/film.mp4?policy=canary-query"],
        &[
            "explain",
            "stored/film.mp4?policy=canary-query",
            "--chunk=0",
        ],
        &[
            "entry",
            "invalidate",
            "stored/film.mp4?policy=canary-query",
            "--purge",
        ],
        &[
            "precache",
            &format!("{origin}/film.mp4?policy=canary-query"),
        ],
        &["source", "list"],
    ] {
        cli(command);
    }
    cluster.coordinator.cli(&[
        "status",
        &format!("--token-file={}", put("wrong", "canary-wrong-token")),
    ]);
    Call::get("/api/v1/overview")
        .header("Authorization", "Bearer canary-wrong-token")
        .send(cluster.coordinator.http)
        .expect(401);
    cluster.origin.stop();
    ask(&sign("/stored/other.mp4?policy=canary-query"), 504);

    let spans = eventually("spans of both came", WAIT, || {
        let spans = collector.spans();
        let of = |service: &str| spans.iter().any(|(name, _)| name == service);
        (of("cache-edge") && of("cache-coordinator")).then_some(spans.len())
    });
    println!("{spans} spans looked at");
    let metrics = Call::get("/metrics")
        .send(cluster.edge().admin)
        .expect(200)
        .text()
        + &cluster.coordinator.get("/metrics").expect(200).text();
    assert_eq!(cluster.edge_mut().terminate().code(), Some(0));
    let coordinator_log = cluster.coordinator.process().output();
    assert_eq!(cluster.coordinator.terminate().code(), Some(0));
    let edge_log = fs::read_to_string(directory.join("edge-a.log")).unwrap();
    assert!(edge_log.contains("film.mp4"), "the edge logs its requests");
    assert!(
        coordinator_log.contains("DEBUG"),
        "the coordinator logs its calls"
    );
    for (what, text) in [
        ("the edge's log", &edge_log),
        ("the coordinator's log", &coordinator_log),
        ("the traces", &collector.text()),
        ("the metrics", &metrics),
    ] {
        for secret in &secrets {
            let shown = text.lines().find(|line| line.contains(secret.as_str()));
            assert!(shown.is_none(), "{secret} in {what}: {}", shown.unwrap());
        }
    }
}
