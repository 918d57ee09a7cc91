//! The inventory of a session: compares the edge's proved chunks with the rows, a page at a time.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chunkcache_proto::{ChunkIndex, EntryId, checksum::InventoryDigest, v1};
use tokio::sync::mpsc;
use v1::{session_request::Message as Request, session_response::Message as Response};

use super::{
    plan::Command,
    reconcile::{self, Difference},
    storage::{Lane, parse_id, refuse_entry, take_up_fill},
};
use crate::{
    db::{
        ChunkSum,
        writer::{InventoryItem, Observation, ReconcileEntries, Reconciled},
    },
    metrics::DriftLabel,
    service::{error::ServiceError, loader::row_id, observe},
};

/// Limit of entries in one inventory.
const MAX_INVENTORY: usize = 1_000_000;
/// Entries and chunks reconciled in one transaction.
const PAGE_ENTRIES: usize = 1_000;
const PAGE_CHUNKS: usize = 8_192;

impl Lane {
    pub(super) fn digest(&mut self, digest: &v1::InventoryDigest) -> Result<(), ServiceError> {
        let entry = parse_id("inventory_digest.entry_id", &digest.entry_id)?;
        if self.digests.len() >= MAX_INVENTORY {
            return Err(ServiceError::invalid(
                "inventory_digest",
                "too many entries",
            ));
        }
        let digest = InventoryDigest {
            chunk_count: digest.chunk_count,
            checksum_xor: digest.checksum_xor,
        };
        self.digests.insert(entry, digest);
        Ok(())
    }

    /// Compares the digests once all have arrived: deletes rows of entries that the edge does not
    /// have, and requests differing entries in full.
    pub(super) async fn compare(&mut self) -> Result<(), ServiceError> {
        self.barrier().await?;
        let edge = row_id(self.live.edge);
        let rows = self.cluster.database.digests(edge).await?;
        let digests = std::mem::take(&mut self.digests);
        self.found.chunks_checked = digests.values().map(|digest| digest.chunk_count).sum();
        let Difference { gone, differing } = reconcile::compare(&digests, &rows);
        self.drop_rows(gone).await?;
        self.requested = differing.iter().copied().collect();
        self.is_requested = true;
        let request = v1::InventoryRequest {
            entry_ids: differing.iter().map(EntryId::to_string).collect(),
        };
        self.live
            .outbox
            .send(Response::InventoryRequest(request))
            .await;
        Ok(())
    }

    /// Makes the rows of full entries equal to the edge's proved chunks.
    pub(super) async fn inventory(
        &mut self,
        page: Vec<v1::InventoryEntry>,
    ) -> Result<(), ServiceError> {
        let mut items: Vec<InventoryItem> = Vec::with_capacity(page.len());
        let mut bindings = HashMap::new();
        for inventory in page {
            let entry = inventory.entry.ok_or_else(|| {
                ServiceError::invalid("inventory_entry.entry", "expected an entry")
            })?;
            let id = parse_id("inventory_entry.entry.id", &entry.id)?;
            if !self.requested.remove(&id) {
                return Err(ServiceError::invalid(
                    "inventory_entry",
                    "was not requested",
                ));
            }
            let freshness = inventory.freshness.unwrap_or_default();
            // An entry that can not be recorded is dropped with all its chunks.
            let adopt = observe::admit(
                &self.cluster,
                &entry,
                freshness.clone(),
                Observation::Replayed,
            )
            .ok();
            let binding = v1::KeyBinding {
                entry: Some(entry),
                freshness: Some(freshness),
            };
            bindings.insert(id, binding);
            items.push(InventoryItem {
                id,
                adopt,
                chunks: inventory.chunks.iter().map(ChunkSum::from).collect(),
            });
        }
        let kept: Vec<(EntryId, Vec<ChunkIndex>)> = items
            .iter()
            .map(|item| {
                let chunks = item.chunks.iter().map(|chunk| chunk.index).collect();
                (item.id, chunks)
            })
            .collect();
        let answers = self.reconcile(items).await?;
        for ((id, chunks), answer) in kept.into_iter().zip(answers) {
            let binding = bindings.remove(&id).unwrap_or_default();
            self.reconciled(id, chunks, answer, binding).await?;
        }
        Ok(())
    }

    /// Reports one entry, whose rows and bytes now agree, to the plan and the edge.
    async fn reconciled(
        &mut self,
        id: EntryId,
        mut chunks: Vec<ChunkIndex>,
        answer: Reconciled,
        binding: v1::KeyBinding,
    ) -> Result<(), ServiceError> {
        let edge = self.live.edge;
        self.drift(answer.rows_deleted, answer.rows_written);
        if let Some(error) = &answer.refused {
            tracing::info!(edge = %self.live.name, entry = %id, %error, "an entry is refused");
            let key = binding.entry.as_ref().and_then(|entry| entry.key.clone());
            refuse_entry(&self.cluster, &self.live, id.to_string(), key);
        } else {
            let key = binding.entry.as_ref().and_then(|entry| entry.key.clone());
            if let (Some(observed), Some(key)) = (&answer.observed, key) {
                observe::announce(&self.cluster, Some(edge), (id, &key), observed, binding).await?;
            }
            let dropped: HashSet<ChunkIndex> = answer.dropped.iter().copied().collect();
            chunks.retain(|index| !dropped.contains(index));
            self.forget_holding(id).await?;
            let held = Command::Held {
                edge,
                entry: id,
                chunks,
            };
            self.cluster.plan.tell(held).await?;
        }
        let verdict = v1::InventoryVerdict {
            entry_id: id.to_string(),
            drop: answer.dropped,
        };
        self.live
            .outbox
            .send(Response::InventoryVerdict(verdict))
            .await;
        Ok(())
    }

    async fn forget_holding(&self, entry: EntryId) -> Result<(), ServiceError> {
        let dropped = Command::Dropped {
            edge: self.live.edge,
            entry,
            chunks: None,
        };
        Ok(self.cluster.plan.tell(dropped).await?)
    }

    /// Deletes the rows of entries that the edge does not have.
    async fn drop_rows(&mut self, entries: Vec<EntryId>) -> Result<(), ServiceError> {
        for page in entries.chunks(PAGE_ENTRIES) {
            let items = page
                .iter()
                .map(|entry| InventoryItem {
                    id: *entry,
                    adopt: None,
                    chunks: Vec::new(),
                })
                .collect();
            let answers = self.reconcile(items).await?;
            for (entry, answer) in page.iter().zip(answers) {
                self.drift(answer.rows_deleted, 0);
                self.forget_holding(*entry).await?;
            }
        }
        Ok(())
    }

    async fn reconcile(
        &self,
        entries: Vec<InventoryItem>,
    ) -> Result<Vec<Reconciled>, ServiceError> {
        let page = ReconcileEntries {
            edge: row_id(self.live.edge),
            epoch: self.live.epoch,
            entries,
        };
        Ok(self.cluster.writer.reconcile(page).await?)
    }

    fn drift(&mut self, rows_without_bytes: u64, bytes_without_rows: u64) {
        self.found.rows_without_bytes += rows_without_bytes;
        self.found.bytes_without_rows += bytes_without_rows;
        let count = |kind, by| {
            let family = &self.cluster.metrics.drift_chunks;
            family.get_or_create(&DriftLabel { kind }).inc_by(by);
        };
        count("rows_without_bytes", rows_without_bytes);
        count("bytes_without_rows", bytes_without_rows);
    }

    /// Ends the reconciliation: rows and disk agree from here on.
    pub(super) async fn ready(&mut self) -> Result<(), ServiceError> {
        // Requested entries that did not come no longer exist.
        let absent = std::mem::take(&mut self.requested).into_iter().collect();
        self.drop_rows(absent).await?;
        let revision = self.cluster.database.latest_revision().await?;
        self.live.reconciled.send_replace(Some(self.found));
        self.live
            .outbox
            .send(Response::Ready(v1::Ready { revision }))
            .await;
        tracing::info!(
            edge = %self.live.name,
            chunks = self.found.chunks_checked,
            rows_without_bytes = self.found.rows_without_bytes,
            bytes_without_rows = self.found.bytes_without_rows,
            "edge is reconciled"
        );
        let fill = take_up_fill(Arc::clone(&self.cluster), Arc::clone(&self.live));
        self.cluster.tasks.spawn(fill);
        Ok(())
    }
}

/// Splits off the entries that have arrived from the messages behind them.
pub(super) fn gather_page(
    first: v1::InventoryEntry,
    queue: &mut mpsc::Receiver<Request>,
) -> (Vec<v1::InventoryEntry>, Option<Request>) {
    let mut chunks = first.chunks.len();
    let mut page = vec![first];
    while page.len() < PAGE_ENTRIES && chunks < PAGE_CHUNKS {
        match queue.try_recv() {
            Ok(Request::InventoryEntry(entry)) => {
                chunks += entry.chunks.len();
                page.push(entry);
            }
            Ok(other) => return (page, Some(other)),
            Err(_) => break,
        }
    }
    (page, None)
}
