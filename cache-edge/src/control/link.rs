//! The outgoing half of the session, as the rest of the edge sees it: reports are sent if there is
//! a session.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use chunkcache_proto::{ChunkIndex, EntryId, identity, v1};
use parking_lot::Mutex;
use tokio::sync::Notify;
use v1::session_request::Message;

use super::channel::Service;
use crate::{clock::now_ms, readers::Announce};
use http_rules::freshness;

/// With more messages waiting than this, state (demand, status, progress, quota) stays where it is
/// kept, and its newest value is sent later.
const STATE_MESSAGES: usize = 1_024;
/// With more messages waiting than this, only the entries of newly durable chunks are remembered
/// instead of the chunks.
const MAX_BACKLOG: usize = 32_768;
/// Events that are stored nowhere else may exceed that bound. Beyond this one, the session ends.
const MAX_EVENTS: usize = 2 * MAX_BACKLOG;
/// Number of entries remembered as known to the coordinator; the others are announced again.
const MAX_KNOWN: usize = 65_536;
/// Entries named in one message.
const MAX_IDS: usize = 4_096;
/// How long a cold key waits for the coordinator, which may itself wait for another edge's probe.
const RESOLVE_HEALTHY: Duration = Duration::from_secs(1);
/// The same, if the coordinator was silent lately.
const RESOLVE_DOUBTFUL: Duration = Duration::from_millis(150);
const DOUBTFUL_AFTER: Duration = Duration::from_secs(2);
/// Bytes to drop once their rows are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    Chunks(EntryId, Vec<ChunkIndex>),
    Entry(EntryId),
    /// No bytes: they were withdrawn before. Chunks that are present when the rows are gone were
    /// fetched again, and have rows of their own.
    Nothing(EntryId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Disconnected,
    /// Hello was sent.
    Greeting,
    /// Welcome arrived, so demand is sent.
    Welcomed,
    /// Rows and disk agree.
    Ready,
}

/// An entry whose durable chunks must be read from the store and reported.
#[derive(Debug, PartialEq, Eq)]
pub struct UnreportedEntry {
    pub entry: EntryId,
    pub sequence: u64,
    /// The coordinator knows the entry.
    pub is_known: bool,
    pub origin_bytes: u64,
}

/// The next item of the outgoing stream.
#[derive(Debug, PartialEq)]
pub enum NextItem {
    Message(Box<Message>),
    Unreported(UnreportedEntry),
    /// Nothing now: the context is woken when there is something.
    Nothing,
    /// Another session has begun, or there is none.
    Ended,
}

struct State {
    phase: Phase,
    /// The number of sessions so far.
    session: u64,
    client: Option<Service>,
    epoch: u64,
    /// See [`Link::set_clock_ahead`].
    clock_ahead_ms: Option<i64>,
    sequence: u64,
    /// Messages in the order of their effect.
    backlog: VecDeque<Message>,
    /// Entries with more durable chunks than the backlog could hold.
    unreported: HashSet<EntryId>,
    unreported_origin_bytes: u64,
    /// Wakes the stream that takes from the backlog.
    waker: Option<Waker>,
    /// Entries that the coordinator knows in this session.
    known: HashSet<EntryId>,
    removals: BTreeMap<u64, Removal>,
    heard: Instant,
    overflowed: bool,
    /// Why there is no session.
    reason: String,
}

impl State {
    fn forget_session(&mut self) {
        self.phase = Phase::Disconnected;
        self.client = None;
        self.backlog = VecDeque::new();
        self.unreported = HashSet::new();
        self.unreported_origin_bytes = 0;
        self.removals.clear();
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Marks the entry as known. True: it was not, as far as is remembered, and must be introduced.
    fn mark_known(&mut self, entry: EntryId) -> bool {
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(entry)
    }
}

/// One for the process; outlives its sessions.
pub struct Link {
    pub(super) edge: String,
    state: Mutex<State>,
    broken: Notify,
    /// Notified when there may be room for state again.
    room: Notify,
    draining: AtomicBool,
}

impl Link {
    #[must_use]
    pub fn new(edge: String) -> Arc<Self> {
        let state = State {
            phase: Phase::Disconnected,
            session: 0,
            client: None,
            epoch: 0,
            clock_ahead_ms: None,
            sequence: 0,
            backlog: VecDeque::new(),
            unreported: HashSet::new(),
            unreported_origin_bytes: 0,
            waker: None,
            known: HashSet::new(),
            removals: BTreeMap::new(),
            heard: Instant::now(),
            overflowed: false,
            reason: "no coordinator has answered yet".into(),
        };
        Arc::new(Self {
            edge,
            state: Mutex::new(state),
            broken: Notify::new(),
            room: Notify::new(),
            draining: AtomicBool::new(false),
        })
    }

    /// Begins a session, and returns its number for [`next`](Self::next).
    pub fn begin(&self, client: Service) -> u64 {
        let mut state = self.state.lock();
        state.forget_session();
        state.phase = Phase::Greeting;
        state.session += 1;
        state.client = Some(client);
        state.known.clear();
        state.overflowed = false;
        state.heard = Instant::now();
        state.session
    }

    pub fn welcomed(&self, epoch: u64) {
        let mut state = self.state.lock();
        state.phase = Phase::Welcomed;
        state.epoch = epoch;
    }

    /// Rows and disk agree.
    pub fn ready(&self) {
        self.state.lock().phase = Phase::Ready;
    }

    pub fn end(&self, reason: String) {
        let mut state = self.state.lock();
        state.forget_session();
        state.reason = reason;
    }

    /// The next item to send over the connection.
    pub fn next(&self, session: u64, context: &Context<'_>) -> NextItem {
        let mut state = self.state.lock();
        if state.phase == Phase::Disconnected || state.session != session {
            return NextItem::Ended;
        }
        if let Some(message) = state.backlog.pop_front() {
            if state.backlog.len() + 1 == STATE_MESSAGES {
                self.room.notify_one();
            }
            return NextItem::Message(Box::new(message));
        }
        // A chunk whose row is about to be deleted is still on the disk, and must not be reported
        // again.
        if state.removals.is_empty()
            && let Some(entry) = state.unreported.iter().next().copied()
        {
            state.unreported.remove(&entry);
            state.sequence += 1;
            return NextItem::Unreported(UnreportedEntry {
                entry,
                sequence: state.sequence,
                is_known: !state.mark_known(entry),
                origin_bytes: std::mem::take(&mut state.unreported_origin_bytes),
            });
        }
        state.waker = Some(context.waker().clone());
        NextItem::Nothing
    }

    /// Whether there is room for state.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.state.lock().backlog.len() < STATE_MESSAGES
    }

    /// Returns when there may be room for state again. Cancel safe.
    pub async fn room(&self) {
        self.room.notified().await;
    }

    pub fn heard(&self) {
        self.state.lock().heard = Instant::now();
    }

    #[must_use]
    pub fn silent_for(&self) -> Duration {
        self.state.lock().heard.elapsed()
    }

    /// Whether rows and disk agree and the coordinator was heard lately.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state.lock().phase == Phase::Ready
    }

    /// Whether the coordinator plans for this edge's readers.
    #[must_use]
    pub fn is_planning(&self) -> bool {
        let state = self.state.lock();
        state.phase >= Phase::Welcomed && state.heard.elapsed() < DOUBTFUL_AFTER * 2
    }

    /// Why there is no session, if there is none.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        let state = self.state.lock();
        match state.phase {
            Phase::Ready => None,
            Phase::Welcomed | Phase::Greeting => {
                Some("the coordinator reconciles this edge's inventory".into())
            }
            Phase::Disconnected => Some(format!("no session with a coordinator: {}", state.reason)),
        }
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// Records by how much this clock was ahead of the coordinator's when the session began.
    pub fn set_clock_ahead(&self, ahead_ms: i64) {
        self.state.lock().clock_ahead_ms = Some(ahead_ms);
    }

    pub(super) fn clock_ahead_ms(&self) -> Option<i64> {
        self.state.lock().clock_ahead_ms
    }

    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
    }

    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Returns the reason when more events wait than are kept. Cancel safe.
    pub async fn broken(&self) -> &'static str {
        loop {
            let notified = self.broken.notified();
            {
                let state = self.state.lock();
                if state.overflowed {
                    return "the coordinator does not read";
                }
            }
            notified.await;
        }
    }

    /// Sends if the session allows it; otherwise the next inventory carries the information.
    pub fn send(&self, message: Message) {
        let mut state = self.state.lock();
        if state.phase >= Phase::Welcomed {
            self.put(&mut state, message);
        }
    }

    fn put(&self, state: &mut State, message: Message) {
        if state.backlog.len() >= MAX_EVENTS {
            state.overflowed = true;
            self.broken.notify_one();
            return;
        }
        state.backlog.push_back(message);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// Records that the coordinator knows the entry in this session.
    pub fn set_known(&self, entry: EntryId) {
        self.state.lock().mark_known(entry);
    }

    /// Reports durable chunks. `observed` is sent first if the coordinator may not know the entry.
    pub fn stored(
        &self,
        entry: EntryId,
        observed: impl FnOnce() -> v1::EntryObserved,
        chunks: Vec<v1::Chunk>,
        origin_bytes: u64,
    ) {
        let mut state = self.state.lock();
        if state.phase == Phase::Disconnected {
            return;
        }
        if state.backlog.len() >= MAX_BACKLOG {
            state.unreported.insert(entry);
            state.unreported_origin_bytes += origin_bytes;
            return;
        }
        if state.mark_known(entry) {
            self.put(&mut state, Message::EntryObserved(observed()));
        }
        state.sequence += 1;
        let sequence = state.sequence;
        let entry_id = entry.to_string();
        self.put(
            &mut state,
            Message::ChunksStored(v1::ChunksStored {
                sequence,
                entry_id,
                chunks,
                origin_bytes,
            }),
        );
    }

    /// Requests the deletion of rows; [`committed`](Self::committed) returns the removal once they
    /// are gone. False: not now, because there is no session, or rows and disk do not agree yet.
    /// Lost bytes are reported at once, after an inventory that may still have listed them.
    pub fn removed(
        &self,
        removal: Removal,
        indexes: Vec<ChunkIndex>,
        reason: v1::RemovalReason,
    ) -> bool {
        let mut state = self.state.lock();
        let is_late = matches!(removal, Removal::Nothing(_));
        if let Removal::Entry(entry) = &removal {
            state.unreported.remove(entry);
        }
        // Until rows and disk agree, inventory pages leave out only whole entries that are about to
        // go, and would report removed chunks again.
        let may_ask = match removal {
            Removal::Nothing(_) | Removal::Entry(_) => true,
            Removal::Chunks(..) => state.phase == Phase::Ready && state.unreported.is_empty(),
        };
        if state.phase == Phase::Disconnected || !may_ask {
            return false;
        }
        state.sequence += 1;
        let sequence = state.sequence;
        let (Removal::Chunks(entry, _) | Removal::Entry(entry) | Removal::Nothing(entry)) =
            &removal;
        let entry_id = entry.to_string();
        if !is_late {
            state.removals.insert(sequence, removal);
        }
        let message = v1::ChunksRemoved {
            sequence,
            entry_id,
            indexes,
            reason: reason.into(),
        };
        self.put(&mut state, Message::ChunksRemoved(message));
        true
    }

    /// Reports that these entries' bytes are gone; once this is committed, so are their rows.
    pub fn entries_removed(&self, entries: &[EntryId]) {
        let mut state = self.state.lock();
        if state.phase == Phase::Disconnected {
            return;
        }
        for entry in entries {
            state.unreported.remove(entry);
        }
        for part in entries.chunks(MAX_IDS) {
            state.sequence += 1;
            let message = v1::EntriesRemoved {
                sequence: state.sequence,
                entry_ids: identity::pack(part),
            };
            self.put(&mut state, Message::EntriesRemoved(message));
        }
    }

    /// Confirms an invalidation, after all earlier reports.
    pub fn confirm(&self, confirmation: v1::InvalidateAck) {
        let mut state = self.state.lock();
        self.put(&mut state, Message::InvalidateAck(confirmation));
    }

    /// Removals whose rows are gone.
    #[must_use]
    pub fn committed(&self, sequence: u64) -> Vec<Removal> {
        let mut state = self.state.lock();
        let under_way = state.removals.split_off(&sequence.saturating_add(1));
        if let Some(waker) = state.waker.take() {
            // Wakes tasks that waited for them.
            waker.wake();
        }
        std::mem::replace(&mut state.removals, under_way)
            .into_values()
            .collect()
    }

    /// Whether the whole entry will be removed once its rows are gone.
    #[must_use]
    pub fn is_removing(&self, entry: EntryId) -> bool {
        let state = self.state.lock();
        let is_of_entry = |removal: &Removal| *removal == Removal::Entry(entry);
        state.removals.values().any(is_of_entry)
    }

    #[must_use]
    pub fn removals_under_way(&self) -> usize {
        self.state.lock().removals.len()
    }

    pub(super) fn client(&self) -> Option<(Service, u64, Duration)> {
        let state = self.state.lock();
        if state.phase < Phase::Welcomed {
            return None;
        }
        let patience = if state.heard.elapsed() < DOUBTFUL_AFTER {
            RESOLVE_HEALTHY
        } else {
            RESOLVE_DOUBTFUL
        };
        Some((state.client.clone()?, state.epoch, patience))
    }
}

impl Announce for Link {
    fn observed(&self, entry: &v1::Entry, freshness: &v1::Freshness) {
        if let Ok(id) = entry.id.parse::<EntryId>() {
            let mut state = self.state.lock();
            if state.phase >= Phase::Welcomed {
                state.mark_known(id);
                let message = v1::EntryObserved {
                    entry: Some(entry.clone()),
                    freshness: Some(freshness::stamp(freshness.clone(), now_ms())),
                };
                self.put(&mut state, Message::EntryObserved(message));
            }
        }
    }

    fn negative(&self, key: &v1::Key, http_status: u16, until_ms: i64) {
        // Dropped if there is no room, because it only saves another edge a question.
        if !self.has_room() {
            return;
        }
        let http_status = u32::from(http_status);
        self.send(Message::KeyNegative(v1::KeyNegative {
            key: Some(key.clone()),
            http_status,
            valid_for_ms: u32::try_from(until_ms - now_ms()).unwrap_or(0),
        }));
    }

    fn whole(&self, key: &v1::Key) {
        // Dropped likewise.
        if self.has_room() {
            let key = Some(key.clone());
            self.send(Message::WholeAnswer(v1::WholeAnswer { key }));
        }
    }

    fn local_fetch(&self, fetch: v1::LocalFetch) {
        self.send(Message::LocalFetch(fetch));
    }

    fn report(&self, report: v1::FetchReport) {
        self.send(Message::FetchReport(report));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "link_tests.rs"]
mod tests;
