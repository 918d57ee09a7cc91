//! Whether this edge alone has a session with the coordinator, and may ask origins at once for what
//! a viewer waits for.
//!
//! No other edge could have the bytes or be fetching them, so there is nothing to be decided
//! elsewhere first: what is asked is told as it is asked. Before another edge is let in the
//! coordinator takes the word back, and waits until what was begun under it has been told. See RFC
//! 0004.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Whom nobody has heard of for so long may not be alone any more without knowing it.
const DOUBTFUL_AFTER: Duration = Duration::from_secs(4);

/// The coordinator's word, and who acts on it at this moment.
pub struct Sole {
    state: Mutex<State>,
    /// Confirms to the coordinator that it was taken back. Called without a lock.
    confirm: Box<dyn Fn(u64) + Send + Sync>,
}

struct State {
    given: bool,
    heard: Instant,
    /// Holders of a [`Turn`].
    turns: u32,
    /// The sequence to confirm when the last of them is done.
    owed: Option<u64>,
}

/// While it is held the coordinator lets no other edge in. To be dropped once the fetch it was
/// taken for is told, and never kept longer: the coordinator waits half a second at most.
pub struct Turn<'a>(&'a Sole);

impl Sole {
    /// `confirm` is given the sequence of what was taken back.
    #[must_use]
    pub fn new(confirm: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self {
            state: Mutex::new(State {
                given: false,
                heard: Instant::now(),
                turns: 0,
                owed: None,
            }),
            confirm: Box::new(confirm),
        }
    }

    /// The coordinator's word.
    pub fn set(&self, sole: bool, sequence: u64) {
        let is_owed = {
            let mut state = self.state.lock();
            state.given = sole;
            let busy = !sole && state.turns > 0;
            state.owed = busy.then_some(sequence);
            !sole && !busy
        };
        if is_owed {
            (self.confirm)(sequence);
        }
    }

    /// The session ended, or another began: nothing of an earlier one holds, and nothing is owed to
    /// it.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.given = false;
        state.owed = None;
    }

    /// A sign of life from the coordinator.
    pub fn heard(&self) {
        self.state.lock().heard = Instant::now();
    }

    /// As the coordinator last said. To act on it take a [`turn`](Self::turn).
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.state.lock().given
    }

    /// None: others have to be asked.
    #[must_use]
    pub fn turn(&self) -> Option<Turn<'_>> {
        let mut state = self.state.lock();
        if !state.given || state.heard.elapsed() > DOUBTFUL_AFTER {
            return None;
        }
        state.turns += 1;
        Some(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let confirmed = {
            let mut state = self.0.state.lock();
            state.turns -= 1;
            if state.turns == 0 {
                state.owed.take()
            } else {
                None
            }
        };
        if let Some(sequence) = confirmed {
            (self.0.confirm)(sequence);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex as StdMutex};

    use super::*;

    fn sole() -> (Sole, Arc<StdMutex<Vec<u64>>>) {
        let confirmed = Arc::new(StdMutex::new(Vec::new()));
        let told = confirmed.clone();
        let sole = Sole::new(move |sequence| told.lock().unwrap().push(sequence));
        (sole, confirmed)
    }

    #[test]
    fn nobody_is_alone_unasked() {
        let (sole, _) = sole();
        assert!(sole.turn().is_none());
        sole.set(true, 1);
        assert!(sole.turn().is_some());
        sole.reset();
        assert!(sole.turn().is_none());
    }

    #[test]
    fn it_is_taken_back_when_the_last_turn_is_over() {
        let (sole, confirmed) = sole();
        sole.set(true, 1);
        assert_eq!(
            *confirmed.lock().unwrap(),
            [0; 0],
            "only a withdrawal is confirmed"
        );
        let turns = (sole.turn().unwrap(), sole.turn().unwrap());
        sole.set(false, 2);
        assert!(sole.turn().is_none(), "no new one");
        drop(turns.0);
        assert_eq!(*confirmed.lock().unwrap(), [0; 0]);
        drop(turns.1);
        assert_eq!(*confirmed.lock().unwrap(), [2]);
        sole.set(false, 3);
        assert_eq!(
            *confirmed.lock().unwrap(),
            [2, 3],
            "at once where nobody has a turn"
        );
    }

    #[test]
    fn nothing_is_confirmed_to_a_session_that_is_over() {
        let (sole, confirmed) = sole();
        sole.set(true, 1);
        let turn = sole.turn().unwrap();
        sole.set(false, 2);
        sole.reset();
        drop(turn);
        assert_eq!(*confirmed.lock().unwrap(), [0; 0]);
    }

    #[test]
    fn a_coordinator_that_is_silent_may_have_let_others_in() {
        let (sole, _) = sole();
        sole.set(true, 1);
        sole.state.lock().heard = Instant::now().checked_sub(DOUBTFUL_AFTER * 2).unwrap();
        assert!(sole.turn().is_none());
        sole.heard();
        assert!(sole.turn().is_some());
    }
}
