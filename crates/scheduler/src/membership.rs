//! Edges, sources and entries that are added, changed and removed.

use chunkcache_proto::Geometry;

use super::Scheduler;
use super::api::{EdgeId, Effect, EntryNo, FetchSource, SourceId};
use super::claim::Owner;
use super::edge_set::EdgeSet;
use super::invariant::Invariant;
use super::running::Withdrawal;
use super::state::Entry;

impl Scheduler {
    pub(super) fn edge_joined(
        &mut self,
        edge: EdgeId,
        max_downloads: u32,
        background_fill: bool,
        effects: &mut Vec<Effect>,
    ) {
        // A second session began before the end of the first was noticed.
        self.edge_lost(edge, effects);
        let state = self.edges.entry(edge).or_default();
        state.alive = true;
        state.max_downloads = max_downloads.max(1);
        state.background_fill = background_fill;
        state.faulted_until = 0;
        state.faults = 0;
        state.refused_until.clear();
        let kept = std::mem::take(&mut state.in_flight);
        for other in self.edges.values_mut() {
            other.peers.remove(&edge);
        }
        self.update_slots(edge);
        for fetch in kept {
            self.adopt(edge, fetch, effects);
        }
        self.quota_session_began(edge);
        self.ensure_fills_of_edge(edge);
        self.grant_all(effects);
        let entries = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.replicas.contains_key(&edge));
        let entries: Vec<_> = entries.map(|(&number, _)| number).collect();
        for entry in entries {
            self.mark_followers_dirty(edge, entry);
        }
        self.dirty.insert(edge);
    }

    pub(super) fn edge_draining(&mut self, edge: EdgeId, draining: bool) {
        // The operator may drain an edge that is disconnected.
        self.edges.entry(edge).or_default().draining = draining;
        self.ensure_fills_of_edge(edge);
        self.dirty.insert(edge);
    }

    /// Ends the edge's session. Its rows are kept for its return; its activity is dropped.
    pub(super) fn edge_lost(&mut self, edge: EdgeId, effects: &mut Vec<Effect>) {
        let state = self.edges.get_mut(&edge);
        let Some(state) = state.filter(|state| state.alive) else {
            // It has no session, or is not known.
            return;
        };
        state.alive = false;
        let fetches: Vec<_> = state.fetches.iter().map(|fetch| fetch.id).collect();
        self.edges_with_slots.remove(edge);
        self.quota_session_ended(edge);
        for id in fetches {
            let Some(fetch) = self.end_fetch((edge, id)).expected() else {
                continue;
            };
            self.stop_followers(&fetch, effects);
            if let Some(upstream) = fetch.upstream {
                self.reassess(upstream, Withdrawal::Superseded, effects);
            }
        }
        self.grant_all(effects);
        // Jobs remain: they are durable, and wait for the edge.
        let of_edge = |owner: &&Owner| match **owner {
            Owner::Waiting(reader) | Owner::Lookahead(reader) | Owner::Hints(reader) => {
                reader.edge == edge
            }
            Owner::Fill(on, _) => on == edge,
            Owner::Want(_) => false,
        };
        let mut over: Vec<Owner> = self.claims.keys().filter(of_edge).copied().collect();
        over.sort_unstable();
        for owner in over {
            self.remove_claim(owner);
        }
        // Edges that fetch from this one are rerouted at once.
        let from_it: Vec<_> = self
            .edges
            .iter()
            .flat_map(|(&other, state)| state.fetches.iter().map(move |fetch| (other, fetch)))
            .filter(|(_, fetch)| fetch.from == FetchSource::Peer(edge))
            .map(|(other, fetch)| (other, fetch.id))
            .collect();
        for key in from_it {
            self.cancel_fetch(key, effects);
        }
        let entries: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.replicas.contains_key(&edge))
            .map(|(&number, _)| number)
            .collect();
        for entry in entries {
            self.mark_followers_dirty(edge, entry);
        }
    }

    pub(super) fn source_set(
        &mut self,
        source: SourceId,
        max_connections: u32,
        max_rate_bytes_per_second: u64,
        background_fill: Option<bool>,
    ) {
        let known = self.sources.entry(source).or_default();
        let fill_changed = !known.registered || known.background_fill != background_fill;
        known.registered = true;
        known.max_connections = max_connections;
        known.background_fill = background_fill;
        known.max_rate_bytes_per_second = max_rate_bytes_per_second;
        self.dirty_sources.insert(source);
        if fill_changed {
            self.ensure_fills_of_source(source);
        }
    }

    pub(super) fn source_removed(&mut self, source: SourceId, effects: &mut Vec<Effect>) {
        let Some(known) = self.sources.get_mut(&source) else {
            // The source is not known.
            return;
        };
        known.registered = false;
        let fetches: Vec<_> = self
            .edges
            .iter()
            .flat_map(|(&edge, state)| state.fetches.iter().map(move |fetch| (edge, fetch)))
            .filter(|(_, fetch)| fetch.source == source)
            .map(|(edge, fetch)| (edge, fetch.id))
            .collect();
        for key in fetches {
            self.cancel_fetch(key, effects);
        }
        self.ensure_fills_of_source(source);
    }

    pub(super) fn entry_opened(
        &mut self,
        entry: EntryNo,
        source: SourceId,
        geometry: Geometry,
        effects: &mut Vec<Effect>,
    ) {
        match self.entries.get(&entry) {
            Some(known) if known.source == source && known.geometry == geometry => return,
            Some(_) => self.entry_closed(entry, effects),
            None => {}
        }
        self.sources.entry(source).or_default();
        let replicas = std::collections::BTreeMap::new();
        let opened = Entry {
            source,
            geometry,
            changed: false,
            back_off_until: 0,
            failures: 0,
            replicas,
            waiting: EdgeSet::default(),
        };
        self.entries.insert(entry, opened);
    }

    pub(super) fn entry_closed(&mut self, entry: EntryNo, effects: &mut Vec<Effect>) {
        self.entry_changed(entry, effects);
        let Some(known) = self.entries.get(&entry) else {
            // The entry is not known.
            return;
        };
        let owners: Vec<_> = known
            .replicas
            .values()
            .flat_map(|replica| {
                replica
                    .waiting
                    .iter()
                    .chain(&replica.windows)
                    .chain(&replica.wide)
            })
            .map(|&(_, owner)| owner)
            .collect();
        for owner in owners {
            self.remove_claim(owner);
            if let Owner::Want(want) = owner {
                self.wants.remove(&want);
            }
        }
        self.entries.remove(&entry);
    }

    /// Stops all fetches of the entry, because its object was replaced.
    pub(super) fn entry_changed(&mut self, entry: EntryNo, effects: &mut Vec<Effect>) {
        let Some(known) = self.entries.get_mut(&entry) else {
            // It was closed while the fetch was stopping, or is not known.
            return;
        };
        known.changed = true;
        let fetches: Vec<_> = self
            .edges
            .iter()
            .flat_map(|(&edge, state)| state.fetches.iter().map(move |fetch| (edge, fetch)))
            .filter(|(_, fetch)| fetch.entry == entry)
            .map(|(edge, fetch)| (edge, fetch.id))
            .collect();
        for key in fetches {
            self.cancel_fetch(key, effects);
        }
    }
}
