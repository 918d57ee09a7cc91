//! A purge in the tables: recorded, then carried out in bites, so that it never holds up the others.

use std::collections::HashSet;

use chunkcache_proto::EntryId;
use deadpool_postgres::GenericClient;

use super::super::{
    ChangeKind, DatabaseError, PurgeRecord,
    purges::{MAX_PURGES, columns},
    statements,
};
use super::{BITE, Purging, RecordPurge, RemoveRowsOfEntries, UnbindEntries, Writer, apply::Batch};

impl Writer {
    /// No key points to the entries any more; unless softly, their chunk rows go too.
    pub async fn purge(&self, entries: &[EntryId], soft: bool) -> Result<(), DatabaseError> {
        for entries in entries.chunks(BITE as usize) {
            let unbind = UnbindEntries {
                entries: entries.to_vec(),
            };
            self.write(unbind).await?;
            if soft {
                continue;
            }
            loop {
                let bite = RemoveRowsOfEntries {
                    entries: entries.to_vec(),
                    limit: BITE,
                };
                if self.write(bite).await?.value < u64::from(BITE) {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl<C: GenericClient> Batch<'_, C> {
    pub(super) async fn record_purge(
        &mut self,
        change: &RecordPurge,
    ) -> Result<Purging, DatabaseError> {
        let (kind, value) = columns(&change.selector)?;
        let row = self
            .executor
            .query_one(
                statements::PURGE_RECORD,
                &[&change.selector.source, &kind, &value, &change.soft],
            )
            .await?;
        let number: i64 = row.get(0);
        self.executor
            .execute(statements::PURGE_PRUNE, &[&(number - MAX_PURGES)])
            .await?;
        let record = PurgeRecord {
            number: number.unsigned_abs(),
            selector: change.selector.clone(),
            soft: change.soft,
        };
        Ok(Purging {
            record,
            purged_at: row.get(1),
        })
    }

    pub(super) async fn unbind_entries(
        &mut self,
        entries: &[EntryId],
    ) -> Result<(), DatabaseError> {
        self.executor
            .execute(statements::ENTRY_MARK_PURGED, &[&entries])
            .await?;
        let unbound = self
            .executor
            .query(statements::KEY_DELETE_OF_ENTRIES, &[&entries])
            .await?;
        let unbound: HashSet<EntryId> = unbound.iter().map(|row| row.get(0)).collect();
        self.changes
            .extend(unbound.into_iter().map(|previous| ChangeKind::Key {
                previous: Some(previous),
                entry: None,
            }));
        Ok(())
    }
}
