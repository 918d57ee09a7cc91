//! Places: connections of a source that edges may open for what they ask by themselves.
//!
//! First questions about keys, revalidations, what is passed through and an edge's own fetches can
//! not wait until they are planned. An edge says how many it would have; it is lent that many, as
//! long as the limit of the source bears it together with what is assigned and what others were
//! lent. A place counts from when it is lent until the edge has said that it is free: a smaller
//! grant is counted as the larger one until then. Readers that wait on assigned fetches have half
//! of the connections if they need them, and edges share the rest evenly. Lower levels give way, as
//! they do for CRITICAL.
//!
//! All of it follows from what the edges say: nothing is kept over a restart, but for whom to
//! expect (`away`).

use chunkcache_proto::Level;

use super::Scheduler;
use super::api::{EdgeId, Effect, Millis, SourceId};
use super::state::{Lent, Source};

/// So long an odd connection, of an odd limit or of more edges than there are places, stays with
/// one of those who want it.
const TURN_MS: Millis = 1_000;
/// More than one edge has requests for.
const MAX_WANTED: u32 = 4_096;

impl Source {
    /// What edges may have of it together: all, but for the half that waiting readers need.
    fn lendable(&self, now: Millis) -> u32 {
        let critical = Level::Critical as usize;
        let readers = (self.running[critical].saturating_sub(self.own)) + self.queued[critical];
        let odd = u32::try_from(now / TURN_MS % 2).unwrap_or(0);
        let half = (self.max_connections / 2) + (self.max_connections % 2) * odd;
        self.max_connections - readers.min(half)
    }

    /// Shares what may be lent evenly among those who want it; who is first changes with the time.
    fn share(&mut self, now: Millis) {
        let mut left = self.lendable(now).saturating_sub(self.away());
        let mut short: Vec<EdgeId> = Vec::new();
        for (&edge, lent) in &mut self.lent {
            lent.due = 0;
            if lent.wanted > 0 {
                short.push(edge);
            }
        }
        if !short.is_empty() {
            let turn = now / TURN_MS % short.len() as u64;
            short.rotate_left(usize::try_from(turn).unwrap_or(0));
        }
        while left > 0 && !short.is_empty() {
            let each = (left / short.len() as u32).max(1);
            short.retain(|edge| {
                let Some(lent) = self.lent.get_mut(edge) else {
                    return false;
                };
                let more = each.min(lent.wanted - lent.due).min(left);
                lent.due += more;
                left -= more;
                lent.due < lent.wanted
            });
        }
        self.places = self
            .lent
            .values()
            .map(|lent| lent.due.max(lent.counted))
            .sum();
    }
}

impl Scheduler {
    pub(super) fn places_asked(
        &mut self,
        edge: EdgeId,
        source: SourceId,
        sequence: u64,
        held: u32,
        wanted: u32,
        effects: &mut Vec<Effect>,
    ) {
        let is_there = self.edges.get(&edge).is_some_and(|edge| edge.alive);
        let Some(known) = self.sources.get_mut(&source) else {
            return;
        };
        let Some(lent) = known.lent.get_mut(&edge).filter(|_| is_there) else {
            return;
        };
        lent.wanted = wanted.min(MAX_WANTED);
        lent.asked = true;
        if sequence == lent.sequence {
            let was = lent.counted;
            lent.counted = held.min(MAX_WANTED).max(lent.granted);
            // All that it has is known from now on.
            if known.away.remove(&edge).is_some() || lent.counted < was {
                self.woken.insert(source);
            }
        }
        self.lend(source, effects);
    }

    /// Grants, or takes back, what each edge is to have by now.
    pub(super) fn lend(&mut self, id: SourceId, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        let idle = |lent: &Lent| lent.wanted + lent.granted + lent.counted == 0 && !lent.asked;
        if source.max_connections == 0 || source.lent.values().all(idle) {
            return;
        }
        source.share(now);
        let counted: u32 = source.lent.values().map(|lent| lent.counted).sum();
        let taken = source.assigned().saturating_add(counted);
        let taken = taken.saturating_add(source.away());
        let mut free = source.max_connections.saturating_sub(taken);
        let mut lacking = 0;
        for (&edge, lent) in &mut source.lent {
            // More is in use than there is, after a restart perhaps: even what is not known to be
            // given back yet is not given again.
            let most = if taken > source.max_connections {
                lent.granted
            } else {
                lent.counted.saturating_add(free)
            };
            let granted = lent.due.min(most);
            free -= granted.saturating_sub(lent.counted);
            lent.counted = lent.counted.max(granted);
            lacking += lent.due - granted;
            if granted != lent.granted {
                lent.granted = granted;
                lent.sequence += 1;
                lent.asked = true;
            }
            if std::mem::take(&mut lent.asked) {
                effects.push(lent.told(edge, id));
            }
        }
        if lacking > 0 {
            self.give_way(id, lacking, effects);
        }
    }

    /// An edge came, or a limit changed: who has no session by then may open his part of it.
    pub(super) fn lend_to_all(&mut self, effects: &mut Vec<Effect>) {
        let alive = || self.edges.iter().filter(|(_, edge)| edge.alive);
        let here = alive().count();
        let mut limited = Vec::new();
        for (&id, source) in &mut self.sources {
            if source.max_connections == 0 {
                source.lent.values_mut().for_each(Lent::lend_nothing);
                source.places = 0;
                source.away.clear();
            }
            if !source.limited() {
                source.lent.clear();
                continue;
            }
            // Who is away has its part as well.
            let is_alive = |edge: &&EdgeId| self.edges.get(edge).is_some_and(|it| it.alive);
            let away = source.away.keys().filter(|edge| !is_alive(edge)).count();
            let count = u32::try_from(here + away).unwrap_or(u32::MAX).max(1);
            let alone = (source.max_connections / count).max(1);
            let alone_rate = match source.max_rate_bytes_per_second {
                0 => 0,
                rate => (rate / u64::from(count)).max(1),
            };
            let lends = source.max_connections > 0;
            let alone = if lends { alone } else { 0 };
            for (&edge, _) in alive() {
                let lent = source.lent.entry(edge).or_default();
                let is_news = lent.alone != alone || lent.alone_rate != alone_rate;
                lent.asked |= is_news;
                (lent.alone, lent.alone_rate) = (alone, alone_rate);
                if is_news && !lends {
                    // The rate is all that there is to say.
                    effects.push(lent.told(edge, id));
                    lent.asked = false;
                }
            }
            if lends {
                limited.push(id);
            }
        }
        for id in limited {
            self.lend(id, effects);
        }
    }

    /// What it had open is not known any more.
    pub(super) fn places_lost(&mut self, edge: EdgeId, effects: &mut Vec<Effect>) {
        for (&id, source) in &mut self.sources {
            if let Some(lent) = source.lent.remove(&edge) {
                source.places = source.places.saturating_sub(lent.due.max(lent.counted));
                self.woken.insert(id);
            }
        }
        self.lend_to_all(effects);
    }

    /// Connections came free.
    pub(super) fn lend_of_woken(&mut self, effects: &mut Vec<Effect>) {
        let woken: Vec<SourceId> = self.woken.iter().copied().collect();
        for id in woken {
            self.lend(id, effects);
        }
    }

    /// Whose turn it is changes with the time, and so do the readers that wait.
    pub(super) fn lend_again(&mut self, effects: &mut Vec<Effect>) {
        let short = |lent: &Lent| lent.wanted != lent.granted || lent.counted != lent.granted;
        let contended = self
            .sources
            .iter()
            .filter(|(_, source)| source.lent.values().any(short));
        let contended: Vec<SourceId> = contended.map(|(&id, _)| id).collect();
        for id in contended {
            self.lend(id, effects);
        }
    }
}

impl Lent {
    /// Its source has no limit of connections.
    fn lend_nothing(&mut self) {
        *self = Self {
            alone_rate: self.alone_rate,
            ..Self::default()
        };
    }

    fn told(&self, edge: EdgeId, source: SourceId) -> Effect {
        Effect::Places {
            edge,
            source,
            sequence: self.sequence,
            places: self.granted,
            alone: self.alone,
            alone_rate: self.alone_rate,
        }
    }
}
