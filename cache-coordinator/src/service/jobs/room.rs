//! Jobs and the space on their edges.
//!
//! A job without enough space on its edge would endlessly fetch chunks that evict its own earlier
//! ones. So an edge that evicts a job's chunks gets no more requests for the job until it has
//! plenty of free space again; the job's status says so.

use std::ops::Range;

use chunkcache_proto::{ChunkIndex, EntryId};
use jiff::Timestamp;
use uuid::Uuid;

use super::super::{Cluster, error::ServiceError};
use super::{Jobs, Running};
use crate::sessions::plan::Command;
use scheduler::{Space, api::EdgeId};

fn wants_any(asked: &[Range<ChunkIndex>], chunks: &[ChunkIndex]) -> bool {
    let wanted = |chunk: &ChunkIndex| asked.iter().any(|range| range.contains(chunk));
    chunks.iter().any(wanted)
}

impl Jobs {
    /// Closes the wants for chunks that the edge evicted to make space.
    pub async fn evicted(
        &self,
        cluster: &Cluster,
        edge: EdgeId,
        entry: EntryId,
        chunks: &[ChunkIndex],
    ) -> Result<(), ServiceError> {
        let taken_back = self.give_up(edge, entry, chunks);
        for want in taken_back {
            tracing::info!(
                %entry,
                edge = edge.0,
                "an edge has no room for what it is asked to fetch"
            );
            cluster.plan.tell(Command::WantClosed(want)).await?;
        }
        Ok(())
    }

    fn give_up(
        &self,
        edge: EdgeId,
        entry: EntryId,
        chunks: &[ChunkIndex],
    ) -> Vec<scheduler::api::WantId> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let is_hit = |running: &Running, on: bool| {
            on && running.entry == entry && wants_any(&running.chunks, chunks)
        };
        let mut full = Vec::new();
        for (id, running) in &mut state.running {
            let asks_there = |want| {
                state
                    .wants
                    .get(want)
                    .is_some_and(|asked| asked.owner.edge == edge)
            };
            let on_edge = running.wants.iter().any(asks_there);
            if is_hit(running, on_edge) {
                running.full.insert(edge);
                full.push(*id);
            }
        }
        let over = state.wants.iter().filter(|(_, asked)| {
            let owner = asked.owner;
            owner.edge == edge
                && owner.entry == entry
                && match owner.job {
                    Some(job) => full.contains(&job),
                    None => wants_any(&asked.chunks, chunks),
                }
        });
        let over: Vec<_> = over.map(|(want, asked)| (*want, asked.owner.job)).collect();
        for (want, job) in &over {
            state.wants.remove(want);
            if let Some(running) = job.and_then(|job| state.running.get_mut(&job)) {
                running.wants.remove(want);
            }
        }
        over.into_iter().map(|(want, _)| want).collect()
    }

    /// Whether the job may use the edge: it has no want there, and the edge is not full.
    pub(super) fn may_ask(&self, job: Uuid, edge: EdgeId) -> bool {
        let state = self.state.lock();
        state.running.get(&job).is_some_and(|running| {
            let asked = |want| {
                state
                    .wants
                    .get(want)
                    .is_some_and(|asked| asked.owner.edge == edge)
            };
            !running.full.contains(&edge) && !running.wants.iter().any(asked)
        })
    }

    /// Unmarks the job's full edges that have space again. True: there was one.
    pub(super) fn find_room(&self, cluster: &Cluster, job: Uuid, source: &str) -> bool {
        let mut state = self.state.lock();
        let Some(running) = state.running.get_mut(&job) else {
            return false;
        };
        let before = running.full.len();
        running.full.retain(|edge| {
            let live = cluster.registry.get(*edge);
            let is_roomy = live.map(|live| {
                let status = live.status.lock();
                let of_source = status.sources.iter().find(|it| it.source == source);
                let quota = of_source.filter(|it| it.quota_bytes > 0);
                Space::is_roomy(status.bytes_used, status.bytes_allowed)
                    && quota.is_none_or(|it| Space::quota_is_roomy(it.bytes_used, it.quota_bytes))
            });
            !is_roomy.unwrap_or(false)
        });
        running.full.len() < before
    }

    /// Why nothing more is fetched, in words; empty if the job is fetching.
    pub fn waits_for(&self, cluster: &Cluster, job: Uuid) -> String {
        let (full, outside) = {
            let state = self.state.lock();
            let Some(running) = state.running.get(&job) else {
                return String::new();
            };
            let full: Vec<EdgeId> = running.full.iter().copied().collect();
            let window = running.window.as_ref().filter(|_| !running.is_open);
            (full, window.cloned())
        };
        if let Some((window, words)) = outside {
            let opens = window.opens_after(Timestamp::now());
            let opens = opens.map_or(String::new(), |at| format!(", goes on at {at}"));
            return format!("outside its window {words}{opens}");
        }
        let names: Vec<String> = full
            .into_iter()
            .filter_map(|edge| cluster.registry.get(edge))
            .map(|live| live.name.clone())
            .collect();
        match names.as_slice() {
            [] => String::new(),
            [name] => format!(
                "{name} has no room for all of it: it began to evict what the job had brought"
            ),
            names => format!(
                "{} have no room for all of it: they began to evict what the job had brought",
                names.join(" and ")
            ),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;
    use crate::service::jobs::{JobRequest, Owner};
    use scheduler::api::WantId;

    const ENTRY: EntryId = EntryId::from_u128(7);

    /// A job for chunks 0 to 9 on two edges, and a request for chunk 20 on the first.
    fn asked() -> (Jobs, Uuid) {
        let (jobs, job) = (Jobs::default(), Uuid::from_u128(1));
        let mut state = jobs.state.lock();
        for (want, edge, job, chunks) in [
            (1, 1, Some(job), 0..10),
            (2, 2, Some(job), 0..10),
            (3, 1, None, 20..21),
        ] {
            let owner = Owner {
                job,
                entry: ENTRY,
                edge: EdgeId(edge),
            };
            state.wants.insert(
                WantId(want),
                JobRequest {
                    owner,
                    chunks: vec![chunks],
                },
            );
        }
        let running = Running {
            entry: ENTRY,
            chunks: vec![0..10],
            wants: HashSet::from([WantId(1), WantId(2)]),
            full: BTreeSet::new(),
            is_free: false,
            looks: 0,
            sample: None,
            window: None,
            is_open: true,
            limiter: None,
        };
        state.running.insert(job, running);
        drop(state);
        (jobs, job)
    }

    #[test]
    fn an_edge_that_evicts_what_a_job_brought_is_not_asked_on() {
        let (jobs, job) = asked();
        assert_eq!(jobs.give_up(EdgeId(1), ENTRY, &[30, 4]), [WantId(1)]);
        assert!(!jobs.may_ask(job, EdgeId(1)));
        let state = jobs.state.lock();
        assert_eq!(
            state.running[&job].wants,
            HashSet::from([WantId(2)]),
            "the other edge goes on"
        );
    }

    #[test]
    fn what_others_had_there_may_make_room() {
        let (jobs, job) = asked();
        assert_eq!(jobs.give_up(EdgeId(1), ENTRY, &[11]), []);
        assert_eq!(jobs.give_up(EdgeId(1), EntryId::from_u128(8), &[4]), []);
        assert_eq!(jobs.give_up(EdgeId(3), ENTRY, &[4]), []);
        assert!(!jobs.may_ask(job, EdgeId(1)), "it is asked there already");
        assert!(jobs.may_ask(job, EdgeId(3)));
    }

    #[test]
    fn a_request_ends_where_it_evicts_itself() {
        let (jobs, _) = asked();
        assert_eq!(jobs.give_up(EdgeId(1), ENTRY, &[20]), [WantId(3)]);
    }
}
