//! Shares an origin's connections and rate among the edges in session.

use std::collections::BTreeMap;

use chunkcache_proto::Level;

use super::{EdgeQuota, STANDING_PART};
use crate::{
    api::{EdgeId, Millis},
    state::Source,
};

/// How long an odd connection stays with one of the edges that want it.
const TURN_MS: Millis = 1_000;
/// A rate that changes by less than this part is not worth a message.
const RATE_STEP: u64 = 8;

impl Source {
    /// Connections that edges may have in total for their own requests: all but the half that
    /// waiting readers need.
    fn sharable_connections(&self, now: Millis) -> u32 {
        let critical = Level::Critical as usize;
        let readers = (self.running[critical].saturating_sub(self.own)) + self.queued[critical];
        let odd = u32::try_from(now / TURN_MS % 2).unwrap_or(0);
        let half = (self.max_connections / 2) + (self.max_connections % 2) * odd;
        self.max_connections - readers.min(half)
    }

    /// Shares these connections, first among edges whose viewers wait, then among all that want
    /// some.
    fn share_connections(&mut self, now: Millis) {
        let mut left = self
            .sharable_connections(now)
            .saturating_sub(self.absent(now).connections);
        for quota in self.quotas.values_mut() {
            quota.due = 0;
            if quota.is_silent {
                left = left.saturating_sub(quota.outstanding.connections);
            }
        }
        left = self.deal(left, now, |quota| quota.urgent.min(quota.wanted));
        self.deal(left, now, |quota| quota.wanted);
        self.granted_connections = self
            .quotas
            .values()
            .map(|quota| quota.due.max(quota.outstanding.connections))
            .sum();
    }

    /// Deals connections evenly, up to what each edge wants; the first edge rotates with time.
    /// Returns the number left over.
    fn deal(&mut self, mut left: u32, now: Millis, wants: impl Fn(&EdgeQuota) -> u32) -> u32 {
        let is_short = |quota: &EdgeQuota| !quota.is_silent && wants(quota) > quota.due;
        let short = self.quotas.iter().filter(|(_, quota)| is_short(quota));
        let mut short: Vec<EdgeId> = short.map(|(&edge, _)| edge).collect();
        if !short.is_empty() {
            let turn = now / TURN_MS % short.len() as u64;
            short.rotate_left(usize::try_from(turn).unwrap_or(0));
        }
        while left > 0 && !short.is_empty() {
            let each = (left / u32::try_from(short.len()).unwrap_or(u32::MAX)).max(1);
            short.retain(|edge| {
                let Some(quota) = self.quotas.get_mut(edge) else {
                    return false;
                };
                let more = each.min(wants(quota).saturating_sub(quota.due)).min(left);
                quota.due += more;
                left -= more;
                quota.due < wants(quota)
            });
        }
        left
    }

    /// Grants connections, or reduces grants. Returns how many are missing.
    pub(super) fn grant_connections(&mut self, now: Millis) -> u32 {
        self.share_connections(now);
        let outstanding = self
            .quotas
            .values()
            .map(|quota| quota.outstanding.connections);
        let taken = outstanding
            .fold(self.assigned(), u32::saturating_add)
            .saturating_add(self.absent(now).connections);
        let mut free = self.max_connections.saturating_sub(taken);
        let mut lacking = taken.saturating_sub(self.max_connections);
        for quota in self.quotas.values_mut() {
            let counted = quota.outstanding.connections;
            // More is in use than the limit allows, perhaps after a restart. Do not grant a
            // connection again that may not have been returned yet.
            let most = if taken > self.max_connections {
                quota.granted.connections
            } else {
                counted.saturating_add(free)
            };
            let granted = quota.due.min(most);
            free -= granted.saturating_sub(counted);
            lacking += quota.due - granted;
            quota.outstanding.connections = counted.max(granted);
            if granted != quota.granted.connections {
                quota.granted.connections = granted;
                quota.change();
            }
        }
        lacking
    }

    /// Shares the rate by what each edge is reading now: an equal part for all, the rest by level.
    pub(super) fn grant_rates(&mut self, now: Millis) {
        let whole = self.max_rate_bytes_per_second;
        let (silent, heard): (Vec<&EdgeQuota>, Vec<&EdgeQuota>) =
            self.quotas.values().partition(|quota| quota.is_silent);
        let edges = heard.len() as u64;
        if whole == 0 || edges == 0 {
            return;
        }
        let absent = self.absent(now).bytes_per_second;
        let silent = silent
            .iter()
            .map(|quota| quota.outstanding.bytes_per_second);
        let mine = whole.saturating_sub(silent.fold(absent, u64::saturating_add));
        let mut weights: BTreeMap<EdgeId, u64> = BTreeMap::new();
        for &(level, edge, _) in self.fetches.iter().rev() {
            // The most urgent fetch of an edge comes last, and decides.
            weights.insert(edge, weight(level));
        }
        for (&edge, quota) in &self.quotas {
            if quota.wanted > 0 {
                let own = weights.entry(edge).or_default();
                *own = (*own).max(weight(Level::High));
            }
        }
        let standing = mine / STANDING_PART / edges;
        let rest = mine - standing * edges;
        let sum: u64 = weights.values().sum();
        let due = |edge: &EdgeId| {
            let part = match (sum, weights.get(edge)) {
                (0, _) => rest / edges,
                (sum, Some(&weight)) => rest / sum * weight,
                (_, None) => 0,
            };
            (standing + part).max(1)
        };
        let dues: BTreeMap<EdgeId, u64> =
            self.quotas.keys().map(|edge| (*edge, due(edge))).collect();
        for (edge, quota) in &mut self.quotas {
            let due = dues.get(edge).copied().unwrap_or(1);
            let granted = quota.granted.bytes_per_second;
            if due < granted - granted / RATE_STEP {
                quota.granted.bytes_per_second = due;
                quota.change();
            }
        }
        let outstanding = self
            .quotas
            .values()
            .map(|quota| quota.outstanding.bytes_per_second);
        let taken = outstanding.fold(absent, u64::saturating_add);
        let mut free = whole.saturating_sub(taken);
        for (edge, quota) in &mut self.quotas {
            let due = dues.get(edge).copied().unwrap_or(1);
            let counted = quota.outstanding.bytes_per_second;
            let granted = due.min(counted.saturating_add(free));
            let is_worth = granted
                > quota
                    .granted
                    .bytes_per_second
                    .saturating_add(due / RATE_STEP);
            if is_worth {
                free -= granted.saturating_sub(counted);
                quota.granted.bytes_per_second = granted;
                quota.outstanding.bytes_per_second = counted.max(granted);
                quota.change();
            }
        }
    }
}

/// CRITICAL gets nearly all of the rate, but each level gets some.
const fn weight(level: Level) -> u64 {
    match level {
        Level::Critical => 24,
        Level::High => 4,
        Level::Medium => 2,
        Level::Low => 1,
    }
}
