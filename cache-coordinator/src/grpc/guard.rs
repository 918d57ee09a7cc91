//! Runs before each call: identifies the caller, and checks that it may call the method.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Request, Response, header::AUTHORIZATION};
use tonic::{Status, body::Body, codegen::Service, server::NamedService};

use crate::{
    access::{Access, Denied, policy::Need},
    listen::Peer,
};

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
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.admit(&mut request) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(denied) => {
                tracing::info!(reason = denied.reason, "a call was refused: {denied}");
                Either::Left(ready(Ok(Status::from(denied).into_http())))
            }
        }
    }
}
