//! Quota leases: how much of an origin's limits each edge may be using, and until when.
//!
//! An edge in session renews its leases with each heartbeat. Each lease grants connections for the
//! edge's own requests (an assigned fetch brings its own connection), and bytes a second for all it
//! reads from the source. The grant is counted until the lease expires, whether or not there is a
//! session; from then on the edge uses no more than its floor, and that is counted instead. RFC
//! 0007 has the table of states and the invariant.
//!
//! While the edge has not confirmed a smaller grant, the larger one is counted. No quota state
//! survives a restart: a new term reserves the whole limit for each expected edge until its leases
//! have expired. `share` decides how much each edge gets.

mod share;

use std::collections::BTreeMap;

use super::Scheduler;
use super::api::{EdgeId, Effect, Lease, Millis, QuotaUse, Share, SourceId};
use super::invariant::Invariant;
use super::state::{Source, Timer};

/// How long a lease is valid, counted from the report that it answers.
pub const LEASE_MS: Millis = 2_500;
/// An edge that was silent for this long is no longer counted.
const GIVEN_UP_MS: Millis = 60_000;
/// Sanity cap: more than the requests of any one edge.
const MAX_WANTED: u32 = 4_096;
/// This part of the rate is divided equally among all edges, so that a first byte does not wait for
/// a new lease.
const STANDING_PART: u64 = 8;

/// The quota of one source for one edge in session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeQuota {
    /// Connections for its own requests, as last reported, and those of them that viewers are
    /// blocked on.
    pub wanted: u32,
    pub urgent: u32,
    /// The connections it should have.
    pub due: u32,
    /// The last grant sent, and its sequence number.
    pub granted: Share,
    pub floor: Share,
    pub sequence: u64,
    /// The most that it may be using.
    pub outstanding: Share,
    /// The largest floor that it may be using.
    pub outstanding_floor: Share,
    /// It reported, or its lease changed, and the answer was not sent yet.
    pub news: bool,
    /// Its leases expired although it has a session, so it uses its floor.
    pub is_silent: bool,
}

/// The most that one edge without a session may still be using of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbsentQuota {
    /// Counted until its leases expire.
    granted: Share,
    floor: Share,
    expires: Millis,
    given_up: Millis,
}

impl AbsentQuota {
    fn is_leased(&self, now: Millis) -> bool {
        now < self.expires
    }

    fn counted(&self, now: Millis) -> Share {
        if self.is_leased(now) {
            self.granted.max(self.floor)
        } else {
            self.floor
        }
    }
}

impl Share {
    /// The larger value of each field.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            connections: self.connections.max(other.connections),
            bytes_per_second: self.bytes_per_second.max(other.bytes_per_second),
        }
    }
}

impl Source {
    fn limit(&self) -> Share {
        Share {
            connections: self.max_connections,
            bytes_per_second: self.max_rate_bytes_per_second,
        }
    }

    /// The most that edges without a session may use. A part is always reserved for edges that have
    /// one.
    pub fn absent(&self, now: Millis) -> Share {
        let (mut leased, mut expired) = (Share::default(), Share::default());
        for absent in self.absent.values() {
            let sum = if absent.is_leased(now) {
                &mut leased
            } else {
                &mut expired
            };
            let counted = absent.counted(now);
            sum.connections = sum.connections.saturating_add(counted.connections);
            sum.bytes_per_second = sum
                .bytes_per_second
                .saturating_add(counted.bytes_per_second);
        }
        let limit = self.limit();
        let rate = limit.bytes_per_second - limit.bytes_per_second / STANDING_PART;
        Share {
            connections: expired
                .connections
                .min(limit.connections.saturating_sub(1))
                .saturating_add(leased.connections)
                .min(limit.connections),
            bytes_per_second: expired
                .bytes_per_second
                .min(rate)
                .saturating_add(leased.bytes_per_second)
                .min(limit.bytes_per_second),
        }
    }

    /// Each edge's limits once its lease has expired.
    fn floor(&self, edges: usize) -> Share {
        let edges = u32::try_from(edges).unwrap_or(u32::MAX).max(1);
        let part = |whole: u64, edges: u64| {
            if whole == 0 {
                0
            } else {
                (whole / edges).max(1)
            }
        };
        let connections = part(self.max_connections.into(), edges.into());
        Share {
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
            bytes_per_second: part(self.max_rate_bytes_per_second, edges.into()),
        }
    }
}

impl EdgeQuota {
    fn change(&mut self) {
        self.sequence += 1;
        self.news = true;
    }

    fn set_floor(&mut self, floor: Share) {
        if self.floor != floor {
            self.floor = floor;
            self.outstanding_floor = self.outstanding_floor.max(floor);
            self.change();
        }
    }

    /// Nothing was reported, and nothing is in use.
    fn is_idle(&self) -> bool {
        let connections = self.wanted + self.granted.connections + self.outstanding.connections;
        connections == 0 && !self.news
    }
}

impl Scheduler {
    /// Records a report, which comes with a heartbeat or on a change: what the edge uses and which
    /// leases it knows. Renews all its leases.
    pub(super) fn quota_reported(
        &mut self,
        edge: EdgeId,
        number: u64,
        uses: Vec<QuotaUse>,
        effects: &mut Vec<Effect>,
    ) {
        let now = self.now;
        let Some(state) = self.edges.get_mut(&edge).filter(|edge| edge.alive) else {
            // Its session has ended.
            return;
        };
        state.quota_reported = number;
        state.quota_expires = now.saturating_add(LEASE_MS);
        self.quota_news.insert(edge);
        for source in self.sources.values_mut() {
            if let Some(quota) = source.quotas.get_mut(&edge) {
                quota.is_silent = false;
            }
        }
        for said in uses {
            let Some(source) = self.sources.get_mut(&said.source) else {
                // The source is not known.
                continue;
            };
            let Some(quota) = source.quotas.get_mut(&edge) else {
                // Its limits were removed meanwhile.
                continue;
            };
            quota.wanted = said.wanted.min(MAX_WANTED);
            quota.urgent = said.urgent.min(MAX_WANTED);
            quota.news = true;
            if said.sequence == quota.sequence {
                let was = quota.outstanding;
                quota.outstanding = Share {
                    connections: said.held.min(MAX_WANTED).max(quota.granted.connections),
                    ..quota.granted
                };
                quota.outstanding_floor = quota.floor;
                // From now on its use is fully known.
                let is_back = source.absent.remove(&edge).is_some();
                if is_back || quota.outstanding != was {
                    self.dirty_sources.insert(said.source);
                }
            }
            self.grant(said.source, effects);
        }
    }

    /// Grants each edge its present share, or reduces it to that share.
    pub(super) fn grant(&mut self, id: SourceId, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some(source) = self.sources.get_mut(&id).expected() else {
            return;
        };
        source.grant_rates(now);
        let mut lacking = 0;
        if source.max_connections > 0 && !source.quotas.values().all(EdgeQuota::is_idle) {
            lacking = source.grant_connections(now);
        }
        let news = source.quotas.iter().filter(|(_, quota)| quota.news);
        self.quota_news.extend(news.map(|(edge, _)| *edge));
        if lacking > 0 {
            self.preempt_lowest(id, lacking, effects);
        }
    }

    /// Sends each edge its changed leases, and answers its report.
    pub(super) fn tell_quotas(&mut self, effects: &mut Vec<Effect>) {
        for edge in std::mem::take(&mut self.quota_news) {
            let Some(state) = self.edges.get(&edge).filter(|edge| edge.alive) else {
                // Its session has ended.
                continue;
            };
            let mut leases = Vec::new();
            for (&source, known) in &mut self.sources {
                if let Some(quota) = known.quotas.get_mut(&edge)
                    && std::mem::take(&mut quota.news)
                {
                    leases.push(Lease {
                        source,
                        sequence: quota.sequence,
                        granted: quota.granted,
                        floor: quota.floor,
                    });
                }
            }
            effects.push(Effect::Quota {
                edge,
                answers: state.quota_reported,
                leases,
            });
        }
    }

    /// Recomputes the grants of all sources after an edge joined or left, or a limit changed:
    /// floors are parts of the whole.
    pub(super) fn grant_all(&mut self, effects: &mut Vec<Effect>) {
        let alive = || self.edges.iter().filter(|(_, edge)| edge.alive);
        let here = alive().count();
        let mut limited = Vec::new();
        for (&id, source) in &mut self.sources {
            if !source.limited() {
                source.quotas.clear();
                source.absent.clear();
                source.granted_connections = 0;
                continue;
            }
            if source.max_connections == 0 {
                source.granted_connections = 0;
            }
            let is_alive = |edge: &&EdgeId| self.edges.get(edge).is_some_and(|it| it.alive);
            let away = source.absent.keys().filter(|it| !is_alive(it)).count();
            let floor = source.floor(here + away);
            for (&edge, _) in alive() {
                let quota = source.quotas.entry(edge).or_default();
                quota.set_floor(floor);
                if source.max_connections == 0 {
                    quota.granted.connections = 0;
                    quota.outstanding.connections = 0;
                }
            }
            limited.push(id);
        }
        for id in limited {
            self.grant(id, effects);
        }
    }

    /// Grants again after time passed: odd connections rotate, readers begin to wait, edges fall
    /// silent.
    pub(super) fn grant_again(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now;
        for (edge, state) in &mut self.edges {
            if !state.alive || now < state.quota_expires {
                continue;
            }
            // The edge or its stream hangs: by now it uses its floor, so that is what counts.
            for source in self.sources.values_mut() {
                if let Some(quota) = source.quotas.get_mut(edge) {
                    quota.outstanding = quota.outstanding.max(quota.outstanding_floor);
                    quota.is_silent = true;
                }
            }
        }
        let short = |quota: &EdgeQuota| {
            quota.wanted != quota.granted.connections || quota.outstanding != quota.granted
        };
        let contended = self.sources.iter().filter(|(_, source)| {
            source.max_rate_bytes_per_second > 0 || source.quotas.values().any(short)
        });
        let contended: Vec<SourceId> = contended.map(|(&id, _)| id).collect();
        for id in contended {
            self.grant(id, effects);
        }
    }

    /// Grants again for sources whose connections became free or whose readers changed.
    pub(super) fn grant_woken(&mut self, effects: &mut Vec<Effect>) {
        let dirty_sources: Vec<SourceId> = self.dirty_sources.iter().copied().collect();
        for id in dirty_sources {
            self.grant(id, effects);
        }
    }

    /// Counts the edge as absent. Must run while its fetches are still known; what that leaves to
    /// others is granted once these are ended.
    pub(super) fn quota_session_ended(&mut self, edge: EdgeId) {
        let now = self.now;
        let Some(state) = self.edges.get(&edge).expected() else {
            return;
        };
        let mut assigned: BTreeMap<SourceId, u32> = BTreeMap::new();
        for fetch in &state.fetches {
            // Local fetches use connections of the edge's grant.
            if fetch.is_from_origin() && !fetch.is_local() {
                *assigned.entry(fetch.source).or_default() += 1;
            }
        }
        let expires = now.saturating_add(LEASE_MS);
        for (&id, source) in &mut self.sources {
            let Some(quota) = source.quotas.remove(&edge) else {
                // The source has no limits.
                continue;
            };
            let granted_connections = quota.due.max(quota.outstanding.connections);
            source.granted_connections = source
                .granted_connections
                .saturating_sub(granted_connections);
            let fetches = assigned.get(&id).copied().unwrap_or(0);
            let granted = Share {
                connections: quota.outstanding.connections.saturating_add(fetches),
                ..quota.outstanding
            };
            let floor = quota.outstanding_floor.max(quota.floor);
            source.set_absent(edge, granted, floor, expires);
            self.timers.insert((expires, Timer::Source(id)));
            self.timers.insert((now + GIVEN_UP_MS, Timer::Source(id)));
            self.dirty_sources.insert(id);
        }
        self.quota_news.remove(&edge);
    }

    /// Reserves the whole limit for each edge that had a session in the last term: any of them may
    /// hold any grant until its leases have expired.
    pub(super) fn edges_expected(&mut self, edges: &[EdgeId], effects: &mut Vec<Effect>) {
        let now = self.now;
        let absent = |edge: &&EdgeId| !self.edges.get(edge).is_some_and(|it| it.alive);
        let absent: Vec<EdgeId> = edges.iter().filter(absent).copied().collect();
        for (&id, source) in &mut self.sources {
            if !source.limited() {
                continue;
            }
            let floor = source.floor(edges.len());
            let expires = now.saturating_add(LEASE_MS);
            for &edge in &absent {
                source.set_absent(edge, source.limit(), floor, expires);
                self.timers.insert((expires, Timer::Source(id)));
                self.timers.insert((now + GIVEN_UP_MS, Timer::Source(id)));
            }
        }
        self.grant_all(effects);
    }

    /// Counts the returned edge's in-flight fetches one by one. Its other use stays counted as
    /// before until it reports.
    pub(super) fn quota_session_began(&mut self, edge: EdgeId) {
        let now = self.now;
        let Some(state) = self.edges.get_mut(&edge).expected() else {
            return;
        };
        state.quota_reported = 0;
        state.quota_expires = now.saturating_add(LEASE_MS);
        for fetch in state.fetches.iter().filter(|fetch| !fetch.is_local()) {
            if let Some(source) = self.sources.get_mut(&fetch.source)
                && let Some(absent) = source.absent.get_mut(&edge)
            {
                let left = absent.granted.connections.saturating_sub(1);
                absent.granted.connections = left;
                absent.floor.connections = absent.floor.connections.saturating_sub(1);
            }
        }
    }

    /// Expires leases of edges without a session, and stops counting edges that are silent for too
    /// long.
    pub(super) fn quotas_expired(&mut self, id: SourceId, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some(source) = self.sources.get_mut(&id).expected() else {
            return;
        };
        let was = source.absent.len();
        source.absent.retain(|_, absent| absent.given_up > now);
        self.dirty_sources.insert(id);
        if source.absent.len() != was {
            self.grant_all(effects);
        }
    }

    /// Bytes a second that the edge may read from the source; 0: no limit.
    pub(super) fn rate_of_edge(&self, edge: EdgeId, source: SourceId) -> u64 {
        let quota = self
            .sources
            .get(&source)
            .and_then(|source| source.quotas.get(&edge));
        quota.map_or(0, |quota| quota.granted.bytes_per_second)
    }
}

impl Source {
    fn set_absent(&mut self, edge: EdgeId, granted: Share, floor: Share, expires: Millis) {
        let given_up = expires - LEASE_MS + GIVEN_UP_MS;
        let absent = AbsentQuota {
            granted,
            floor,
            expires,
            given_up,
        };
        self.absent.insert(edge, absent);
    }
}
