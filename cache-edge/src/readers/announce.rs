//! Reports to the cluster by other parts of the edge. The session implements them. Without a
//! session they are dropped, and the inventory of the next session carries their results.

use chunkcache_proto::v1;

/// Never waits. Preserves the order of reports.
pub trait Announce: Send + Sync + 'static {
    /// Reports that the origin answered for a key. Must precede all other reports of the entry.
    fn observed(&self, entry: &v1::Entry, freshness: &v1::Freshness);
    fn negative(&self, key: &v1::Key, http_status: u16, until_ms: i64);
    /// Reports that this edge keeps the origin's answer for a key as a whole.
    fn whole(&self, key: &v1::Key);
    fn local_fetch(&self, fetch: v1::LocalFetch);
    fn report(&self, report: v1::FetchReport);
}

/// Drops all reports: for an edge without a coordinator, and for tests.
pub struct SilentAnnouncer;

impl Announce for SilentAnnouncer {
    fn observed(&self, _: &v1::Entry, _: &v1::Freshness) {}
    fn negative(&self, _: &v1::Key, _: u16, _: i64) {}
    fn whole(&self, _: &v1::Key) {}
    fn local_fetch(&self, _: v1::LocalFetch) {}
    fn report(&self, _: v1::FetchReport) {}
}
