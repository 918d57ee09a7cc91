//! Places: connections to a source with a limit that this edge may open for what it asks by itself.
//!
//! The limit holds in the whole cluster, so the coordinator lends them: this edge says how many it
//! has use for, and opens no more than it was lent. Who finds none waits in a queue, viewers before
//! others, and is told when it takes too long. A place is free again when its connection is closed.
//! A source without a limit costs one comparison.
//!
//! While no coordinator answers, an edge has a part of the limit for itself, assignments that go on
//! counted. Before it opens what it did not have, others that had more than their part have come
//! down to it: see `coordinator::absence`.

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
/// A coordinator answers at once, also that there is nothing to lend; one whose session lives and
/// that does not is taken as absent.
const ANSWERS_WITHIN: Duration = Duration::from_secs(4);
/// Requests that wait for a place of one source. More are refused at once.
const MAX_WAITING: usize = 1_024;

/// On whose behalf an origin is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The coordinator's: it counts the connection itself.
    Assigned,
    /// Of `import`, a program of its own with one connection or two.
    Import,
    /// A viewer waits for it.
    Viewer,
    /// Nobody waits for it yet.
    Background,
}

/// Who says how many connections there may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Rule {
    /// The coordinator.
    Lent,
    /// It fell silent a moment ago: no more than there were then, and what is above the part of
    /// this edge is not renewed.
    ComingDown { most: u32 },
    /// Nobody: this edge's part.
    #[default]
    Alone,
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
    rule: Rule,
    /// None: no session.
    lent: Option<u32>,
    sequence: u64,
    /// While no coordinator answers.
    alone: u32,
    open: u32,
    assigned: u32,
    /// Requests that may come to need one.
    expected: u32,
    /// While there is no coordinator also what goes on of its assignments.
    viewers: VecDeque<(Turn, oneshot::Sender<Place>)>,
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

    /// A request will perhaps need a place: if there is none, it is asked for while the request is
    /// at something else.
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
                Turn::Background => state.others.push_back(sender),
                _ => state.viewers.push_back((turn, sender)),
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
        state
            .viewers
            .iter()
            .any(|(_, waiting)| !waiting.is_closed())
    }

    /// Nothing is lent before the coordinator says so. What was assigned it knows of.
    pub fn begin_session(&self) {
        let mut state = self.0.state.lock();
        state.lent = Some(0);
        state.sequence = 0;
        state.told = None;
        state.asked = None;
        self.follow(&mut state);
        drop(state);
        self.0.to_tell.notify_one();
    }

    pub fn end_session(&self) {
        let mut state = self.0.state.lock();
        state.come_down();
        state.lent = None;
        state.asked = None;
    }

    /// The coordinator that was silent is heard again.
    pub fn heard_again(&self) {
        let mut state = self.0.state.lock();
        if state.lent.is_none() {
            return;
        }
        self.follow(&mut state);
        drop(state);
        self.0.to_tell.notify_one();
    }

    /// The coordinator is silent. Returns how many connections may be kept, and how many this edge
    /// opened by itself.
    #[must_use]
    pub fn come_down(&self) -> Option<(u32, u32)> {
        let mut state = self.0.state.lock();
        let limit = state.limit?;
        state.come_down();
        Some((state.part(limit), state.open))
    }

    /// By now others have come down to their parts.
    pub fn stand_alone(&self) {
        let mut state = self.0.state.lock();
        state.rule = Rule::Alone;
        self.admit(&mut state);
    }

    fn follow(&self, state: &mut State) {
        state.rule = Rule::Lent;
        let waiting = std::mem::take(&mut state.viewers);
        let (assigned, viewers) = waiting
            .into_iter()
            .partition::<VecDeque<_>, _>(|(turn, _)| *turn == Turn::Assigned);
        state.viewers = viewers;
        for (turn, waiting) in assigned {
            self.seat(state, turn, waiting);
        }
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

    /// What the coordinator has to know, if it does not yet. `all`: also that less is wanted, which
    /// is not said of each request that ends.
    #[must_use]
    pub fn to_tell(&self, all: bool) -> Option<(u64, u32, u32)> {
        let mut state = self.0.state.lock();
        let (Some(lent), Some(_)) = (state.lent, state.limit) else {
            return None;
        };
        let wanted = state.wanted();
        state.peak = state.peak.max(wanted);
        // First of all what is open is said, be it nothing: until then the coordinator keeps places
        // for it.
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
        *state.count(turn) += 1;
        state.peak = state.peak.max(state.wanted());
        Place {
            of: Some(self.clone()),
            turn,
        }
    }

    /// Those who wait, as far as there are places.
    fn admit(&self, state: &mut State) {
        state.viewers.retain(|(_, waiting)| !waiting.is_closed());
        state.others.retain(|waiting| !waiting.is_closed());
        loop {
            let next = if state.has_room(Turn::Viewer) && !state.viewers.is_empty() {
                state.viewers.pop_front()
            } else if state.viewers.is_empty() && state.has_room(Turn::Background) {
                let waiting = state.others.pop_front();
                waiting.map(|waiting| (Turn::Background, waiting))
            } else {
                return;
            };
            let Some((turn, waiting)) = next else { return };
            self.seat(state, turn, waiting);
        }
    }

    fn seat(&self, state: &mut State, turn: Turn, waiting: oneshot::Sender<Place>) {
        let place = self.place(state, turn);
        if let Err(mut place) = waiting.send(place) {
            // It left. Not dropped here, where the state is locked.
            place.of = None;
            *state.count(turn) -= 1;
        }
    }
}

impl State {
    fn waiting(&self) -> usize {
        self.viewers.len() + self.others.len()
    }

    fn wanted(&self) -> u32 {
        let viewers = self.viewers.iter().map(|(_, waiting)| waiting);
        let waiting = viewers.chain(&self.others);
        let waiting = waiting.filter(|waiting| !waiting.is_closed()).count();
        self.open
            .saturating_add(self.expected)
            .saturating_add(u32::try_from(waiting).unwrap_or(u32::MAX))
    }

    fn count(&mut self, turn: Turn) -> &mut u32 {
        match turn {
            Turn::Assigned | Turn::Import => &mut self.assigned,
            Turn::Viewer | Turn::Background => &mut self.open,
        }
    }

    fn come_down(&mut self) {
        if self.rule == Rule::Lent {
            let lent = self.lent.unwrap_or(0);
            let most = self.assigned.saturating_add(self.open.max(lent));
            self.rule = Rule::ComingDown { most };
        }
    }

    fn part(&self, limit: u32) -> u32 {
        self.alone.clamp(1, limit)
    }

    fn may_enter(&self, turn: Turn) -> bool {
        match (turn, self.rule) {
            (Turn::Import, _) | (Turn::Assigned, Rule::Lent) => true,
            (Turn::Background, _) => self.waiting() == 0 && self.has_room(turn),
            (Turn::Assigned | Turn::Viewer, _) => self.viewers.is_empty() && self.has_room(turn),
        }
    }

    fn has_room(&self, turn: Turn) -> bool {
        let Some(limit) = self.limit else { return true };
        let part = self.part(limit);
        let unanswered = |since: Instant| since.elapsed() >= ANSWERS_WITHIN;
        let room = match self.rule {
            Rule::Lent => {
                let lent = self.lent.unwrap_or(0);
                if self.asked.is_some_and(unanswered) {
                    lent.max(part.saturating_sub(self.assigned))
                } else {
                    lent
                }
            }
            Rule::ComingDown { most } => most.min(part).saturating_sub(self.assigned),
            Rule::Alone => part.saturating_sub(self.assigned),
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
        let count = state.count(self.turn);
        *count = count.saturating_sub(1);
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
