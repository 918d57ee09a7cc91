//! Runs around each call: identifies the caller, checks that it may call the method, and ends the
//! call at the caller's deadline.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::{Either, Map},
};
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tokio::time::{Timeout, error::Elapsed, timeout};
use tonic::{Status, body::Body, codegen::Service, server::NamedService};

use crate::{
    access::{Access, Denied, policy::Need},
    listen::Peer,
};

/// The part of a caller's deadline that is reserved for the answer's transport. Without it, the
/// server's own timer, which answers CANCELLED, may come first.
const ANSWER_TIME: Duration = Duration::from_millis(10);

type Answer = Result<Response<Body>, Infallible>;
/// A call that ends at its caller's deadline.
type TimedCall<F> = Map<Timeout<F>, fn(Result<Answer, Elapsed>) -> Answer>;

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
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Answer>, Either<S::Future, TimedCall<S::Future>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.admit(&mut request) {
            Ok(()) => {
                let time = time_left(request.headers());
                let call = self.inner.call(request);
                Either::Right(match time {
                    None => Either::Left(call),
                    Some(time) => Either::Right(timeout(time, call).map(in_time)),
                })
            }
            Err(denied) => {
                tracing::info!(reason = denied.reason, "a call was refused: {denied}");
                Either::Left(ready(Ok(Status::from(denied).into_http())))
            }
        }
    }
}

fn in_time(ended: Result<Answer, Elapsed>) -> Answer {
    ended.unwrap_or_else(|_| {
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
    use super::*;

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
