//! Reports of fetches to the coordinator.

use std::time::Duration;

use chunkcache_proto::{ChunkIndex, EntryId, FetchId, Level, v1};

use super::{Assignment, Downloads, Fetch, State};
use crate::{
    fetch::run::{Failure, OpenAnswer},
    upstream::answer::Part,
};

/// A finished fetch whose chunks are not durable after this time is reported nevertheless: a failed
/// sync is reported separately.
const DURABLE_WAIT: Duration = Duration::from_secs(10);
/// Maximum number of partial chunks being completed at a time.
const MAX_COMPLETING: usize = 64;

impl Downloads {
    pub(super) fn announce_local(&self, assignment: &Assignment) {
        if assignment.is_local() {
            self.0.announce.local_fetch(v1::LocalFetch {
                assignment_id: assignment.id.into(),
                entry_id: assignment.file.id().to_string(),
                first_chunk: assignment.first_chunk,
                chunk_count: assignment.chunk_count,
                priority: v1::Priority::from(assignment.level).into(),
            });
        }
    }

    pub(super) fn report_cancelled(&self, id: FetchId, bytes_done: u64) {
        self.report(id, v1::fetch_report::State::Cancelled, bytes_done, None);
    }

    /// Ends a fetch that has no slot. It may still hold its answer, and with it a permit of the
    /// origin.
    pub(super) fn end_unstarted(&self, id: FetchId, fetch: Option<Fetch>) {
        match fetch {
            Some(fetch) if fetch.paused.is_some() => self.cancel_paused(fetch, 0),
            _ => self.report_cancelled(id, 0),
        }
    }

    pub(super) fn cancel_paused(&self, mut fetch: Fetch, bytes_done: u64) {
        let is_limited = self.is_limited(&fetch.assignment.file);
        let rest = fetch.paused.take().filter(|_| !is_limited);
        let this = self.clone();
        self.0.workers.spawn(async move {
            this.0.fetcher.connection_closed(&fetch.assignment).await;
            let mut state = this.0.state.lock();
            this.complete_partial_chunks(&mut state, &fetch.assignment, rest);
            this.report_cancelled(fetch.assignment.id, bytes_done);
            this.settle(state);
        });
    }

    /// Submits fetches at LOW that complete the partial chunks of a stopped fetch: their bytes were
    /// paid for, but only a whole chunk can be recorded. Only a few run at a time; the sweep frees
    /// the others. `rest` is the answer that the stopped fetch was reading, from which its chunk is
    /// completed. Call this before the fetch is reported as cancelled: in between, the coordinator
    /// could have the chunk fetched elsewhere.
    pub(super) fn complete_partial_chunks(
        &self,
        state: &mut State,
        stopped: &Assignment,
        mut rest: Option<OpenAnswer>,
    ) {
        // Bytes from a peer cost no origin anything, and the peer has the rest.
        if state.closed || stopped.peer.is_some() {
            return;
        }
        let run = stopped.first_chunk..stopped.first_chunk.saturating_add(stopped.chunk_count);
        let incoming = self.0.fetcher.incoming.of(&stopped.file);
        if incoming.is_changed() || incoming.ignores_ranges() {
            return;
        }
        let geometry = stopped.file.geometry();
        let completing =
            |fetch: &&Fetch| fetch.assignment.is_local() && fetch.assignment.level == Level::Low;
        let under_way = state.fetches.values().filter(completing).count();
        let room = MAX_COMPLETING.saturating_sub(under_way);
        for chunk in incoming.partial_chunks(run).into_iter().take(room) {
            if state
                .queue
                .covering(stopped.file.id(), chunk)
                .next()
                .is_some()
            {
                continue;
            }
            let rest_start = match rest.as_ref().map(|rest| rest.part) {
                Some(Part::Range(range)) if geometry.chunk_of(range.start) == chunk => {
                    Some(range.start)
                }
                _ => None,
            };
            let id = self.local_id();
            let assignment = Assignment {
                id,
                first_chunk: chunk,
                chunk_count: 1,
                level: Level::Low,
                deadline_in_ms: u32::MAX,
                start_at: rest_start.unwrap_or(geometry.chunk_range(chunk).start),
                peer: None,
                reader: 0,
                file: stopped.file.clone(),
            };
            if self.take_in(state, assignment)
                && rest_start.is_some()
                && let Some(fetch) = state.fetches.get_mut(&id)
            {
                fetch.paused = rest.take();
            }
        }
    }

    pub(super) fn report_later(&self, id: FetchId) {
        let this = self.clone();
        self.0.workers.spawn(async move {
            tokio::time::sleep(DURABLE_WAIT).await;
            if let Some(fetch) = this.0.state.lock().fetches.remove(&id) {
                this.report(
                    id,
                    v1::fetch_report::State::Finished,
                    fetch.handle.bytes_done(),
                    None,
                );
            }
        });
    }

    /// Reports finished fetches. Must follow the `ChunksStored` of their chunks.
    pub fn durable(&self, entry: &EntryId, chunks: &[(ChunkIndex, u64)]) {
        let mut state = self.0.state.lock();
        let mut over = Vec::new();
        for (id, fetch) in &mut state.fetches {
            if fetch.assignment.file.id() == *entry {
                for (chunk, _) in chunks {
                    fetch.undurable.remove(chunk);
                }
                if fetch.finished && fetch.undurable.is_empty() {
                    over.push(*id);
                }
            }
        }
        for id in over {
            if let Some(fetch) = state.fetches.remove(&id) {
                self.report(
                    id,
                    v1::fetch_report::State::Finished,
                    fetch.handle.bytes_done(),
                    None,
                );
            }
        }
    }

    pub(super) fn report(
        &self,
        id: FetchId,
        state: v1::fetch_report::State,
        bytes_done: u64,
        failure: Option<Failure>,
    ) {
        let failure = failure.map(|failure| v1::FetchFailure {
            fault: failure.fault.into(),
            http_status: u32::from(failure.http_status),
            retry_after_ms: failure.retry_after.map_or(0, |wait| {
                u32::try_from(wait.as_millis()).unwrap_or(u32::MAX)
            }),
            message: failure.message,
        });
        self.0.announce.report(v1::FetchReport {
            assignment_id: id.into(),
            state: state.into(),
            bytes_done,
            failure,
        });
    }

    /// Reports running fetches and their bytes, for the coordinator's estimates.
    pub fn report_progress(&self) {
        let state = self.0.state.lock();
        for (id, fetch) in &state.fetches {
            if !fetch.finished && fetch.handle.bytes_done() > 0 {
                self.report(
                    *id,
                    v1::fetch_report::State::Progress,
                    fetch.handle.reached(),
                    None,
                );
            }
        }
    }
}
