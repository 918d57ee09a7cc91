//! # The priority scheduler
//!
//! **Problem.** Many edges hold parts of many objects; readers, services and background work want
//! chunks; origins have limits. Which edge fetches which run of chunks next, from where, and
//! what is preempted for it? [`Scheduler::apply`] takes an event and answers with effects.
//!
//! **Properties**, asserted after each event by the simulation:
//! - A chunk has one origin fetch at a time, except for hedges and fetches that an edge starts
//!   itself.
//! - Slots, connections and rates stay within their limits.
//! - No blocked reader waits for a slot or connection that a lower level has.
//! - Nothing below CRITICAL starves.
//! - Equal input gives equal output, in any process; the work of one event is bounded.
//!
//! **Phases** of one `apply`, and the modules of each:
//! 1. The event changes claims: the chunks wanted on each edge, by level (`claim`,
//!    `demand`, `wants`, `fill`, `space`, `handover`), or the cluster (`membership`, `reports`,
//!    `in_flight`).
//! 2. Claims with a gap are queued by level, deadline and fair share (`queue`).
//! 3. Edges with free slots, or with more urgent claims than fetches, are planned (`dispatch`,
//!    `slots`): CRITICAL of all edges first.
//! 4. A gap becomes a run, and gets its source: a peer, or the origin within its budget (`route`,
//!    `budget`), which keeps within the quota leases of the edges (`quota`).
//! 5. The fetch is recorded and sent to the edge (`running`). Timers find late ones (`late`).
//!
//! Around it: [`api`] (input and output), `idle` (entries whose state may be dropped), `edge_set`
//! (sets of many edges), `invariant` (lookups that cannot fail), `explain` (reasons for decisions).
//!
//! **Deliberately absent**: clocks, randomness, I/O and hash order; partial chunks, which an edge
//! completes on its own; readers that left but are not yet reported, for which an edge checks
//! before it starts a fetch; any state that cannot be rebuilt from rows and sessions. See RFC 0002.

mod again;
pub mod api;
mod budget;
mod claim;
mod config;
mod demand;
mod dispatch;
pub mod edge_choice;
mod edge_set;
mod explain;
mod fill;
mod handover;
mod idle;
mod in_flight;
mod invariant;
mod late;
mod membership;
mod queue;
mod quota;
mod reports;
mod route;
mod running;
#[cfg(test)]
mod simulation;
mod slots;
mod space;
mod state;
#[cfg(test)]
mod tests;
mod wants;

use std::collections::{BTreeMap, BTreeSet};

use chunkcache_proto::Level;

pub use again::AskedAgain;
use api::{EdgeId, Effect, EntryNo, Event, Millis, SourceId, WantId};
use claim::Claims;
pub use config::Config;
use edge_set::EdgeSet;
pub use explain::{Decision, DecisionState};
pub use invariant::take_broken_invariants;
pub use quota::LEASE_MS;
pub use space::Space;
pub use state::RunningFetch;
use state::{Edge, Entry, Replica, Source, Timer, Want};

/// The present state of the cluster, as far as fetching is concerned.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    now: Millis,
    edges: BTreeMap<EdgeId, Edge>,
    sources: BTreeMap<SourceId, Source>,
    entries: BTreeMap<EntryNo, Entry>,
    claims: Claims,
    wants: BTreeMap<WantId, Want>,
    timers: BTreeSet<(Millis, Timer)>,
    /// Edges with something to decide.
    dirty: EdgeSet,
    /// Edges with free slots.
    edges_with_slots: EdgeSet,
    /// Edges that must be sent their leases.
    quota_news: BTreeSet<EdgeId>,
    /// Sources that may have capacity again, so the edges that wait for them must be planned again.
    dirty_sources: BTreeSet<SourceId>,
    /// Woken sources with edges that were not planned again yet.
    waking: BTreeSet<SourceId>,
    /// Where the next round of planning begins; it rotates, so that no edge is always first.
    first_edge: EdgeId,
    last_assignment: u64,
    asked_again: AskedAgain,
}

impl Scheduler {
    /// Creates a scheduler with an empty state.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            last_assignment: config.first_assignment,
            asked_again: AskedAgain::default(),
            config,
            now: 0,
            edges: BTreeMap::new(),
            sources: BTreeMap::new(),
            entries: BTreeMap::new(),
            claims: Claims::default(),
            wants: BTreeMap::new(),
            timers: BTreeSet::new(),
            dirty: EdgeSet::default(),
            edges_with_slots: EdgeSet::default(),
            quota_news: BTreeSet::new(),
            dirty_sources: BTreeSet::new(),
            waking: BTreeSet::new(),
            first_edge: EdgeId(0),
        }
    }

    /// Applies an event and appends its effects in the order in which they must be sent. Events
    /// with unknown ids change nothing. If the clock goes backwards, time stands still.
    pub fn apply(&mut self, event: Event, now: Millis, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        let timers = if matches!(event, Event::Tick) { 64 } else { 4 };
        self.take(event, effects);
        self.run_timers(timers, effects);
        self.plan(effects);
        self.tell_quotas(effects);
    }

    /// Whether work was left for the next event to keep this one short; a `Tick` continues it at
    /// once.
    #[must_use]
    pub fn has_more(&self) -> bool {
        let due = self.timers.first().is_some_and(|(at, _)| *at <= self.now);
        let dirty_sources = !self.dirty_sources.is_empty() || !self.waking.is_empty();
        due || dirty_sources || !self.dirty.is_empty()
    }

    fn take(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::EdgeJoined {
                edge,
                max_downloads,
                background_fill,
            } => {
                self.edge_joined(edge, max_downloads, background_fill, effects);
            }
            Event::EdgeDraining { edge, draining } => self.edge_draining(edge, draining),
            Event::FetchesKept { edge, fetches } => self.fetches_kept(edge, fetches, effects),
            Event::EdgeSpace {
                edge,
                bytes_used,
                bytes_allowed,
            } => self.edge_space(edge, bytes_used, bytes_allowed, effects),
            Event::SourceSpaces { edge, spaces } => self.source_spaces(edge, &spaces, effects),
            Event::EdgeLost { edge } => self.edge_lost(edge, effects),
            Event::EdgesExpected { edges } => self.edges_expected(&edges, effects),
            Event::SourceSet {
                source,
                max_connections,
                max_rate_bytes_per_second,
                background_fill,
            } => {
                self.source_set(
                    source,
                    max_connections,
                    max_rate_bytes_per_second,
                    background_fill,
                );
                self.grant_all(effects);
            }
            Event::SourceRemoved { source } => self.source_removed(source, effects),
            Event::SourceBackOff { source, until } => self.source_back_off(source, until),
            Event::EntryOpened {
                entry,
                source,
                geometry,
            } => {
                self.entry_opened(entry, source, geometry, effects);
            }
            Event::EntryClosed { entry } => self.entry_closed(entry, effects),
            Event::ChunksHeld {
                edge,
                entry,
                chunks,
            } => {
                for range in chunks {
                    self.hold(edge, entry, range, effects);
                }
            }
            Event::ChunksDropped {
                edge,
                entry,
                chunks,
            } => {
                for range in chunks {
                    self.drop_held(edge, entry, range);
                }
            }
            Event::DemandSet(demand) => self.demand_set(&demand, effects),
            Event::DemandClosed { reader } => self.demand_closed(reader, effects),
            Event::WantSet {
                want,
                edge,
                entry,
                chunks,
                level,
            } => {
                self.want_set(want, edge, entry, chunks, level, false, effects);
            }
            Event::HandOver {
                want,
                edge,
                entry,
                chunks,
            } => self.want_set(want, edge, entry, chunks, Level::Medium, true, effects),
            Event::WantClosed { want } => self.want_closed(want, effects),
            Event::FetchProgressed {
                edge,
                assignment,
                bytes_done,
            } => {
                self.fetch_progressed(edge, assignment, bytes_done);
            }
            Event::FetchFinished { edge, assignment } => {
                self.fetch_finished(edge, assignment, effects)
            }
            Event::FetchFailed {
                edge,
                assignment,
                fault,
                retry_after,
            } => {
                self.fetch_failed(edge, assignment, fault, retry_after, effects);
            }
            Event::FetchCancelled { edge, assignment } => {
                self.fetch_cancelled(edge, assignment, effects);
            }
            Event::LocalFetchStarted {
                edge,
                assignment,
                entry,
                chunks,
                level,
            } => {
                self.local_fetch_started(edge, assignment, entry, chunks, level, effects);
            }
            Event::QuotaReported { edge, number, uses } => {
                self.quota_reported(edge, number, uses, effects);
            }
            Event::Tick => self.grant_again(effects),
        }
    }

    fn replica(&self, edge: EdgeId, entry: EntryNo) -> Option<&Replica> {
        self.entries.get(&entry)?.replicas.get(&edge)
    }

    fn replica_mut(&mut self, edge: EdgeId, entry: EntryNo) -> Option<&mut Replica> {
        self.entries.get_mut(&entry)?.replicas.get_mut(&edge)
    }
}
