//! Counts bytes that an origin is asked for although an edge of the cluster already has them or is
//! receiving them.

use chunkcache_proto::RangeSet;

use super::Scheduler;
use super::api::{EdgeId, FetchSource, Reason};
use super::invariant::Invariant;
use super::state::RunningFetch;

/// How many other edges to look at for one fetch.
const MAX_EDGES_LOOKED_AT: usize = 64;

/// Bytes that origins were asked for a second time, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AskedAgain {
    /// A second fetch beside a late one.
    pub hedge: u64,
    /// An edge decided without the coordinator.
    pub own: u64,
    /// The edge that has it failed to send it.
    pub peer: u64,
}

impl Scheduler {
    /// The counts since the last call.
    pub fn take_asked_again(&mut self) -> AskedAgain {
        std::mem::take(&mut self.asked_again)
    }

    /// Counts a fetch that is about to be recorded.
    pub(super) fn count_again(&mut self, edge: EdgeId, fetch: &RunningFetch) {
        if fetch.from != FetchSource::Origin || fetch.reason == Reason::InFlight {
            return;
        }
        let bytes = self.brought_elsewhere(edge, fetch);
        let again = &mut self.asked_again;
        let count = match fetch.reason {
            Reason::Hedge(_) => &mut again.hedge,
            _ if fetch.is_local() => &mut again.own,
            _ => &mut again.peer,
        };
        *count = count.saturating_add(bytes);
    }

    /// Bytes of the fetch that another edge holds or is receiving from the origin.
    fn brought_elsewhere(&self, edge: EdgeId, fetch: &RunningFetch) -> u64 {
        let Some(known) = self.entries.get(&fetch.entry).expected() else {
            return 0;
        };
        let mut elsewhere = RangeSet::new();
        for (&other, replica) in known.replicas.iter().take(MAX_EDGES_LOOKED_AT) {
            let Some(state) = self.edges.get(&other).filter(|state| state.alive) else {
                continue;
            };
            if other != edge {
                for held in replica.held.present_in(fetch.chunks.clone()) {
                    elsewhere.insert(held);
                }
            }
            let others = state.fetches.iter().filter(|it| {
                it.entry == fetch.entry && it.from == FetchSource::Origin && !it.cancelling
            });
            for other in others {
                let start = other.chunks.start.max(fetch.chunks.start);
                elsewhere.insert(start..other.chunks.end.min(fetch.chunks.end).max(start));
            }
        }
        let chunks = elsewhere.iter();
        chunks.map(|range| self.bytes_of(fetch.entry, &range)).sum()
    }
}
