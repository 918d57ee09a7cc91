//! Entries that nobody needs: what is known of them may be dropped, and loaded again when somebody
//! speaks of them.

use super::Scheduler;
use super::api::EntryNo;

impl Scheduler {
    /// Nobody reads it, asks for it or fetches it, no edge that is here has
    /// a part of it to complete, and no failure of it is waited for. To close it changes no plan:
    /// its rows say all that is left.
    #[must_use]
    pub fn is_idle(&self, entry: EntryNo) -> bool {
        let Some(known) = self.entries.get(&entry) else {
            return true;
        };
        if known.back_off_until > self.now {
            return false;
        }
        let used = known.lines.iter().any(|(&edge, line)| {
            // What background fill and wants claim is among the wide ones.
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
