//! In-fetch fetches: an edge does not abort a running fetch when its session, or the coordinator,
//! ends.
//!
//! They are recorded before anything is planned for their edge, so that nothing is fetched twice,
//! and they count in their source's budget like any other fetch.

use super::Scheduler;
use super::api::{EdgeId, Effect, InFlightFetch, Reason};
use super::invariant::Invariant;
use super::running::Withdrawal;
use super::state::RunningFetch;

impl Scheduler {
    pub(super) fn fetches_kept(
        &mut self,
        edge: EdgeId,
        fetches: Vec<InFlightFetch>,
        effects: &mut Vec<Effect>,
    ) {
        let state = self.edges.entry(edge).or_default();
        if !state.alive {
            state.in_flight = fetches;
            return;
        }
        for fetch in fetches {
            self.adopt(edge, fetch, effects);
        }
    }

    pub(super) fn adopt(&mut self, edge: EdgeId, kept: InFlightFetch, effects: &mut Vec<Effect>) {
        if kept.id.is_local() {
            let InFlightFetch {
                id,
                entry,
                chunks,
                level,
                ..
            } = kept;
            return self.local_fetch_started(edge, id, entry, chunks, level, effects);
        }
        let Some(known) = self.entries.get_mut(&kept.entry) else {
            // It was closed since the edge reported the fetch.
            return;
        };
        let chunks = kept.chunks.start..kept.chunks.end.min(known.geometry.chunk_count());
        let source = known.source;
        let Some(state) = self.edges.get(&edge).expected() else {
            return;
        };
        if chunks.is_empty() || !state.alive || state.fetch(kept.id).is_some() {
            return;
        }
        known.replicas.entry(edge).or_default();
        let fetch = RunningFetch {
            reason: Reason::InFlight,
            ..RunningFetch::new(
                kept.id,
                kept.entry,
                source,
                chunks.clone(),
                kept.level,
                self.now,
            )
        };
        self.enter_fetch(edge, fetch, effects);
        // Its claims may have another level now. Until it has any, the fetch keeps its level.
        let wanted = self.owners_of(edge, kept.entry, &chunks);
        if !wanted.is_empty() {
            self.reassess((edge, kept.id), Withdrawal::Advanced, effects);
        }
        self.mark_followers_dirty(edge, kept.entry);
        self.dirty.insert(edge);
    }
}
