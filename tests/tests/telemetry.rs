//! Traces and logs: one trace from a player's request to the origin, its ids in the logs, and no
//! secret in any of it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use chunkcache_tests::authority::Authority;
use chunkcache_tests::http::Call;
use chunkcache_tests::services::program;
use chunkcache_tests::{Cluster, ClusterOptions, MIB, Object, eventually};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric::Data, number_data_point};
use opentelemetry_proto::tonic::trace::v1::Span;

use collector::Collector;

#[path = "telemetry/collector.rs"]
mod collector;

const WAIT: Duration = Duration::from_secs(30);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

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
    cluster.edges[0]
        .arguments
        .push("--access-log=json:otlp".to_owned());
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

    // Nothing else is sent unless it is named.
    assert!(collector.metrics().is_empty());
    let scopes = collector.logs().into_iter().map(|(_, scope, _)| scope);
    assert!(scopes.into_iter().all(|scope| scope == "access_log"));

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
fn the_access_log_goes_to_the_collector() {
    let collector = Collector::start();
    let mut cluster = traced(&collector);
    cluster.start_prepared();
    let film = cluster.put("/film.mp4", Object::generated(23, 4 * MIB));
    let address = cluster.edge().http;
    let call = Call::get(&film).range(0, 1000);
    let traced = call.header("traceparent", &traceparent());
    traced.send(address).expect(206);
    Call::get("/media/absent").send(address).expect(404);
    // The end of the process sends the rest, so this has not to be waited for.
    assert_eq!(cluster.edge_mut().terminate().code(), Some(0));

    let mut lines = Vec::new();
    for (service, scope, record) in collector.logs() {
        if scope == "access_log" {
            assert_eq!(service, "cache-edge");
            lines.push(record);
        }
    }
    assert_eq!(lines.len(), 2, "one record for each request: {lines:?}");
    let status = |record: &LogRecord| {
        let named = |it: &&KeyValue| it.key == "http.response.status_code";
        let found = record.attributes.iter().find(named);
        found.and_then(|it| it.value.clone()?.value)
    };
    assert_eq!(status(&lines[0]), Some(Value::IntValue(206)));
    assert_eq!(status(&lines[1]), Some(Value::IntValue(404)));
    let Some(Value::StringValue(body)) = lines[0].body.clone().unwrap().value else {
        panic!("{:?}", lines[0]);
    };
    let line: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(line["bytes"], 1000);
    assert_eq!(line["trace_id"], TRACE);
    // From the edge's own span, which the collector has as well.
    assert_eq!(hex(&lines[0].trace_id), TRACE);
    let spans = collector.spans();
    let span = |record: &LogRecord| {
        let mut spans = spans.iter().map(|(_, span)| span);
        spans.find(|span| span.span_id == record.span_id).cloned()
    };
    assert_eq!(span(&lines[0]).unwrap().name, "request");
    assert_eq!(
        span(&lines[1]).unwrap().name,
        "request",
        "without a caller's trace"
    );
}

#[test]
fn metrics_and_logs_of_both_services_go_to_the_collector() {
    let place = tempfile::tempdir().unwrap();
    let authority = Authority::new(place.path());
    let identity = authority.issue("collector", "IP:127.0.0.1");
    let [cert, key] = [&identity.cert, &identity.key].map(|path| fs::read(path).unwrap());
    let collector = Collector::start_with(Some(tonic::transport::Identity::from_pem(cert, key)));
    let mut cluster = Cluster::prepare(ClusterOptions {
        edges: 1,
        edge_arguments: vec!["--background-fill=false", "--log-level=debug"],
        ..ClusterOptions::default()
    });
    let endpoint = format!("https://{}", collector.address);
    let trusted = authority.pem().display().to_string();
    // By the options at one, by OpenTelemetry's variables at the other.
    let variables = |variables: &[(&str, &str)]| -> Vec<(String, String)> {
        let all = variables.iter();
        all.map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    };
    cluster.coordinator.arguments.extend([
        format!("--otlp-endpoint={endpoint}"),
        "--otlp-signals=metrics,logs".to_owned(),
    ]);
    cluster.coordinator.environment = variables(&[("SSL_CERT_FILE", &trusted)]);
    cluster.edges[0].environment = variables(&[
        ("SSL_CERT_FILE", &trusted),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=film%20club"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "100"),
        ("OTEL_LOGS_EXPORTER", "otlp"),
    ]);
    cluster.start_prepared();
    let film = cluster.put("/film.mp4", Object::generated(24, 4 * MIB));
    Call::get(&film)
        .range(0, 999)
        .header("traceparent", &traceparent())
        .send(cluster.edge().http)
        .expect(206);

    // While it runs.
    let count = |metric: &Metric| match &metric.data {
        Some(Data::Sum(sum)) => sum.data_points.iter().find_map(|point| {
            let labels = format!("{:?}", point.attributes);
            let is_it = labels.contains("GET") && labels.contains("2xx");
            is_it.then_some(point.value)
        }),
        _ => None,
    };
    eventually("the request is counted at the collector", WAIT, || {
        let mut metrics = collector.metrics().into_iter();
        let one = Some(number_data_point::Value::AsDouble(1.0));
        metrics.find(|(service, metric)| {
            service == "cache-edge"
                && metric.name == "cache_edge_http_requests_total"
                && count(metric) == Some(one)
        })
    });
    assert_eq!(collector.tenants()[0], "film club");
    let names_at = |text: String| -> BTreeSet<String> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types
            .filter_map(|it| Some(it.split_once(' ')?.0.to_owned()))
            .collect()
    };
    let edge = names_at(Call::get("/metrics").send(cluster.edge().admin).text());
    let coordinator = names_at(cluster.coordinator.get("/metrics").text());
    // The rest is sent at the end.
    assert_eq!(cluster.edge_mut().terminate().code(), Some(0));
    assert_eq!(cluster.coordinator.terminate().code(), Some(0));
    for (service, names) in [("cache-edge", edge), ("cache-coordinator", coordinator)] {
        let metrics = collector.metrics().into_iter();
        let sent: BTreeSet<String> = metrics
            .filter(|(of, _)| of == service)
            .map(|(_, metric)| metric.name)
            .collect();
        assert_eq!(sent, names, "{service} has the same names at /metrics");
        let lines = collector
            .logs()
            .into_iter()
            .filter(|(of, ..)| of == service);
        assert!(lines.count() > 0, "no line of {service}");
    }
    let lines = collector.logs();
    let answered = lines
        .iter()
        .find(|(_, _, line)| format!("{:?}", line.body).contains("answered"));
    assert_eq!(hex(&answered.unwrap().2.trace_id), TRACE);
    assert!(collector.spans().is_empty());
}

#[test]
fn no_secret_is_logged_traced_or_counted() {
    let collector = Collector::start();
    let mut cluster = traced(&collector);
    let signals = "--otlp-signals=traces,metrics,logs".to_owned();
    cluster.coordinator.arguments.push(signals.clone());
    cluster.edges[0].arguments.push(signals);
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
    let lines = eventually("lines of the access log came", WAIT, || {
        let logs = collector.logs();
        (!logs.is_empty()).then_some(logs.len())
    });
    println!("{lines} log records looked at");
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
        ("what the collector has", &collector.text()),
        ("the metrics", &metrics),
    ] {
        for secret in &secrets {
            let shown = text.lines().find(|line| line.contains(secret.as_str()));
            assert!(shown.is_none(), "{secret} in {what}: {}", shown.unwrap());
        }
    }
}
