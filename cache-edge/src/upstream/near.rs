//! Connections to origins that are near.
//!
//! Why: an origin on the same machine, or beside it, fills whatever window it is given before
//! anybody reads. While it sends the rest of a chunk, of which nobody is in need, its processor is
//! not there for who waits for the first bytes. A small window makes it wait for its reader
//! instead, and at a short round trip costs no throughput.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use socket2::SockRef;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::system_calls::round_trip;

/// Up to this round trip a small window costs no throughput.
const NEAR: Duration = Duration::from_micros(200);

/// What a near origin may be ahead of its reader, about. The kernel doubles it for its own
/// bookkeeping.
const WINDOW_BYTES: usize = 64 << 10;

/// Connects, and keeps the windows of near origins small.
#[derive(Clone, Debug)]
pub(super) struct NearConnector(pub HttpConnector);

impl Service<Uri> for NearConnector {
    type Response = TokioIo<TcpStream>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<Uri>::poll_ready(&mut self.0, context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async move {
            let stream = connecting.await?;
            if round_trip(stream.inner()).is_some_and(|rtt| rtt <= NEAR) {
                // Refused, the origin is ahead of its reader: slower, and no worse than that.
                let _ = SockRef::from(stream.inner()).set_recv_buffer_size(WINDOW_BYTES);
            }
            Ok(stream)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_origin_on_this_machine_is_near() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("http://{}/", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let mut connector = NearConnector(HttpConnector::new());
        let stream = connector.call(uri).await.unwrap();
        // A busy machine may have made it far; then nothing is changed.
        let near = round_trip(stream.inner()).unwrap() <= NEAR;
        let bytes = SockRef::from(stream.inner()).recv_buffer_size().unwrap();
        assert_eq!(bytes == 2 * WINDOW_BYTES, near, "{bytes}");
    }
}
