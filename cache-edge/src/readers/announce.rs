//! What other rooms tell the cluster. Implemented by the session; without one it goes nowhere: the
//! inventory of the next session says what came of it.

use chunkcache_proto::v1;

/// Never waits. Order is kept.
pub trait Announce: Send + Sync + 'static {
    /// The origin answered for a key. Before anything else about the entry.
    fn observed(&self, entry: &v1::Entry, freshness: &v1::Freshness);
    fn negative(&self, key: &v1::Key, http_status: u16, until_ms: i64);
    fn local_fetch(&self, fetch: v1::LocalFetch);
    fn report(&self, report: v1::FetchReport);
}

/// For an edge on its own, and for tests.
pub struct Unheard;

impl Announce for Unheard {
    fn observed(&self, _: &v1::Entry, _: &v1::Freshness) {}
    fn negative(&self, _: &v1::Key, _: u16, _: i64) {}
    fn local_fetch(&self, _: v1::LocalFetch) {}
    fn report(&self, _: v1::FetchReport) {}
}
