//! `CacheService` as JSON over HTTP: `POST /chunkcache.v1.CacheService/METHOD`, for callers without
//! gRPC.
//!
//! The format is that of Connect's unary calls, so that its clients can be used as well as curl. A
//! call reaches the same service as a gRPC call does, in this process. This module only translates,
//! by the descriptors of the protocol, and knows no method by name. Deliberately absent: streams,
//! and the calls of edges.

mod error;
mod openapi;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header, uri::PathAndQuery},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use chunkcache_proto::{FILE_DESCRIPTOR_SET, v1::cache_service_server::CacheServiceServer};
use prost::{Message as _, bytes::Buf as _};
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor,
    SerializeOptions, ServiceDescriptor,
};
use serde_json::Value;
use tonic::{
    Code, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::guard;
use crate::{
    access::{Access, Caller, policy::Need},
    grpc::CacheApi,
    service::Cluster,
};

const SERVICE: &str = "chunkcache.v1.CacheService";
/// The largest request: a source with all its rules takes some kilobytes.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// The largest response; longer results have pages.
const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// A request's body must arrive within this time, as its head must, because connections are
/// limited.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Connect's header with the caller's time-out, in milliseconds.
const TIMEOUT: &str = "connect-timeout-ms";

/// The state that calls share.
struct JsonApi {
    cluster: Arc<Cluster>,
    access: Arc<Access>,
    is_loopback: bool,
    service: ServiceDescriptor,
    document: Value,
}

/// The routes of all methods, and their description.
pub(super) fn router(
    cluster: Arc<Cluster>,
    access: Arc<Access>,
    is_loopback: bool,
) -> anyhow::Result<Router> {
    let service = service()?;
    let api = JsonApi {
        cluster,
        access,
        is_loopback,
        document: openapi::document(&service),
        service,
    };
    Ok(Router::new()
        .route(&format!("/{SERVICE}/{{method}}"), post(call))
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .route("/openapi.json", get(document))
        .with_state(Arc::new(api)))
}

fn service() -> anyhow::Result<ServiceDescriptor> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET)?;
    let service = pool.get_service_by_name(SERVICE);
    service.ok_or_else(|| anyhow::anyhow!("the protocol has no {SERVICE}"))
}

/// The protocol is not a secret, so no token is needed.
async fn document(State(api): State<Arc<JsonApi>>) -> Json<Value> {
    Json(api.document.clone())
}

async fn call(State(api): State<Arc<JsonApi>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some(method) = api.service.methods().find(|method| method.name() == name) else {
        let message = format!("{SERVICE} has no method {name:?}; /openapi.json lists them");
        return error::response(StatusCode::NOT_FOUND, &Status::unimplemented(message));
    };
    let caller = guard::caller_of(
        &api.access,
        api.is_loopback,
        &request,
        (Need::of_method(&path), name),
    );
    let caller = match caller {
        Ok(caller) => caller,
        Err(refused) => return refused,
    };
    match translate(&api, &method, caller, request).await {
        Ok(answer) => ([(header::CONTENT_TYPE, "application/json")], answer).into_response(),
        Err(CallFailure::Call(status)) => {
            error::response(error::http_status(status.code()), &status)
        }
        Err(CallFailure::Http(http, status)) => error::response(http, &status),
    }
}

/// Why a call failed.
enum CallFailure {
    /// The call itself failed.
    Call(Status),
    /// The failure has a specific HTTP status.
    Http(StatusCode, Status),
}

impl From<Status> for CallFailure {
    fn from(status: Status) -> Self {
        Self::Call(status)
    }
}

async fn translate(
    api: &JsonApi,
    method: &MethodDescriptor,
    caller: Caller,
    request: Request,
) -> Result<Vec<u8>, CallFailure> {
    if method.is_server_streaming() || method.is_client_streaming() {
        let message = format!("{} is a stream: call it by gRPC", method.name());
        return Err(Status::unimplemented(message).into());
    }
    let headers = request.headers().clone();
    // Accept only requests that a page of another site cannot send without our consent: callers
    // prove in no other way that they are not such a page.
    // A coded body is no JSON either.
    let coding = headers.get(header::CONTENT_ENCODING);
    let is_coded =
        coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if is_coded || !is_json(&headers) {
        let message = "expected Content-Type: application/json, without a Content-Encoding";
        let status = Status::invalid_argument(message);
        return Err(CallFailure::Http(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            status,
        ));
    }
    let timeout = timeout(&headers)?;
    let body = body_of(request).await?;
    let message = read(method.input(), &body)?;
    let answer = invoke(api, method, message, caller, timeout, &headers).await?;
    Ok(write(&answer)?)
}

async fn body_of(request: Request) -> Result<Bytes, CallFailure> {
    let body = <Bytes as axum::extract::FromRequest<()>>::from_request(request, &());
    let body = tokio::time::timeout(BODY_TIMEOUT, body)
        .await
        .map_err(|_| {
            let status = Status::deadline_exceeded("the request's body did not come in time");
            CallFailure::Http(StatusCode::REQUEST_TIMEOUT, status)
        })?;
    body.map_err(|rejected: BytesRejection| {
        let message = format!("{rejected}: at most {MAX_REQUEST_BYTES} bytes are read");
        CallFailure::Http(rejected.status(), Status::resource_exhausted(message))
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE);
    let value = value.and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = value.split(';').next().unwrap_or("").trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(TIMEOUT) else {
        return Ok(None);
    };
    // At most ten digits, as Connect specifies: some 115 days.
    let digits = value.to_str().ok().filter(|text| text.len() <= 10);
    let millis = digits.and_then(|text| text.parse().ok());
    let millis = millis
        .ok_or_else(|| Status::invalid_argument(format!("{TIMEOUT}: expected up to ten digits")))?;
    Ok(Some(Duration::from_millis(millis)))
}

/// A message from JSON; an empty body is a message without fields.
fn read(descriptor: MessageDescriptor, body: &[u8]) -> Result<DynamicMessage, Status> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(DynamicMessage::new(descriptor));
    }
    let name = descriptor.name().to_owned();
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let mut json = serde_json::Deserializer::from_slice(body);
    DynamicMessage::deserialize_with_options(descriptor, &mut json, &options)
        .and_then(|message| json.end().map(|()| message))
        .map_err(|error| Status::invalid_argument(format!("not a {name} in JSON: {error}")))
}

/// Converts a message to JSON. Fields without presence are written even if they have their default.
fn write(message: &DynamicMessage) -> Result<Vec<u8>, Status> {
    let mut json = serde_json::Serializer::new(Vec::new());
    let options = SerializeOptions::new().skip_default_fields(false);
    message
        .serialize_with_options(&mut json, &options)
        .map_err(|error| Status::internal(format!("the answer is not JSON: {error}")))?;
    Ok(json.into_inner())
}

/// Calls the same service as gRPC.
async fn invoke(
    api: &JsonApi,
    method: &MethodDescriptor,
    message: DynamicMessage,
    caller: Caller,
    timeout: Option<Duration>,
    headers: &HeaderMap,
) -> Result<DynamicMessage, Status> {
    let path = format!("/{SERVICE}/{}", method.name());
    let path = PathAndQuery::try_from(path)
        .map_err(|error| Status::internal(format!("no path of a method: {error}")))?;
    let service = CacheServiceServer::new(CacheApi::new(Arc::clone(&api.cluster)))
        .max_encoding_message_size(MAX_RESPONSE_BYTES);
    let mut client = Grpc::new(service).max_decoding_message_size(MAX_RESPONSE_BYTES);
    let mut request = tonic::Request::new(message);
    request.extensions_mut().insert(caller);
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    let span = tracing::info_span!(
        "json",
        otel.kind = "server",
        path = %path,
        trace_id = tracing::field::Empty
    );
    service_kit::telemetry::set_parent(&span, headers);
    let codec = ByDescriptor(method.output());
    let answered = async {
        client
            .ready()
            .await
            .map_err(|never| -> Status { match never {} })?;
        client.unary(request, path, codec).await
    };
    let answered = tracing::Instrument::instrument(answered, span);
    // The service honours the deadline in waits; a call that takes longer is abandoned.
    let answered = match timeout {
        Some(timeout) => tokio::time::timeout(timeout, answered)
            .await
            .unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "no answer in time"))),
        None => answered.await,
    };
    Ok(answered?.into_inner())
}

/// Encodes any message; decodes messages of one kind.
#[derive(Clone)]
struct ByDescriptor(MessageDescriptor);

impl Codec for ByDescriptor {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for ByDescriptor {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let encoded = item.encode(to);
        encoded.map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for ByDescriptor {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let decoded = DynamicMessage::decode(self.0.clone(), from.copy_to_bytes(from.remaining()));
        let decoded = decoded.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Some(decoded))
    }
}
