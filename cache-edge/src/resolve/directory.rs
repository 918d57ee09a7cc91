//! The port to the coordinator, which knows keys cluster-wide.

use std::{future::Future, pin::Pin};

use chunkcache_proto::{EntryId, v1};
use http_rules::steering::{Candidate, SteeredObject};

pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Option<T>> + Send + 'a>>;

/// Bounded waits; `None`: no answer in time, or no session.
pub trait Directory: Send + Sync + 'static {
    /// `passed_over`: the edge that was named before and had no answer to give.
    fn resolve(
        &self,
        key: v1::Key,
        passed_over: String,
    ) -> Answer<'_, v1::resolve_key_response::Outcome>;
    fn lookup(&self, id: EntryId) -> Answer<'_, v1::KeyBinding>;
    /// Edges that players of the object may use, the best first.
    fn steer(&self, object: Option<SteeredObject>) -> Answer<'_, Vec<Candidate>>;
}

/// The empty directory of an edge without a coordinator.
pub struct NoDirectory;

impl Directory for NoDirectory {
    fn resolve(&self, _: v1::Key, _: String) -> Answer<'_, v1::resolve_key_response::Outcome> {
        Box::pin(std::future::ready(None))
    }

    fn lookup(&self, _: EntryId) -> Answer<'_, v1::KeyBinding> {
        Box::pin(std::future::ready(None))
    }

    fn steer(&self, _: Option<SteeredObject>) -> Answer<'_, Vec<Candidate>> {
        Box::pin(std::future::ready(None))
    }
}
