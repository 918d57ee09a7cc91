//! An origin's limits in the whole cluster: connections, and back-off after errors. `quota` divides
//! its connections and its rate among the edges.
//!
//! A quarter of the connections is reserved for CRITICAL.

use chunkcache_proto::Level;

use super::Scheduler;
use super::api::{EdgeId, EntryNo, Millis, SourceId};
use super::invariant::Invariant;
use super::state::{Edge, Source, Timer};
use crate::edge_choice::mix;

/// Sanity cap for the pause that an origin requests: one that says "in a year" is tried again
/// sooner.
const LONGEST_PAUSE_MS: Millis = 3_600_000;
/// If this many objects request a pause at the same time, the whole source pauses.
const PAUSED_OBJECTS: usize = 3;

/// How long a reader's chunks wait after the edge had no signature for them. Short, because the
/// reader either brought a signature or is about to end.
const UNSIGNED_READER_MS: Millis = 250;

/// Why an origin cannot be asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The source is no longer registered.
    Unregistered,
    /// The origin asked for a pause, or failed too often.
    BackOff(Millis),
    /// All connections that this level may use are in use.
    Connections,
}

impl Source {
    /// Whether the source has limits: a request that it refuses now may be allowed once another
    /// edge's fetch ends.
    pub fn limited(&self) -> bool {
        self.max_connections > 0 || self.max_rate_bytes_per_second > 0
    }

    /// A fill is queued, and no reader needs the origin first.
    pub fn fill_may_start(&self) -> bool {
        let readers = [Level::Critical, Level::High].map(|level| level as usize);
        self.queued[Level::Low as usize] > 0
            && readers
                .iter()
                .all(|&level| self.queued[level] + self.running[level] == 0)
    }

    /// Connections only CRITICAL may use.
    pub fn reserved_connections(&self) -> u32 {
        if self.max_connections < 2 {
            0
        } else {
            (self.max_connections / 4).max(1)
        }
    }

    /// Connections in use, granted or about to be, or perhaps in use on edges without a session.
    pub fn connections(&self, now: Millis) -> u32 {
        let here = self.assigned().saturating_add(self.granted_connections);
        here.saturating_add(self.absent(now).connections)
    }

    /// Fetches from the source that were assigned to edges: one connection each.
    pub fn assigned(&self) -> u32 {
        self.running.iter().sum::<u32>().saturating_sub(self.own)
    }

    /// Records the pause that one object's answer requested. Returns how long the whole source
    /// pauses, if several objects request one at the same time.
    fn paused_by(&mut self, entry: EntryNo, until: Millis, now: Millis) -> Option<Millis> {
        self.pauses
            .retain(|&(other, until)| other != entry && until > now);
        self.pauses.push((entry, until));
        if self.pauses.len() < PAUSED_OBJECTS {
            return None;
        }
        let pauses = self.pauses.drain(..);
        pauses.map(|(_, until)| until).max()
    }

    /// Whether a fetch at this level may begin.
    pub fn offer(&self, level: Level, ahead: bool, now: Millis) -> Result<(), Refusal> {
        if !self.registered {
            return Err(Refusal::Unregistered);
        }
        if self.back_off_until > now {
            return Err(Refusal::BackOff(self.back_off_until));
        }
        if self.max_connections > 0 {
            let reserved = if level == Level::Critical {
                0
            } else {
                self.reserved_connections()
            };
            // A queued assignment holds a connection that it does not use yet: it may use only the
            // lower half.
            let usable = (self.max_connections - reserved) / if ahead { 2 } else { 1 };
            if self.connections(now) >= usable {
                return Err(Refusal::Connections);
            }
        }
        Ok(())
    }
}

impl Scheduler {
    /// The estimated time to fetch a chunk from this origin.
    pub(super) fn origin_estimate(&self, source: SourceId) -> Millis {
        let known = self
            .sources
            .get(&source)
            .and_then(|source| source.chunk_fetch_ms);
        known.unwrap_or(self.config.default_chunk_fetch_ms)
    }

    pub(super) fn source_back_off(&mut self, source: SourceId, until: Millis) {
        let Some(known) = self.sources.get_mut(&source) else {
            // The source is not known.
            return;
        };
        let until = until.min(self.now.saturating_add(LONGEST_PAUSE_MS));
        known.back_off_until = known.back_off_until.max(until);
        self.timers
            .insert((known.back_off_until, Timer::Source(source)));
    }

    /// Counts a failure of the origin against the entry and the source. A pause that the origin
    /// requested applies to the object, unless it `is_of_source` or enough other objects requested
    /// one.
    pub(super) fn origin_failed(
        &mut self,
        entry: EntryNo,
        retry_after: Option<Millis>,
        is_of_source: bool,
    ) {
        let now = self.now;
        let Some(known) = self.entries.get_mut(&entry) else {
            // It was closed while the fetch was stopping.
            return;
        };
        let source_id = known.source;
        known.failures = known.failures.saturating_add(1);
        let jitter = mix(u64::from(entry.0) << 32 | u64::from(known.failures));
        let asked = retry_after.map(|after| now.saturating_add(after.min(LONGEST_PAUSE_MS)));
        let rest = back_off(&self.config, known.failures, jitter);
        known.back_off_until = now.saturating_add(rest).max(asked.unwrap_or(0));
        self.timers
            .insert((known.back_off_until, Timer::Entry(entry)));
        let Some(source) = self.sources.get_mut(&source_id).expected() else {
            return;
        };
        source.failures = source.failures.saturating_add(1);
        let over = (source.failures + 1).saturating_sub(self.config.source_failures.max(1));
        let pause = match asked {
            Some(until) if is_of_source => Some(until),
            Some(until) => source.paused_by(entry, until, now),
            None => None,
        };
        if let Some(until) = pause {
            self.source_back_off(source_id, until);
        } else if over > 0 {
            let rest = back_off(&self.config, over, mix(u64::from(source_id.0)));
            self.source_back_off(source_id, now.saturating_add(rest));
        }
    }

    /// The edge has no signature for the entry. This counts neither against the origin, which was
    /// not asked, nor against other edges.
    pub(super) fn unsigned(&mut self, edge: EdgeId, entry: EntryNo) {
        let now = self.now;
        let Some(replica) = self.replica_mut(edge, entry) else {
            // It was closed while the fetch was stopping.
            return;
        };
        replica.unsigned = replica.unsigned.saturating_add(1);
        replica.unsigned_at = now;
        for level in [Level::Critical, Level::Medium] {
            let until = self.unsigned_until((edge, entry), level);
            self.timers.insert((until, Timer::Edge(edge)));
        }
    }

    /// The time before which the edge does not ask an origin for the entry at this level.
    pub(super) fn unsigned_until(&self, (edge, entry): (EdgeId, EntryNo), level: Level) -> Millis {
        let Some(replica) = self
            .replica(edge, entry)
            .filter(|replica| replica.unsigned > 0)
        else {
            return 0;
        };
        let rest = match level {
            Level::Critical | Level::High => UNSIGNED_READER_MS,
            Level::Medium | Level::Low => {
                let jitter = mix(u64::from(edge.0) << 32 | u64::from(entry.0));
                back_off(&self.config, replica.unsigned, jitter)
            }
        };
        replica.unsigned_at.saturating_add(rest)
    }

    /// A fetch went well.
    pub(super) fn origin_succeeded(&mut self, entry: EntryNo) {
        let Some(known) = self.entries.get_mut(&entry) else {
            // It was closed while the fetch was stopping.
            return;
        };
        known.failures = 0;
        known.back_off_until = 0;
        if let Some(source) = self.sources.get_mut(&known.source) {
            source.failures = 0;
        }
    }

    /// Plans again for the edges that wait for dirty sources: a bounded number per event, and each
    /// edge once per wake-up.
    pub(super) fn wake_edges(&mut self) {
        let most = self.config.max_edges_per_event.max(1);
        for source in std::mem::take(&mut self.dirty_sources) {
            if let Some(source) = self.sources.get_mut(&source) {
                source.wake_left = source.waiting_edges.len();
            }
            self.waking.insert(source);
        }
        for source_id in std::mem::take(&mut self.waking) {
            let Some(source) = self.sources.get_mut(&source_id).expected() else {
                continue;
            };
            let from = source.wake_from;
            let ahead = source.waiting_edges.range(from..);
            let around = ahead.chain(source.waiting_edges.range(..from));
            let edges: Vec<_> = around
                .map(|(&edge, _)| edge)
                .take(most.min(source.wake_left))
                .collect();
            source.wake_left -= edges.len();
            if let Some(last) = edges.last() {
                source.wake_from = EdgeId(last.0.wrapping_add(1));
                if source.wake_left > 0 {
                    self.waking.insert(source_id);
                }
            }
            let room = |edge: &EdgeId| self.edges.get(edge).is_some_and(Edge::has_room);
            self.dirty.extend(edges.into_iter().filter(room));
        }
    }
}

/// Doubles with each failure. The last quarter is jitter derived from the ids, so that it is
/// deterministic.
pub(super) fn back_off(config: &super::Config, failures: u32, jitter: u64) -> Millis {
    let doubled = config
        .back_off_min_ms
        .saturating_mul(1 << failures.saturating_sub(1).min(20));
    let most = doubled.min(config.back_off_max_ms).max(1);
    most - jitter % (most / 4 + 1)
}
