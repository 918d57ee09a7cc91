//! A purge in the tables: recorded, then carried out in small transactions, so that it never delays
//! other changes.

use std::{collections::HashSet, time::SystemTime};

use chunkcache_proto::EntryId;
use deadpool_postgres::GenericClient;

use super::super::{
    ChangeKind, DatabaseError, PendingPurge, PurgeRecord,
    purges::{MAX_PURGES, columns, places},
    statements,
};
use super::{RecordPurge, RemoveRowsOfEntries, UnbindEntries, Writer, apply::Batch};
use chunkcache_proto::v1::purge_selector::Objects;

/// Entries or rows per transaction: some 0.3 s, during which edges' reports wait.
const BITE: u32 = 4_000;

impl Writer {
    /// Unbinds keys that were validated before the purge; unless it is soft, first deletes the
    /// chunk rows that were stored before it.
    pub async fn purge(
        &self,
        purge: &PendingPurge,
        entries: &[EntryId],
    ) -> Result<(), DatabaseError> {
        for entries in entries.chunks(BITE as usize) {
            let mut has_rows = !purge.record.soft;
            while has_rows {
                let bite = RemoveRowsOfEntries {
                    entries: entries.to_vec(),
                    stored_before: purge.purged_at,
                    limit: BITE,
                };
                has_rows = self.write(bite).await?.value == u64::from(BITE);
            }
            // Done last, because a marked entry is not selected again.
            let unbind = UnbindEntries {
                entries: entries.to_vec(),
                validated_before: purge.keys_before,
            };
            self.write(unbind).await?;
        }
        Ok(())
    }
}

impl<C: GenericClient> Batch<'_, C> {
    pub(super) async fn record_purge(
        &mut self,
        change: &RecordPurge,
    ) -> Result<PendingPurge, DatabaseError> {
        // Taken here: everything that was queued earlier, or is in this batch, was validated
        // before.
        let keys_before = SystemTime::now();
        let selector = &change.selector;
        let (kind, value) = columns(selector)?;
        let objects = selector.objects.as_ref();
        let (first, last, pattern) = objects.map(places).unwrap_or_default();
        let tag = match objects {
            Some(Objects::Tag(tag)) => Some(tag),
            _ => None,
        };
        let row = self
            .executor
            .query_one(
                statements::PURGE_RECORD,
                &[
                    &selector.source,
                    &kind,
                    &value,
                    &change.soft,
                    &keys_before,
                    &first,
                    &last,
                    &pattern,
                    &tag,
                ],
            )
            .await?;
        let number: i64 = row.get(0);
        self.executor
            .execute(statements::PURGE_PRUNE, &[&i64::from(MAX_PURGES)])
            .await?;
        let record = PurgeRecord {
            number: number.unsigned_abs(),
            selector: change.selector.clone(),
            soft: change.soft,
        };
        Ok(PendingPurge {
            record,
            purged_at: row.get(1),
            keys_before,
        })
    }

    pub(super) async fn unbind_entries(
        &mut self,
        change: &UnbindEntries,
    ) -> Result<(), DatabaseError> {
        self.executor
            .execute(statements::ENTRY_MARK_PURGED, &[&change.entries])
            .await?;
        let unbound = self
            .executor
            .query(
                statements::KEY_DELETE_OF_ENTRIES,
                &[&change.entries, &change.validated_before],
            )
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
