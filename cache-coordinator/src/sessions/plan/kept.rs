//! In-flight fetches from before an edge's session. The scheduler learns of them before it plans
//! anything for the edge.

use chunkcache_proto::{EntryId, Level, v1};

use super::{Action, Plan};
use scheduler::api::{EdgeId, Event, InFlightFetch, Millis};

/// As many as an edge's own queue holds.
const MAX_KEPT: usize = 4096;

impl Plan {
    pub(super) fn keep_fetches(
        &mut self,
        edge: EdgeId,
        kept: Vec<v1::KeptFetch>,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        self.forget_kept(|of, _| of == edge);
        let mut known = Vec::new();
        for fetch in kept.into_iter().take(MAX_KEPT) {
            let Ok(id) = fetch.entry_id.parse::<EntryId>() else {
                continue;
            };
            if self.load(id, actions) {
                known.extend(self.kept_fetch(id, &fetch));
            } else {
                self.kept.entry(id).or_default().push((edge, fetch));
            }
        }
        // Sent even if there are none, because the report of an earlier session is void.
        let event = Event::FetchesKept {
            edge,
            fetches: known,
        };
        self.event(event, now, actions);
    }

    /// Must run before replicas and wants are restored.
    pub(super) fn entry_of_kept_opened(
        &mut self,
        id: EntryId,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        for (edge, fetch) in self.kept.remove(&id).unwrap_or_default() {
            let fetches = self.kept_fetch(id, &fetch).into_iter().collect();
            self.event(Event::FetchesKept { edge, fetches }, now, actions);
        }
    }

    fn kept_fetch(&self, id: EntryId, fetch: &v1::KeptFetch) -> Option<InFlightFetch> {
        let entry = self.directory.entry_number(id)?;
        let level = Level::try_from(fetch.priority()).unwrap_or(Level::Low);
        Some(InFlightFetch {
            id: fetch.assignment_id.into(),
            entry,
            chunks: fetch.first_chunk..fetch.first_chunk.saturating_add(fetch.chunk_count),
            level,
        })
    }

    /// Forgets fetches that ended, or whose edge left, before their entry was open.
    pub(super) fn forget_kept(&mut self, is_over: impl Fn(EdgeId, u64) -> bool) {
        if self.kept.is_empty() {
            return;
        }
        for waiting in self.kept.values_mut() {
            waiting.retain(|(edge, fetch)| !is_over(*edge, fetch.assignment_id));
        }
        self.kept.retain(|_, waiting| !waiting.is_empty());
    }
}
