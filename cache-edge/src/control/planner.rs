//! The edge's own decisions: for a waiting reader that the coordinator does not serve in time, and
//! for all readers while no coordinator plans.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use chunkcache_proto::{ChunkIndex, FetchId, Level};
use tokio_util::sync::CancellationToken;

use super::Link;
use crate::fetch::{Assignment, Downloads, downloads::Coverage};
use crate::{
    core::lookahead::{self, ReaderView, Want},
    readers::{DemandRegistry, IncomingChunks, ReaderState},
};
use chunk_store::Store;

/// How long the coordinator may take to answer a CRITICAL need (RFC 0001, 6). A busy one takes tens
/// of milliseconds, and a fetch that begins here meanwhile asks the origin twice. No reader waits
/// this long for a coordinator whose connection broke.
pub const CRITICAL_BUDGET: Duration = Duration::from_millis(250);
/// The same, if the coordinator cannot help.
const OWN_BUDGET: Duration = Duration::from_millis(40);
/// The same, if a local fetch may exceed a limit of the origin, or if a running fetch here will
/// bring the byte, but late.
const PATIENT_BUDGET: Duration = Duration::from_millis(500);
/// Limit of local fetches at a time: an outage of the coordinator must not flood the origin.
pub(super) const MAX_LOCAL: usize = 64;
/// Changes that no reader waits for are gathered for this long.
const GATHERING: Duration = Duration::from_millis(10);
/// Shortest time between two checks of waiting readers.
const LEAST_INTERVAL: Duration = Duration::from_millis(2);
const TICK: Duration = Duration::from_millis(500);
/// After the store refused a chunk, nothing is fetched ahead for this long; waiting readers bypass
/// the store.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Planner {
    pub link: Arc<Link>,
    pub demand: Arc<DemandRegistry>,
    pub downloads: Downloads,
    pub incoming: Arc<IncomingChunks>,
    pub store: Store,
    pub lookahead_chunks: u32,
}

impl Planner {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut wait = TICK;
        let mut joined = HashSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.demand.plan_due(GATHERING) => {}
                () = tokio::time::sleep(wait) => {}
            }
            let begun = Instant::now();
            self.demand.begin_plan();
            wait = self.plan(&mut joined);
            // With many readers, one check serves many wake-ups.
            let rest = (begun.elapsed() * 4).max(LEAST_INTERVAL);
            if self.demand.len() > 32 {
                tokio::time::sleep(rest).await;
            }
        }
    }

    /// Plans once. Returns the longest time until the next plan. `joined`: local fetches that a
    /// reader has reached.
    fn plan(&self, joined: &mut HashSet<FetchId>) -> Duration {
        let planned_elsewhere = self.link.is_planning();
        let mut readers = self.demand.all();
        let hinting = self.demand.hinting();
        let mut next = TICK;
        let mut local = self.downloads.local_orders();
        for reader in &readers {
            let view = self.demand.view(reader);
            if view.waiting {
                next = next.min(self.wait_of(reader, view, planned_elsewhere, &mut local));
            }
        }
        if !planned_elsewhere && !store_refuses(&self.store, &self.downloads) {
            for reader in readers.iter().chain(&hinting) {
                self.look_ahead(reader, &mut local);
            }
        }
        readers.extend(hinting);
        self.cancel_unwanted(&readers, &local, joined);
        self.downloads.tick();
        next
    }

    fn wait_of(
        &self,
        reader: &Arc<ReaderState>,
        view: ReaderView,
        planned_elsewhere: bool,
        local: &mut Vec<Assignment>,
    ) -> Duration {
        let geometry = reader.file.geometry();
        let chunk = geometry.chunk_of(view.position);
        // The reader may not have noticed bytes that arrived a moment ago.
        if self.incoming.of(&reader.file).has(view.position)
            || self
                .downloads
                .promote(reader.file.id(), chunk, view.position)
        {
            return TICK;
        }
        // One response body brings all of it, from the first byte on.
        let coverage = || {
            self.downloads
                .coverage(reader.file.id(), chunk, view.position)
        };
        let is_covered = coverage() != Coverage::None;
        if self.incoming.of(&reader.file).ignores_ranges() && is_covered {
            return TICK;
        }
        let waited = self.demand.waited(reader);
        let budget = budget(Wait {
            held: reader.held_for(),
            is_limited: self.downloads.is_limited(&reader.file),
            is_covered,
            store_refuses: store_refuses(&self.store, &self.downloads) || !reader.file.has_room(),
        });
        if planned_elsewhere && waited < budget {
            return budget - waited;
        }
        tracing::debug!(
            entry = %reader.file.id(),
            chunk,
            ?waited,
            planned_elsewhere,
            "nobody brings what a reader waits for; fetching it here"
        );
        let want = Want {
            first_chunk: chunk,
            chunk_count: 1,
            level: Level::Critical,
            start_at: view.position,
        };
        self.submit(reader, want, local);
        TICK
    }

    fn look_ahead(&self, reader: &Arc<ReaderState>, local: &mut Vec<Assignment>) {
        if !reader.file.has_room() {
            return;
        }
        let geometry = reader.file.geometry();
        let id = reader.file.id();
        let incoming = self.incoming.of(&reader.file);
        if incoming.is_changed() || incoming.has_whole_stream() {
            return;
        }
        let covered = |chunk| {
            reader.file.is_present(chunk)
                || incoming
                    .existing(chunk)
                    .is_some_and(|incoming_chunk| incoming_chunk.is_claimed())
                || self
                    .downloads
                    .coverage(id, chunk, geometry.chunk_range(chunk).start)
                    != Coverage::None
        };
        let view = self.demand.view(reader);
        let ahead = match self.demand.earned_bytes(reader) {
            0 => self.lookahead_chunks,
            bytes => {
                let chunks = bytes.div_ceil(u64::from(geometry.chunk_size()));
                let earned = u32::try_from(chunks).unwrap_or(u32::MAX);
                self.lookahead_chunks.min(earned)
            }
        };
        let wants = lookahead::plan(geometry, view, ahead, covered);
        for want in wants
            .into_iter()
            .filter(|want| want.level != Level::Critical)
        {
            self.submit(reader, want, local);
        }
        self.fetch_hints(reader, covered, local);
    }

    fn fetch_hints(
        &self,
        reader: &Arc<ReaderState>,
        covered: impl Fn(ChunkIndex) -> bool,
        local: &mut Vec<Assignment>,
    ) {
        let geometry = reader.file.geometry();
        for hint in reader.hints() {
            let hinted = ReaderView {
                position: hint.start,
                end: hint.end,
                waiting: false,
                paused: false,
            };
            for want in lookahead::plan(geometry, hinted, lookahead::MAX_RUN_CHUNKS, &covered) {
                self.submit(reader, want, local);
            }
        }
    }

    fn submit(&self, reader: &Arc<ReaderState>, want: Want, local: &mut Vec<Assignment>) {
        if local.len() >= MAX_LOCAL {
            return;
        }
        let order = Assignment {
            id: self.downloads.local_id(),
            file: reader.file.clone(),
            first_chunk: want.first_chunk,
            chunk_count: want.chunk_count,
            level: want.level,
            deadline_in_ms: if want.level == Level::Critical {
                0
            } else {
                1_000
            },
            start_at: want.start_at,
            peer: None,
            reader: 0,
        };
        if self.downloads.submit(order.clone()) {
            local.push(order);
        }
    }

    /// Cancels a fetch whose partial chunk was swept before it got a slot.
    fn cancel_swept(&self, order: &Assignment) {
        let incoming_chunk = self.incoming.of(&order.file).existing(order.first_chunk);
        if incoming_chunk.is_none_or(|incoming_chunk| {
            !incoming_chunk.is_claimed() && !incoming_chunk.is_worth_completing()
        }) {
            self.downloads.cancel(order.id, true);
        }
    }

    /// Cancels lookahead and the rest of probes that are no longer near any reader, after a seek or
    /// a close.
    fn cancel_unwanted(
        &self,
        readers: &[Arc<ReaderState>],
        local: &[Assignment],
        joined: &mut HashSet<FetchId>,
    ) {
        joined.retain(|id| local.iter().any(|order| order.id == *id));
        for order in local {
            if order.level == Level::Low {
                self.cancel_swept(order);
                continue;
            }
            if order.level == Level::Medium {
                continue;
            }
            let geometry = order.file.geometry();
            let run = geometry.run_range(order.first_chunk, order.chunk_count);
            let reach = u64::from(self.lookahead_chunks + 2) * u64::from(geometry.chunk_size());
            let of_entry = || {
                readers
                    .iter()
                    .filter(|reader| reader.file.id() == order.file.id())
            };
            let wanted = of_entry().any(|reader| {
                let position = reader.position();
                let ahead = position < run.end && run.start < reader.reach(reach);
                ahead
                    || reader
                        .hints()
                        .iter()
                        .any(|hint| !hint.intersect(run).is_empty())
            });
            if wanted {
                joined.insert(order.id);
                continue;
            }
            // A probe's reader appears a moment after its fetch begins. One that was there and left
            // does not return.
            let is_left = joined.contains(&order.id);
            if is_left || self.downloads.age(order.id) > Duration::from_secs(1) {
                let under_way = self.downloads.chunk_under_way(order.id);
                let here = of_entry()
                    .any(|reader| Some(geometry.chunk_of(reader.position())) == under_way);
                // One chunk is always finished, because its bytes have been paid for.
                self.downloads
                    .cancel(order.id, here || order.chunk_count == 1);
            }
        }
    }
}

/// Whether readers bypass the store for now.
pub(super) fn store_refuses(store: &Store, downloads: &Downloads) -> bool {
    store.degraded().is_some() || downloads.refused_within(REFUSED_PAUSE)
}

/// The inputs that decide how long a wait is left to the coordinator.
#[derive(Clone, Copy, Debug, Default)]
struct Wait {
    /// The time that the coordinator requested.
    held: Duration,
    /// The origin has limits that apply to the whole cluster.
    is_limited: bool,
    /// A fetch here will reach the byte, but late.
    is_covered: bool,
    /// Nothing can be stored: readers bypass the store, and the coordinator is not involved.
    store_refuses: bool,
}

fn budget(wait: Wait) -> Duration {
    match wait {
        Wait {
            store_refuses: true,
            ..
        } => OWN_BUDGET,
        Wait {
            is_limited: true,
            held,
            ..
        } => held.max(PATIENT_BUDGET),
        Wait {
            is_covered: true,
            held,
            ..
        } => held.clamp(CRITICAL_BUDGET, PATIENT_BUDGET),
        Wait { held, .. } => held.max(CRITICAL_BUDGET),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: Duration = Duration::from_secs(10);

    #[test]
    fn a_wait_the_coordinator_knows_of_is_left_to_it() {
        let silent = Wait::default();
        assert_eq!(budget(silent), CRITICAL_BUDGET);
        assert_eq!(
            budget(Wait {
                held: HELD,
                ..silent
            }),
            HELD
        );
        let limited = Wait {
            is_limited: true,
            ..silent
        };
        assert_eq!(
            budget(limited),
            PATIENT_BUDGET,
            "a slow answer breaks no limit"
        );
        assert_eq!(
            budget(Wait {
                is_covered: true,
                held: HELD,
                ..limited
            }),
            HELD
        );
    }

    #[test]
    fn what_the_coordinator_can_not_see_is_not_left_to_it() {
        let held = Wait {
            held: HELD,
            ..Wait::default()
        };
        assert_eq!(
            budget(Wait {
                is_covered: true,
                ..held
            }),
            PATIENT_BUDGET
        );
        assert_eq!(
            budget(Wait {
                store_refuses: true,
                is_limited: true,
                ..held
            }),
            OWN_BUDGET
        );
    }
}
