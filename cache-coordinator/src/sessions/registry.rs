//! The open sessions: their outboxes, last reports, and confirmations.
//!
//! A live view, rebuilt from the edges after a restart; what must survive is in the table.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chunkcache_proto::v1;
use futures_util::FutureExt as _;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, WatchStream},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use v1::session_response::Message;

use scheduler::api::EdgeId;

/// Messages that may wait for an edge, which never stops reading: assignments are bounded by its
/// slots, and changes of sources and invalidations by what operators do. If an edge's connection
/// takes none of them, its session ends. The next session sends it the present state, which is less
/// than the messages that it missed.
pub const OUTBOX_MESSAGES: usize = 4096;

/// Why a session ends, for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The edge closed its side.
    Closed,
    /// The stream broke.
    Transport,
    /// No message in time.
    Timeout,
    /// A newer session with the same name began.
    Fenced,
    /// The edge broke the protocol.
    Protocol,
    /// Its outbox was full.
    Overflow,
    /// The database did not accept its reports.
    Database,
    /// This coordinator stops, or no longer leads.
    Shutdown,
    /// The operator removed the edge.
    Forgotten,
    /// It must present its inventory again.
    Verify,
    /// Another coordinator leads.
    NotLeader,
}

impl End {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Transport => "transport",
            Self::Timeout => "timeout",
            Self::Fenced => "fenced",
            Self::Protocol => "protocol",
            Self::Overflow => "overflow",
            Self::Database => "database",
            Self::Shutdown => "shutdown",
            Self::Forgotten => "forgotten",
            Self::Verify => "verify",
            Self::NotLeader => "not_leader",
        }
    }
}

/// The queue of messages to an edge.
#[derive(Clone, Debug)]
pub struct Outbox {
    messages: mpsc::Sender<Result<v1::SessionResponse, Status>>,
    /// Only the newest value counts, however many commits there were since the last one was sent.
    committed: Arc<watch::Sender<v1::Committed>>,
    end: Arc<EndSignal>,
}

/// The stream of messages to an edge.
pub type OutboxStream = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

#[derive(Debug, Default)]
struct EndSignal {
    reason: Mutex<Option<End>>,
    token: CancellationToken,
}

impl Outbox {
    /// Creates an outbox and its receiver.
    #[must_use]
    pub fn new() -> (Self, OutboxStream) {
        let (messages, receiver) = mpsc::channel(OUTBOX_MESSAGES);
        let (committed, newest) = watch::channel(v1::Committed::default());
        let outbox = Self {
            messages,
            committed: Arc::new(committed),
            end: Arc::default(),
        };
        let newest = WatchStream::from_changes(newest).map(|committed| {
            Ok(v1::SessionResponse {
                message: Some(Message::Committed(committed)),
            })
        });
        // Nothing overtakes the first message, which is Welcome.
        let stream = async move {
            let messages = ReceiverStream::new(receiver);
            let (first, rest) = futures_util::StreamExt::into_future(messages).await;
            tokio_stream::iter(first).chain(rest.merge(newest))
        };
        (outbox, Box::pin(stream.flatten_stream()))
    }

    /// Reports that everything up to this is committed.
    pub fn commit(&self, committed: v1::Committed) {
        self.committed.send_replace(committed);
    }

    /// The last reported commit.
    #[must_use]
    pub fn committed(&self) -> v1::Committed {
        *self.committed.borrow()
    }

    /// Repeats the last commit, which shows the edge that its coordinator is alive.
    pub fn heartbeat(&self) {
        self.committed.send_modify(|_| {});
    }

    /// Sends without waiting; a full outbox ends the session.
    pub fn post(&self, message: Message) {
        let response = v1::SessionResponse {
            message: Some(message),
        };
        if let Err(mpsc::error::TrySendError::Full(_)) = self.messages.try_send(Ok(response)) {
            self.end(End::Overflow);
        }
    }

    /// Waits for space; used for answers to the edge's own messages, so that the edge sets the
    /// pace. False once the session has ended.
    pub async fn send(&self, message: Message) -> bool {
        let response = v1::SessionResponse {
            message: Some(message),
        };
        tokio::select! {
            sent = self.messages.send(Ok(response)) => sent.is_ok(),
            () = self.end.token.cancelled() => false,
        }
    }

    /// Sends a last message, which is dropped if it does not fit.
    pub fn refuse(&self, status: Status) {
        let _ = self.messages.try_send(Err(status));
    }

    /// Ends the session; the first reason counts.
    pub fn end(&self, reason: End) {
        self.end.reason.lock().get_or_insert(reason);
        self.end.token.cancel();
    }

    /// Why the session ended.
    #[must_use]
    pub fn end_reason(&self) -> Option<End> {
        *self.end.reason.lock()
    }

    /// Completes when the session must end, or when nobody receives its messages any more.
    /// Cancel-safe.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.end.token.cancelled() => {}
            () = self.messages.closed() => self.end(End::Closed),
        }
    }

    /// Cancelled with the session.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.end.token.clone()
    }
}

/// An open session.
#[derive(Debug)]
pub struct EdgeSession {
    pub edge: EdgeId,
    pub name: String,
    /// Where players and peers reach it.
    pub url: String,
    /// Granted by the database.
    pub epoch: u64,
    pub store_id: String,
    pub outbox: Outbox,
    /// Set by the operator or by the edge.
    pub draining: AtomicBool,
    /// The result of reconciliation, once rows and disk agree.
    pub reconciled: watch::Sender<Option<Reconciliation>>,
    /// The last report.
    pub status: Mutex<v1::EdgeStatus>,
    /// Highest sequence of `SourcesChanged` it confirmed.
    pub sources_confirmed: watch::Sender<u64>,
    /// Highest sequence of `Invalidate` that it must confirm.
    pub invalidations_posted: AtomicU64,
    /// Highest sequence of `Invalidate` or `Purge` it confirmed.
    pub invalidations_confirmed: watch::Sender<u64>,
    /// The last purge that it had carried out when it connected.
    pub last_purge: u64,
    /// Objects that purges found only there, since the last call of `take_purged`.
    pub purged_objects: AtomicU64,
    /// By how much this clock was ahead of the edge's when the session began, at most.
    pub clock_ahead_ms: Option<i64>,
}

impl EdgeSession {
    /// Whether its observations may be older than an invalidation that it has not confirmed.
    #[must_use]
    pub fn is_behind_invalidations(&self) -> bool {
        self.invalidations_posted.load(Ordering::Acquire) > *self.invalidations_confirmed.borrow()
    }

    /// Adds the number of objects that a purge found there and no table lists.
    pub fn add_purged(&self, objects: u64) {
        self.purged_objects.fetch_add(objects, Ordering::AcqRel);
    }

    /// The number since the last call.
    #[must_use]
    pub fn take_purged(&self) -> u64 {
        self.purged_objects.swap(0, Ordering::AcqRel)
    }

    /// Marks the edge as behind until it confirms the sequence.
    pub fn owes_confirmation(&self, sequence: u64) {
        self.invalidations_posted
            .fetch_max(sequence, Ordering::AcqRel);
    }
}

/// The differences that a session's reconciliation found and repaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciliation {
    /// As counted in the digests.
    pub chunks_checked: u64,
    /// Rows deleted.
    pub rows_without_bytes: u64,
    /// Rows written.
    pub bytes_without_rows: u64,
}

/// An edge whose session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisconnectedEdge {
    pub edge: EdgeId,
    pub name: String,
    /// The epoch of the session that ended.
    pub epoch: u64,
}

/// The kind of a confirmation.
#[derive(Clone, Copy, Debug)]
pub enum Confirmation {
    /// `SourceAck`.
    Sources,
    /// `InvalidateAck`.
    Invalidations,
}

/// The edges that confirmed in time, and the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfirmationResult {
    pub confirmed: Vec<String>,
    pub unconfirmed: Vec<String>,
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Registry {
    live: RwLock<HashMap<EdgeId, Arc<EdgeSession>>>,
    /// Edges whose sessions ended, and when: they are disconnected until they return or count as
    /// lost.
    suspects: Mutex<HashMap<EdgeId, (DisconnectedEdge, Instant)>>,
    sequence: AtomicU64,
    /// Locked shared while an observation is judged and recorded, and exclusively while an
    /// invalidation begins.
    observing: tokio::sync::RwLock<()>,
    /// Number of invalidations that have begun, and the sequence of the last one.
    invalidations: AtomicU64,
    last_invalidation: AtomicU64,
    joined: watch::Sender<u64>,
}

/// See [`Registry::register`].
pub struct Registration<'a> {
    registry: &'a Registry,
    session: Option<(EdgeId, u64)>,
}

impl Registration<'_> {
    pub fn keep(mut self) {
        self.session = None;
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        if let Some((edge, epoch)) = self.session {
            self.registry.leave(edge, epoch);
        }
    }
}

impl Registry {
    /// Like [`join`](Self::join), but undone if the guard is dropped before it is kept, so that a
    /// session whose opening failed is in no list.
    #[must_use]
    pub fn register(&self, live: &Arc<EdgeSession>) -> Registration<'_> {
        self.join(Arc::clone(live));
        Registration {
            registry: self,
            session: Some((live.edge, live.epoch)),
        }
    }

    /// Registers a session and fences an older one of the same edge.
    pub fn join(&self, live: Arc<EdgeSession>) {
        self.suspects.lock().remove(&live.edge);
        let older = self.live.write().insert(live.edge, live);
        if let Some(older) = older {
            older.outbox.end(End::Fenced);
        }
        self.joined.send_modify(|joins| *joins += 1);
    }

    /// Ends a session. False if there is a newer one already.
    pub fn leave(&self, edge: EdgeId, epoch: u64) -> bool {
        let mut live = self.live.write();
        let is_present = live.get(&edge).is_some_and(|l| l.epoch == epoch);
        if is_present && let Some(gone) = live.remove(&edge) {
            let suspect = DisconnectedEdge {
                edge,
                name: gone.name.clone(),
                epoch,
            };
            self.suspects.lock().insert(edge, (suspect, Instant::now()));
        }
        is_present
    }

    /// Adds an edge from the table that has no session yet (after a restart of this coordinator).
    pub fn expect(&self, suspect: DisconnectedEdge) {
        if self.get(suspect.edge).is_none() {
            self.suspects
                .lock()
                .entry(suspect.edge)
                .or_insert_with(|| (suspect, Instant::now()));
        }
    }

    /// Takes the edges that have been disconnected for longer than `limit`.
    pub fn take_lost(&self, limit: Duration) -> Vec<DisconnectedEdge> {
        let mut suspects = self.suspects.lock();
        let mut lost = Vec::new();
        suspects.retain(|_, (suspect, since)| {
            let is_lost = since.elapsed() >= limit;
            if is_lost {
                lost.push(suspect.clone());
            }
            !is_lost
        });
        lost
    }

    /// Removes an edge from the cluster, so that it is never lost.
    pub fn forget(&self, edge: EdgeId) {
        self.suspects.lock().remove(&edge);
    }

    /// Changes with each join.
    #[must_use]
    pub fn joins(&self) -> watch::Receiver<u64> {
        self.joined.subscribe()
    }

    /// The open session of an edge, if there is one.
    #[must_use]
    pub fn get(&self, edge: EdgeId) -> Option<Arc<EdgeSession>> {
        self.live.read().get(&edge).cloned()
    }

    /// The same by name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<Arc<EdgeSession>> {
        self.live.read().values().find(|l| l.name == name).cloned()
    }

    /// All sessions, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<EdgeSession>> {
        let mut all: Vec<Arc<EdgeSession>> = self.live.read().values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Ends every session.
    pub fn end_all(&self, reason: End) {
        for live in self.all() {
            live.outbox.end(reason);
        }
    }

    /// A registry whose sequence numbers are higher than those of earlier coordinators: edges
    /// compare invalidation epochs among each other.
    #[must_use]
    pub fn starting_at(now_ms: i64) -> Self {
        let first = u64::try_from(now_ms).unwrap_or(0).saturating_mul(1_000);
        Self {
            sequence: AtomicU64::new(first),
            last_invalidation: AtomicU64::new(first),
            ..Self::default()
        }
    }

    /// The sequence of the last invalidation: the cluster's invalidation epoch.
    #[must_use]
    pub fn last_invalidation(&self) -> u64 {
        self.last_invalidation.load(Ordering::Acquire)
    }

    /// A sequence number that no earlier message had.
    pub fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// While this is held, no invalidation begins.
    pub async fn observing(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.observing.read().await
    }

    /// The number of invalidations that have begun; changes with each.
    #[must_use]
    pub fn invalidations(&self) -> u64 {
        self.invalidations.load(Ordering::Acquire)
    }

    /// Begins an invalidation: an edge's observations count as new only once the edge has confirmed
    /// the sequence. Earlier observations are already recorded, so the invalidation, which is
    /// written next, undoes them.
    pub async fn begin_invalidation(&self) -> u64 {
        let _alone = self.observing.write().await;
        self.invalidations.fetch_add(1, Ordering::AcqRel);
        let sequence = self.next_sequence();
        self.last_invalidation.fetch_max(sequence, Ordering::AcqRel);
        for live in self.all() {
            live.owes_confirmation(sequence);
        }
        sequence
    }

    /// Sends to every session and waits, at most for `limit`, until each has confirmed.
    pub async fn push(
        &self,
        confirmation: Confirmation,
        message: impl Fn(u64) -> Message,
        limit: Duration,
    ) -> ConfirmationResult {
        self.post(confirmation, message).confirmed(limit).await
    }

    /// The same with a given, earlier sequence.
    pub async fn push_as(
        &self,
        sequence: u64,
        confirmation: Confirmation,
        message: impl Fn(u64) -> Message,
        limit: Duration,
    ) -> ConfirmationResult {
        self.post_as(sequence, confirmation, message)
            .confirmed(limit)
            .await
    }

    /// Sends to every session without waiting: a sender that needs an order must not hold its lock
    /// while it waits.
    pub fn post(
        &self,
        confirmation: Confirmation,
        message: impl Fn(u64) -> Message,
    ) -> Publication {
        self.post_as(self.next_sequence(), confirmation, message)
    }

    pub fn post_as(
        &self,
        sequence: u64,
        confirmation: Confirmation,
        message: impl Fn(u64) -> Message,
    ) -> Publication {
        let sessions = self.all();
        let is_invalidation = matches!(confirmation, Confirmation::Invalidations);
        if is_invalidation {
            self.last_invalidation.fetch_max(sequence, Ordering::AcqRel);
        }
        for live in &sessions {
            if is_invalidation {
                live.owes_confirmation(sequence);
            }
            let mut message = message(sequence);
            match &mut message {
                Message::Invalidate(invalidate) => invalidate.epoch = sequence,
                Message::Purge(purge) => purge.epoch = sequence,
                _ => {}
            }
            live.outbox.post(message);
        }
        Publication {
            sequence,
            confirmation,
            sessions,
        }
    }
}

/// A message sent to sessions that must confirm it.
#[must_use]
pub struct Publication {
    sequence: u64,
    confirmation: Confirmation,
    sessions: Vec<Arc<EdgeSession>>,
}

impl Publication {
    /// Waits, at most for `limit`, until each has confirmed.
    pub async fn confirmed(self, limit: Duration) -> ConfirmationResult {
        let Self {
            sequence,
            confirmation,
            sessions,
        } = self;
        let deadline = tokio::time::Instant::now() + limit;
        let waits = sessions.iter().map(|live| async move {
            let mut confirmed = match confirmation {
                Confirmation::Sources => live.sources_confirmed.subscribe(),
                Confirmation::Invalidations => live.invalidations_confirmed.subscribe(),
            };
            let seen = tokio::select! {
                seen = tokio::time::timeout_at(
                    deadline,
                    confirmed.wait_for(|s| *s >= sequence),
                ) => {
                    matches!(seen, Ok(Ok(_)))
                }
                () = live.outbox.ended() => false,
            };
            (live.name.clone(), seen)
        });
        let mut outcome = ConfirmationResult::default();
        for (name, seen) in futures_util::future::join_all(waits).await {
            if seen {
                outcome.confirmed.push(name);
            } else {
                outcome.unconfirmed.push(name);
            }
        }
        outcome
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "registry_tests.rs"]
pub(super) mod tests;
