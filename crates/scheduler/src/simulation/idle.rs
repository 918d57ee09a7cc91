//! Entries that are closed while idle, and opened again by the event that names them.

use super::super::api::*;
use super::world::World;

impl World {
    /// In some runs only, and without using the dice, so that older seeds keep their meaning.
    pub fn close_an_idle_entry(&mut self) {
        let throw = crate::edge_choice::mix(self.seed ^ self.events);
        let entry = EntryNo((throw % self.entries.len() as u64) as u32);
        if self.seed % 5 != 3 || self.closed.contains(&entry) || !self.scheduler.is_idle(entry) {
            return;
        }
        let said = self.journal.len();
        self.closed.insert(entry);
        self.apply(Event::EntryClosed { entry });
        // Other edges may have been planned for in the same event.
        let of_it = self.journal[said..]
            .iter()
            .filter(|effect| matches!(effect, Effect::Assign(a) if a.entry == entry))
            .count();
        let stopped = self.edges.iter().flat_map(|edge| edge.fetches.values());
        let stopped = stopped.filter(|fetch| fetch.a.entry == entry).count();
        assert_eq!((of_it, stopped), (0, 0), "seed {}: it was idle", self.seed);
        let known = self.scheduler.claims.values();
        assert!(known.filter(|claim| claim.entry == entry).count() == 0);
    }

    /// Loads the entry and its rows before an event that names it is applied, as the plan does.
    pub fn reopen_what_is_named(&mut self, event: &Event) {
        let named: Vec<EntryNo> = match event {
            Event::DemandSet(demand) => vec![demand.entry],
            Event::WantSet { entry, .. } | Event::LocalFetchStarted { entry, .. } => vec![*entry],
            Event::FetchesKept { fetches, .. } => fetches.iter().map(|it| it.entry).collect(),
            // When an edge joins, the entries that it holds in part are filled further.
            Event::EdgeJoined { edge, .. } => {
                let held = self.edges.get(edge.0 as usize).map(|edge| &edge.held);
                held.into_iter()
                    .flat_map(|held| held.keys())
                    .copied()
                    .collect()
            }
            _ => Vec::new(),
        };
        for entry in named {
            if !self.closed.remove(&entry) {
                continue;
            }
            let (source, geometry) = self.entries[entry.0 as usize];
            self.apply(Event::EntryOpened {
                entry,
                source,
                geometry,
            });
            let rows = (0..).zip(&self.edges);
            let rows: Vec<_> = rows
                .filter_map(|(edge, it)| Some((EdgeId(edge), it.held.get(&entry)?)))
                .map(|(edge, held)| (edge, held.iter().collect::<Vec<_>>()))
                .collect();
            for (edge, chunks) in rows {
                self.apply(Event::ChunksHeld {
                    edge,
                    entry,
                    chunks,
                });
            }
        }
    }
}
