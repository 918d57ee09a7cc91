//! The inventory of a session: compares the edge's proved chunks with the rows, one page at a time.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use chunkcache_proto::{ChunkIndex, EntryId, checksum::InventoryDigest, v1};
use tokio::sync::mpsc;
use v1::{session_request::Message as Request, session_response::Message as Response};

use super::{
    plan::Command,
    reconcile::{self, Difference},
    registry::Reconciliation,
    storage::{SessionStorage, drop_conflicting, parse_id, refuse_entry, take_up_fill},
};
use crate::{
    db::{
        ChunkSum,
        writer::{InventoryItem, Observation, ReconcileEntries, Reconciled},
    },
    metrics::DriftLabel,
    service::{error::ServiceError, loader::row_id, observe},
};

/// Limit of entries in one inventory: some 100 bytes each until they are compared.
const MAX_INVENTORY: usize = 2_000_000;
/// Entries requested at a time.
const PAGE_ENTRIES: usize = 1_024;
/// Entries and chunks reconciled in one transaction.
const BATCH_ENTRIES: usize = 1_024;
const BATCH_CHUNKS: usize = 8_192;

/// The progress of a session's inventory.
#[derive(Default)]
pub(super) struct Inventory {
    digests: HashMap<EntryId, InventoryDigest>,
    is_compared: bool,
    /// Entries that differ and were not requested yet.
    differing: VecDeque<EntryId>,
    /// Entries that were requested. `None`: no page is outstanding.
    requested: Option<HashSet<EntryId>>,
    /// Entries with chunks that were stored since the session began, until rows and disk agree.
    stored: HashSet<EntryId>,
    found: Reconciliation,
}

impl Inventory {
    /// Whether the digests were compared with the rows.
    pub(super) fn is_compared(&self) -> bool {
        self.is_compared
    }

    /// Notes that an entry has a stored chunk, so it may exist even if a later part of the
    /// inventory omits it.
    pub(super) fn note_stored(&mut self, entry: EntryId) {
        if !self.is_compared || self.requested.is_some() {
            self.stored.insert(entry);
        }
    }

    /// Takes the next page to request. `None`: everything was requested.
    fn next_page(&mut self) -> Option<Vec<EntryId>> {
        let count = self.differing.len().min(PAGE_ENTRIES);
        let page: Vec<EntryId> = self.differing.drain(..count).collect();
        self.requested = (!page.is_empty()).then(|| page.iter().copied().collect());
        (!page.is_empty()).then_some(page)
    }

    /// Ends the requested page: entries that did not arrive no longer exist. An entry with a chunk
    /// that was stored meanwhile is requested again.
    fn end_page(&mut self) -> Option<Vec<EntryId>> {
        let left = self.requested.take()?;
        let (again, absent) = left.into_iter().partition(|id| self.stored.remove(id));
        let again: Vec<EntryId> = again;
        self.differing.extend(again);
        Some(absent)
    }
}

impl SessionStorage {
    pub(super) fn digests(&mut self, page: &v1::InventoryDigests) -> Result<(), ServiceError> {
        let digests = &mut self.inventory.digests;
        for digest in &page.digests {
            let entry = parse_id("inventory_digests.digests.entry_id", &digest.entry_id)?;
            if digests.len() >= MAX_INVENTORY {
                let field = "inventory_digests.digests";
                return Err(ServiceError::invalid(field, "too many entries"));
            }
            let digest = InventoryDigest {
                chunk_count: digest.chunk_count,
                checksum_xor: digest.checksum_xor,
            };
            digests.insert(entry, digest);
        }
        Ok(())
    }

    /// Called when all digests have arrived. Deletes rows of entries that the edge does not have,
    /// and requests the differing ones in full, page after page.
    pub(super) async fn compare(&mut self) -> Result<(), ServiceError> {
        self.barrier().await?;
        let edge = row_id(self.live.edge);
        let rows = self.cluster.database.digests(edge).await?;
        let inventory = &mut self.inventory;
        let digests = std::mem::take(&mut inventory.digests);
        inventory.found.chunks_checked = digests.values().map(|digest| digest.chunk_count).sum();
        let Difference { gone, differing } = reconcile::compare(&digests, &rows);
        // Its digest was made before the chunk was stored.
        let stored = std::mem::take(&mut inventory.stored);
        let (came, gone): (Vec<_>, Vec<_>) = gone.into_iter().partition(|id| stored.contains(id));
        inventory.differing = differing.into_iter().chain(came).collect();
        inventory.is_compared = true;
        self.drop_rows(gone).await?;
        // An empty page is requested too, because rows and disk agree at its end.
        let first = self.inventory.next_page().unwrap_or_default();
        self.inventory.requested.get_or_insert_default();
        self.request(&first).await;
        Ok(())
    }

    async fn request(&self, page: &[EntryId]) {
        let request = v1::InventoryRequest {
            entry_ids: page.iter().map(EntryId::to_string).collect(),
        };
        let outbox = &self.live.outbox;
        outbox.send(Response::InventoryRequest(request)).await;
    }

    /// Handles a part of the requested page. The next page is requested before this one is
    /// reconciled, so that it travels meanwhile.
    pub(super) async fn page(
        &mut self,
        entries: Vec<v1::InventoryEntry>,
        is_last: bool,
    ) -> Result<(), ServiceError> {
        let items = self.admit(entries)?;
        let mut is_ready = false;
        let mut absent = Vec::new();
        if is_last {
            absent = self.inventory.end_page().ok_or_else(|| {
                ServiceError::invalid("inventory_complete", "no page was requested")
            })?;
            match self.inventory.next_page() {
                Some(next) => self.request(&next).await,
                None => is_ready = true,
            }
        }
        self.reconcile_entries(items).await?;
        self.drop_rows(absent).await?;
        if is_ready { self.ready().await } else { Ok(()) }
    }

    fn admit(
        &mut self,
        entries: Vec<v1::InventoryEntry>,
    ) -> Result<Vec<(InventoryItem, v1::KeyBinding)>, ServiceError> {
        let mut items = Vec::with_capacity(entries.len());
        for inventory in entries {
            let entry = inventory.entry.ok_or_else(|| {
                ServiceError::invalid("inventory_entry.entry", "expected an entry")
            })?;
            let id = parse_id("inventory_entry.entry.id", &entry.id)?;
            let requested = self.inventory.requested.as_mut();
            if !requested.is_some_and(|requested| requested.remove(&id)) {
                return Err(ServiceError::invalid(
                    "inventory_entry",
                    "was not requested",
                ));
            }
            let freshness = inventory.freshness.unwrap_or_default();
            let how = Observation::Replayed;
            let item = InventoryItem {
                id,
                // An entry that cannot be recorded is dropped with all its chunks.
                adopt: observe::admit(&self.cluster, &entry, freshness.clone(), how).ok(),
                chunks: inventory.chunks.iter().map(ChunkSum::from).collect(),
            };
            let binding = v1::KeyBinding {
                entry: Some(entry),
                freshness: Some(freshness),
            };
            items.push((item, binding));
        }
        Ok(items)
    }

    /// Makes the rows equal to what the edge can prove.
    async fn reconcile_entries(
        &mut self,
        items: Vec<(InventoryItem, v1::KeyBinding)>,
    ) -> Result<(), ServiceError> {
        if items.is_empty() {
            return Ok(());
        }
        let (items, bindings): (Vec<_>, Vec<_>) = items.into_iter().unzip();
        let kept: Vec<(EntryId, Vec<ChunkIndex>)> = items
            .iter()
            .map(|item: &InventoryItem| {
                let chunks = item.chunks.iter().map(|chunk| chunk.index).collect();
                (item.id, chunks)
            })
            .collect();
        let answers = self.reconcile(items).await?;
        for (((id, chunks), binding), answer) in kept.into_iter().zip(bindings).zip(answers) {
            self.reconciled(id, chunks, answer, binding).await?;
        }
        Ok(())
    }

    /// Reports to the plan and the edge that the rows and bytes of an entry agree now.
    async fn reconciled(
        &mut self,
        id: EntryId,
        mut chunks: Vec<ChunkIndex>,
        answer: Reconciled,
        binding: v1::KeyBinding,
    ) -> Result<(), ServiceError> {
        let edge = self.live.edge;
        self.drift(answer.rows_deleted, answer.rows_written);
        if answer.is_conflicting {
            drop_conflicting(&self.cluster, id);
        }
        if let Some(error) = &answer.refused {
            tracing::info!(edge = %self.live.name, entry = %id, %error, "an entry is refused");
            let key = binding.entry.as_ref().and_then(|entry| entry.key.clone());
            refuse_entry(&self.cluster, &self.live, id.to_string(), key);
        } else {
            let key = binding.entry.as_ref().and_then(|entry| entry.key.clone());
            if let (Some(observed), Some(key)) = (&answer.observed, key) {
                let about = (id, &key);
                observe::announce_replayed(&self.cluster, edge, about, observed, binding).await?;
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
        if !answer.dropped.is_empty() {
            let verdict = v1::InventoryVerdict {
                entry_id: id.to_string(),
                drop: answer.dropped,
            };
            let outbox = &self.live.outbox;
            outbox.send(Response::InventoryVerdict(verdict)).await;
        }
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
        for page in entries.chunks(BATCH_ENTRIES) {
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
        self.inventory.found.rows_without_bytes += rows_without_bytes;
        self.inventory.found.bytes_without_rows += bytes_without_rows;
        let count = |kind, by| {
            let family = &self.cluster.metrics.drift_chunks;
            family.get_or_create(&DriftLabel { kind }).inc_by(by);
        };
        count("rows_without_bytes", rows_without_bytes);
        count("bytes_without_rows", bytes_without_rows);
    }

    /// Ends the reconciliation: rows and disk agree from here on.
    pub(super) async fn ready(&mut self) -> Result<(), ServiceError> {
        let revision = self.cluster.database.latest_revision().await?;
        self.live
            .reconciled
            .send_replace(Some(self.inventory.found));
        self.live
            .outbox
            .send(Response::Ready(v1::Ready { revision }))
            .await;
        tracing::info!(
            edge = %self.live.name,
            chunks = self.inventory.found.chunks_checked,
            rows_without_bytes = self.inventory.found.rows_without_bytes,
            bytes_without_rows = self.inventory.found.bytes_without_rows,
            "edge is reconciled"
        );
        let fill = take_up_fill(Arc::clone(&self.cluster), Arc::clone(&self.live));
        self.cluster.tasks.spawn(fill);
        Ok(())
    }
}

/// Gathers consecutive inventory entries, and returns them with the first other message.
pub(super) async fn gather_page(
    first: v1::InventoryEntry,
    queue: &mut mpsc::Receiver<Request>,
) -> (Vec<v1::InventoryEntry>, Option<Request>) {
    let mut chunks = first.chunks.len();
    let mut last = first;
    let mut page = Vec::new();
    // An edge sends nothing else between the entries of a page.
    while last.is_continued || page.len() + 1 < BATCH_ENTRIES && chunks < BATCH_CHUNKS {
        match queue.recv().await {
            Some(Request::InventoryEntry(next)) => {
                chunks += next.chunks.len();
                if last.is_continued && is_part_of(&last, &next) {
                    last.chunks.extend(next.chunks);
                    last.is_continued = next.is_continued;
                } else {
                    page.push(std::mem::replace(&mut last, next));
                }
            }
            other => {
                page.push(last);
                return (page, other);
            }
        }
    }
    page.push(last);
    (page, None)
}

/// Whether `next` continues `whole`: the same entry, which has at least as many chunks.
fn is_part_of(whole: &v1::InventoryEntry, next: &v1::InventoryEntry) -> bool {
    let (Some(of), Some(entry)) = (&whole.entry, &next.entry) else {
        return false;
    };
    let count = (whole.chunks.len() + next.chunks.len()) as u64;
    of.id == entry.id && count <= of.size.div_ceil(u64::from(of.chunk_size.max(1)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn part(id: &str, chunks: u32, is_continued: bool) -> v1::InventoryEntry {
        let entry = v1::Entry {
            id: id.into(),
            size: 10,
            chunk_size: 1,
            ..v1::Entry::default()
        };
        v1::InventoryEntry {
            entry: Some(entry),
            freshness: None,
            chunks: vec![v1::Chunk::default(); chunks as usize],
            is_continued,
        }
    }

    #[tokio::test]
    async fn the_parts_of_an_entry_are_one_and_no_longer_than_it() {
        let (to, mut queue) = mpsc::channel(16);
        for next in [
            part("a", 4, true),
            part("a", 2, false),
            part("b", 6, true),
            part("b", 6, false),
        ] {
            to.send(Request::InventoryEntry(next)).await.unwrap();
        }
        let complete = Request::InventoryComplete(v1::InventoryComplete {});
        to.send(complete.clone()).await.unwrap();
        let (page, next) = gather_page(part("a", 4, true), &mut queue).await;
        let lengths: Vec<usize> = page.iter().map(|entry| entry.chunks.len()).collect();
        assert_eq!(lengths, [10, 6, 6], "the second `b` is one too many");
        assert_eq!(next, Some(complete));
    }

    #[test]
    fn what_was_stored_meanwhile_is_asked_for_again_and_the_rest_is_gone() {
        let id = EntryId::from_u128;
        let mut inventory = Inventory {
            is_compared: true,
            differing: (0..PAGE_ENTRIES as u128 + 2).map(id).collect(),
            ..Inventory::default()
        };
        assert_eq!(inventory.next_page().unwrap().len(), PAGE_ENTRIES);
        inventory.note_stored(id(7));
        let requested = inventory.requested.as_mut().unwrap();
        requested.retain(|it| *it == id(7) || *it == id(8));
        assert_eq!(inventory.end_page(), Some(vec![id(8)]));
        let next = inventory.next_page().unwrap();
        assert_eq!(next, [id(1_024), id(1_025), id(7)]);
        inventory.requested.as_mut().unwrap().clear();
        assert_eq!(inventory.end_page(), Some(Vec::new()));
        assert_eq!(inventory.next_page(), None);
        assert_eq!(inventory.end_page(), None, "nothing is outstanding");
    }
}
