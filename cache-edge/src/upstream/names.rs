//! Names of servers, and the order in which their addresses are tried.
//!
//! A connection goes to the first address that takes it. A server that takes connections and
//! answers nothing would get every request, and one that is silent would delay every connection, so
//! after such a failure the next address goes first.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    vec,
};

use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use parking_lot::Mutex;
use tower_service::Service;

/// Limit of names that are remembered; redirects may lead to many.
const MAX_NAMES: usize = 1_024;

/// Resolves names.
#[derive(Clone, Debug)]
pub struct Names<R = GaiResolver> {
    resolver: R,
    turns: Arc<Mutex<HashMap<String, usize>>>,
}

impl Default for Names {
    fn default() -> Self {
        Self::new(GaiResolver::new())
    }
}

impl<R> Names<R> {
    fn new(resolver: R) -> Self {
        Self {
            resolver,
            turns: Arc::default(),
        }
    }

    /// Which address is first, as a count of failures.
    pub fn turn(&self, name: &str) -> usize {
        self.turns.lock().get(name).copied().unwrap_or(0)
    }

    /// Records that the server whose turn it was gave no answer, or took no connection. Counts
    /// once, however many requests find out.
    pub fn failed(&self, name: &str, turn: usize) {
        let mut turns = self.turns.lock();
        if turns.len() >= MAX_NAMES && !turns.contains_key(name) {
            turns.clear();
        }
        let present = turns.entry(name.to_owned()).or_default();
        if *present == turn {
            *present = turn.wrapping_add(1);
        }
    }
}

impl<R> Service<Name> for Names<R>
where
    R: Service<Name, Error = io::Error>,
    R::Response: Iterator<Item = SocketAddr>,
    R::Future: Send + 'static,
{
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.resolver.poll_ready(context)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let turn = self.turn(name.as_str());
        let found = self.resolver.call(name);
        Box::pin(async move {
            let mut addresses: Vec<SocketAddr> = found.await?.collect();
            let passed_over = turn.checked_rem(addresses.len()).unwrap_or(0);
            addresses.rotate_left(passed_over);
            Ok(addresses.into_iter())
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::{Ready, ready};

    use super::*;

    #[derive(Clone)]
    struct Three;

    impl Service<Name> for Three {
        type Response = vec::IntoIter<SocketAddr>;
        type Error = io::Error;
        type Future = Ready<io::Result<Self::Response>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, name: Name) -> Self::Future {
            let count = if name.as_str() == "origin" { 3 } else { 0 };
            let addresses = (0..count).map(|last| SocketAddr::from(([127, 0, 0, last], 80)));
            ready(Ok(addresses.collect::<Vec<_>>().into_iter()))
        }
    }

    #[tokio::test]
    async fn a_server_that_gives_no_answer_is_passed_over() {
        let mut names = Names::new(Three);
        for first in [0, 1, 2, 0] {
            let found = names.call("origin".parse().unwrap()).await.unwrap();
            let found: Vec<u8> = found
                .map(|it| match it.ip() {
                    std::net::IpAddr::V4(ip) => ip.octets()[3],
                    std::net::IpAddr::V6(_) => u8::MAX,
                })
                .collect();
            assert_eq!(found, [first, (first + 1) % 3, (first + 2) % 3]);
            let turn = names.turn("origin");
            names.failed("origin", turn);
            names.failed("origin", turn);
        }
        names.failed("other", 0);
        let none = names.call("other".parse().unwrap()).await.unwrap();
        assert_eq!(none.count(), 0);
    }
}
