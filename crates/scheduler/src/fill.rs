//! Background fill: completes a partly held entry, at LOW.
//!
//! It has no stored state: it follows from what edges hold, so it resumes after any restart. It
//! begins at an origin only while no reader of that source waits, queues, or is being served from
//! it; what it began is paused while a reader waits, or stopped if that reader is at another edge.
//! Beside jobs alone, it gets one grant in `low_share`.

use chunkcache_proto::Level;

use super::Scheduler;
use super::api::{EdgeId, EntryNo, SourceId};
use super::claim::{Claim, Owner};
use super::invariant::Invariant;

impl Scheduler {
    /// Creates, keeps or removes the fill of one entry on one edge, according to the present state.
    pub(super) fn ensure_fill(&mut self, edge: EdgeId, entry: EntryNo) {
        let owner = Owner::Fill(edge, entry);
        let wanted = self.fill_wanted(edge, entry);
        let there = self.claims.contains_key(&owner);
        if there && !wanted {
            self.remove_claim(owner);
        } else if wanted && !there {
            let Some(known) = self.entries.get(&entry).expected() else {
                return;
            };
            let span = 0..known.geometry.chunk_count();
            let claim = Claim::new((edge, entry), known.source, Level::Low, span, self.now);
            self.add_claim(owner, claim, &mut Vec::new());
            self.dirty.insert(edge);
        }
    }

    fn fill_wanted(&self, edge: EdgeId, entry: EntryNo) -> bool {
        let on = self.edges.get(&edge);
        on.is_some_and(|on| !on.draining && !on.space.is_full)
            && !self.quota_is_full(edge, entry)
            && self.fill_goes_on(edge, entry)
    }

    /// Whether the fill runs now, or will when the edge has room and is no longer drained.
    pub(super) fn fill_goes_on(&self, edge: EdgeId, entry: EntryNo) -> bool {
        let Some(known) = self.entries.get(&entry).expected() else {
            return false;
        };
        let Some(on) = self.edges.get(&edge).expected() else {
            return false;
        };
        let Some(source) = self.sources.get(&known.source).expected() else {
            return false;
        };
        let Some(replica) = known.replicas.get(&edge).expected() else {
            return false;
        };
        on.alive
            && !known.changed
            && source.registered
            && source.background_fill.unwrap_or(on.background_fill)
            && !replica.held.is_empty()
            && !replica.held.covers(0..known.geometry.chunk_count())
    }

    /// Updates the fills of one source, after its setting changed.
    pub(super) fn ensure_fills_of_source(&mut self, source: SourceId) {
        let replicas: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.source == source)
            .flat_map(|(&number, entry)| entry.replicas.keys().map(move |&edge| (edge, number)))
            .collect();
        for (edge, entry) in replicas {
            self.ensure_fill(edge, entry);
        }
    }

    /// Updates the fills of one edge, after it joined or its draining changed.
    pub(super) fn ensure_fills_of_edge(&mut self, edge: EdgeId) {
        let entries: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.replicas.contains_key(&edge))
            .map(|(&number, _)| number)
            .collect();
        for entry in entries {
            self.ensure_fill(edge, entry);
        }
    }

    /// Nothing above LOW needs the origin.
    pub(super) fn fill_may_run(&self, source: SourceId) -> bool {
        let Some(source) = self.sources.get(&source).expected() else {
            return false;
        };
        let busy =
            |level: Level| source.queued[level as usize] + source.running[level as usize] > 0;
        if busy(Level::Critical) || busy(Level::High) {
            return false;
        }
        let share = self.config.low_share.max(1);
        !busy(Level::Medium) || source.grants % share == share - 1
    }
}
