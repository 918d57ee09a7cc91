//! A reader's wait of an edge that is alone: the origin is asked at once, by the reader's own
//! thread, and the coordinator is told.
//!
//! Saves the way to the coordinator and back, which nobody's answer could change: see [`Sole`].

use std::sync::Arc;

use chunkcache_proto::Level;

use super::planner::{self, MAX_LOCAL};
use crate::{
    availability::{self, Flights, Sole},
    upstream::{Downloads, Order, downloads::Coverage},
};
use chunk_store::{EntryFile, Store};

/// See the module.
pub struct AtOnce {
    pub sole: Arc<Sole>,
    pub downloads: Downloads,
    pub flights: Arc<Flights>,
    pub store: Store,
}

impl availability::AtOnce for AtOnce {
    fn fetch(&self, file: &Arc<EntryFile>, position: u64) -> bool {
        let geometry = file.geometry();
        let chunk = geometry.chunk_of(position);
        let covered = self.downloads.coverage(file.id(), chunk, position);
        if let Coverage::Coming { distance, .. } = covered {
            return distance <= u64::from(geometry.chunk_size());
        }
        let Some(_turn) = self.sole.turn() else {
            return false;
        };
        let flights = self.flights.of(file);
        if flights.ignores_ranges()
            || flights.is_changed()
            || planner::store_refuses(&self.store, &self.downloads)
            || self.downloads.is_limited(file)
            || self.downloads.local_count() >= MAX_LOCAL
        {
            return false;
        }
        self.downloads.submit_uncovered(Order {
            id: self.downloads.local_id(),
            file: file.clone(),
            first_chunk: chunk,
            chunk_count: 1,
            level: Level::Critical,
            deadline_in_ms: 0,
            start_at: position,
            peer: None,
            max_rate: 0,
        })
    }
}
