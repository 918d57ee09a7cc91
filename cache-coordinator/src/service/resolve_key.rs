//! Resolves keys to entries, for edges. A key that the table knows is resolved at once; for another
//! key, one caller in the cluster asks the origin and the others wait for its finding.
//!
//! Waits end by events: the end of a probe drops its channel, which wakes all waiters. A probe
//! without an answer ends when its lease expires.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use chunkcache_proto::{source_name, v1};
use http_rules::freshness;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use v1::resolve_key_response::Outcome;

use super::{
    Cluster,
    error::{Resource, ServiceError},
};
use crate::db::writer::TouchEntry;

/// The caller must ask the origin within this time; after it, another caller may.
const PROBE_LEASE: Duration = Duration::from_secs(2);
/// Limit of keys that are remembered as being asked for, and of keys remembered as absent.
const MAX_REMEMBERED: usize = 10_000;
/// Longer keys are not remembered as absent, because clients choose them; the edges remember them
/// too.
const LONGEST_ABSENT: usize = 1_024;
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

#[derive(Debug)]
struct Probe {
    until: Instant,
    /// Dropped when the probe ends.
    ended: watch::Sender<()>,
}

/// How to handle an unknown key.
#[derive(Debug)]
enum Claim {
    /// The caller asks the origin.
    Ask,
    /// Another caller does. The table is read again when this wakes.
    Wait(watch::Receiver<()>, Instant),
    /// The table may have changed since it was read.
    LookAgain,
}

impl Resolver {
    /// Wakes the waiters of a key that was bound or rebound.
    pub fn bound(&self, key: &v1::Key) {
        let mut state = self.state.lock();
        state.negatives.remove(key);
        state.end(key);
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
        let is_short = key.path.len() + key.query.len() <= LONGEST_ABSENT;
        if is_short && !valid_for.is_zero() && state.negatives.len() < MAX_REMEMBERED {
            state.negatives.insert(key.clone(), answer);
        }
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

    /// How to handle an unknown key, or `None` if nobody asks for it. `seen` is the value of
    /// [`Self::ended`] before the table was read.
    fn asked(&self, key: &v1::Key, seen: u64) -> Option<Claim> {
        let state = self.state.lock();
        state.asked(key, seen, Instant::now())
    }

    /// The same; if nobody asks for the key, the caller does from now on.
    fn claim(&self, key: &v1::Key, seen: u64) -> Result<Claim, ServiceError> {
        let mut state = self.state.lock();
        let now = Instant::now();
        if let Some(claim) = state.asked(key, seen, now) {
            return Ok(claim);
        }
        if state.probes.len() >= MAX_REMEMBERED {
            state.probes.retain(|_, probe| probe.until > now);
        }
        if state.probes.len() >= MAX_REMEMBERED {
            return Err(ServiceError::Exhausted(
                "too many keys are being resolved".into(),
            ));
        }
        let probe = Probe {
            until: now + PROBE_LEASE,
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
            ended: [0; ENDED],
            hasher: RandomState::new(),
        }
    }
}

impl State {
    #[expect(clippy::cast_possible_truncation, reason = "below ENDED")]
    fn counter(&self, key: &v1::Key) -> usize {
        (self.hasher.hash_one(key) % ENDED as u64) as usize
    }

    fn asked(&self, key: &v1::Key, seen: u64, now: Instant) -> Option<Claim> {
        let running = self.probes.get(key).filter(|probe| probe.until > now);
        match running {
            Some(probe) => Some(Claim::Wait(probe.ended.subscribe(), probe.until)),
            None => (self.ended[self.counter(key)] != seen).then_some(Claim::LookAgain),
        }
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
    let outcome = outcome(cluster, &key).await?;
    Ok(v1::ResolveKeyResponse {
        outcome: Some(outcome),
    })
}

async fn outcome(cluster: &Cluster, key: &v1::Key) -> Result<Outcome, ServiceError> {
    loop {
        let seen = cluster.resolver.ended(key);
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
        match cluster.resolver.claim(key, seen)? {
            Claim::LookAgain => {}
            Claim::Ask => {
                return Ok(Outcome::Probe(v1::ProbeLease {
                    lease_ms: u32::try_from(PROBE_LEASE.as_millis()).unwrap_or(u32::MAX),
                    chunk_size: cluster.chunk_size,
                }));
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

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(path: &str) -> v1::Key {
        v1::Key {
            source: "films".into(),
            path: path.into(),
            ..Default::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_asks_and_the_others_wait_until_it_is_bound() {
        let resolver = Resolver::default();
        let seen = resolver.ended(&key("a"));
        assert!(matches!(resolver.claim(&key("a"), seen), Ok(Claim::Ask)));
        let Ok(Claim::Wait(mut ended, _)) = resolver.claim(&key("a"), seen) else {
            panic!("expected to wait");
        };
        assert!(matches!(resolver.claim(&key("b"), seen), Ok(Claim::Ask)));
        resolver.bound(&key("a"));
        assert!(ended.changed().await.is_err());
        assert!(matches!(
            resolver.claim(&key("a"), seen),
            Ok(Claim::LookAgain)
        ));
    }

    #[test]
    fn a_key_that_nobody_asks_for_is_waited_for_by_nobody() {
        let resolver = Resolver::default();
        let asked = |path: &str, seen| resolver.asked(&key(path), seen);
        let seen = resolver.ended(&key("a"));
        assert!(asked("a", seen).is_none());
        assert!(matches!(resolver.claim(&key("a"), seen), Ok(Claim::Ask)));
        assert!(matches!(asked("a", seen), Some(Claim::Wait(..))));
        resolver.bound(&key("a"));
        assert!(matches!(asked("a", seen), Some(Claim::LookAgain)));
        // Other keys' ends make nobody look again, but for a few with the same counter.
        let looking = (0..100).filter(|n| asked(&n.to_string(), 0).is_some());
        assert!(looking.count() < 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_probe_ends_with_its_lease() {
        let resolver = Resolver::default();
        assert!(matches!(resolver.claim(&key("a"), 0), Ok(Claim::Ask)));
        tokio::time::advance(PROBE_LEASE).await;
        assert!(matches!(resolver.claim(&key("a"), 0), Ok(Claim::Ask)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_absent_object_is_remembered_for_a_while() {
        let resolver = Resolver::default();
        let negative = |path: &str, valid_for_ms| v1::KeyNegative {
            key: Some(key(path)),
            http_status: 404,
            valid_for_ms,
        };
        resolver.negative(negative("a", u32::MAX));
        let found = resolver.find_negative(&key("a")).unwrap();
        assert!(found.valid_for_ms <= 60_000);
        tokio::time::advance(MAX_NEGATIVE).await;
        assert!(resolver.find_negative(&key("a")).is_none());
        resolver.negative(negative("a", 0));
        assert!(resolver.find_negative(&key("a")).is_none());
        let long = "x".repeat(LONGEST_ABSENT + 1);
        resolver.negative(negative(&long, 60_000));
        assert!(resolver.find_negative(&key(&long)).is_none());
    }
}
