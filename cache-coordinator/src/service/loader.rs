//! Loads entries and their holders from the table, for the plan.

use chunkcache_proto::EntryId;

use super::error::ServiceError;
use crate::{
    db::Database,
    sessions::{actor::EntrySource, plan::LoadedEntry},
};
use scheduler::api::EdgeId;

/// Converts a row's id to the scheduler's.
#[must_use]
pub fn edge_id(id: i32) -> EdgeId {
    EdgeId(id.unsigned_abs())
}

/// Converts the scheduler's id to the row's.
#[must_use]
pub fn row_id(edge: EdgeId) -> i32 {
    edge.0.cast_signed()
}

impl EntrySource for Database {
    async fn load_entry(&self, id: EntryId) -> Result<Option<LoadedEntry>, ServiceError> {
        let Some(entry) = self.entry(id).await? else {
            return Ok(None);
        };
        let geometry = entry.geometry;
        let holdings = self.holdings(id).await?;
        let holders = holdings
            .into_iter()
            .map(|holding| {
                // Rows are whole chunks, so a joined range covers exactly the chunks that it
                // touches.
                let chunks = holding
                    .ranges
                    .into_iter()
                    .map(|range| geometry.chunks_covering(range))
                    .collect();
                (edge_id(holding.edge_id), chunks)
            })
            .collect();
        Ok(Some(LoadedEntry {
            entry: entry.to_proto(),
            holders,
        }))
    }
}
