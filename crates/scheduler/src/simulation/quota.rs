//! Edges' own requests, which use a connection of their lease or wait for one, and the continued
//! use by edges without a session.

use std::collections::BTreeMap;

use super::super::api::*;
use super::super::quota::LEASE_MS;
use super::world::World;

/// An edge's use of one source.
#[derive(Clone, Debug, Default)]
pub struct SimQuota {
    pub lease: Option<Lease>,
    /// When each open request ends.
    pub open: Vec<Millis>,
    /// When each queued request began to wait.
    pub waiting: Vec<Millis>,
    /// The last report.
    told: Option<QuotaUse>,
}

/// A little less than the time after which the scheduler stops counting a silent edge.
const GIVEN_UP_MS: Millis = 57_000;

/// The use of a source by an edge without a session.
#[derive(Clone, Copy, Debug)]
pub struct SimAbsent {
    /// When its lease expires, at the latest.
    pub expires: Millis,
    /// The largest grant until then.
    pub had: Share,
    /// The floor after that.
    pub floor: Share,
}

impl SimAbsent {
    /// The most it may use. It uses more than its last grant only once the leases of the others
    /// have expired as well.
    fn has(&self, now: Millis) -> Share {
        let min = |a: Share, b: Share| Share {
            connections: a.connections.min(b.connections),
            bytes_per_second: a.bytes_per_second.min(b.bytes_per_second),
        };
        if now < self.expires {
            self.had
        } else if now < self.expires + LEASE_MS {
            min(self.had, self.floor)
        } else {
            self.floor
        }
    }
}

impl SimQuota {
    pub fn new_session(&mut self) {
        self.lease = None;
        self.told = None;
    }

    fn granted(&self) -> Share {
        self.lease.map_or(Share::default(), |lease| lease.granted)
    }

    fn say(&self, source: SourceId) -> QuotaUse {
        let open = u32::try_from(self.open.len()).unwrap();
        let waiting = u32::try_from(self.waiting.len()).unwrap();
        QuotaUse {
            source,
            sequence: self.lease.map_or(0, |lease| lease.sequence),
            held: open.max(self.granted().connections),
            wanted: open + waiting,
            urgent: waiting,
        }
    }
}

impl World {
    pub fn leased(&mut self, edge: EdgeId, lease: Lease) {
        let edge = &mut self.edges[edge.0 as usize];
        assert!(edge.alive, "a lease for an edge without a session");
        let quota = edge.quotas.entry(lease.source).or_default();
        assert!(quota.lease.is_none_or(|it| it.sequence <= lease.sequence));
        quota.lease = Some(lease);
    }

    /// Requests arrive, get a connection or wait, and end.
    pub fn run_quotas(&mut self, chaos: bool) {
        let some = self.has_restarts();
        for edge in 0..self.edges.len() {
            for number in 0..self.sources.len() {
                let source = SourceId(u32::try_from(number).unwrap());
                if self.is_unlimited(number) || !self.edges[edge].alive {
                    if self.edges[edge].alive {
                        // Report the rate it reads.
                        self.say_quota(edge, number);
                    }
                    continue;
                }
                let come = match chaos && some && self.place_dice.per_mille(120) {
                    true => 1 + self.place_dice.below(6),
                    false => 0,
                };
                let takes: Vec<Millis> = (0..8).map(|_| 5 + self.place_dice.below(400)).collect();
                let slow = self.place_dice.per_mille(300);
                let now = self.now;
                let quota = self.edges[edge].quotas.entry(source).or_default();
                quota.waiting.extend((0..come).map(|_| now));
                quota.open.retain(|&end| end > now);
                for takes in takes {
                    let granted = quota.granted().connections as usize;
                    if quota.open.len() < granted && !quota.waiting.is_empty() {
                        quota.waiting.remove(0);
                        quota.open.push(now + takes);
                    }
                }
                // A smaller number is reported a moment later, a larger one at once.
                let said = quota.say(source);
                if !slow || quota.told.is_none_or(|told| said.wanted > told.wanted) {
                    self.say_quota(edge, number);
                }
            }
        }
    }

    pub fn say_quota(&mut self, edge: usize, number: usize) {
        let source = SourceId(u32::try_from(number).unwrap());
        let Some(quota) = self.edges[edge].quotas.get_mut(&source) else {
            return;
        };
        let said = quota.say(source);
        if quota.told != Some(said) {
            quota.told = Some(said);
            self.report(edge, vec![said]);
        }
    }

    /// Sends a report, with or without changes.
    pub fn report(&mut self, edge: usize, uses: Vec<QuotaUse>) {
        self.edges[edge].reported += 1;
        self.edges[edge].reported_at = self.now;
        self.apply(Event::QuotaReported {
            edge: EdgeId(u32::try_from(edge).unwrap()),
            number: self.edges[edge].reported,
            uses,
        });
    }

    pub fn heartbeats(&mut self) {
        for edge in 0..self.edges.len() {
            if self.edges[edge].alive && self.edges[edge].reported_at + 1_000 <= self.now {
                self.report(edge, Vec::new());
            }
        }
    }

    /// How much edges in session may use beside their assignments.
    pub fn leased_of(&self, source: SourceId) -> Share {
        let of_it = self
            .edges
            .iter()
            .filter_map(|edge| edge.quotas.get(&source));
        let mut sum = Share::default();
        for quota in of_it {
            let granted = quota.granted();
            let open = u32::try_from(quota.open.len()).unwrap();
            sum.connections += open.max(granted.connections);
            sum.bytes_per_second += granted.bytes_per_second;
        }
        sum
    }

    /// The edge continues with its grants until its lease expires.
    pub fn goes_away(&mut self, edge: usize) {
        let fetches = self.edges[edge].fetches.values();
        let mut open: BTreeMap<SourceId, u32> = BTreeMap::new();
        for fetch in fetches.filter(|f| f.a.from == FetchSource::Origin && !f.is_local()) {
            *open
                .entry(self.entries[fetch.a.entry.0 as usize].0)
                .or_default() += 1;
        }
        let edge = &mut self.edges[edge];
        for (&source, quota) in &edge.quotas {
            let assigned = open.get(&source).copied().unwrap_or(0);
            let own = u32::try_from(quota.open.len()).unwrap();
            let granted = quota.granted();
            let had = Share {
                connections: assigned + own.max(granted.connections),
                ..granted
            };
            let absent = SimAbsent {
                expires: edge.reported_at + LEASE_MS,
                had,
                floor: quota.lease.map_or(Share::default(), |lease| lease.floor),
            };
            edge.absent.insert(source, absent);
        }
    }

    /// The use reserved for edges without a session.
    pub fn absent_of(&self, source: SourceId) -> Share {
        let absent = self
            .edges
            .iter()
            .filter_map(move |edge| edge.absent.get(&source));
        let mut sum = Share::default();
        for absent in absent.filter(|it| it.expires + GIVEN_UP_MS > self.now) {
            let has = absent.has(self.now);
            sum.connections += has.connections;
            sum.bytes_per_second += has.bytes_per_second;
        }
        sum
    }

    pub fn is_unlimited(&self, number: usize) -> bool {
        self.sources[number].max_connections == 0
    }

    /// The longest wait of any request, in milliseconds.
    pub fn longest_wait_for_a_connection(&self) -> Millis {
        let alive = self.edges.iter().filter(|edge| edge.alive);
        let waiting = alive.flat_map(|edge| edge.quotas.values().flat_map(|it| &it.waiting));
        waiting.map(|&since| self.now - since).max().unwrap_or(0)
    }
}
