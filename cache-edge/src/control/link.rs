//! The outgoing half of the session, as the rest of the edge sees it: sends messages and answers
//! questions if there is a session.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chunkcache_proto::{ChunkIndex, EntryId, v1};
use parking_lot::Mutex;
use service_kit::telemetry;
use tokio::sync::{Notify, mpsc};
use tracing::Span;
use v1::session_request::Message;

use super::channel::Service;
use crate::{
    clock::now_ms,
    readers::Announce,
    resolve::directory::{Answer, Directory},
};
use http_rules::freshness;

/// Messages queued for sending. If there are more, the coordinator does not read, and the session
/// is ended.
pub const OUTBOX_MESSAGES: usize = 8_192;
/// Messages held back until rows and disk agree.
const MAX_HELD: usize = 65_536;
/// How long a cold key waits for the coordinator, which may itself wait for another edge's probe.
const RESOLVE_HEALTHY: Duration = Duration::from_secs(1);
/// The same if the coordinator was silent lately.
const RESOLVE_DOUBTFUL: Duration = Duration::from_millis(150);
const DOUBTFUL_AFTER: Duration = Duration::from_secs(2);
/// Bytes to drop once their rows are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    Chunks(EntryId, Vec<ChunkIndex>),
    Entry(EntryId),
    /// No bytes: they were withdrawn before. Chunks that are present by the time the rows are gone
    /// were fetched again, and have rows of their own.
    Nothing(EntryId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Disconnected,
    /// Hello was sent.
    Greeting,
    /// Welcome arrived: demand is sent.
    Welcomed,
    /// Rows and disk agree.
    Ready,
}

struct State {
    phase: Phase,
    sender: Option<mpsc::Sender<v1::SessionRequest>>,
    client: Option<Service>,
    epoch: u64,
    sequence: u64,
    held: Vec<Message>,
    /// Entries reported to the coordinator in this session.
    told: HashSet<EntryId>,
    removals: BTreeMap<u64, Removal>,
    heard: Instant,
    overflowed: bool,
    /// Why there is no session.
    reason: String,
}

/// The process's link to the coordinator; outlives its sessions.
pub struct Link {
    edge: String,
    state: Mutex<State>,
    broken: Notify,
    draining: AtomicBool,
}

impl Link {
    #[must_use]
    pub fn new(edge: String) -> Arc<Self> {
        let state = State {
            phase: Phase::Disconnected,
            sender: None,
            client: None,
            epoch: 0,
            sequence: 0,
            held: Vec::new(),
            told: HashSet::new(),
            removals: BTreeMap::new(),
            heard: Instant::now(),
            overflowed: false,
            reason: "no coordinator has answered yet".into(),
        };
        Arc::new(Self {
            edge,
            state: Mutex::new(state),
            broken: Notify::new(),
            draining: AtomicBool::new(false),
        })
    }

    /// Begins a session; Hello is in the channel already.
    pub fn begin(&self, sender: mpsc::Sender<v1::SessionRequest>, client: Service) {
        let mut state = self.state.lock();
        state.phase = Phase::Greeting;
        state.sender = Some(sender);
        state.client = Some(client);
        state.held.clear();
        state.told.clear();
        state.removals.clear();
        state.overflowed = false;
        state.heard = Instant::now();
    }

    pub fn welcomed(&self, epoch: u64) {
        let mut state = self.state.lock();
        state.phase = Phase::Welcomed;
        state.epoch = epoch;
    }

    /// Marks that rows and disk agree, and sends the messages that were held back.
    pub fn ready(&self) {
        let mut state = self.state.lock();
        state.phase = Phase::Ready;
        for message in std::mem::take(&mut state.held) {
            self.put(&mut state, message);
        }
    }

    pub fn end(&self, reason: String) {
        let mut state = self.state.lock();
        state.phase = Phase::Disconnected;
        state.sender = None;
        state.client = None;
        state.held.clear();
        state.removals.clear();
        state.reason = reason;
        drop(state);
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

    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
    }

    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Returns, with the reason, when the outbox has overflowed. Cancel safe.
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
        let Some(sender) = &state.sender else { return };
        if sender
            .try_send(v1::SessionRequest {
                message: Some(message),
            })
            .is_err()
        {
            state.overflowed = true;
            self.broken.notify_waiters();
            self.broken.notify_one();
        }
    }

    /// Sends once rows and disk agree; holds the message back until then.
    fn put_when_ready(&self, state: &mut State, message: Message) {
        match state.phase {
            Phase::Disconnected => {}
            Phase::Ready => self.put(state, message),
            Phase::Greeting | Phase::Welcomed if state.held.len() < MAX_HELD => {
                state.held.push(message)
            }
            Phase::Greeting | Phase::Welcomed => {
                state.overflowed = true;
                self.broken.notify_one();
            }
        }
    }

    /// Records that the coordinator knows the entry in this session.
    pub fn set_told(&self, entry: EntryId) {
        self.state.lock().told.insert(entry);
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
        if state.told.insert(entry) {
            self.put_when_ready(&mut state, Message::EntryObserved(observed()));
        }
        state.sequence += 1;
        let sequence = state.sequence;
        let entry_id = entry.to_string();
        self.put_when_ready(
            &mut state,
            Message::ChunksStored(v1::ChunksStored {
                sequence,
                entry_id,
                chunks,
                origin_bytes,
            }),
        );
    }

    /// Requests the deletion of rows; [`committed`](Self::committed) returns the removal when they
    /// are gone. `false`: no session. Bytes that are already lost are reported as soon as rows and
    /// disk agree, because the inventory may still have listed them.
    pub fn removed(
        &self,
        removal: Removal,
        indexes: Vec<ChunkIndex>,
        reason: v1::RemovalReason,
    ) -> bool {
        let mut state = self.state.lock();
        let is_late = matches!(removal, Removal::Nothing(_));
        if state.phase == Phase::Disconnected || state.phase != Phase::Ready && !is_late {
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
        self.put_when_ready(&mut state, Message::ChunksRemoved(message));
        true
    }

    /// Removals whose rows are gone.
    #[must_use]
    pub fn committed(&self, sequence: u64) -> Vec<Removal> {
        let mut state = self.state.lock();
        let under_way = state.removals.split_off(&sequence.saturating_add(1));
        std::mem::replace(&mut state.removals, under_way)
            .into_values()
            .collect()
    }

    #[must_use]
    pub fn removals_under_way(&self) -> usize {
        self.state.lock().removals.len()
    }

    fn client(&self) -> Option<(Service, u64, Duration)> {
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
                state.told.insert(id);
                let message = v1::EntryObserved {
                    entry: Some(entry.clone()),
                    freshness: Some(freshness::stamp(freshness.clone(), now_ms())),
                };
                self.put(&mut state, Message::EntryObserved(message));
            }
        }
    }

    fn negative(&self, key: &v1::Key, http_status: u16, until_ms: i64) {
        let http_status = u32::from(http_status);
        self.send(Message::KeyNegative(v1::KeyNegative {
            key: Some(key.clone()),
            http_status,
            valid_for_ms: u32::try_from(until_ms - now_ms()).unwrap_or(0),
        }));
    }

    fn local_fetch(&self, fetch: v1::LocalFetch) {
        self.send(Message::LocalFetch(fetch));
    }

    fn report(&self, report: v1::FetchReport) {
        self.send(Message::FetchReport(report));
    }
}

impl Directory for Link {
    fn resolve(&self, key: v1::Key) -> Answer<'_, v1::resolve_key_response::Outcome> {
        Box::pin(async move {
            let (mut client, epoch, patience) = self.client()?;
            let mut request = tonic::Request::new(v1::ResolveKeyRequest {
                edge: self.edge.clone(),
                epoch,
                key: Some(key),
            });
            request.set_timeout(patience);
            telemetry::inject_metadata(&Span::current(), request.metadata_mut());
            let answer = tokio::time::timeout(patience, client.resolve_key(request))
                .await
                .ok()?;
            match answer {
                Ok(answer) => answer.into_inner().outcome.map(on_own_clock),
                Err(status) => {
                    tracing::debug!(%status, "the coordinator did not resolve a key");
                    None
                }
            }
        })
    }

    fn lookup(&self, id: EntryId) -> Answer<'_, v1::KeyBinding> {
        Box::pin(async move {
            let (mut client, _, patience) = self.client()?;
            let mut request = tonic::Request::new(v1::LookupEntryRequest { id: id.to_string() });
            request.set_timeout(patience);
            telemetry::inject_metadata(&Span::current(), request.metadata_mut());
            let answer = tokio::time::timeout(patience, client.lookup_entry(request))
                .await
                .ok()?;
            answer.ok()?.into_inner().binding.map(received)
        })
    }
}

/// Converts the coordinator's binding of a key to this edge's clock.
#[must_use]
pub fn received(binding: v1::KeyBinding) -> v1::KeyBinding {
    v1::KeyBinding {
        freshness: binding
            .freshness
            .map(|freshness| freshness::receive(freshness, now_ms())),
        ..binding
    }
}

fn on_own_clock(outcome: v1::resolve_key_response::Outcome) -> v1::resolve_key_response::Outcome {
    use v1::resolve_key_response::Outcome;
    match outcome {
        Outcome::Known(binding) => Outcome::Known(received(binding)),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "link_tests.rs"]
mod tests;
