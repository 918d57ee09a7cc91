//! Explains the present decision on one chunk, and lists what is outstanding.

use std::collections::BTreeMap;
use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Level};

use super::Scheduler;
use super::api::{EdgeId, EntryNo, FetchSource, Millis, Reason};
use super::budget::Refusal;
use super::claim::{Claim, Owner};
use super::route::RouteOutcome;
use super::state::RunningFetch;
use chunkcache_proto::RangeSet;

/// The state of a wanted chunk on one edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecisionState {
    /// Queued: it could be assigned when a slot is free.
    Wanted,
    /// Something other than a slot is missing; see [`Decision::blocked_by`].
    Waiting,
    /// Assigned to the edge; no bytes have arrived yet.
    Assigned,
    /// Bytes are arriving.
    Running,
}

impl DecisionState {
    /// The name used in the answer of `ExplainChunk`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Waiting => "waiting",
            Self::Assigned => "assigned",
            Self::Running => "running",
        }
    }
}

/// The decision for one chunk on one edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub edge: EdgeId,
    pub level: Level,
    pub state: DecisionState,
    /// Where it comes from, or would come from now.
    pub from: FetchSource,
    /// Why it is wanted.
    pub reason: Reason,
    /// Readers that wait for it or have it in their lookahead; those of one viewer count once.
    pub readers: u32,
    /// On the scheduler's clock, if it has one.
    pub deadline: Option<Millis>,
    /// How much the player of the reader in `reason` has buffered, if it reported it.
    pub player_buffer_ms: Option<u32>,
    /// The viewer of the reader in `reason`; 0: its player named no session.
    pub viewer: u64,
    /// When the viewer will request the object, if the reader in `reason` is its next request.
    pub due: Option<Millis>,
    /// Why it waits, in words.
    pub blocked_by: Option<&'static str>,
}

impl Scheduler {
    /// One decision for each edge that wants the chunk or fetches it, by edge.
    #[must_use]
    pub fn explain(&self, entry: EntryNo, chunk: ChunkIndex, now: Millis) -> Vec<Decision> {
        let now = now.max(self.now);
        let Some(known) = self.entries.get(&entry) else {
            return Vec::new();
        };
        known
            .replicas
            .keys()
            .filter_map(|&edge| self.explain_on(edge, entry, chunk, now))
            .collect()
    }

    /// Whether this scheduler serves waits for the entry on this edge, now or as soon as the origin
    /// allows it.
    #[must_use]
    pub fn is_schedulable(&self, edge: EdgeId, entry: EntryNo) -> bool {
        let Some(known) = self.entries.get(&entry) else {
            return false;
        };
        let registered = self
            .sources
            .get(&known.source)
            .is_some_and(|source| source.registered);
        registered && !known.changed && self.may_fetch(edge)
    }

    fn explain_on(
        &self,
        edge: EdgeId,
        entry: EntryNo,
        chunk: ChunkIndex,
        now: Millis,
    ) -> Option<Decision> {
        let one = chunk..chunk + 1;
        let owners = self.owners_of(edge, entry, &one);
        let viewer_of = |owner: &Owner| match owner {
            Owner::Waiting(reader) | Owner::Lookahead(reader) => {
                let viewer = self.claims.get(owner).map_or(0, |claim| claim.viewer);
                Some(match viewer {
                    0 => (reader.number, false),
                    viewer => (viewer, true),
                })
            }
            _ => None,
        };
        let distinct: std::collections::BTreeSet<_> = owners.iter().filter_map(viewer_of).collect();
        let readers = u32::try_from(distinct.len()).unwrap_or(u32::MAX);
        let state = self.edges.get(&edge)?;
        let flying = state
            .fetches
            .iter()
            .filter(|fetch| fetch.entry == entry && fetch.brings().contains(&chunk));
        if let Some(fetch) = flying.min_by_key(|fetch| (fetch.cancelling, fetch.level, fetch.id)) {
            let decision = self.explain_fetch(edge, fetch);
            return Some(Decision {
                readers,
                ..decision
            });
        }
        if self.replica(edge, entry)?.held.contains(chunk) {
            return None;
        }
        let claims = owners
            .iter()
            .filter_map(|owner| Some((*owner, self.claims.get(owner)?)));
        let (owner, claim) =
            claims.min_by_key(|(owner, claim)| (claim.level, claim.queued, *owner))?;
        let decision = self.explain_claim(owner, claim, chunk, now);
        Some(Decision {
            readers,
            ..decision
        })
    }

    fn explain_fetch(&self, edge: EdgeId, fetch: &RunningFetch) -> Decision {
        let reason = self.reason_of(edge, fetch);
        let claim = self.claim_of(reason);
        Decision {
            edge,
            level: fetch.level,
            state: match fetch.bytes_done {
                0 => DecisionState::Assigned,
                _ => DecisionState::Running,
            },
            from: fetch.from,
            reason,
            readers: 0,
            deadline: timed(fetch.deadline),
            player_buffer_ms: claim.and_then(|it| it.player_buffer_ms),
            viewer: claim.map_or(0, |it| it.viewer),
            due: claim.and_then(Claim::due),
            blocked_by: fetch
                .cancelling
                .then_some("being cancelled; its chunk under way is finished"),
        }
    }

    fn explain_claim(
        &self,
        owner: Owner,
        claim: &Claim,
        chunk: ChunkIndex,
        now: Millis,
    ) -> Decision {
        let (edge, level) = (claim.edge, claim.level);
        let route = self.find_route(edge, claim.entry, chunk, chunk + 1, level, false);
        let blocked_edge = match self.edges.get(&edge) {
            Some(state) if !state.alive => Some("the edge is not connected"),
            Some(state) if state.faulted_until > now => {
                Some("the edge reported a fault of its disk")
            }
            _ => None,
        };
        let from = match &route {
            RouteOutcome::Take(route) if blocked_edge.is_none() => route.from,
            _ => FetchSource::Origin,
        };
        let yields = owner.is_background() && !self.fill_may_run(claim.source);
        let blocked_by = blocked_edge.or_else(|| why_blocked(&route));
        let blocked_by = blocked_by.or(yields.then_some("something more urgent needs the origin"));
        let of_reader = self.claim_of(owner.reason());
        Decision {
            edge,
            level,
            state: match blocked_by {
                Some(_) => DecisionState::Waiting,
                None => DecisionState::Wanted,
            },
            from,
            reason: owner.reason(),
            readers: 0,
            deadline: claim.queued.and_then(|key| timed(key.deadline)),
            player_buffer_ms: of_reader.and_then(|it| it.player_buffer_ms),
            viewer: of_reader.map_or(0, |it| it.viewer),
            due: of_reader.and_then(Claim::due),
            blocked_by,
        }
    }

    /// The claim of the reader that it names.
    fn claim_of(&self, reason: Reason) -> Option<&Claim> {
        let owner = match reason {
            Reason::ReaderWaits(reader) => Owner::Waiting(reader),
            Reason::Lookahead(reader) => Owner::Lookahead(reader),
            _ => return None,
        };
        self.claims.get(&owner)
    }

    /// The running fetches of an entry, by edge. For the dashboard's chunk map.
    pub fn fetches_of(&self, entry: EntryNo) -> impl Iterator<Item = (EdgeId, &RunningFetch)> + '_ {
        self.fetches()
            .filter(move |(_, fetch)| fetch.entry == entry)
    }

    /// Why the fetch runs now: its most urgent owner, which may differ from the owner it was begun
    /// for.
    #[must_use]
    pub fn reason_of(&self, edge: EdgeId, fetch: &RunningFetch) -> Reason {
        if matches!(fetch.reason, Reason::Hedge(_)) {
            return fetch.reason;
        }
        let owners = self.owners_of(edge, fetch.entry, &fetch.chunks);
        // Most urgent first.
        owners
            .into_iter()
            .min()
            .map_or(fetch.reason, |owner| owner.reason())
    }

    /// All running fetches, by edge.
    pub fn fetches(&self) -> impl Iterator<Item = (EdgeId, &RunningFetch)> + '_ {
        self.edges
            .iter()
            .flat_map(|(edge, state)| state.fetches.iter().map(move |fetch| (*edge, fetch)))
    }

    /// Wanted chunks, by level, that no running fetch brings. The cost grows with the number of
    /// claims, so call it for status and metrics, not for each event.
    #[must_use]
    pub fn queued_by_level(&self) -> [u64; 4] {
        let mut counts = [0; 4];
        for ((edge, entry, level), chunks) in self.wanted() {
            let covered = self.replica(edge, entry).map(|replica| &replica.covered);
            let missing = |range: Range<ChunkIndex>| {
                let there = covered.map_or(0, |covered| covered.count_in(range.clone()));
                u64::from(range.end - range.start) - there
            };
            counts[level as usize] += chunks.iter().map(missing).sum::<u64>();
        }
        counts
    }

    /// Chunks of running fetches, by level.
    #[must_use]
    pub fn running_by_level(&self) -> [u64; 4] {
        let mut counts = [0; 4];
        for fetch in self.edges.values().flat_map(|edge| &edge.fetches) {
            let left = fetch.chunks.end - fetch.chunks.start;
            counts[fetch.level as usize] += u64::from(left.saturating_sub(fetch.chunks_done));
        }
        counts
    }

    /// Chunks wanted and not held, by edge, entry and level; each counts at the highest level at
    /// which it is wanted.
    #[must_use]
    pub fn wanted(&self) -> BTreeMap<(EdgeId, EntryNo, Level), RangeSet<ChunkIndex>> {
        let mut wanted: BTreeMap<_, RangeSet<ChunkIndex>> = BTreeMap::new();
        let lasting = |owner: &Owner| !self.is_hand_over(*owner);
        for (_, claim) in self.claims.iter().filter(|(owner, _)| lasting(owner)) {
            let set = wanted
                .entry((claim.edge, claim.entry, claim.level))
                .or_default();
            match &claim.ranges {
                None => set.insert(claim.span.clone()),
                Some(ranges) => ranges.iter().for_each(|range| set.insert(range)),
            }
        }
        let keys: Vec<_> = wanted.keys().copied().collect();
        for (edge, entry, level) in keys {
            let held = self
                .replica(edge, entry)
                .map(|replica| replica.held.clone())
                .unwrap_or_default();
            let higher = Level::ALL.into_iter().filter(|&other| other < level);
            let above: Vec<_> = higher
                .filter_map(|other| wanted.get(&(edge, entry, other)).cloned())
                .collect();
            if let Some(set) = wanted.get_mut(&(edge, entry, level)) {
                for range in std::iter::once(&held)
                    .chain(&above)
                    .flat_map(RangeSet::iter)
                {
                    set.remove(range);
                }
            }
        }
        wanted.retain(|_, set| !set.is_empty());
        wanted
    }
}

/// A deadline that is a time: 0, 1 and the greatest number stand for the order of background work.
fn timed(deadline: Millis) -> Option<Millis> {
    (deadline > 1 && deadline < Millis::MAX).then_some(deadline)
}

fn why_blocked(route: &RouteOutcome) -> Option<&'static str> {
    match route {
        RouteOutcome::Take(_) | RouteOutcome::Split(_) => None,
        RouteOutcome::Wait(_) => {
            Some("after a failure, without a signature, or until a peer may send it")
        }
        RouteOutcome::Refused(Refusal::Unregistered) => {
            Some("the source or the entry is not fetched any more")
        }
        RouteOutcome::Refused(Refusal::BackOff(_)) => Some("the origin asked for rest, or failed"),
        RouteOutcome::Refused(Refusal::Connections) => {
            Some("all connections to the origin are in use")
        }
    }
}
