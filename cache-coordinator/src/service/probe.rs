//! Asks whether an origin has an object, through an edge, which asks as it would for a player.
//!
//! A coordinator speaks to no origin itself: redirects, headers and checks of answers are decided
//! in one place, the edge.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use chunkcache_proto::v1;
use parking_lot::Mutex;
use scheduler::{
    api::EdgeId,
    edge_choice::{Candidate, choose_edge},
};
use tokio::sync::oneshot;
use v1::{probe_report::Outcome, session_response::Message};

use super::{
    Cluster,
    entry_ref::display_key,
    error::{Resource, ServiceError},
};
use crate::sessions::registry::EdgeSession;

/// An edge answers for a cold object whose origin is down within 15 s.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Limit of running probes.
const MAX_PROBES: usize = 1_024;

/// Probes that no edge has answered yet.
#[derive(Debug, Default)]
pub struct Probes(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    sequence: u64,
    answers: HashMap<u64, (EdgeId, oneshot::Sender<Outcome>)>,
}

impl Probes {
    fn begin(&self, edge: EdgeId) -> Option<(u64, oneshot::Receiver<Outcome>)> {
        let mut waiting = self.0.lock();
        if waiting.answers.len() >= MAX_PROBES {
            return None;
        }
        waiting.sequence += 1;
        let (sequence, (sender, receiver)) = (waiting.sequence, oneshot::channel());
        waiting.answers.insert(sequence, (edge, sender));
        Some((sequence, receiver))
    }

    fn end(&self, sequence: u64) {
        self.0.lock().answers.remove(&sequence);
    }

    /// Records an edge's answer. Ignored if nobody waits any more, or if another edge was asked.
    pub fn report(&self, edge: EdgeId, report: v1::ProbeReport) {
        let mut waiting = self.0.lock();
        let is_its = waiting
            .answers
            .get(&report.sequence)
            .is_some_and(|(asked, _)| *asked == edge);
        if is_its
            && let Some((_, sender)) = waiting.answers.remove(&report.sequence)
            && let Some(outcome) = report.outcome
        {
            // The caller may have left.
            let _ = sender.send(outcome);
        }
    }
}

/// Ends the wait even if its caller is gone.
struct Wait<'a>(&'a Probes, u64);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.0.end(self.1);
    }
}

/// The object behind a key, as the origin has it now.
pub async fn probe(cluster: &Cluster, key: &v1::Key) -> Result<v1::KeyBinding, ServiceError> {
    let edge = choose(cluster).ok_or_else(|| {
        ServiceError::NoEdge(format!(
            "no edge is in session that could ask the origin for {}",
            display_key(key)
        ))
    })?;
    let (sequence, answer) = cluster
        .probes
        .begin(edge.edge)
        .ok_or_else(|| ServiceError::Exhausted("too many origins are being asked".into()))?;
    let _wait = Wait(&cluster.probes, sequence);
    edge.outbox.post(Message::Probe(v1::ProbeRequest {
        sequence,
        key: Some(key.clone()),
    }));
    let failed = |message: String| ServiceError::Origin {
        source_name: key.source.clone(),
        message,
    };
    let left = || {
        ServiceError::NoEdge(format!(
            "edge {:?} left while it asked the origin",
            edge.name
        ))
    };
    let outcome = tokio::select! {
        outcome = answer => outcome.map_err(|_| left())?,
        () = edge.outbox.ended() => return Err(left()),
        () = tokio::time::sleep(TIMEOUT) => {
            return Err(failed(format!("edge {:?} did not answer for it in time", edge.name)));
        }
    };
    match outcome {
        Outcome::Found(binding) => Ok(binding),
        Outcome::AbsentStatus(_) => {
            Err(ServiceError::not_found(Resource::Object, display_key(key)))
        }
        Outcome::Uncacheable(why) => Err(ServiceError::Precondition {
            reason: "UNCACHEABLE",
            message: format!("the object can not be cached: {why}"),
        }),
        Outcome::Failed(message) => Err(failed(message)),
    }
}

/// An edge that takes readers, if there is one; the least loaded.
fn choose(cluster: &Cluster) -> Option<Arc<EdgeSession>> {
    let live = cluster.registry.all();
    let candidates: Vec<Candidate> = live
        .iter()
        .map(|live| Candidate {
            edge: live.edge,
            alive: true,
            draining: live.draining.load(Ordering::Relaxed),
            chunks_held: 0,
            readers: live.status.lock().readers,
        })
        .collect();
    let chosen = choose_edge(0, &candidates);
    let taking = live.iter().find(|live| Some(live.edge) == chosen);
    taking.or_else(|| live.first()).cloned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn report(sequence: u64) -> v1::ProbeReport {
        v1::ProbeReport {
            sequence,
            outcome: Some(Outcome::AbsentStatus(404)),
        }
    }

    #[tokio::test]
    async fn only_the_edge_that_was_asked_answers_and_only_once() {
        let probes = Probes::default();
        let (sequence, mut answer) = probes.begin(EdgeId(1)).unwrap();
        probes.report(EdgeId(2), report(sequence));
        probes.report(EdgeId(1), report(sequence + 1));
        assert!(answer.try_recv().is_err());
        probes.report(EdgeId(1), report(sequence));
        assert_eq!(answer.await, Ok(Outcome::AbsentStatus(404)));
        probes.report(EdgeId(1), report(sequence));
    }

    #[test]
    fn probes_are_bounded_and_end_with_their_caller() {
        let probes = Probes::default();
        let mut waits: Vec<(u64, oneshot::Receiver<Outcome>)> = (0..MAX_PROBES)
            .map(|_| probes.begin(EdgeId(1)).unwrap())
            .collect();
        assert!(probes.begin(EdgeId(1)).is_none());
        drop(Wait(&probes, waits.pop().unwrap().0));
        assert!(probes.begin(EdgeId(1)).is_some());
    }
}
