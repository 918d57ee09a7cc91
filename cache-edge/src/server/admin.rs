//! The listener for operators and probes: `/livez`, `/readyz`, `/metrics`. HTTP/1.1, in clear or
//! over TLS, with small answers.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use service_kit::metrics::Exposition;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::server::TlsConfig;

/// Probes and scrapers are few; further connections wait.
const MAX_CONNECTIONS: usize = 64;
const REQUEST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Provides the content of the answers.
pub trait AdminState: Send + Sync + 'static {
    /// Why the edge is not ready, as sentences for operators; empty: it is ready.
    fn not_ready(&self) -> Vec<String>;
    /// The metrics, in the format that the scraper's `Accept` requests.
    fn metrics(&self, accept: Option<&str>) -> Option<Exposition>;
}

/// Serves until `shutdown`. Running answers are cut, because they are small and probes ask again.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsConfig>,
    state: Arc<dyn AdminState>,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        let (Ok(place), accepted) = accepted else {
            return;
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let (state, shutdown) = (Arc::clone(&state), shutdown.clone());
        let tls = tls.as_ref().map(|current| TlsAcceptor::from(current()));
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = connection(stream, tls, &*state) => {}
            }
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, state: &dyn AdminState) {
    let Some(tls) = tls else {
        return converse(stream, state).await;
    };
    match tokio::time::timeout(REQUEST_HEAD_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => converse(stream, state).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// Answers requests until the client leaves.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, state: &dyn AdminState) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(state, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer<B>(state: &dyn AdminState, request: &Request<B>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "only GET and HEAD\n".to_owned(),
        );
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/readyz" => {
            let reasons = state.not_ready();
            let ready = reasons.is_empty();
            let status = if ready {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            let json = serde_json::json!({ "ready": ready, "reasons": reasons });
            text(status, "application/json", format!("{json}\n"))
        }
        "/metrics" => {
            let accept = request.headers().get(header::ACCEPT);
            match state.metrics(accept.and_then(|value| value.to_str().ok())) {
                Some(metrics) => text(StatusCode::OK, metrics.content_type, metrics.body),
                None => text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "text/plain",
                    "the metrics can not be encoded\n".to_owned(),
                ),
            }
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "text/plain",
            "there are /livez, /readyz and /metrics\n".to_owned(),
        ),
    }
}

fn text(status: StatusCode, media_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    struct FailingState;

    impl AdminState for FailingState {
        fn not_ready(&self) -> Vec<String> {
            vec!["no coordinator answers".to_owned()]
        }

        fn metrics(&self, _accept: Option<&str>) -> Option<Exposition> {
            None
        }
    }

    fn status(method: Method, path: &str) -> StatusCode {
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().expect("a path");
        answer(&FailingState, &request).status()
    }

    #[test]
    fn live_though_not_ready() {
        assert_eq!(status(Method::GET, "/livez"), StatusCode::OK);
        assert_eq!(
            status(Method::GET, "/readyz"),
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(status(Method::GET, "/"), StatusCode::NOT_FOUND);
        assert_eq!(
            status(Method::POST, "/livez"),
            StatusCode::METHOD_NOT_ALLOWED
        );
        assert_eq!(
            status(Method::GET, "/metrics"),
            StatusCode::INTERNAL_SERVER_ERROR
        );
    }
}
