//! One edge's session, from `Hello` to its end.
//!
//! Messages that change rows go to `storage.rs` in order; demand, reports and confirmations are
//! handled here at once, so that a seek never waits for a commit.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use chunkcache_proto::{EntryId, v1};
use futures_util::{Stream, StreamExt};
use http_rules::freshness;
use parking_lot::Mutex;
use service_kit::clock::now_ms;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tonic::Status;
use v1::{session_request::Message as Request, session_response::Message as Response};

use super::{
    directory::EdgeRecord,
    hello::{check_hello, read_hello},
    plan::{Command, EdgeSpace},
    protocol::{Handler, Protocol},
    registry::{EdgeSession, End, Outbox},
    storage,
};
use crate::{
    access::Caller,
    db::{
        DatabaseError, EdgeStatus,
        writer::{JoinEdge, SetEdgeState, TouchEdge},
    },
    metrics::EndLabel,
    service::{
        Cluster,
        error::ServiceError,
        loader::{edge_id, row_id},
        resolve_key,
    },
};

/// A session without a message for this long is dead.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of heartbeats. An edge that misses two and a half of them falls back to its floor of
/// each origin's limits.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Limit of storage messages that wait for the database. Beyond it the session is not read, and the
/// edge keeps its messages in its own outbox.
const STORAGE_QUEUE: usize = 1024;
/// How often an edge's status is written to the table.
const TOUCH_EVERY: Duration = Duration::from_secs(5);
/// A reported wait is planned for within this time, unless its entry cannot be read from the
/// database.
const HEARD_MS: u32 = 500;
/// Limit of a draining edge's entries that are opened to be handed over.
const MAX_HOT: u32 = 256;

/// Runs the session, and reports its end to the registry and the plan.
pub async fn run(
    cluster: Arc<Cluster>,
    caller: Caller,
    mut inbound: impl Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin,
    outbox: Outbox,
) {
    let mut protocol = Protocol::default();
    let opened = open(&cluster, &caller, &mut inbound, &mut protocol, &outbox).await;
    let (live, hello) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::info!(%error, "a session was refused");
            outbox.refuse(Status::from(error));
            return;
        }
    };
    cluster.metrics.sessions.inc();
    tracing::info!(edge = %live.name, epoch = live.epoch, version = %hello.version, "edge joined");
    let end = serve(&cluster, &mut inbound, &mut protocol, &live).await;
    close(&cluster, &live, end).await;
}

/// Handles Hello and sends Welcome.
async fn open(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    inbound: &mut (impl Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin),
    protocol: &mut Protocol,
    outbox: &Outbox,
) -> Result<(Arc<EdgeSession>, v1::Hello), ServiceError> {
    let hello = read_hello(inbound, protocol).await?;
    let clock_ahead_ms = (hello.now_ms != 0).then(|| now_ms().saturating_sub(hello.now_ms));
    let store_id = check_hello(&hello).map_err(ServiceError::Invalid)?;
    caller.speaks_for(&hello.name, &hello.url)?;
    cluster.require_leader()?;
    let join = JoinEdge {
        name: hello.name.clone(),
        url: hello.url.trim_end_matches('/').to_owned(),
        store_id,
        bytes_allowed: hello.bytes_allowed,
    };
    let joined = cluster.writer.join_edge(join).await?.value.edge;
    let live = Arc::new(EdgeSession {
        edge: edge_id(joined.id),
        name: hello.name.clone(),
        url: joined.url.clone(),
        epoch: joined.epoch,
        store_id: hello.store_id.clone(),
        outbox: outbox.clone(),
        draining: AtomicBool::new(joined.draining),
        reconciled: watch::Sender::new(None),
        status: Mutex::new(v1::EdgeStatus {
            bytes_used: joined.bytes_used,
            bytes_allowed: hello.bytes_allowed,
            ..Default::default()
        }),
        sources_confirmed: watch::Sender::new(0),
        invalidations_posted: AtomicU64::new(0),
        invalidations_confirmed: watch::Sender::new(0),
        last_purge: hello.last_purge,
        purged_objects: AtomicU64::new(0),
        clock_ahead_ms,
    });
    // Put Welcome into the outbox before the session into the registry, so that nothing precedes
    // it. No source change may happen in between, because it would be in neither.
    let alone = cluster.publishing.lock().await;
    let sources = cluster.sources.load_full();
    outbox.post(Response::Welcome(v1::Welcome {
        epoch: joined.epoch,
        sources: sources.as_ref().clone(),
        chunk_size: cluster.chunk_size,
        peer_keys: cluster.peer_keys.load_full().as_ref().clone(),
        session_timeout_ms: u32::try_from(SESSION_TIMEOUT.as_millis()).unwrap_or(u32::MAX),
        draining: joined.draining,
        now_ms: now_ms(),
        invalidation_epoch: cluster.registry.last_invalidation(),
    }));
    let registration = cluster.registry.register(&live);
    drop(alone);
    cluster
        .plan
        .tell(Command::EdgeJoined {
            edge: live.edge,
            epoch: live.epoch,
            record: EdgeRecord {
                name: live.name.clone(),
                url: live.url.clone(),
            },
            max_downloads: hello.max_downloads,
            background_fill: hello.background_fill,
            draining: joined.draining,
            space: EdgeSpace {
                bytes_used: joined.bytes_used,
                bytes_allowed: hello.bytes_allowed,
            },
            kept: hello.kept.clone(),
        })
        .await?;
    if joined.draining {
        hand_over_on(cluster, &live);
    }
    // The leadership may have been lost between the check and the registration.
    if let Err(error) = cluster.require_leader() {
        let left = Command::EdgeLeft {
            edge: live.edge,
            epoch: live.epoch,
        };
        // A stopped plan means that the process is ending: ignore it.
        let _ = cluster.plan.tell(left).await;
        return Err(error);
    }
    registration.keep();
    Ok((live, hello))
}

/// Continues a hand-over that began in an earlier term: opens the entries that are hot on the
/// draining edge according to the tables.
fn hand_over_on(cluster: &Arc<Cluster>, live: &Arc<EdgeSession>) {
    let (cluster, live) = (Arc::clone(cluster), Arc::clone(live));
    let tracker = cluster.tasks.clone();
    tracker.spawn(async move {
        match cluster
            .database
            .hot_entries(row_id(live.edge), MAX_HOT)
            .await
        {
            Ok(hot) => open_entries(&cluster, hot).await,
            Err(error) => {
                tracing::warn!(
                    edge = %live.name,
                    %error,
                    "what is hot on an edge that drains was not read"
                );
            }
        }
    });
}

/// A stopped plan means that the process is ending: ignore it.
async fn open_entries(cluster: &Cluster, entries: impl IntoIterator<Item = EntryId>) {
    for entry in entries {
        let _ = cluster.plan.tell(Command::EntryWanted(entry)).await;
    }
}

/// Runs until either side, or the cluster, ends the session.
async fn serve(
    cluster: &Arc<Cluster>,
    inbound: &mut (impl Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin),
    protocol: &mut Protocol,
    live: &Arc<EdgeSession>,
) -> End {
    let (storage, queue) = mpsc::channel(STORAGE_QUEUE);
    cluster
        .tasks
        .spawn(storage::run(Arc::clone(cluster), Arc::clone(live), queue));
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let mut heard = Instant::now();
    let mut touched: Option<Instant> = None;
    loop {
        let message = tokio::select! {
            biased;
            () = live.outbox.ended() => {
                return live.outbox.end_reason().unwrap_or(End::Shutdown);
            }
            () = tokio::time::sleep_until(heard + SESSION_TIMEOUT) => return End::Timeout,
            _ = heartbeat.tick() => {
                live.outbox.heartbeat();
                continue;
            }
            received = inbound.next() => match received {
                None => return End::Closed,
                Some(Err(_)) => return End::Transport,
                // A message of a newer protocol: ignore it.
                Some(Ok(v1::SessionRequest { message: None })) => {
                    heard = Instant::now();
                    continue;
                }
                Some(Ok(v1::SessionRequest { message: Some(message) })) => message,
            },
        };
        let message = on_own_clock(message, live.clock_ahead_ms);
        match protocol.accept(&message) {
            Err(error) => {
                tracing::warn!(edge = %live.name, %error, "the session is ended");
                live.outbox
                    .refuse(Status::failed_precondition(error.to_string()));
                return End::Protocol;
            }
            Ok(Handler::Hello) => return End::Protocol,
            Ok(Handler::Storage) => {
                if expect_entry(cluster, &message).await.is_err() {
                    return End::Shutdown;
                }
                let sent = storage.send(message);
                tokio::pin!(sent);
                // Send heartbeats however long the database takes, because an edge without them
                // considers its coordinator lost.
                let forwarded = loop {
                    tokio::select! {
                        sent = &mut sent => break sent.is_ok(),
                        () = live.outbox.ended() => break false,
                        _ = heartbeat.tick() => live.outbox.heartbeat(),
                    }
                };
                if !forwarded {
                    return live.outbox.end_reason().unwrap_or(End::Database);
                }
            }
            Ok(Handler::Control) => {
                if control(cluster, live, message, &mut touched).await.is_err() {
                    return End::Shutdown;
                }
            }
        }
        // Also after waiting for the database, because the delay was ours.
        heard = Instant::now();
    }
}

/// Announces an entry that the edge has just observed: its row is on its way and need not be read.
async fn expect_entry(cluster: &Cluster, message: &Request) -> Result<(), ServiceError> {
    if let Request::EntryObserved(v1::EntryObserved {
        entry: Some(entry), ..
    }) = message
        && let Ok(id) = entry.id.parse()
    {
        cluster.plan.tell(Command::EntryExpected(id)).await?;
    }
    Ok(())
}

/// Converts an edge's times to this clock on arrival: messages may then wait for the database.
fn on_own_clock(message: Request, clock_ahead_ms: Option<i64>) -> Request {
    let receive = |freshness: Option<v1::Freshness>| {
        freshness.map(|it| freshness::receive(it, now_ms(), clock_ahead_ms))
    };
    match message {
        Request::EntryObserved(mut observed) => {
            observed.freshness = receive(observed.freshness);
            Request::EntryObserved(observed)
        }
        Request::InventoryEntry(mut inventory) => {
            inventory.freshness = receive(inventory.freshness);
            Request::InventoryEntry(inventory)
        }
        Request::ProbeReport(mut report) => {
            if let Some(v1::probe_report::Outcome::Found(found)) = &mut report.outcome {
                found.freshness = receive(found.freshness.take());
            }
            Request::ProbeReport(report)
        }
        other => other,
    }
}

async fn control(
    cluster: &Arc<Cluster>,
    live: &Arc<EdgeSession>,
    message: Request,
    touched: &mut Option<Instant>,
) -> Result<(), ServiceError> {
    let (edge, epoch) = (live.edge, live.epoch);
    let tell = |command| cluster.plan.tell(command);
    match message {
        Request::Demand(batch) => {
            // Sent before the plan sees it: an edge that gets this answer leaves it to us which
            // edge asks the origin, and when.
            let waiting = batch.readers.iter().filter(|reader| reader.waiting);
            let reader_ids: Vec<u64> = waiting.map(|reader| reader.reader_id).collect();
            if !reader_ids.is_empty() {
                live.outbox.post(Response::Held(v1::Held {
                    reader_ids,
                    wait_ms: HEARD_MS,
                }));
            }
            tell(Command::Demand { edge, epoch, batch }).await?;
        }
        Request::FetchReport(report) => {
            let command = Command::FetchReport {
                edge,
                epoch,
                report,
            };
            tell(command).await?;
        }
        Request::LocalFetch(fetch) => tell(Command::LocalFetch { edge, epoch, fetch }).await?,
        Request::QuotaReport(report) => {
            let command = Command::QuotaReported {
                edge,
                epoch,
                report,
            };
            tell(command).await?;
        }
        Request::KeyNegative(negative) => cluster.resolver.negative(negative),
        Request::WholeAnswer(answer) => {
            if let Some(key) = &answer.key {
                resolve_key::keep(cluster, live, key);
            }
        }
        Request::ProbeReport(report) => {
            let sequence = report.sequence;
            if let Some(outcome) = report.outcome {
                cluster.probes.answer(edge, sequence, outcome);
            }
        }
        Request::TitleReport(report) => cluster.titles.answer(edge, report.sequence, report),
        Request::SourceCheckReport(report) => {
            let sequence = report.sequence;
            cluster.source_checks.answer(edge, sequence, report.failed);
        }
        Request::SourceAck(ack) => {
            live.sources_confirmed
                .send_if_modified(|s| raise(s, ack.sequence));
        }
        Request::Drain(_) => {
            // The edge itself requests it, so the operator's setting in the table remains as it is.
            live.draining.store(true, Ordering::Relaxed);
            let draining = true;
            tell(Command::EdgeDraining { edge, draining }).await?;
        }
        Request::Status(status) => record_status(cluster, live, status, touched).await?,
        // Routed to other lanes by the protocol.
        Request::Hello(_)
        | Request::InventoryDigests(_)
        | Request::InventoryEntry(_)
        | Request::InventoryComplete(_)
        | Request::ChunksStored(_)
        | Request::ChunksRemoved(_)
        | Request::EntriesRemoved(_)
        | Request::EntryObserved(_)
        | Request::InvalidateAck(_) => {}
    }
    Ok(())
}

async fn record_status(
    cluster: &Arc<Cluster>,
    live: &Arc<EdgeSession>,
    status: v1::EdgeStatus,
    touched: &mut Option<Instant>,
) -> Result<(), ServiceError> {
    let (edge, epoch) = (live.edge, live.epoch);
    let space = EdgeSpace {
        bytes_used: status.bytes_used,
        bytes_allowed: status.bytes_allowed,
    };
    if live.draining.load(Ordering::Relaxed) {
        // Viewers without missing bytes name their entries nowhere else.
        let viewers = status.viewers.iter().take(MAX_HOT as usize);
        let played: BTreeSet<EntryId> = viewers.filter_map(|it| it.entry_id.parse().ok()).collect();
        open_entries(cluster, played).await;
    }
    let sources = status.sources.clone();
    *live.status.lock() = status;
    if touched.is_none_or(|at| at.elapsed() >= TOUCH_EVERY) {
        *touched = Some(Instant::now());
        touch(cluster, live, space.bytes_used, space.bytes_allowed);
    }
    let command = Command::EdgeSpace { edge, epoch, space };
    cluster.plan.tell(command).await?;
    let command = Command::SourceSpaces {
        edge,
        epoch,
        sources,
    };
    Ok(cluster.plan.tell(command).await?)
}

fn raise(present: &mut u64, to: u64) -> bool {
    let rises = to > *present;
    *present = to.max(*present);
    rises
}

/// Runs beside the session, because nobody waits for it and the next one repeats it.
fn touch(cluster: &Arc<Cluster>, live: &Arc<EdgeSession>, used: u64, allowed: u64) {
    let (cluster, live) = (Arc::clone(cluster), Arc::clone(live));
    let tracker = cluster.tasks.clone();
    tracker.spawn(async move {
        let change = TouchEdge {
            edge: row_id(live.edge),
            epoch: live.epoch,
            status: EdgeStatus {
                bytes_used: used,
                bytes_allowed: allowed,
            },
        };
        match cluster.writer.write(change).await {
            Ok(_) => {}
            // Another coordinator granted a newer epoch, so this session's messages change nothing.
            Err(DatabaseError::Fenced) => live.outbox.end(End::Fenced),
            Err(error) => tracing::debug!(edge = %live.name, %error, "status was not recorded"),
        }
    });
}

async fn close(cluster: &Arc<Cluster>, live: &Arc<EdgeSession>, end: End) {
    live.outbox.end(end);
    cluster.metrics.sessions.dec();
    cluster
        .metrics
        .sessions_ended
        .get_or_create(&EndLabel {
            reason: end.label(),
        })
        .inc();
    tracing::info!(edge = %live.name, epoch = live.epoch, reason = end.label(), "edge left");
    match end {
        End::Fenced => live.outbox.refuse(Status::from(ServiceError::StaleEpoch {
            edge: live.name.clone(),
            given: live.epoch,
        })),
        End::NotLeader | End::Shutdown => {
            let refusal = cluster
                .require_leader()
                .err()
                .unwrap_or(ServiceError::ShuttingDown);
            live.outbox.refuse(Status::from(refusal));
        }
        _ => {}
    }
    let was_present = cluster.registry.leave(live.edge, live.epoch);
    cluster.resolver.forget_edge(&live.name, live.epoch);
    let left = Command::EdgeLeft {
        edge: live.edge,
        epoch: live.epoch,
    };
    // A stopped plan means that the process is ending: ignore it.
    let _ = cluster.plan.tell(left).await;
    if was_present && end != End::Forgotten && cluster.is_leader() {
        let change = SetEdgeState {
            edge: row_id(live.edge),
            epoch: live.epoch,
            state: v1::EdgeState::Suspect,
        };
        if let Err(error) = cluster.writer.write(change).await {
            tracing::debug!(edge = %live.name, %error, "suspect was not recorded");
        }
    }
}
