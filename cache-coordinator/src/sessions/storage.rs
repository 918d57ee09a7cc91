//! The lane of a session that changes rows: inventory, stored, removed, observed; in the order
//! received.
//!
//! Reports are queued one after the other without waiting for their commits; a second task takes
//! the answers in the same order and sends `Committed`. While a page of an inventory is reconciled,
//! later reports wait here, so that a row that is recorded after the page is never mistaken for one
//! without bytes.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::{ChunkIndex, EntryId, identity, v1};
use service_kit::clock::now_ms;
use tokio::sync::{mpsc, oneshot};
use v1::{session_request::Message as Request, session_response::Message as Response};

use super::{
    inventory::{Inventory, gather_page},
    plan::Command,
    protocol,
    registry::{EdgeSession, End},
};
use crate::{
    db::{
        ChunkSum, DatabaseError,
        writer::{DropEntries, Observation, Pending, RemoveChunks, StoreChunks},
    },
    service::{
        Cluster,
        error::ServiceError,
        invalidate,
        loader::row_id,
        observe::{self, Observing},
        purge,
    },
};

/// Limit of running commits of one session.
const COMMITS_AHEAD: usize = 1024;
/// Number of entries whose fill is resumed at a time, and the pause before the next batch. Filling
/// a disk full of partial entries takes hours, and entries that are not open yet cost nothing.
const FILL_ENTRIES: u32 = 1000;
const FILL_PAUSE: Duration = Duration::from_secs(10);
/// Limit of invalidated entries sent to an edge that returns: as many as fit into one message.
const INVALIDATED_ENTRIES: u32 = 20_000;
/// An older observation must have been made while no coordinator answered.
const LIVE_OBSERVATION: Duration = Duration::from_secs(30);

/// Answers to send once a change is committed.
enum Answer {
    Stored(u64, EntryId, Vec<ChunkIndex>, Pending<StoreChunks>),
    Removed(u64, EntryId, Removed, Pending<RemoveChunks>),
    EntriesDropped(u64, Vec<EntryId>, Pending<DropEntries>),
    Observed(Box<Observing>),
    /// Sent when all earlier changes are committed.
    Barrier(oneshot::Sender<()>),
}

/// Chunks that an edge drops, and whether it does so to make space.
struct Removed {
    chunks: Vec<ChunkIndex>,
    evicted: bool,
}

/// The state of one session.
pub(super) struct SessionStorage {
    pub(super) cluster: Arc<Cluster>,
    pub(super) live: Arc<EdgeSession>,
    answers: mpsc::Sender<Answer>,
    pub(super) inventory: Inventory,
}

/// Runs until the session ends; messages received by then are still queued.
pub async fn run(
    cluster: Arc<Cluster>,
    live: Arc<EdgeSession>,
    mut queue: mpsc::Receiver<Request>,
) {
    let (answers, receiver) = mpsc::channel(COMMITS_AHEAD);
    let answering = answer(Arc::clone(&cluster), Arc::clone(&live), receiver);
    let working = async {
        let mut lane = SessionStorage {
            cluster: Arc::clone(&cluster),
            live: Arc::clone(&live),
            answers,
            inventory: Inventory::default(),
        };
        let told = async {
            purge::replay(&cluster, &live, live.last_purge).await?;
            lane.tell_invalidated().await
        };
        if let Err(error) = told.await {
            tracing::warn!(edge = %live.name, %error, "the session is ended");
            live.outbox.end(end_of(&error));
            return;
        }
        let mut next = None;
        loop {
            let message = match next.take() {
                Some(message) => message,
                None => match queue.recv().await {
                    Some(message) => message,
                    None => break,
                },
            };
            let name = protocol::name(&message);
            let taken = match message {
                // The entries that follow share a transaction.
                Request::InventoryEntry(first) => {
                    let page;
                    (page, next) = gather_page(first, &mut queue).await;
                    let is_last = next.take_if(|it| matches!(it, Request::InventoryComplete(_)));
                    lane.page(page, is_last.is_some()).await
                }
                message => lane.take(message).await,
            };
            if let Err(error) = taken {
                tracing::warn!(edge = %live.name, %error, message = name, "the session is ended");
                live.outbox.end(end_of(&error));
                return;
            }
        }
    };
    tokio::join!(working, answering);
}

fn end_of(error: &ServiceError) -> End {
    match error {
        ServiceError::Invalid(_) => End::Protocol,
        ServiceError::StaleEpoch { .. } => End::Fenced,
        ServiceError::Precondition { reason, .. } if *reason == "STALE_EPOCH" => End::Fenced,
        ServiceError::NotLeader { .. } => End::NotLeader,
        _ => End::Database,
    }
}

impl SessionStorage {
    /// Sends the invalidations that the edge missed, because its bindings may still be fresh.
    async fn tell_invalidated(&self) -> Result<(), ServiceError> {
        let registry = &self.cluster.registry;
        let entries = self
            .cluster
            .database
            .invalidated_entries(INVALIDATED_ENTRIES)
            .await?;
        if entries.is_empty() {
            return Ok(());
        }
        let sequence = registry.next_sequence();
        self.live.owes_confirmation(sequence);
        let message = v1::Invalidate {
            sequence,
            keys: Vec::new(),
            entry_ids: entries.iter().map(ToString::to_string).collect(),
            purge: false,
            epoch: 0,
        };
        self.live.outbox.send(Response::Invalidate(message)).await;
        Ok(())
    }

    async fn take(&mut self, message: Request) -> Result<(), ServiceError> {
        match message {
            Request::ChunksStored(stored) => self.stored(stored).await,
            Request::ChunksRemoved(removed) => self.removed(removed).await,
            Request::EntriesRemoved(removed) => self.entries_removed(removed).await,
            Request::EntryObserved(observed) => {
                let freshness = observed.freshness.unwrap_or_default();
                let age_ms = now_ms().saturating_sub(freshness.validated_at_ms);
                let is_live =
                    u128::try_from(age_ms).is_ok_and(|age| age < LIVE_OBSERVATION.as_millis());
                let cluster = Arc::clone(&self.cluster);
                let _observing = cluster.registry.observing().await;
                let how = if is_live && !self.live.is_behind_invalidations() {
                    Observation::Live
                } else {
                    Observation::Replayed
                };
                // Held until it is queued, so that an invalidation that begins now is queued after
                // it.
                self.observed(observed.entry, freshness, how).await
            }
            Request::InventoryDigests(page) => self.digests(&page),
            Request::InventoryComplete(_) if self.inventory.is_compared() => {
                self.page(Vec::new(), true).await
            }
            Request::InventoryComplete(_) => self.compare().await,
            Request::InvalidateAck(ack) => {
                self.live.add_purged(ack.objects);
                self.live
                    .invalidations_confirmed
                    .send_if_modified(|confirmed| {
                        let is_news = ack.sequence > *confirmed;
                        *confirmed = ack.sequence.max(*confirmed);
                        is_news
                    });
                Ok(())
            }
            // Routed to other lanes by the protocol.
            _ => Ok(()),
        }
    }

    async fn stored(&mut self, stored: v1::ChunksStored) -> Result<(), ServiceError> {
        let entry = parse_id("chunks_stored.entry_id", &stored.entry_id)?;
        self.inventory.note_stored(entry);
        let metrics = &self.cluster.metrics;
        metrics.report_chunks.observe(stored.chunks.len() as f64);
        let change = StoreChunks {
            edge: row_id(self.live.edge),
            epoch: self.live.epoch,
            entry,
            chunks: stored.chunks.iter().map(ChunkSum::from).collect(),
        };
        let pending = self.cluster.writer.enqueue(change).await?;
        let indexes = stored.chunks.iter().map(|chunk| chunk.index).collect();
        self.promise(Answer::Stored(stored.sequence, entry, indexes, pending))
            .await
    }

    async fn removed(&mut self, removed: v1::ChunksRemoved) -> Result<(), ServiceError> {
        let entry = parse_id("chunks_removed.entry_id", &removed.entry_id)?;
        let change = RemoveChunks {
            edge: row_id(self.live.edge),
            epoch: self.live.epoch,
            entry,
            indexes: removed.indexes.clone(),
        };
        let pending = self.cluster.writer.enqueue(change).await?;
        let evicted = removed.reason() == v1::RemovalReason::Evicted;
        let what = Removed {
            chunks: removed.indexes,
            evicted,
        };
        self.promise(Answer::Removed(removed.sequence, entry, what, pending))
            .await
    }

    async fn entries_removed(&mut self, removed: v1::EntriesRemoved) -> Result<(), ServiceError> {
        let entries: Vec<EntryId> = identity::unpack(&removed.entry_ids).collect();
        let change = DropEntries {
            edge: row_id(self.live.edge),
            epoch: self.live.epoch,
            entries: entries.clone(),
        };
        let pending = self.cluster.writer.enqueue(change).await?;
        let answer = Answer::EntriesDropped(removed.sequence, entries, pending);
        self.promise(answer).await
    }

    async fn promise(&self, answer: Answer) -> Result<(), ServiceError> {
        self.answers
            .send(answer)
            .await
            .map_err(|_| ServiceError::ShuttingDown)
    }

    async fn observed(
        &self,
        entry: Option<v1::Entry>,
        freshness: v1::Freshness,
        how: Observation,
    ) -> Result<(), ServiceError> {
        let entry = entry.ok_or_else(|| ServiceError::invalid("entry", "expected an entry"))?;
        let (id, key) = (entry.id.clone(), entry.key.clone());
        let by = Some(self.live.edge);
        match observe::begin(&self.cluster, by, entry, freshness, how).await {
            Ok(observing) => self.promise(Answer::Observed(Box::new(observing))).await,
            Err(error) if is_of_one_entry(&error) => {
                tracing::info!(edge = %self.live.name, entry = %id, %error, "an entry is refused");
                refuse_entry(&self.cluster, &self.live, id, key);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(super) async fn barrier(&self) -> Result<(), ServiceError> {
        let (done, passed) = oneshot::channel();
        self.promise(Answer::Barrier(done)).await?;
        passed.await.map_err(|_| ServiceError::ShuttingDown)
    }
}

/// Opens all entries of which the edge holds a part, one page at a time, which starts their fill.
pub async fn take_up_fill(cluster: Arc<Cluster>, live: Arc<EdgeSession>) {
    let mut after = EntryId::nil();
    loop {
        let database = &cluster.database;
        let page = tokio::select! {
            page = database.incomplete_entries(row_id(live.edge), after, FILL_ENTRIES) => page,
            () = live.outbox.ended() => return,
        };
        match page {
            Ok(page) => {
                for entry in &page {
                    if cluster
                        .plan
                        .tell(Command::EntryWanted(entry.entry))
                        .await
                        .is_err()
                    {
                        return;
                    }
                    after = entry.entry;
                }
                if page.len() < FILL_ENTRIES as usize {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(edge = %live.name, %error, "the fill is taken up later");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(FILL_PAUSE) => {}
            () = live.outbox.ended() => return,
            () = cluster.shutdown.cancelled() => return,
        }
    }
}

/// Whether the error concerns one entry only: the edge then forgets it, and the session continues.
fn is_of_one_entry(error: &ServiceError) -> bool {
    matches!(
        error,
        ServiceError::NotFound { .. }
            | ServiceError::Invalid(_)
            | ServiceError::Refused(_)
            | ServiceError::Precondition {
                reason: "CONFLICT",
                ..
            }
    )
}

/// Sends answers in the order of the reports.
async fn answer(
    cluster: Arc<Cluster>,
    live: Arc<EdgeSession>,
    mut answers: mpsc::Receiver<Answer>,
) {
    let edge = live.edge;
    while let Some(answer) = answers.recv().await {
        let (sequence, entry, outcome, command) = match answer {
            Answer::Barrier(done) => {
                let _ = done.send(());
                continue;
            }
            Answer::Observed(observing) => {
                let (id, key) = (observing.entry().to_string(), observing.key().clone());
                match observe::finish(&cluster, *observing).await {
                    Ok(_) => {}
                    Err(error) if is_of_one_entry(&error) => {
                        tracing::info!(
                            edge = %live.name,
                            entry = %id,
                            %error,
                            "an entry is refused"
                        );
                        refuse_entry(&cluster, &live, id, Some(key));
                    }
                    Err(error) => {
                        tracing::warn!(edge = %live.name, %error, "an entry was not recorded");
                        live.outbox.end(end_of(&error));
                        return;
                    }
                }
                continue;
            }
            Answer::EntriesDropped(sequence, entries, pending) => {
                match pending.await {
                    Ok(dropped) => {
                        for entry in entries {
                            let chunks = None;
                            // Before the edge knows, as below.
                            let _ = cluster
                                .plan
                                .tell(Command::Dropped {
                                    edge,
                                    entry,
                                    chunks,
                                })
                                .await;
                        }
                        let answer = v1::Committed {
                            sequence,
                            revision: dropped.revision,
                        };
                        live.outbox.commit(answer);
                    }
                    Err(error) => {
                        let error = ServiceError::from(error);
                        tracing::warn!(edge = %live.name, %error, "a report was not recorded");
                        live.outbox.end(end_of(&error));
                        return;
                    }
                }
                continue;
            }
            Answer::Stored(sequence, entry, chunks, pending) => {
                let outcome = pending.await.map(|committed| {
                    cluster.metrics.chunks_committed.inc_by(chunks.len() as u64);
                    if committed.value {
                        drop_conflicting(&cluster, entry);
                    }
                    committed.revision
                });
                (
                    sequence,
                    entry,
                    outcome,
                    Command::Held {
                        edge,
                        entry,
                        chunks,
                    },
                )
            }
            Answer::Removed(sequence, entry, Removed { chunks, evicted }, pending) => {
                let outcome = pending.await.map(|committed| committed.revision);
                if evicted && outcome.is_ok() {
                    // Before the plan knows, which would otherwise request them again at once.
                    let _ = cluster.jobs.evicted(&cluster, edge, entry, &chunks).await;
                }
                let chunks = Some(chunks);
                (
                    sequence,
                    entry,
                    outcome,
                    Command::Dropped {
                        edge,
                        entry,
                        chunks,
                    },
                )
            }
        };
        let revision = match outcome {
            Ok(revision) => {
                // Before the edge knows, so that it drops nothing that the plan still offers to
                // peers.
                let _ = cluster.plan.tell(command).await;
                revision
            }
            // Its report can never be recorded: the edge forgets the entry, and the session
            // continues.
            Err(error) if error.is_of_one_change() && error != DatabaseError::Fenced => {
                refuse_entry(&cluster, &live, entry.to_string(), None);
                live.outbox.committed().revision
            }
            Err(error) => {
                let error = ServiceError::from(error);
                tracing::warn!(edge = %live.name, %error, "a report was not recorded");
                live.outbox.end(end_of(&error));
                return;
            }
        };
        live.outbox.commit(v1::Committed { sequence, revision });
    }
}

/// Runs beside the session, because its edge is among those that must confirm it.
pub(super) fn drop_conflicting(cluster: &Arc<Cluster>, entry: EntryId) {
    let dropping = invalidate::drop_conflicting(Arc::clone(cluster), entry);
    cluster.tasks.spawn(dropping);
}

/// The edge has an impossible entry: tells it to forget the entry and its bytes.
pub(super) fn refuse_entry(
    cluster: &Cluster,
    live: &EdgeSession,
    id: String,
    key: Option<v1::Key>,
) {
    live.outbox.post(Response::Invalidate(v1::Invalidate {
        sequence: cluster.registry.next_sequence(),
        keys: key.into_iter().collect(),
        entry_ids: vec![id],
        purge: true,
        epoch: 0,
    }));
}

pub(super) fn parse_id(field: &str, id: &str) -> Result<EntryId, ServiceError> {
    id.parse()
        .map_err(|_| ServiceError::invalid(field, "expected a UUID"))
}
