//! Finds out whether an origin has an object, by asking an edge, which asks the origin as it would
//! for a player.
//!
//! A coordinator talks to no origin itself, so redirects, headers and checks of answers are handled
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

/// An edge answers within 15 s for a cold object whose origin is down.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Limit of running probes.
const MAX_PROBES: usize = 1_024;

/// Questions to edges that are not answered yet.
#[derive(Debug)]
pub struct Questions<T> {
    most: usize,
    waiting: Mutex<Waiting<T>>,
}

#[derive(Debug)]
struct Waiting<T> {
    sequence: u64,
    answers: HashMap<u64, (EdgeId, oneshot::Sender<T>)>,
}

/// Whether an origin has an object.
pub type Probes = Questions<Outcome>;

impl Default for Probes {
    fn default() -> Self {
        Self::new(MAX_PROBES)
    }
}

impl<T> Questions<T> {
    /// `most`: that run at a time.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let waiting = Waiting {
            sequence: 0,
            answers: HashMap::new(),
        };
        Self {
            most,
            waiting: Mutex::new(waiting),
        }
    }

    fn begin(&self, edge: EdgeId) -> Option<(u64, oneshot::Receiver<T>)> {
        let mut waiting = self.waiting.lock();
        if waiting.answers.len() >= self.most {
            return None;
        }
        waiting.sequence += 1;
        let (sequence, (sender, receiver)) = (waiting.sequence, oneshot::channel());
        waiting.answers.insert(sequence, (edge, sender));
        Some((sequence, receiver))
    }

    fn end(&self, sequence: u64) {
        self.waiting.lock().answers.remove(&sequence);
    }

    /// Records an edge's answer. Ignored if nobody waits any longer, or if another edge was asked.
    pub fn answer(&self, edge: EdgeId, sequence: u64, answer: T) {
        let mut waiting = self.waiting.lock();
        let is_its = waiting
            .answers
            .get(&sequence)
            .is_some_and(|(asked, _)| *asked == edge);
        if is_its && let Some((_, sender)) = waiting.answers.remove(&sequence) {
            // The caller may have left.
            let _ = sender.send(answer);
        }
    }

    /// Asks an edge about a key. `message`: the question of a sequence.
    pub(super) async fn ask(
        &self,
        cluster: &Cluster,
        key: &v1::Key,
        timeout: Duration,
        message: impl FnOnce(u64) -> Message,
    ) -> Result<T, ServiceError> {
        let edge = choose(cluster).ok_or_else(|| {
            ServiceError::NoEdge(format!(
                "no edge is in session that could ask the origin for {}",
                display_key(key)
            ))
        })?;
        let (sequence, answer) = self
            .begin(edge.edge)
            .ok_or_else(|| ServiceError::Exhausted("too many origins are being asked".into()))?;
        let _wait = Wait(self, sequence);
        edge.outbox.post(message(sequence));
        let left = || {
            ServiceError::NoEdge(format!(
                "edge {:?} left while it asked the origin",
                edge.name
            ))
        };
        tokio::select! {
            answer = answer => answer.map_err(|_| left()),
            () = edge.outbox.ended() => Err(left()),
            () = tokio::time::sleep(timeout) => {
                let message = format!("edge {:?} did not answer for it in time", edge.name);
                Err(failed(key, message))
            }
        }
    }
}

/// Ends the wait even if its caller is gone.
struct Wait<'a, T>(&'a Questions<T>, u64);

impl<T> Drop for Wait<'_, T> {
    fn drop(&mut self) {
        self.0.end(self.1);
    }
}

pub(super) fn failed(key: &v1::Key, message: String) -> ServiceError {
    ServiceError::Origin {
        source_name: key.source.clone(),
        message,
    }
}

/// The object behind a key, as the origin has it now.
pub async fn probe(cluster: &Cluster, key: &v1::Key) -> Result<v1::KeyBinding, ServiceError> {
    let question = |sequence| {
        Message::Probe(v1::ProbeRequest {
            sequence,
            key: Some(key.clone()),
        })
    };
    let asked = cluster.probes.ask(cluster, key, TIMEOUT, question);
    match asked.await? {
        Outcome::Found(binding) => Ok(binding),
        Outcome::AbsentStatus(_) => {
            Err(ServiceError::not_found(Resource::Object, display_key(key)))
        }
        Outcome::Uncacheable(why) => Err(ServiceError::Precondition {
            reason: "UNCACHEABLE",
            message: format!("the object can not be cached: {why}"),
        }),
        Outcome::Failed(message) => Err(failed(key, message)),
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

    #[tokio::test]
    async fn only_the_edge_that_was_asked_answers_and_only_once() {
        let probes = Probes::default();
        let absent = || Outcome::AbsentStatus(404);
        let (sequence, mut answer) = probes.begin(EdgeId(1)).unwrap();
        probes.answer(EdgeId(2), sequence, absent());
        probes.answer(EdgeId(1), sequence + 1, absent());
        assert!(answer.try_recv().is_err());
        probes.answer(EdgeId(1), sequence, absent());
        assert_eq!(answer.await, Ok(absent()));
        probes.answer(EdgeId(1), sequence, absent());
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
