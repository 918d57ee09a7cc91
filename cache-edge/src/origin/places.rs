//! Places: connections to a source with a limit that this edge may open for what it asks by itself.
//!
//! The limit holds in the whole cluster, so the coordinator lends them: this edge says how many it has use for, and opens no more than it
//! was lent. Who finds none waits in a queue, viewers before others, and is told when it takes too long. While no coordinator
//! answers, an edge has a part of the limit for itself, assignments that go on counted. A place is free again when
//! its connection is closed. A source without a limit costs one comparison.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use chunkcache_proto::v1;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::OriginError;

/// Who waits longer for a place is told to come again.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A coordinator answers at once; one that does not is taken as absent.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// Requests that wait for a place of one source. More are refused at once.
const MAX_WAITING: usize = 1_024;

/// On whose behalf an origin is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The coordinator's: it counts the connection itself. Also of `import`, a program of its own with one connection or two.
    Assigned,
    /// A viewer waits for it.
    Viewer,
    /// Nobody waits for it yet.
    Background,
}

/// Of one source. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// There may be something to tell the coordinator.
    to_tell: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// None: no limit.
    limit: Option<u32>,
    /// None: no session.
    lent: Option<u32>,
    sequence: u64,
    /// While no coordinator answers.
    alone: u32,
    open: u32,
    assigned: u32,
    /// Requests that may come to need one.
    expected: u32,
    viewers: VecDeque<oneshot::Sender<Place>>,
    others: VecDeque<oneshot::Sender<Place>>,
    /// None: nothing yet in this session.
    told: Option<Told>,
    /// Most that was wanted since a smaller number could be told.
    peak: u32,
    /// More than was lent was asked for, and nothing was heard since.
    asked: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    sequence: u64,
    held: u32,
    wanted: u32,
}

/// A request that may come to need a place, until it is dropped.
#[derive(Debug)]
pub struct Expected(Option<Places>);

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    of: Option<Places>,
    turn: Turn,
}

impl Places {
    /// `to_tell` is notified when the coordinator has to know something.
    #[must_use]
    pub fn new(to_tell: Arc<Notify>) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            to_tell,
        }))
    }

    /// As the source is configured; 0: no limit.
    pub fn set_limit(&self, max_connections: u32) {
        let mut state = self.0.state.lock();
        state.limit = (max_connections > 0).then_some(max_connections);
        self.admit(&mut state);
    }

    /// A request will perhaps need a place: if there is none, it is asked for while the request is at something else.
    #[must_use]
    pub fn expect(&self) -> Expected {
        let mut state = self.0.state.lock();
        if state.limit.is_none() || state.may_enter(Turn::Viewer) {
            return Expected(None);
        }
        state.expected += 1;
        drop(state);
        self.0.to_tell.notify_one();
        Expected(Some(self.clone()))
    }

    /// A place, when there is one. Cancel safe.
    pub async fn enter(&self, turn: Turn) -> Result<Place, OriginError> {
        self.enter_within(turn, LONGEST_WAIT).await
    }

    async fn enter_within(&self, turn: Turn, longest: Duration) -> Result<Place, OriginError> {
        let mut waiting = {
            let mut state = self.0.state.lock();
            if state.may_enter(turn) {
                let place = self.place(&mut state, turn);
                drop(state);
                return Ok(place);
            }
            if state.waiting() >= MAX_WAITING {
                return Err(no_place());
            }
            let (sender, receiver) = oneshot::channel();
            match turn {
                Turn::Viewer => state.viewers.push_back(sender),
                _ => state.others.push_back(sender),
            }
            receiver
        };
        self.0.to_tell.notify_one();
        let doubt = tokio::time::sleep(ANSWERS_WITHIN + Duration::from_millis(50));
        let end = tokio::time::sleep(longest);
        tokio::pin!(doubt, end);
        let mut doubted = false;
        loop {
            tokio::select! {
                biased;
                place = &mut waiting => return place.map_err(|_| no_place()),
                () = &mut doubt, if !doubted => {
                    doubted = true;
                    self.admit(&mut self.0.state.lock());
                }
                () = &mut end => return Err(no_place()),
            }
        }
    }

    /// A viewer waits for a place: who has one and is not in a hurry gives it up.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        let state = self.0.state.lock();
        state.viewers.iter().any(|waiting| !waiting.is_closed())
    }

    /// Nothing is lent before the coordinator says so.
    pub fn begin_session(&self) {
        let mut state = self.0.state.lock();
        state.lent = Some(0);
        state.sequence = 0;
        state.told = None;
        state.asked = None;
        drop(state);
        self.0.to_tell.notify_one();
    }

    pub fn end_session(&self) {
        let mut state = self.0.state.lock();
        state.lent = None;
        state.asked = None;
        self.admit(&mut state);
    }

    /// What the coordinator said.
    pub fn set_lent(&self, places: &v1::Places) {
        let mut state = self.0.state.lock();
        if state.lent.is_none() {
            return;
        }
        state.lent = Some(places.places);
        state.sequence = places.sequence;
        state.alone = places.alone;
        state.asked = None;
        self.admit(&mut state);
        drop(state);
        self.0.to_tell.notify_one();
    }

    /// What the coordinator has to know, if it does not yet. `all`: also that less is wanted, which is not said of each
    /// request that ends.
    #[must_use]
    pub fn to_tell(&self, all: bool) -> Option<(u64, u32, u32)> {
        let mut state = self.0.state.lock();
        let (Some(lent), Some(_)) = (state.lent, state.limit) else {
            return None;
        };
        let wanted = state.wanted();
        state.peak = state.peak.max(wanted);
        // First of all what is open is said, be it nothing: until then the coordinator keeps places for it.
        let is_first = state.told.is_none();
        let told = state.told.unwrap_or_default();
        let mut now = Told {
            sequence: state.sequence,
            held: state.open.max(lent),
            wanted: wanted.max(told.wanted),
        };
        if all {
            now.wanted = std::mem::replace(&mut state.peak, wanted);
        }
        let news = is_first
            || now.sequence != told.sequence
            || now.held != told.held
            || (now.wanted > told.wanted && now.wanted > lent)
            || now.wanted < told.wanted;
        if !news {
            return None;
        }
        state.told = Some(now);
        if now.wanted > lent {
            state.asked.get_or_insert_with(Instant::now);
        }
        Some((now.sequence, now.held, now.wanted))
    }

    fn place(&self, state: &mut State, turn: Turn) -> Place {
        match turn {
            Turn::Assigned => state.assigned += 1,
            Turn::Viewer | Turn::Background => state.open += 1,
        }
        state.peak = state.peak.max(state.wanted());
        Place {
            of: Some(self.clone()),
            turn,
        }
    }

    /// Those who wait, as far as there are places.
    fn admit(&self, state: &mut State) {
        state.viewers.retain(|waiting| !waiting.is_closed());
        state.others.retain(|waiting| !waiting.is_closed());
        loop {
            let (turn, waiting) = if state.has_room(Turn::Viewer) && !state.viewers.is_empty() {
                (Turn::Viewer, state.viewers.pop_front())
            } else if state.viewers.is_empty() && state.has_room(Turn::Background) {
                (Turn::Background, state.others.pop_front())
            } else {
                return;
            };
            let Some(waiting) = waiting else { return };
            let place = self.place(state, turn);
            if let Err(mut place) = waiting.send(place) {
                // It left. Not dropped here, where the state is locked.
                place.of = None;
                state.open -= 1;
            }
        }
    }
}

impl State {
    fn waiting(&self) -> usize {
        self.viewers.len() + self.others.len()
    }

    fn wanted(&self) -> u32 {
        let waiting = self.viewers.iter().chain(&self.others);
        let waiting = waiting.filter(|waiting| !waiting.is_closed()).count();
        self.open
            .saturating_add(self.expected)
            .saturating_add(u32::try_from(waiting).unwrap_or(u32::MAX))
    }

    fn may_enter(&self, turn: Turn) -> bool {
        match turn {
            Turn::Assigned => true,
            Turn::Viewer => self.viewers.is_empty() && self.has_room(turn),
            Turn::Background => self.waiting() == 0 && self.has_room(turn),
        }
    }

    fn has_room(&self, turn: Turn) -> bool {
        let Some(limit) = self.limit else { return true };
        let alone = || self.alone.clamp(1, limit).saturating_sub(self.assigned);
        let unanswered = |since: Instant| since.elapsed() >= ANSWERS_WITHIN;
        let room = match self.lent {
            Some(lent) if self.asked.is_some_and(unanswered) => lent.max(alone()),
            Some(lent) => lent,
            None => alone(),
        };
        // The last of several is for who waits.
        let kept = u32::from(turn == Turn::Background && room > 1);
        self.open < room - kept
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        if let Some(places) = self.0.take() {
            let mut state = places.0.state.lock();
            state.expected = state.expected.saturating_sub(1);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(places) = self.of.take() else { return };
        let mut state = places.0.state.lock();
        match self.turn {
            Turn::Assigned => state.assigned = state.assigned.saturating_sub(1),
            Turn::Viewer | Turn::Background => state.open = state.open.saturating_sub(1),
        }
        places.admit(&mut state);
        let is_news =
            state.open.max(state.lent.unwrap_or(0)) != state.told.unwrap_or_default().held;
        drop(state);
        if is_news {
            places.0.to_tell.notify_one();
        }
    }
}

fn no_place() -> OriginError {
    OriginError::NoPlace {
        retry_after: Duration::from_secs(1),
    }
}

#[cfg(test)]
#[path = "places_tests.rs"]
mod tests;
