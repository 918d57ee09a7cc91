//! The dashboard's view of the cluster: sampled once a second, regardless of viewers, and kept for
//! an hour.
//!
//! Rates are differences of the totals that edges report. Values that require queries (rows of
//! edges, jobs) are read every few seconds, and only while somebody is watching.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use chunkcache_proto::v1;
use parking_lot::Mutex;
use serde_json::{Value, json};
use service_kit::clock::now_ms;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::source_history::{Amounts, SourceHistory};
use super::{entry_view, source_view};
use crate::service::{Cluster, edges, jobs, status};

const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// One in this many samples is kept, and queries the database.
const KEEP_EVERY: u64 = 5;
/// Number of samples that a rate covers. Players fetch in bursts, some seconds apart: over one
/// second most rates would be either nothing or a burst. A kept sample covers the whole time since
/// the previous one.
const RATE_OVER: usize = 5;
/// An hour of kept samples.
const HISTORY: usize = 720;
/// Limit of fetches on the page: the most urgent.
const MAX_FLIGHTS: usize = 100;
/// Limit of jobs on the page; the command line lists all.
const MAX_JOBS: usize = 200;

/// Bytes per second, by their source.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    sent: f64,
    hit: f64,
    origin: f64,
    peer: f64,
    stalls: f64,
}

/// The measured values of one edge, or of all.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    rates: Rates,
    readers: u32,
}

struct Sample {
    at_seconds: i64,
    all: Measured,
    edges: HashMap<Arc<str>, Measured>,
}

/// The last totals of an edge's session, oldest first, for differences.
struct Before {
    epoch: u64,
    told: VecDeque<(Instant, v1::EdgeStatus)>,
}

#[derive(Default)]
struct Slow {
    edges: Vec<v1::Edge>,
    jobs: Vec<v1::Job>,
    status: v1::GetStatusResponse,
}

/// The sampler and its samples.
pub struct LiveView {
    cluster: Arc<Cluster>,
    overview: watch::Sender<Arc<str>>,
    history: Mutex<VecDeque<Sample>>,
    sources: Mutex<SourceHistory>,
}

impl LiveView {
    #[must_use]
    pub fn new(cluster: Arc<Cluster>) -> Arc<Self> {
        let (overview, _) = watch::channel(Arc::from("{}"));
        Arc::new(Self {
            cluster,
            overview,
            history: Mutex::default(),
            sources: Mutex::default(),
        })
    }

    /// The newest overview as JSON, with notification of the next one.
    #[must_use]
    pub fn overview(&self) -> watch::Receiver<Arc<str>> {
        self.overview.subscribe()
    }

    /// The last hour, of one edge or of all; one array per series, null where the edge had no
    /// session.
    #[must_use]
    pub fn history(&self, edge: Option<&str>) -> Value {
        let history = self.history.lock();
        let measured: Vec<Option<Measured>> = history
            .iter()
            .map(|sample| edge.map_or(Some(sample.all), |name| sample.edges.get(name).copied()))
            .collect();
        let series = |pick: fn(&Measured) -> f64| -> Vec<Option<f64>> {
            measured.iter().map(|m| m.as_ref().map(pick)).collect()
        };
        json!({
            "t": history.iter().map(|s| s.at_seconds).collect::<Vec<_>>(),
            "sent": series(|m| m.rates.sent.round()),
            "hit": series(|m| m.rates.hit.round()),
            "origin": series(|m| m.rates.origin.round()),
            "peer": series(|m| m.rates.peer.round()),
            "readers": series(|m| f64::from(m.readers)),
            "stalls": series(|m| m.rates.stalls),
        })
    }

    /// What each source sent and cost in the last day.
    #[must_use]
    pub fn source_history(&self) -> Value {
        self.sources.lock().render()
    }

    /// Samples until the token is cancelled.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(SAMPLE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut before: HashMap<u32, Before> = HashMap::new();
        let mut slow = Slow::default();
        let mut number = 0_u64;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            let rates = self.rates(&mut before);
            let watched = self.overview.receiver_count() > 0;
            if number.is_multiple_of(KEEP_EVERY) {
                self.keep(&rates);
                self.keep_sources();
            }
            if watched {
                if number.is_multiple_of(KEEP_EVERY) || slow.status.version.is_empty() {
                    slow = self.ask(slow).await;
                }
                // `None` if another coordinator leads.
                let plan = &self.cluster.plan;
                let flights = plan.ask(|plan| entry_view::all_flights(plan, MAX_FLIGHTS));
                let mut picture = self.render(&slow, &rates);
                picture["flights"] = Value::Array(flights.await.unwrap_or_default());
                self.overview.send_replace(Arc::from(picture.to_string()));
            }
            number += 1;
        }
    }

    fn rates(&self, before: &mut HashMap<u32, Before>) -> HashMap<String, Rates> {
        let now = Instant::now();
        let live = self.cluster.registry.all();
        before.retain(|edge, _| live.iter().any(|l| l.edge.0 == *edge));
        live.iter()
            .map(|session| {
                let mut status = session.status.lock().clone();
                // Only the totals are kept.
                status.viewers.clear();
                let known = before.entry(session.edge.0).or_insert_with(|| Before {
                    epoch: session.epoch,
                    told: VecDeque::new(),
                });
                if known.epoch != session.epoch {
                    known.epoch = session.epoch;
                    known.told.clear();
                }
                let rates = known
                    .told
                    .front()
                    .map_or_else(Rates::default, |(at, first)| {
                        differences(first, &status, now - *at)
                    });
                if known.told.len() == RATE_OVER {
                    known.told.pop_front();
                }
                known.told.push_back((now, status));
                (session.name.clone(), rates)
            })
            .collect()
    }

    fn keep(&self, rates: &HashMap<String, Rates>) {
        let mut history = self.history.lock();
        // One copy of each name for the whole hour.
        let former = history.back().map(|sample| &sample.edges);
        let name = |name: &str| {
            let known = former.and_then(|edges| edges.get_key_value(name));
            known.map_or_else(|| Arc::from(name), |(name, _)| Arc::clone(name))
        };
        let live = self.cluster.registry.all();
        let edges: HashMap<_, _> = live
            .iter()
            .map(|session| {
                let measured = Measured {
                    rates: rates.get(&session.name).copied().unwrap_or_default(),
                    readers: session.status.lock().readers,
                };
                (name(&session.name), measured)
            })
            .collect();
        let sum = |pick: fn(&Rates) -> f64| edges.values().map(|m| pick(&m.rates)).sum();
        let all = Measured {
            rates: Rates {
                sent: sum(|r| r.sent),
                hit: sum(|r| r.hit),
                origin: sum(|r| r.origin),
                peer: sum(|r| r.peer),
                stalls: sum(|r| r.stalls),
            },
            readers: edges.values().map(|m| m.readers).sum(),
        };
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(Sample {
            at_seconds: now_ms() / 1000,
            all,
            edges,
        });
    }

    fn keep_sources(&self) {
        let live = self.cluster.registry.all();
        let mut history = self.sources.lock();
        history.begin(now_ms() / 1000);
        for session in &live {
            let status = session.status.lock();
            let sources = status.sources.iter().map(|it| {
                let amounts = Amounts {
                    sent: it.bytes_sent_total,
                    hit: it.bytes_hit_total,
                    origin: it.bytes_origin_total,
                };
                (it.source.as_str(), amounts)
            });
            history.add(session.edge.0, status.uptime_ms, sources);
        }
        history.retain_edges(|edge| live.iter().any(|session| session.edge.0 == edge));
    }

    /// Reads the values from the database. Values that cannot be read stay as they were.
    async fn ask(&self, mut slow: Slow) -> Slow {
        if let Ok(list) = edges::list(&self.cluster).await {
            slow.edges = list.edges;
        }
        if let Ok(list) = jobs::list(
            &self.cluster,
            v1::ListJobsRequest {
                include_ended: true,
                ids: Vec::new(),
            },
        )
        .await
        {
            slow.jobs = list.jobs;
            slow.jobs.sort_by_key(|job| {
                (
                    job.state != i32::from(v1::JobState::Running),
                    -job.created_at_ms,
                )
            });
            slow.jobs.truncate(MAX_JOBS);
        }
        if let Ok(status) = status::status(&self.cluster).await {
            slow.status = status;
        }
        slow
    }

    fn render(&self, slow: &Slow, rates: &HashMap<String, Rates>) -> Value {
        let status = &slow.status;
        let edges: Vec<Value> = slow
            .edges
            .iter()
            .map(|edge| {
                let live = self.cluster.registry.by_name(&edge.name);
                let told = live
                    .as_ref()
                    .map(|l| l.status.lock().clone())
                    .unwrap_or_default();
                let rates = rates.get(&edge.name).copied().unwrap_or_default();
                json!({
                    "name": edge.name, "state": edge_state(edge, live.is_some()), "url": edge.url,
                    "bytes_used": if live.is_some() { told.bytes_used } else { edge.bytes_used },
                    "bytes_allowed": edge.bytes_allowed, "readers": told.readers,
                    "chunks": edge.chunks,
                    "degraded": told.degraded, "reason": told.reason,
                    "stalls_total": told.stalls_total, "last_seen_ms": edge.last_seen_ms,
                    "rates": { "sent": rates.sent.round(), "hit": rates.hit.round(),
                        "origin": rates.origin.round(), "peer": rates.peer.round() },
                })
            })
            .collect();
        json!({
            "version": status.version, "leader": status.leader, "is_leader": status.is_leader,
            "now_ms": now_ms(),
            "totals": {
                "entries": status.entries, "chunks": status.chunks,
                "bytes_cached": status.bytes_cached, "readers": status.readers,
                "jobs_running": status.jobs_running, "queued": status.queued_by_level,
                "running": status.running_by_level,
                "drift_rows": status.drift_rows_without_bytes,
                "drift_bytes": status.drift_bytes_without_rows,
            },
            "edges": edges,
            "jobs": slow.jobs.iter().map(job).collect::<Vec<_>>(),
            "sources": source_view::sources(&self.cluster),
        })
    }
}

/// Totals that decreased count as nothing instead of as a flood. (Another process would have
/// another epoch.)
fn differences(before: &v1::EdgeStatus, now: &v1::EdgeStatus, elapsed: Duration) -> Rates {
    let seconds = elapsed.as_secs_f64().max(0.001);
    let rate =
        |pick: fn(&v1::EdgeStatus) -> u64| pick(now).saturating_sub(pick(before)) as f64 / seconds;
    Rates {
        sent: rate(|s| s.bytes_sent_total),
        hit: rate(|s| s.bytes_hit_total),
        origin: rate(|s| s.bytes_origin_total),
        peer: rate(|s| s.bytes_peer_total),
        stalls: rate(|s| s.stalls_total),
    }
}

fn edge_state(edge: &v1::Edge, is_live: bool) -> &'static str {
    match edge.state() {
        v1::EdgeState::Draining => "draining",
        v1::EdgeState::Lost => "lost",
        _ if is_live => "active",
        _ => "suspect",
    }
}

fn job(job: &v1::Job) -> Value {
    let entry = job.entry.clone().unwrap_or_default();
    let key = entry.key.unwrap_or_default();
    let state = match job.state() {
        v1::JobState::Done => "done",
        v1::JobState::Cancelled => "cancelled",
        v1::JobState::Failed => "failed",
        v1::JobState::Running | v1::JobState::Unspecified => "running",
    };
    json!({
        "id": job.id, "entry": entry.id, "source": key.source, "path": key.path, "state": state,
        "bytes_done": job.bytes_done, "bytes_total": job.bytes_total,
        "rate": job.rate_bytes_per_second, "eta_seconds": job.eta_seconds, "edges": job.edges,
        "error": job.error,
        "waiting": job.waiting,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_and_never_negative() {
        let before = v1::EdgeStatus {
            bytes_sent_total: 100,
            bytes_hit_total: 50,
            stalls_total: 9,
            ..Default::default()
        };
        let now = v1::EdgeStatus {
            bytes_sent_total: 300,
            bytes_hit_total: 40,
            stalls_total: 10,
            ..Default::default()
        };
        let rates = differences(&before, &now, Duration::from_secs(2));
        assert_eq!(
            rates,
            Rates {
                sent: 100.0,
                stalls: 0.5,
                ..Rates::default()
            }
        );
    }
}
