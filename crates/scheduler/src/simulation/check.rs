//! The invariants, asserted after each event.

use std::collections::BTreeSet;

use chunkcache_proto::Level;

use super::super::Scheduler;
use super::super::api::*;
use super::super::budget::Refusal;
use super::super::claim::Owner;
use super::super::route::RouteOutcome;
use super::world::World;
use chunkcache_proto::RangeSet;

impl World {
    pub fn check(&self) {
        self.check_single_origin_fetch();
        self.check_asked_again();
        self.check_limits();
        let seed = self.seed;
        consistent(&self.scheduler, seed);
        nobody_waits_behind_a_lower_level(&self.scheduler, seed);
    }

    /// Checks an assignment when it is made: the edge must not have the chunks.
    pub fn check_assignment(&self, a: &Assignment) {
        let edge = &self.edges[a.edge.0 as usize];
        let chunks = a.first_chunk..a.first_chunk + a.chunk_count;
        if let Some(held) = edge.held.get(&a.entry)
            && edge.fetches.is_empty()
        {
            assert!(
                !held.intersects(chunks),
                "seed {}: fetched what is held",
                self.seed
            );
        }
        assert!(a.chunk_count >= 1);
        if a.level == Level::Critical
            && !matches!(
                a.reason,
                Reason::Lookahead(_) | Reason::Want(_) | Reason::BackgroundFill | Reason::Hint(_)
            )
        {
            assert_eq!(
                a.chunk_count, 1,
                "seed {}: who waits does not wait for a run",
                self.seed
            );
        }
    }

    /// A chunk has one origin fetch at a time, except for a hedge, an edge's own fetch and a peer
    /// that failed.
    fn check_single_origin_fetch(&self) {
        let fetches = self.edges.iter().flat_map(|edge| edge.fetches.values());
        let origin: Vec<_> = fetches
            .filter(|f| f.a.from == FetchSource::Origin && !f.cancelled && !f.is_local())
            .collect();
        for (index, one) in origin.iter().enumerate() {
            for other in &origin[index + 1..] {
                let (a, b) = (one.chunks(), other.chunks());
                if one.a.entry != other.a.entry || a.end <= b.start || b.end <= a.start {
                    continue;
                }
                let hedge = matches!(one.a.reason, Reason::Hedge(_))
                    || matches!(other.a.reason, Reason::Hedge(_));
                let newer = if one.a.id < other.a.id { other } else { one };
                assert!(
                    hedge || newer.doubtful,
                    "seed {}: fetched twice:\n{one:?}\n{other:?}",
                    self.seed
                );
            }
        }
    }

    /// While no peer fails, the coordinator asks an origin for nothing that an edge already has.
    fn check_asked_again(&self) {
        let again = self.scheduler.asked_again;
        assert!(
            again.peer == 0 || !self.peer_faults.is_empty(),
            "seed {}: asked again although peers have it: {again:?}",
            self.seed
        );
    }

    /// Describes a limit that is exceeded, if any. Exceptions: an edge without a session uses one
    /// connection even if there are more edges than connections, and the last connection and an
    /// eighth of the rate are reserved for edges in session.
    fn over_limits(&self) -> Option<String> {
        (0..).zip(&self.sources).find_map(|(number, source)| {
            let id = SourceId(number);
            let limit = source.max_connections as usize;
            let (assigned, leased) = (self.assigned_of(id), self.leased_of(id));
            let absent = self.absent_of(id);
            let mut away = absent.connections as usize;
            if self.edges.len() > limit || assigned + leased.connections as usize == 1 {
                away = away.min(limit.saturating_sub(1));
            }
            let open = assigned + leased.connections as usize + away;
            if limit > 0 && open > limit {
                return Some(format!(
                    "{open} connections of {limit}: {assigned} assigned, {} \
                 leased, {away} of edges without a session",
                    leased.connections
                ));
            }
            let whole = source.max_rate;
            let rest = whole - whole / 8;
            let rate = leased.bytes_per_second + absent.bytes_per_second.min(rest);
            (whole > 0 && rate > whole).then(|| format!("{rate} bytes per second of {whole}"))
        })
    }

    pub fn assigned_of(&self, source: SourceId) -> usize {
        self.fetches_of(source).count()
    }

    fn fetches_of(&self, source: SourceId) -> impl Iterator<Item = &super::world::SimFetch> {
        let all = self.edges.iter().flat_map(|edge| edge.fetches.values());
        all.filter(move |f| {
            f.a.from == FetchSource::Origin
                && !f.is_local()
                && self.entries[f.a.entry.0 as usize].0 == source
        })
    }

    fn check_limits(&self) {
        let over = self.over_limits().filter(|_| !self.unnamed);
        assert!(over.is_none(), "seed {}: {}", self.seed, over.unwrap());
        for edge in &self.edges {
            let active = edge
                .fetches
                .values()
                .filter(|f| !f.cancelled && !f.is_local())
                .count();
            assert!(
                active <= 4 * edge.max as usize + 2,
                "seed {}: {active} assignments",
                self.seed
            );
        }
    }
}

/// Indexes and counters agree with what they summarise.
fn consistent(scheduler: &Scheduler, seed: u64) {
    for (&id, edge) in &scheduler.edges {
        let used = edge
            .fetches
            .iter()
            .filter(|f| f.slot && !f.cancelling && !f.is_local())
            .count();
        assert!(
            used <= edge.max_downloads as usize + 1,
            "seed {seed}: {used} slots on {id:?}"
        );
        let fetches = || edge.fetches.iter().filter(|f| !f.cancelling);
        for level in [Level::Critical, Level::High] {
            let waits = fetches().any(|f| f.level == level && !f.slot);
            let lower = fetches().any(|f| f.level > level && f.slot && !f.is_local());
            assert!(
                !(waits && lower),
                "seed {seed}: a {level:?} fetch has no slot and a lower one has"
            );
        }
        let uploads = scheduler
            .edges
            .values()
            .flat_map(|edge| &edge.fetches)
            .filter(|f| f.from == FetchSource::Peer(id))
            .count();
        assert_eq!(edge.uploads as usize, uploads, "seed {seed}: uploads");
        assert_eq!(
            scheduler.edges_with_slots.contains(id),
            edge.has_room(),
            "seed {seed}: room on {id:?}"
        );
    }
    for (&id, source) in &scheduler.sources {
        let (mut running, mut queued, mut own) = ([0; 4], [0; 4], 0);
        let mut fetches = BTreeSet::new();
        let edges = scheduler.edges.iter();
        for (&edge, f) in edges.flat_map(|(id, edge)| edge.fetches.iter().map(move |f| (id, f))) {
            if f.source == id && f.from == FetchSource::Origin {
                running[f.level as usize] += 1;
                fetches.insert((f.level, edge, f.id));
                own += u32::from(f.is_local());
            }
        }
        for claim in scheduler
            .claims
            .values()
            .filter(|claim| claim.source == id && claim.queued.is_some())
        {
            queued[claim.level as usize] += 1;
        }
        assert_eq!(
            (source.running, source.queued, source.own),
            (running, queued, own),
            "seed {seed}: source"
        );
        assert_eq!(source.fetches, fetches, "seed {seed}: fetches of {id:?}");
        let quotas = source.quotas.values();
        let granted_connections: u32 = quotas
            .map(|it| it.due.max(it.outstanding.connections))
            .sum();
        assert_eq!(
            source.granted_connections, granted_connections,
            "seed {seed}: connections granted"
        );
    }
    for (&entry, known) in &scheduler.entries {
        for (&edge, replica) in &known.replicas {
            assert_eq!(
                known.waiting.contains(edge),
                replica.queued > 0,
                "seed {seed}: who waits for {entry:?}"
            );
            let mut covered: RangeSet<u32> = replica.held.clone();
            let fetches = scheduler
                .edges
                .get(&edge)
                .map_or(&[][..], |edge| &edge.fetches[..]);
            for fetch in fetches.iter().filter(|fetch| fetch.entry == entry) {
                covered.insert(fetch.brings());
            }
            assert_eq!(
                replica.covered, covered,
                "seed {seed}: what is covered of {entry:?} on {edge:?}"
            );
        }
    }
    for (owner, claim) in &scheduler.claims {
        let mut looked = claim.clone();
        looked.cursor = 0;
        let replica = scheduler.replica(claim.edge, claim.entry).unwrap();
        if let Some((gap, _)) = looked.first_gap(&replica.covered) {
            assert!(
                claim.queued.is_some(),
                "seed {seed}: {owner:?} is not queued for {gap}"
            );
            assert!(
                claim.cursor <= gap,
                "seed {seed}: {owner:?} has passed {gap}"
            );
        }
    }
}

/// Each queued CRITICAL claim has a reason to wait other than a lower level.
fn nobody_waits_behind_a_lower_level(scheduler: &Scheduler, seed: u64) {
    for (owner, claim) in &scheduler.claims {
        let ready = claim
            .queued
            .is_some_and(|key| key.not_before <= scheduler.now);
        if !matches!(owner, Owner::Waiting(_)) || !ready || !scheduler.may_fetch(claim.edge) {
            continue;
        }
        let replica = scheduler.replica(claim.edge, claim.entry).unwrap();
        if replica.covered.contains(claim.span.start) {
            continue;
        }
        let edge = &scheduler.edges[&claim.edge];
        match scheduler.find_route(
            claim.edge,
            claim.entry,
            claim.span.start,
            claim.span.end,
            Level::Critical,
            false,
        ) {
            RouteOutcome::Take(route) => {
                assert!(
                    edge.critical() > 2 * edge.max_downloads,
                    "seed {seed}: {owner:?} could have {route:?}"
                );
            }
            RouteOutcome::Split(_) => {
                assert!(
                    edge.critical() > 2 * edge.max_downloads,
                    "seed {seed}: {owner:?} could split"
                );
            }
            RouteOutcome::Refused(Refusal::Connections)
                if edge.critical() <= 2 * edge.max_downloads =>
            {
                let fetches = || {
                    let all = scheduler.edges.values().flat_map(|edge| &edge.fetches);
                    all.filter(|f| f.source == claim.source && f.from == FetchSource::Origin)
                };
                let lower =
                    fetches().any(|f| f.level > Level::Critical && !f.cancelling && !f.is_local());
                let leaving = fetches().any(|f| f.cancelling);
                assert!(
                    !lower || leaving,
                    "seed {seed}: {owner:?} waits behind a lower level's connection"
                );
            }
            RouteOutcome::Refused(_) | RouteOutcome::Wait(_) => {}
        }
    }
}
