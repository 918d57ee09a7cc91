//! The same service in JSON over HTTP.

use chunkcache_proto::v1;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::api_support::{CHUNK, Coordinator, coordinator};

async fn exchange(coordinator: &Coordinator, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(coordinator.http).await.unwrap();
    let request = format!(
        "{head}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

async fn call(coordinator: &Coordinator, method: &str, body: &str) -> (u16, Value) {
    let head = format!(
        "POST /chunkcache.v1.CacheService/{method} HTTP/1.1\r\nContent-Type: application/json"
    );
    let (status, body) = exchange(coordinator, &head, body).await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_json_are_the_same_calls() {
    let coordinator = coordinator().await;
    let source = json!({ "source": {
        "name": "films", "baseUrl": "http://origin.test", "maxRateBytesPerSecond": "8000000",
    }});
    let (status, stored) = call(&coordinator, "PutSource", &source.to_string()).await;
    assert_eq!(status, 200, "{stored}");
    let (status, listed) = call(&coordinator, "ListSources", "").await;
    assert_eq!(status, 200, "{listed}");
    assert_eq!(listed["sources"][0]["maxRateBytesPerSecond"], "8000000");
    let mut client = coordinator.cache().await;
    let by_grpc = client.list_sources(v1::ListSourcesRequest {}).await;
    let by_grpc = by_grpc.unwrap().into_inner();
    assert_eq!(by_grpc.sources[0].max_rate_bytes_per_second, 8_000_000);

    let (status, wrong) = call(&coordinator, "GetSource", r#"{"name": "absent"}"#).await;
    assert_eq!((status, &wrong["code"]), (404, &json!("not_found")));
    let detail = &wrong["details"][0];
    assert_eq!(detail["type"], "google.rpc.ResourceInfo", "{wrong}");
    assert_eq!(detail["debug"]["resourceName"], "absent", "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_call_says_what_would_be_one() {
    let coordinator = coordinator().await;
    let named = |answer: &Value, text: &str| {
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains(text), "{message}");
    };
    let (status, answer) = call(&coordinator, "Absent", "{}").await;
    assert_eq!(status, 404);
    named(&answer, "/openapi.json");
    let (status, answer) = call(&coordinator, "WatchEntry", "{}").await;
    assert_eq!(status, 501);
    named(&answer, "gRPC");
    let (status, answer) = call(&coordinator, "GetEntry", r#"{"entrie": {}}"#).await;
    assert_eq!(status, 400);
    named(&answer, "entrie");
    let long = format!(r#"{{"name": "{}"}}"#, "x".repeat(2 << 20));
    let (status, answer) = call(&coordinator, "GetSource", &long).await;
    assert_eq!(status, 413);
    named(&answer, "1048576");

    // What another site's page can send without being asked first.
    let head = "POST /chunkcache.v1.CacheService/ListSources HTTP/1.1\r\nContent-Type: text/plain";
    let (status, _) = exchange(&coordinator, head, "{}").await;
    assert_eq!(status, 415);
    let head = format!(
        "{}\r\nContent-Encoding: gzip",
        head.replace("text/plain", "application/json")
    );
    let (status, body) = exchange(&coordinator, &head, "{}").await;
    assert_eq!(status, 415);
    named(&serde_json::from_str(&body).unwrap(), "Content-Encoding");
    let head =
        "POST /chunkcache.v1.EdgeService/ResolveKey HTTP/1.1\r\nContent-Type: application/json";
    let (status, _) = exchange(&coordinator, head, "{}").await;
    assert_eq!(status, 403);

    for (request, code) in [("GET /nothing", 404), ("DELETE /openapi.json", 405)] {
        let head = format!("{request} HTTP/1.1");
        let (status, body) = exchange(&coordinator, &head, "").await;
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (status, problem["status"].as_u64()),
            (code, Some(code.into()))
        );
    }
    let (status, document) = exchange(&coordinator, "GET /openapi.json HTTP/1.1", "").await;
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_in_json_ends_with_its_callers_patience() {
    let coordinator = coordinator().await;
    coordinator.add_source("films", "http://origin.test").await;
    let mut edge = super::FakeEdge::join(&coordinator, "edge-1").await;
    let film = super::entry("films", "http://origin.test", "film.mp4", 4, "\"1\"");
    edge.observe(&film).await;
    edge.store(1, &film.id, &[0]).await;
    let range = json!({ "start": CHUNK.to_string(), "end": 2 * CHUNK });
    let body = json!({ "entry": { "id": film.id }, "range": range });
    let head = "POST /chunkcache.v1.CacheService/WaitForRange HTTP/1.1\r\n\
                Content-Type: application/json\r\nConnect-Timeout-Ms: 300";
    let (status, answer) = exchange(&coordinator, head, &body.to_string()).await;
    assert_eq!(status, 504, "{answer}");
    assert!(answer.contains("deadline_exceeded"), "{answer}");
}
