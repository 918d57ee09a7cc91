//! Idle entries: their state may be dropped, and is loaded again when an event names them.

use super::Scheduler;
use super::api::EntryNo;

impl Scheduler {
    /// Whether nobody reads, wants or fetches the entry, no edge in session is completing it, and
    /// no back-off of it is pending. Closing such an entry changes no decision: the rest is in its
    /// rows.
    #[must_use]
    pub fn is_idle(&self, entry: EntryNo) -> bool {
        let Some(known) = self.entries.get(&entry) else {
            return true;
        };
        if known.back_off_until > self.now {
            return false;
        }
        let used = known.replicas.iter().any(|(&edge, replica)| {
            // `wide` includes wants and the background fill.
            !(replica.waiting.is_empty() && replica.windows.is_empty() && replica.wide.is_empty())
                || self.fill_goes_on(edge, entry)
        });
        let fetched = self.edges.values().any(|edge| {
            edge.fetches.iter().any(|fetch| fetch.entry == entry)
                || edge.in_flight.iter().any(|kept| kept.entry == entry)
        });
        !used && !fetched
    }
}
