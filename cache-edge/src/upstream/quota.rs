//! The quota lease of each source that has limits: connections, and bytes a second.
//!
//! The limits apply to the whole cluster, so the coordinator grants parts of them for as long as
//! reports renew them. A request waits for a connection permit, viewers before others; it is held
//! instead of refused. A permit becomes free when its connection is closed. When the leases expire,
//! open connections fall back to the floor at once. Capacity beyond the lease is used only after
//! the leases of all other edges have expired as well. RFC 0007 has the table of states.
//!
//! A source without a limit costs one comparison.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use chunkcache_proto::{Level, v1};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::OriginError;
use crate::core::byte_rate::ByteRateLimiter;

/// Limit of requests that wait for a permit of one source. More are refused at once.
const MAX_WAITING: usize = 1_024;
/// Limit of unanswered reports of a session. The answer to an older one renews nothing.
const MAX_REPORTS: usize = 64;
/// How long leases are assumed to be valid before the coordinator has sent their duration.
const DEFAULT_TTL: Duration = Duration::from_millis(2_500);
/// Longest sleep before a rate is checked again.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// Assumed number of edges that share a source, if no coordinator has sent the number.
const UNKNOWN_EDGES: u64 = 4;

/// On whose behalf an origin is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestClass {
    /// Assigned by the coordinator, which counts the connection itself.
    Assigned,
    /// For `import`, a separate program with one or two connections.
    Import,
    /// A viewer waits for it.
    Foreground,
    /// No viewer waits for it yet.
    Background,
}

/// How far an edge may rely on its leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseState {
    /// Renewed in time: the grant applies.
    Leased,
    /// Not renewed: the grant applies, but at most the floor.
    Expired,
    /// The leases of the others have expired as well, or there never was one: the floor applies.
    Unknown,
}

/// When the leases of this edge expire: all at the same time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LeaseTerm(Arc<Mutex<TermState>>);

#[derive(Debug, Default)]
struct TermState {
    in_session: bool,
    ttl: Option<Duration>,
    /// `None`: there never was a lease.
    expires: Option<Instant>,
    number: u64,
    /// Unanswered reports and when they were sent.
    reports: VecDeque<(u64, Instant)>,
}

impl LeaseTerm {
    /// Records that a session began or ended. Leases continue either way.
    pub fn set_in_session(&self, in_session: bool) {
        let mut term = self.0.lock();
        term.in_session = in_session;
        term.number = 0;
        term.reports.clear();
    }

    /// The number of the next report.
    #[must_use]
    pub fn report(&self, now: Instant) -> u64 {
        let mut term = self.0.lock();
        term.number += 1;
        let number = term.number;
        term.reports.push_back((number, now));
        if term.reports.len() > MAX_REPORTS {
            term.reports.pop_front();
        }
        number
    }

    /// Renews the leases, because the coordinator answered a report. They are valid from the time
    /// at which the report was sent, however late the answer is.
    pub fn renew(&self, answers: u64, ttl: Duration) {
        let mut term = self.0.lock();
        let sent = term.reports.iter().find(|(number, _)| *number == answers);
        let Some(&(_, sent)) = sent else { return };
        term.reports.retain(|(number, _)| *number > answers);
        term.ttl = Some(ttl);
        term.expires = term.expires.max(Some(sent + ttl));
    }

    /// The present state, and the time after which it may change by itself.
    #[must_use]
    pub fn state(&self, now: Instant) -> (LeaseState, Option<Duration>) {
        let term = self.0.lock();
        let Some(expires) = term.expires else {
            // Nothing is granted yet, and the coordinator has been asked.
            let state = if term.in_session {
                LeaseState::Leased
            } else {
                LeaseState::Unknown
            };
            return (state, None);
        };
        let grows = expires + term.ttl.unwrap_or(DEFAULT_TTL);
        if now < expires {
            (LeaseState::Leased, Some(expires - now))
        } else if now < grows {
            (LeaseState::Expired, Some(grows - now))
        } else {
            (LeaseState::Unknown, None)
        }
    }
}

/// The quota of one source. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Quota(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    term: LeaseTerm,
    /// There may be something to report.
    news: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// As configured for the source; 0: no limit.
    max_connections: u32,
    max_rate: u64,
    /// The last lease, from any session.
    lease: Option<v1::QuotaLease>,
    /// Sequence number of the last lease in this session.
    sequence: u64,
    open: u32,
    assigned: u32,
    /// Requests that may soon need a permit.
    expected: u32,
    /// While the leases have expired, in-flight assigned fetches wait here too.
    foreground: VecDeque<(RequestClass, oneshot::Sender<ConnectionPermit>)>,
    background: VecDeque<oneshot::Sender<ConnectionPermit>>,
    /// `None`: nothing yet in this session.
    reported: Option<v1::QuotaUse>,
    /// The largest demand since a smaller number could be reported.
    peak: u32,
    limiter: ByteRateLimiter,
}

/// A request that may soon need a permit, until it is dropped.
#[derive(Debug)]
pub struct ExpectedRequest(Option<Quota>);

/// A connection permit; released when dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    of: Option<Quota>,
    class: RequestClass,
}

/// The use of a source beyond its quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excess {
    pub connections: u32,
    /// The leases have expired: the excess ends now, including assigned fetches that have not
    /// begun.
    pub is_expired: bool,
}

impl Quota {
    /// `news` is notified when there is something to report.
    #[must_use]
    pub fn new(term: LeaseTerm, news: Arc<Notify>) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            term,
            news,
        }))
    }

    /// As configured for the source; 0: no limit.
    pub fn set_limits(&self, max_connections: u32, max_rate: u64) {
        let mut state = self.0.state.lock();
        (state.max_connections, state.max_rate) = (max_connections, max_rate);
        self.admit(&mut state);
    }

    /// Resets the state for a new session: no leases are known, and nothing was reported.
    pub fn begin_session(&self) {
        let mut state = self.0.state.lock();
        state.sequence = 0;
        state.reported = None;
    }

    /// Sets the coordinator's grant.
    pub fn set_lease(&self, lease: v1::QuotaLease) {
        let mut state = self.0.state.lock();
        state.sequence = lease.sequence;
        state.lease = Some(lease);
        self.admit(&mut state);
        drop(state);
        self.0.news.notify_one();
    }

    /// Admits waiting requests after time passed or leases were renewed. Returns the use beyond the
    /// quota.
    #[must_use]
    pub fn enforce(&self) -> Option<Excess> {
        let mut state = self.0.state.lock();
        if state.max_connections == 0 {
            return None;
        }
        self.admit(&mut state);
        let lease_state = self.lease_state();
        let room = state.room(lease_state);
        let is_expired = lease_state > LeaseState::Leased;
        let open = state.open + if is_expired { state.assigned } else { 0 };
        let may = room
            + if is_expired {
                state.assigned.min(state.floor())
            } else {
                0
            };
        let connections = open.saturating_sub(may);
        (connections > 0 || is_expired).then_some(Excess {
            connections,
            is_expired,
        })
    }

    fn lease_state(&self) -> LeaseState {
        self.0.term.state(Instant::now()).0
    }

    /// Announces a request that may need a permit: if none is free, one is requested from the
    /// coordinator while the caller does something else.
    #[must_use]
    pub fn expect(&self) -> ExpectedRequest {
        let mut state = self.0.state.lock();
        if state.max_connections == 0
            || state.may_enter(RequestClass::Foreground, self.lease_state())
        {
            return ExpectedRequest(None);
        }
        state.expected += 1;
        drop(state);
        self.0.news.notify_one();
        ExpectedRequest(Some(self.clone()))
    }

    /// Waits for a permit: our own limit is no reason to refuse a request. Cancel safe.
    pub async fn acquire(&self, class: RequestClass) -> Result<ConnectionPermit, OriginError> {
        let waiting = {
            let mut state = self.0.state.lock();
            if state.max_connections == 0 || state.may_enter(class, self.lease_state()) {
                return Ok(self.permit(&mut state, class));
            }
            if state.foreground.len() + state.background.len() >= MAX_WAITING {
                return Err(OriginError::TooManyWaiting);
            }
            let (sender, receiver) = oneshot::channel();
            match class {
                RequestClass::Background => state.background.push_back(sender),
                _ => state.foreground.push_back((class, sender)),
            }
            receiver
        };
        self.0.news.notify_one();
        waiting.await.map_err(|_| OriginError::TooManyWaiting)
    }

    /// A permit of this edge's lease that is free now and that no viewer is likely to need. For a
    /// source with a limit on connections.
    #[must_use]
    pub fn try_acquire(&self) -> Option<ConnectionPermit> {
        let mut state = self.0.state.lock();
        let class = RequestClass::Background;
        let is_free = state.may_enter(class, self.lease_state());
        is_free.then(|| self.permit(&mut state, class))
    }

    /// Whether a viewer here waits for a permit, or more are open than the lease allows, because
    /// another edge needs them. A fetch that is not urgent then gives up its permit.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        let state = self.0.state.lock();
        let mut waiting = state.foreground.iter().map(|(_, waiting)| waiting);
        waiting.any(|waiting| !waiting.is_closed()) || state.open > state.room(self.lease_state())
    }

    /// The use that the coordinator does not know yet. `all`: including smaller demand, which is
    /// not reported for each request that ends.
    #[must_use]
    pub fn to_report(&self, source: &str, all: bool) -> Option<v1::QuotaUse> {
        let mut state = self.0.state.lock();
        if state.max_connections == 0 && state.max_rate == 0 {
            return None;
        }
        let wanted = state.wanted();
        state.peak = state.peak.max(wanted);
        let is_first = state.reported.is_none();
        let before = state.reported.clone().unwrap_or_default();
        let granted = state.room(self.lease_state());
        let mut now = v1::QuotaUse {
            source: source.to_owned(),
            sequence: state.sequence,
            held: state.open.max(granted),
            wanted: wanted.max(before.wanted),
            urgent: state.urgent(),
        };
        if all {
            now.wanted = std::mem::replace(&mut state.peak, wanted);
        }
        let is_news = is_first
            || now.sequence != before.sequence
            || now.held != before.held
            || (now.wanted > before.wanted && now.wanted > granted)
            || now.wanted < before.wanted
            || (now.urgent > before.urgent)
            || (all && now.urgent != before.urgent);
        if !is_news {
            return None;
        }
        state.reported = Some(now.clone());
        Some(now)
    }

    /// Returns when a reader may continue to read at its level, which may change meanwhile. Cancel
    /// safe, because only [`took`](Self::took) counts bytes.
    pub async fn ready(&self, level: impl Fn() -> Level) {
        while let Some(wait) = self.wait(level()) {
            tokio::time::sleep(wait.min(LONGEST_SLEEP)).await;
        }
    }

    fn wait(&self, level: Level) -> Option<Duration> {
        let mut state = self.0.state.lock();
        let rate = state.rate(self.lease_state())?;
        if rate == 0 {
            return Some(LONGEST_SLEEP);
        }
        state.limiter.wait(level, rate, Instant::now())
    }

    /// Counts bytes that were read from the source.
    pub fn took(&self, bytes: usize, level: Level) {
        let mut state = self.0.state.lock();
        if let Some(rate) = state.rate(self.lease_state()) {
            state.limiter.take(bytes, level, rate, Instant::now());
        }
    }

    fn permit(&self, state: &mut State, class: RequestClass) -> ConnectionPermit {
        *state.count(class) += 1;
        state.peak = state.peak.max(state.wanted());
        ConnectionPermit {
            of: Some(self.clone()),
            class,
        }
    }

    /// Admits waiting requests while there are permits.
    fn admit(&self, state: &mut State) {
        state.foreground.retain(|(_, waiting)| !waiting.is_closed());
        state.background.retain(|waiting| !waiting.is_closed());
        let lease_state = self.lease_state();
        loop {
            let is_first_free =
                |class| lease_state == LeaseState::Leased && class == RequestClass::Assigned;
            let first = state.foreground.front().map(|(class, _)| *class);
            let next = if first
                .is_some_and(|class| is_first_free(class) || state.has_room(class, lease_state))
            {
                state.foreground.pop_front()
            } else if first.is_none() && state.has_room(RequestClass::Background, lease_state) {
                let waiting = state.background.pop_front();
                waiting.map(|waiting| (RequestClass::Background, waiting))
            } else {
                return;
            };
            let Some((class, waiting)) = next else { return };
            let permit = self.permit(state, class);
            if let Err(mut permit) = waiting.send(permit) {
                // The waiting request was dropped. Dropping the permit here would lock the state
                // again.
                permit.of = None;
                *state.count(class) -= 1;
            }
        }
    }
}

impl State {
    fn wanted(&self) -> u32 {
        let foreground = self.foreground.iter().map(|(_, waiting)| waiting);
        let waiting = foreground.chain(&self.background);
        let waiting = waiting.filter(|waiting| !waiting.is_closed()).count();
        self.open
            .saturating_add(self.expected)
            .saturating_add(u32::try_from(waiting).unwrap_or(u32::MAX))
    }

    /// Number of waiting viewers.
    fn urgent(&self) -> u32 {
        let waiting = self.foreground.iter().filter(|(_, it)| !it.is_closed());
        u32::try_from(waiting.count()).unwrap_or(u32::MAX)
    }

    fn count(&mut self, class: RequestClass) -> &mut u32 {
        match class {
            RequestClass::Assigned | RequestClass::Import => &mut self.assigned,
            RequestClass::Foreground | RequestClass::Background => &mut self.open,
        }
    }

    fn granted(&self) -> u32 {
        self.lease.as_ref().map_or(0, |lease| lease.connections)
    }

    /// At least one: a viewer is served even if there are more edges than connections.
    fn floor(&self) -> u32 {
        let floor = self
            .lease
            .as_ref()
            .map_or(1, |lease| lease.floor_connections);
        floor.clamp(1, self.max_connections.max(1))
    }

    /// Connections that the edge may use for its own requests.
    fn room(&self, lease_state: LeaseState) -> u32 {
        let all = match lease_state {
            LeaseState::Leased => return self.granted(),
            LeaseState::Expired => {
                let had = self.assigned.saturating_add(self.granted().max(self.open));
                had.min(self.floor())
            }
            LeaseState::Unknown => self.floor(),
        };
        all.saturating_sub(self.assigned)
    }

    /// Bytes per second for all its reads; `None`: no limit.
    fn rate(&self, lease_state: LeaseState) -> Option<u64> {
        if self.max_rate == 0 {
            return None;
        }
        let Some(lease) = &self.lease else {
            return Some(match lease_state {
                LeaseState::Leased => 0,
                _ => (self.max_rate / UNKNOWN_EDGES).max(1),
            });
        };
        Some(match lease_state {
            LeaseState::Leased => lease.bytes_per_second,
            LeaseState::Expired => lease.bytes_per_second.min(lease.floor_bytes_per_second),
            LeaseState::Unknown => lease.floor_bytes_per_second.max(1),
        })
    }

    fn may_enter(&self, class: RequestClass, lease_state: LeaseState) -> bool {
        match class {
            RequestClass::Import => true,
            RequestClass::Assigned if lease_state == LeaseState::Leased => true,
            RequestClass::Background => {
                self.foreground.is_empty()
                    && self.background.is_empty()
                    && self.has_room(class, lease_state)
            }
            _ => self.foreground.is_empty() && self.has_room(class, lease_state),
        }
    }

    fn has_room(&self, class: RequestClass, lease_state: LeaseState) -> bool {
        if self.max_connections == 0 {
            return true;
        }
        let room = self.room(lease_state);
        // The last of several is reserved for a viewer.
        let kept = u32::from(class == RequestClass::Background && room > 1);
        self.open < room - kept
    }
}

impl Drop for ExpectedRequest {
    fn drop(&mut self) {
        if let Some(quota) = self.0.take() {
            let mut state = quota.0.state.lock();
            state.expected = state.expected.saturating_sub(1);
        }
    }
}

impl ConnectionPermit {
    /// Whether it belongs to this edge's lease; the coordinator counts the others itself.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        self.class != RequestClass::Assigned
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let Some(quota) = self.of.take() else { return };
        let mut state = quota.0.state.lock();
        let count = state.count(self.class);
        *count = count.saturating_sub(1);
        quota.admit(&mut state);
        let held = state.open.max(state.granted());
        let is_news = state.reported.as_ref().is_none_or(|it| it.held != held);
        drop(state);
        if is_news {
            quota.0.news.notify_one();
        }
    }
}

#[cfg(test)]
#[path = "quota_tests.rs"]
mod tests;
