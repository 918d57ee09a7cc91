//! Runs around each call: identifies the caller, checks that it may call the method, and ends the
//! call at the caller's deadline, or when its token is taken back.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tokio::time::timeout;
use tonic::{Status, body::Body, codegen::Service, server::NamedService};

use crate::{
    access::{Access, Denied, RevocableBody, policy::Need},
    listen::Peer,
};

/// The part of a caller's deadline that is reserved for the answer's transport. Without it, the
/// server's own timer, which answers CANCELLED, may come first.
const ANSWER_TIME: Duration = Duration::from_millis(10);

type Answer = Result<Response<Body>, Infallible>;

/// A service behind the access check. The caller is in the request's extensions.
#[derive(Clone)]
pub(super) struct GuardedService<S> {
    access: Arc<Access>,
    inner: S,
}

impl<S> GuardedService<S> {
    pub(super) fn new(access: Arc<Access>, inner: S) -> Self {
        Self { access, inner }
    }

    fn admit(&self, request: &mut Request<Body>) -> Result<(), Denied> {
        let certificate = request
            .extensions()
            .get::<Peer>()
            .and_then(|peer| peer.certificate.clone());
        let authorization = request.headers().get(AUTHORIZATION);
        let caller = self.access.identify(authorization, certificate)?;
        let path = request.uri().path();
        let method = path.rsplit('/').next().unwrap_or(path);
        caller.require(Need::of_method(path), method)?;
        tracing::debug!(%caller, "called");
        request.extensions_mut().insert(caller);
        Ok(())
    }
}

impl<S: NamedService> NamedService for GuardedService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for GuardedService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let revoked = self.access.revoked(request.headers().get(AUTHORIZATION));
        if let Err(denied) = self.admit(&mut request) {
            tracing::info!(reason = denied.reason, "a call was refused: {denied}");
            return Box::pin(async { Ok(Status::from(denied).into_http()) });
        }
        let time = time_left(request.headers());
        let call = in_time(self.inner.call(request), time);
        let Some(mut revoked) = revoked else {
            return Box::pin(call);
        };
        Box::pin(async move {
            let taken_back = || Status::from(Denied::revoked());
            let answer = tokio::select! {
                biased;
                () = &mut revoked => return Ok(taken_back().into_http()),
                answer = call => answer?,
            };
            let mut trailers = HeaderMap::new();
            if let Err(status) = taken_back().add_header(&mut trailers) {
                return Ok(status.into_http());
            }
            Ok(answer.map(|body| Body::new(RevocableBody::new(body, revoked, trailers))))
        })
    }
}

async fn in_time(call: impl Future<Output = Answer>, time: Option<Duration>) -> Answer {
    let Some(time) = time else {
        return call.await;
    };
    timeout(time, call).await.unwrap_or_else(|_| {
        let late = Status::deadline_exceeded("the caller's deadline passed before the answer");
        Ok(late.into_http())
    })
}

/// Until the caller's deadline, from its `grpc-timeout` (digits and one unit letter).
fn time_left(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let split = text.len().checked_sub(1)?;
    let (digits, unit) = text.split_at_checked(split)?;
    let amount: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(amount.saturating_mul(3600)),
        "M" => Duration::from_secs(amount.saturating_mul(60)),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    };
    Some(timeout.saturating_sub(ANSWER_TIME))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        future::{pending, poll_fn},
        pin::Pin,
    };

    use futures_util::FutureExt as _;
    use http_body::{Body as _, Frame};
    use prost::bytes::Bytes;
    use tokio_util::sync::CancellationToken;
    use tonic::metadata::MetadataMap;

    use super::*;

    /// Answers each call with a stream without an end, but the path `/Wait` not at all.
    #[derive(Clone)]
    struct Endless;

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    impl Service<Request<Body>> for Endless {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Answer>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            if request.uri().path().ends_with("WaitForRange") {
                return pending().boxed();
            }
            async { Ok(Response::new(Body::new(Self))) }.boxed()
        }
    }

    #[tokio::test]
    async fn calls_and_streams_of_a_token_end_when_it_is_taken_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (old, kept) = (
            "operator a old-0123456789abc\n",
            "viewer b kept-0123456789abc\n",
        );
        std::fs::write(file.path(), format!("{old}{kept}")).unwrap();
        let access = Access::load(Some(file.path().to_owned())).unwrap();
        let tokens = access.tokens().unwrap().clone();
        let stop = CancellationToken::new();
        tokio::spawn(tokens.watch(Duration::from_millis(1), stop.clone()));
        let mut service = GuardedService::new(Arc::new(access), Endless);
        let mut call = |method: &str, token: &str| {
            let request = Request::post(format!("/chunkcache.v1.CacheService/{method}"))
                .header(AUTHORIZATION, format!("Bearer {token}-0123456789abc"));
            service.call(request.body(Body::empty()).unwrap())
        };
        let mut waiting = call("WaitForRange", "old");
        let mut stream = call("WatchCluster", "old").await.unwrap().into_body();
        let mut other = call("WatchCluster", "kept").await.unwrap().into_body();
        assert!((&mut waiting).now_or_never().is_none());
        let next =
            |body: &mut Body| poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).now_or_never();
        assert!(next(&mut stream).is_none());

        std::fs::write(file.path(), kept).unwrap();
        let answer = waiting.await.unwrap();
        let refused = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        let last = next(&mut stream).unwrap().unwrap().unwrap();
        let trailers = MetadataMap::from_headers(last.into_trailers().unwrap());
        assert_eq!(trailers.get("grpc-status").unwrap(), "16");
        assert!(next(&mut stream).unwrap().is_none());
        assert!(next(&mut other).is_none());
        stop.cancel();
    }

    #[test]
    fn a_callers_deadline_leaves_time_for_the_answer() {
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            time_left(&headers)
        };
        assert_eq!(after("2S"), Some(Duration::from_millis(1990)));
        assert_eq!(after("500000u"), Some(Duration::from_millis(490)));
        assert_eq!(after("1m"), Some(Duration::ZERO));
        for bad in ["S", "5", "x5S", "5Q"] {
            assert_eq!(after(bad), None, "{bad}");
        }
        assert_eq!(time_left(&HeaderMap::new()), None);
    }
}
