//! Connections of the HTTP listener: their number and the time of each head are limited, so that
//! clients that open many or send slowly block nobody.

use std::{sync::Arc, time::Duration};

use axum::{Router, serve::Listener as _};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::listen::AcceptedConnection;

/// Limit for each of HTTP/1.1 and HTTP/2; viewers of the dashboard hold one or two each. Further
/// connections are closed: if they waited, probes would wait behind them. There are separate
/// limits, because only heads of HTTP/1.1 are timed: a silent HTTP/2 client is detected by pings,
/// which begin once it has sent something.
const MAX_CONNECTIONS: usize = 2048;
/// For a request's head, including the first one and one after a pause: longer than the interval of
/// scrapers, so that they keep their connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves until `shutdown`, then lets running requests end; streams end by themselves then.
pub async fn serve(
    mut connections: AcceptedConnection,
    router: Router,
    shutdown: CancellationToken,
) {
    let running = GracefulShutdown::new();
    let mut http1 = auto::Builder::new(TokioExecutor::new()).http1_only();
    http1
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let mut http2 = auto::Builder::new(TokioExecutor::new()).http2_only();
    http2
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD_TIMEOUT);
    let places = || Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (http1, http2) = ((http1, places()), (http2, places()));
    loop {
        let connection = tokio::select! {
            () = shutdown.cancelled() => break,
            (connection, _) = connections.accept() => connection,
        };
        let (builder, places) = if connection.is_http2() {
            &http2
        } else {
            &http1
        };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            tracing::warn!("a connection was closed: there are {MAX_CONNECTIONS} already");
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        let conversation = builder.serve_connection(TokioIo::new(connection), service);
        let conversation = running.watch(conversation.into_owned());
        tokio::spawn(async move {
            // A client that disconnects is not our error.
            let _ = conversation.await;
            drop(place);
        });
    }
    running.shutdown().await;
}
