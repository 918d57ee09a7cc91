//! Idle entries: their state may be dropped, and is loaded again when an event names them.

use super::Scheduler;
use super::api::EntryNo;

impl Scheduler {
    /// Nobody reads, wants or fetches the entry, no edge in session has a part of it to complete,
    /// and no back-off of it is pending. Closing it changes no plan: its rows hold all that is
    /// left.
    #[must_use]
    pub fn is_idle(&self, entry: EntryNo) -> bool {
        let Some(known) = self.entries.get(&entry) else {
            return true;
        };
        if known.back_off_until > self.now {
            return false;
        }
        let used = known.lines.iter().any(|(&edge, line)| {
            // Claims of background fill and wants are among the wide ones.
            !(line.waiting.is_empty() && line.windows.is_empty() && line.wide.is_empty())
                || self.fill_goes_on(edge, entry)
        });
        let fetched = self.edges.values().any(|edge| {
            edge.flights.iter().any(|flight| flight.entry == entry)
                || edge.kept.iter().any(|kept| kept.entry == entry)
        });
        !used && !fetched
    }
}
