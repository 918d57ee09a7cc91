//! The port to the coordinator, which knows keys cluster-wide.

use std::{future::Future, pin::Pin};

use chunkcache_proto::{EntryId, v1};

pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Option<T>> + Send + 'a>>;

/// Bounded waits; `None`: no answer in time, or no session.
pub trait Directory: Send + Sync + 'static {
    fn resolve(&self, key: v1::Key) -> Answer<'_, v1::resolve_key_response::Outcome>;
    fn lookup(&self, id: EntryId) -> Answer<'_, v1::KeyBinding>;
}

/// The directory of an edge on its own: empty.
pub struct NoDirectory;

impl Directory for NoDirectory {
    fn resolve(&self, _: v1::Key) -> Answer<'_, v1::resolve_key_response::Outcome> {
        Box::pin(std::future::ready(None))
    }

    fn lookup(&self, _: EntryId) -> Answer<'_, v1::KeyBinding> {
        Box::pin(std::future::ready(None))
    }
}
