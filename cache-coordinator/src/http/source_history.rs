//! What each source sent and cost over the last day: whether the cache is worth it.
//!
//! Edges report totals since their start. Here they become amounts of ten minutes each, for at most
//! so many sources, so the memory is bounded. They begin with this process.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use serde_json::{Value, json};

/// Seconds that one step covers.
const STEP_SECONDS: i64 = 600;
/// A day of steps.
const STEPS: usize = 144;
/// Limit of sources; what others send is not kept.
const MAX_SOURCES: usize = 256;
/// Limit of sources on the page: those that sent the most.
const SHOWN: usize = 12;

/// Bytes of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub sent: u64,
    pub hit: u64,
    pub origin: u64,
}

impl Amounts {
    /// The bytes that were added since `before`. Fewer bytes than before: the edge started again,
    /// and all of them are new.
    fn since(self, before: Self) -> Self {
        if self.sent < before.sent || self.hit < before.hit || self.origin < before.origin {
            return self;
        }
        Self {
            sent: self.sent - before.sent,
            hit: self.hit - before.hit,
            origin: self.origin - before.origin,
        }
    }

    fn add(&mut self, more: Self) {
        self.sent = self.sent.saturating_add(more.sent);
        self.hit = self.hit.saturating_add(more.hit);
        self.origin = self.origin.saturating_add(more.origin);
    }
}

struct Step {
    /// Since the epoch, in steps.
    number: i64,
    sources: HashMap<Arc<str>, Amounts>,
}

/// The last day.
#[derive(Default)]
pub struct SourceHistory {
    steps: VecDeque<Step>,
    /// The totals at the last look, by edge.
    before: HashMap<u32, HashMap<Arc<str>, Amounts>>,
    /// The name of each source, once.
    names: HashSet<Arc<str>>,
}

impl SourceHistory {
    /// Begins a look at this time.
    pub fn begin(&mut self, now_seconds: i64) {
        let number = now_seconds.div_euclid(STEP_SECONDS);
        if self.steps.back().is_none_or(|step| step.number < number) {
            self.steps.push_back(Step {
                number,
                sources: HashMap::new(),
            });
        }
        let first = number - STEPS as i64 + 1;
        while self.steps.front().is_some_and(|step| step.number < first) {
            self.steps.pop_front();
        }
        if self.names.len() >= MAX_SOURCES {
            // Makes place for others.
            self.names.retain(|name| Arc::strong_count(name) > 1);
        }
    }

    /// Adds what an edge reports now.
    pub fn add<'a>(
        &mut self,
        edge: u32,
        uptime_ms: u64,
        sources: impl Iterator<Item = (&'a str, Amounts)>,
    ) {
        let former = self.before.remove(&edge);
        // Those of an edge that is new here are of an unknown time, unless it started just now.
        let is_young = uptime_ms / 1000 < STEP_SECONDS.unsigned_abs();
        let former = former.or_else(|| is_young.then(HashMap::new));
        let mut totals = HashMap::new();
        for (name, total) in sources {
            let Some(name) = self.name(name) else {
                continue;
            };
            if let Some(former) = &former {
                let added = total.since(former.get(&name).copied().unwrap_or_default());
                if added != Amounts::default()
                    && let Some(step) = self.steps.back_mut()
                {
                    let amounts = step.sources.entry(Arc::clone(&name)).or_default();
                    amounts.add(added);
                }
            }
            totals.insert(name, total);
        }
        self.before.insert(edge, totals);
    }

    /// Drops what is remembered of edges that are not connected.
    pub fn retain_edges(&mut self, is_connected: impl Fn(u32) -> bool) {
        self.before.retain(|edge, _| is_connected(*edge));
    }

    fn name(&mut self, name: &str) -> Option<Arc<str>> {
        if let Some(known) = self.names.get(name) {
            return Some(Arc::clone(known));
        }
        if self.names.len() >= MAX_SOURCES {
            return None;
        }
        let name: Arc<str> = name.into();
        self.names.insert(Arc::clone(&name));
        Some(name)
    }

    /// The sources that sent the most, with an array for each kind of bytes.
    #[must_use]
    pub fn render(&self) -> Value {
        let mut sums: HashMap<&Arc<str>, Amounts> = HashMap::new();
        for step in &self.steps {
            for (name, amounts) in &step.sources {
                sums.entry(name).or_default().add(*amounts);
            }
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_unstable_by(|(name, one), (other_name, other)| {
            (other.sent.cmp(&one.sent)).then_with(|| name.cmp(other_name))
        });
        sums.truncate(SHOWN);
        let series = |name: &Arc<str>, pick: fn(&Amounts) -> u64| -> Vec<u64> {
            let of_step = |step: &Step| step.sources.get(name).map_or(0, pick);
            self.steps.iter().map(of_step).collect()
        };
        let sources = sums.into_iter().map(|(name, sum)| {
            json!({
                "name": **name,
                "total": { "sent": sum.sent, "hit": sum.hit, "origin": sum.origin },
                "sent": series(name, |it| it.sent),
                "hit": series(name, |it| it.hit),
                "origin": series(name, |it| it.origin),
            })
        });
        let start = |step: &Step| step.number * STEP_SECONDS;
        json!({
            "step_seconds": STEP_SECONDS,
            "t": self.steps.iter().map(start).collect::<Vec<_>>(),
            "sources": sources.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(sent: u64, hit: u64, origin: u64) -> Amounts {
        Amounts { sent, hit, origin }
    }

    const HOUR_MS: u64 = 3_600_000;

    fn look(history: &mut SourceHistory, at: i64, edges: &[(u32, &[(&'static str, Amounts)])]) {
        history.begin(at);
        for (edge, sources) in edges {
            history.add(*edge, HOUR_MS, sources.iter().copied());
        }
        history.retain_edges(|edge| edges.iter().any(|(it, _)| *it == edge));
    }

    #[test]
    fn totals_become_amounts_of_their_time() {
        let mut history = SourceHistory::default();
        look(&mut history, 0, &[(1, &[("films", bytes(100, 50, 50))])]);
        // Bytes that were there at the first look are of an unknown time.
        assert_eq!(history.render()["sources"], json!([]));
        look(&mut history, 5, &[(1, &[("films", bytes(110, 58, 52))])]);
        // A second edge is new; the first started again.
        look(
            &mut history,
            600,
            &[
                (1, &[("films", bytes(7, 7, 0))]),
                (2, &[("films", bytes(1000, 0, 0))]),
            ],
        );
        look(
            &mut history,
            605,
            &[
                (1, &[("films", bytes(7, 7, 0)), ("news", bytes(3, 0, 3))]),
                (2, &[("films", bytes(1001, 1, 0))]),
            ],
        );
        let picture = history.render();
        assert_eq!(picture["t"], json!([0, 600]));
        let films = &picture["sources"][0];
        assert_eq!(films["sent"], json!([10, 8]));
        assert_eq!(films["hit"], json!([8, 8]));
        assert_eq!(films["origin"], json!([2, 0]));
        assert_eq!(films["total"], json!({"sent": 18, "hit": 16, "origin": 2}));
        assert_eq!(picture["sources"][1]["sent"], json!([0, 3]));
    }

    #[test]
    fn all_of_an_edge_that_just_started_is_counted() {
        let mut history = SourceHistory::default();
        history.begin(0);
        history.add(1, 2_000, std::iter::once(("films", bytes(5, 1, 4))));
        assert_eq!(history.render()["sources"][0]["sent"], json!([5]));
    }

    #[test]
    fn it_is_bounded_in_time_and_sources() {
        let mut history = SourceHistory::default();
        let names: Vec<String> = (0..2 * MAX_SOURCES).map(|it| format!("s{it}")).collect();
        for step in 0..2 * STEPS as i64 {
            let sent = bytes(step.unsigned_abs(), 0, 0);
            history.begin(step * STEP_SECONDS);
            history.add(1, HOUR_MS, names.iter().map(|name| (name.as_str(), sent)));
        }
        assert_eq!(history.steps.len(), STEPS);
        assert_eq!(history.names.len(), MAX_SOURCES);
        let of_step = |step: &Step| step.sources.len() <= MAX_SOURCES;
        assert!(history.steps.iter().all(of_step));
        let shown = history.render()["sources"].as_array().map(Vec::len);
        assert_eq!(shown, Some(SHOWN));
        // After a day without traffic nothing is left, and others have their place.
        let later = 9 * STEPS as i64 * STEP_SECONDS;
        look(&mut history, later, &[]);
        assert_eq!(history.steps.len(), 1);
        look(&mut history, later, &[(2, &[("new", bytes(1, 0, 0))])]);
        assert!(history.names.contains("new"));
    }
}
