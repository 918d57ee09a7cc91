//! Resolves keys to entries, for edges. A key that the table knows is resolved at once; for another
//! key, one caller in the cluster asks the origin and the others wait for its finding.
//!
//! Waits end by events: the end of a probe drops its channel, which wakes all waiters. If it takes
//! longer, they are sent to the edge that asks. A probe without an answer ends with its edge's
//! session.
//!
//! What cannot become an entry (no validator, no length) is kept as a whole by the edge that asked:
//! it is the key's keeper, and the others are sent there (RFC 0012).

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use chunkcache_proto::{source_name, v1};
use http_rules::freshness;
use parking_lot::Mutex;
use service_kit::clock::now_ms;
use tokio::{sync::watch, time::Instant};
use v1::resolve_key_response::Outcome;

use super::{
    Cluster,
    error::{Resource, ServiceError},
};
use crate::{db::writer::TouchEntry, sessions::registry::EdgeSession};

/// The caller must ask the origin within this time; after it, the same edge may ask again.
const PROBE_LEASE: Duration = Duration::from_secs(2);
/// Callers that wait longer than this are sent to the edge that asks, which may be waiting for an
/// answer that streams (a blocking playlist reload).
const JOIN_AFTER: Duration = Duration::from_millis(100);
/// How long a caller that was sent to the edge that asks in vain waits for that edge's report: what
/// is no whole answer becomes an entry.
const REPORTED_WITHIN: Duration = Duration::from_millis(500);
/// After this time another edge may ask, even if the first one is still in session.
const LONGEST_PROBE: Duration = Duration::from_secs(60);
/// How long an edge is a key's keeper after its last answer.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Limit of keys that are remembered as being asked for, of keys remembered as absent, and of keys
/// with a keeper.
const MAX_REMEMBERED: usize = 10_000;
/// Longer keys are not remembered, because clients choose them; the edges remember them too.
const LONGEST_REMEMBERED: usize = 1_024;
/// Counters of ended probes. Two keys with one counter cost a second look at the table.
const ENDED: usize = 1_024;
/// The longest time for which an edge's report of an absent object counts.
const MAX_NEGATIVE: Duration = Duration::from_secs(60);

/// The running questions to origins, and the recently absent objects.
#[derive(Debug, Default)]
pub struct Resolver {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    probes: HashMap<v1::Key, Probe>,
    negatives: HashMap<v1::Key, Negative>,
    keepers: HashMap<v1::Key, (EdgeRun, Instant)>,
    /// The probes that ended, by hash of their keys: shows whether a key's row may have changed
    /// since it was read.
    ended: [u64; ENDED],
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Negative {
    http_status: u32,
    until: Instant,
}

/// An edge during one of its sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeRun {
    pub name: String,
    pub epoch: u64,
}

#[derive(Debug)]
struct Probe {
    by: EdgeRun,
    begun: Instant,
    /// Dropped when the probe ends.
    ended: watch::Sender<()>,
}

/// A caller, and the edge that it was sent to in vain.
struct Caller<'a> {
    edge: EdgeRun,
    passed_over: &'a str,
    since: Instant,
}

impl Caller<'_> {
    fn may_join(&self, other: &EdgeRun) -> bool {
        self.edge.name != other.name && self.passed_over != other.name
    }

    /// When the caller may ask by itself.
    fn waits_until(&self, probe: &Probe) -> Instant {
        let lease_ends = probe.begun + PROBE_LEASE;
        if self.may_join(&probe.by) {
            probe.begun + LONGEST_PROBE
        } else if self.edge.name == probe.by.name {
            lease_ends
        } else {
            lease_ends.max(self.since + REPORTED_WITHIN)
        }
    }
}

/// How to handle an unknown key.
#[derive(Debug)]
enum Claim {
    /// The caller asks the origin.
    Ask,
    /// Another caller does. The table is read again when this wakes.
    Wait(watch::Receiver<()>, Instant),
    /// Another caller has been asking for a while, or keeps the answer.
    Join(EdgeRun),
    /// The table may have changed since it was read.
    LookAgain,
}

impl Resolver {
    /// Wakes the waiters of a key that was bound or rebound.
    pub fn bound(&self, key: &v1::Key) {
        let mut state = self.state.lock();
        state.negatives.remove(key);
        state.keepers.remove(key);
        state.end(key);
    }

    /// Records that an edge keeps the answer as a whole. One that was not told to ask does not
    /// replace a present keeper: the two learn of each other when their memories end.
    pub fn keep(&self, key: &v1::Key, by: EdgeRun, is_present: impl Fn(&EdgeRun) -> bool) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let was_told = state.probes.get(key).is_some_and(|probe| probe.by == by);
        let other = state
            .keepers
            .get(key)
            .is_some_and(|(keeper, until)| *keeper != by && *until > now && is_present(keeper));
        if was_told || !other {
            if state.keepers.len() >= MAX_REMEMBERED {
                state.keepers.retain(|_, (_, until)| *until > now);
            }
            if is_short(key) && state.keepers.len() < MAX_REMEMBERED {
                state.keepers.insert(key.clone(), (by, now + KEPT_FOR));
            }
            state.negatives.remove(key);
        }
        if was_told {
            state.end(key);
        }
    }

    /// Ends the questions of an edge whose session has ended.
    pub fn forget_edge(&self, edge: &str, epoch: u64) {
        let mut state = self.state.lock();
        let is_its = |by: &EdgeRun| by.name == edge && by.epoch == epoch;
        state.keepers.retain(|_, (keeper, _)| !is_its(keeper));
        let probes = state.probes.iter();
        let its: Vec<v1::Key> = probes
            .filter(|(_, probe)| is_its(&probe.by))
            .map(|(key, _)| key.clone())
            .collect();
        its.iter().for_each(|key| state.end(key));
    }

    /// Records that the origin has no such object.
    pub fn negative(&self, negative: v1::KeyNegative) {
        let Some(key) = negative.key else {
            return;
        };
        let valid_for = Duration::from_millis(negative.valid_for_ms.into());
        let answer = Negative {
            http_status: negative.http_status,
            until: Instant::now() + valid_for.min(MAX_NEGATIVE),
        };
        let mut state = self.state.lock();
        if state.negatives.len() >= MAX_REMEMBERED {
            let now = Instant::now();
            state.negatives.retain(|_, answer| answer.until > now);
        }
        if is_short(&key) && !valid_for.is_zero() && state.negatives.len() < MAX_REMEMBERED {
            state.negatives.insert(key.clone(), answer);
        }
        state.keepers.remove(&key);
        state.end(&key);
    }

    /// Forgets absent objects that the selector matches. For a tag, forgets all of the source,
    /// because their tags are unknown.
    pub fn forget_absent(&self, selector: &v1::PurgeSelector) {
        let is_tag = matches!(selector.objects, Some(v1::purge_selector::Objects::Tag(_)));
        let of_source = |key: &v1::Key| selector.source.is_empty() || selector.source == key.source;
        let no_fields = http::HeaderMap::new();
        let mut state = self.state.lock();
        state.negatives.retain(|key, _| {
            let is_selected = http_rules::purge::selects(selector, key, &no_fields);
            !(is_selected || is_tag && of_source(key))
        });
    }

    /// The number of probes that ended for this key, and for others with its counter.
    pub fn ended(&self, key: &v1::Key) -> u64 {
        let state = self.state.lock();
        state.ended[state.counter(key)]
    }

    fn find_negative(&self, key: &v1::Key) -> Option<v1::NegativeAnswer> {
        let mut state = self.state.lock();
        let answer = *state.negatives.get(key)?;
        let left = answer.until.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(v1::NegativeAnswer {
                http_status: answer.http_status,
                valid_for_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            });
        }
        state.negatives.remove(key);
        None
    }

    /// The key's keeper, unless it is the caller or was passed over.
    fn keeper(
        &self,
        key: &v1::Key,
        caller: &Caller<'_>,
        is_present: impl Fn(&EdgeRun) -> bool,
    ) -> Option<EdgeRun> {
        let state = self.state.lock();
        let (keeper, until) = state.keepers.get(key)?;
        let may_join = *until > Instant::now() && caller.may_join(keeper) && is_present(keeper);
        may_join.then(|| keeper.clone())
    }

    /// How to handle an unknown key, or `None` if nobody asks for it. `seen` is the value of
    /// [`Self::ended`] before the table was read.
    fn asked(&self, key: &v1::Key, seen: u64) -> Option<Claim> {
        let state = self.state.lock();
        let until = |probe: &Probe| probe.begun + PROBE_LEASE;
        let running = state.probes.get(key);
        match running.filter(|probe| until(probe) > Instant::now()) {
            Some(probe) => Some(Claim::Wait(probe.ended.subscribe(), until(probe))),
            None => state.look_again(key, seen),
        }
    }

    /// The same for an edge, which asks from now on if nobody does.
    fn claim(
        &self,
        key: &v1::Key,
        caller: &Caller<'_>,
        seen: u64,
        is_present: impl Fn(&EdgeRun) -> bool,
    ) -> Result<Claim, ServiceError> {
        let mut state = self.state.lock();
        let now = Instant::now();
        if let Some(probe) = state
            .probes
            .get(key)
            .filter(|probe| caller.waits_until(probe) > now && is_present(&probe.by))
        {
            let until = if !caller.may_join(&probe.by) {
                caller.waits_until(probe)
            } else if probe.begun + JOIN_AFTER > now {
                probe.begun + JOIN_AFTER
            } else {
                return Ok(Claim::Join(probe.by.clone()));
            };
            return Ok(Claim::Wait(probe.ended.subscribe(), until));
        }
        if let Some(claim) = state.look_again(key, seen) {
            return Ok(claim);
        }
        if state.probes.len() >= MAX_REMEMBERED {
            let is_running = |probe: &Probe| probe.begun + PROBE_LEASE > now;
            state.probes.retain(|_, probe| is_running(probe));
        }
        if state.probes.len() >= MAX_REMEMBERED {
            return Err(ServiceError::Exhausted(
                "too many keys are being resolved".into(),
            ));
        }
        let probe = Probe {
            by: caller.edge.clone(),
            begun: now,
            ended: watch::Sender::new(()),
        };
        state.probes.insert(key.clone(), probe);
        Ok(Claim::Ask)
    }
}

/// Waits while an edge asks the origin for the key, whose table entry was not found. Returns
/// whether the table may have changed since it was read at `seen`, see [`Resolver::ended`].
pub async fn wait_while_asked(
    cluster: &Cluster,
    key: &v1::Key,
    seen: u64,
) -> Result<bool, ServiceError> {
    match cluster.resolver.asked(key, seen) {
        Some(Claim::Wait(ended, until)) => wait(cluster, ended, until).await.map(|()| true),
        other => Ok(other.is_some()),
    }
}

async fn wait(
    cluster: &Cluster,
    mut ended: watch::Receiver<()>,
    until: Instant,
) -> Result<(), ServiceError> {
    tokio::select! {
        // The sender is dropped and never written, so an error is the wake-up.
        _ = ended.changed() => Ok(()),
        () = tokio::time::sleep_until(until) => Ok(()),
        () = cluster.shutdown.cancelled() => Err(ServiceError::ShuttingDown),
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            probes: HashMap::new(),
            negatives: HashMap::new(),
            keepers: HashMap::new(),
            ended: [0; ENDED],
            hasher: RandomState::new(),
        }
    }
}

/// Whether the key may be remembered beyond its question.
fn is_short(key: &v1::Key) -> bool {
    key.path.len() + key.query.len() <= LONGEST_REMEMBERED
}

impl State {
    #[expect(clippy::cast_possible_truncation, reason = "below ENDED")]
    fn counter(&self, key: &v1::Key) -> usize {
        (self.hasher.hash_one(key) % ENDED as u64) as usize
    }

    /// Whether the key's row may have changed since it was read.
    fn look_again(&self, key: &v1::Key, seen: u64) -> Option<Claim> {
        (self.ended[self.counter(key)] != seen).then_some(Claim::LookAgain)
    }

    fn end(&mut self, key: &v1::Key) {
        let counter = self.counter(key);
        self.ended[counter] += 1;
        self.probes.remove(key);
    }
}

/// Resolves a key for an edge.
pub async fn resolve_key(
    cluster: &Cluster,
    request: v1::ResolveKeyRequest,
) -> Result<v1::ResolveKeyResponse, ServiceError> {
    cluster.require_leader()?;
    let key = request
        .key
        .ok_or_else(|| ServiceError::invalid("key", "expected a key"))?;
    source_name::check_source_name(&key.source)
        .map_err(|e| ServiceError::invalid("key.source", e.to_string()))?;
    if key.path.is_empty() {
        return Err(ServiceError::invalid("key.path", "expected a path"));
    }
    super::observe::check_key(&key)?;
    let is_present = cluster
        .registry
        .by_name(&request.edge)
        .is_some_and(|live| live.epoch == request.epoch);
    if !is_present {
        return Err(ServiceError::StaleEpoch {
            edge: request.edge,
            given: request.epoch,
        });
    }
    if cluster.source(&key.source).is_none() {
        return Err(ServiceError::not_found(Resource::Source, key.source));
    }
    let caller = Caller {
        edge: EdgeRun {
            name: request.edge,
            epoch: request.epoch,
        },
        passed_over: &request.passed_over,
        since: Instant::now(),
    };
    let outcome = outcome(cluster, &key, &caller).await?;
    Ok(v1::ResolveKeyResponse {
        outcome: Some(outcome),
    })
}

/// Records that the edge of a session keeps the answer for a key.
pub fn keep(cluster: &Cluster, session: &EdgeSession, key: &v1::Key) {
    let by = EdgeRun {
        name: session.name.clone(),
        epoch: session.epoch,
    };
    cluster
        .resolver
        .keep(key, by, |edge| session_of(cluster, edge).is_some());
}

/// The edge's session, if it is still the same one and takes requests.
fn session_of(cluster: &Cluster, edge: &EdgeRun) -> Option<Arc<EdgeSession>> {
    let session = cluster.registry.by_name(&edge.name)?;
    let takes = session.epoch == edge.epoch && !session.draining.load(Ordering::Relaxed);
    takes.then_some(session)
}

async fn outcome(
    cluster: &Cluster,
    key: &v1::Key,
    caller: &Caller<'_>,
) -> Result<Outcome, ServiceError> {
    let is_present = |edge: &EdgeRun| session_of(cluster, edge).is_some();
    let at = |edge: &EdgeRun| {
        session_of(cluster, edge).map(|session| {
            Outcome::Keeper(v1::Keeper {
                edge: session.name.clone(),
                url: session.url.clone(),
            })
        })
    };
    loop {
        let seen = cluster.resolver.ended(key);
        let keeper = cluster.resolver.keeper(key, caller, is_present);
        if let Some(outcome) = keeper.as_ref().and_then(at) {
            return Ok(outcome);
        }
        if let Some(binding) = cluster.database.binding(key).await? {
            if binding.is_idle {
                // Mark it as used before it is returned: it must not be forgotten while its first
                // chunk is on the way.
                let entry = binding.entry.id;
                cluster.writer.write(TouchEntry { entry }).await?;
            }
            return Ok(Outcome::Known(stamped(binding.to_proto())));
        }
        if let Some(negative) = cluster.resolver.find_negative(key) {
            return Ok(Outcome::Negative(negative));
        }
        match cluster.resolver.claim(key, caller, seen, is_present)? {
            Claim::LookAgain => {}
            Claim::Ask => {
                return Ok(Outcome::Probe(v1::ProbeLease {
                    lease_ms: u32::try_from(PROBE_LEASE.as_millis()).unwrap_or(u32::MAX),
                    chunk_size: cluster.chunk_size,
                }));
            }
            Claim::Join(edge) => {
                if let Some(outcome) = at(&edge) {
                    return Ok(outcome);
                }
            }
            Claim::Wait(ended, until) => wait(cluster, ended, until).await?,
        }
    }
}

/// With time stamps for an edge, whose clock may differ.
#[must_use]
pub fn stamped(binding: v1::KeyBinding) -> v1::KeyBinding {
    v1::KeyBinding {
        freshness: binding
            .freshness
            .map(|freshness| freshness::stamp(freshness, now_ms())),
        ..binding
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "resolve_key_tests.rs"]
mod tests;
