//! Questions to the cluster and to origins: each is asked once at a time, whoever waits for its
//! answer.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{Instrument as _, Span};

use super::{ports::ServeError, probe::Found};
use crate::worker_pool::Workers;

/// Under way at a time. More are refused: each holds connections and goes on when who asked has
/// left.
const MAX_QUESTIONS: usize = 256;

type Answer = Result<Found, ServeError>;
type Pending = watch::Receiver<Option<Answer>>;

/// Those under way, by what is asked.
pub(super) struct Questions {
    workers: Workers,
    asking: Arc<Mutex<HashMap<String, Pending>>>,
}

impl Questions {
    /// They run on `workers` and outlive who asked.
    pub fn new(workers: Workers) -> Self {
        Self {
            workers,
            asking: Arc::default(),
        }
    }

    /// Joins the question if it is under way, else asks it. It goes on when its askers leave: what
    /// it finds is kept.
    ///
    /// `settled`: the answer, if there is one by now. Looked at once no question is under way,
    /// because who asks looked before that: one that ended in between would be asked again.
    pub fn ask<F>(
        &self,
        id: String,
        settled: impl FnOnce() -> Option<Found>,
        question: impl FnOnce() -> F,
    ) -> Result<Asked, ServeError>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut asking = self.asking.lock();
        if let Some(pending) = asking.get(&id)
            // A sender that is gone without an answer was cut off with its runtime.
            && pending.has_changed().is_ok()
        {
            return Ok(Asked::Joined(pending.clone()));
        }
        if let Some(found) = settled() {
            return Ok(Asked::Settled(found));
        }
        if asking.len() >= MAX_QUESTIONS {
            return Err(ServeError::Overloaded("questions to origins are under way"));
        }
        let (sender, receiver) = watch::channel(None);
        asking.insert(id.clone(), receiver.clone());
        drop(asking);
        let (asking, answer) = (Arc::clone(&self.asking), question());
        let asked = async move {
            let found = answer.await;
            asking.lock().remove(&id);
            let _ = sender.send(Some(found));
        };
        let asked = asked.instrument(Span::current());
        self.workers.spawn(asked);
        Ok(Asked::First(receiver))
    }
}

/// How a question was met.
pub(super) enum Asked {
    Settled(Found),
    First(Pending),
    Joined(Pending),
}

impl Asked {
    /// The answer, as this asker tells it.
    pub async fn answer(self) -> Answer {
        let (mut pending, collapsed) = match self {
            Self::Settled(found) => return Ok(found),
            Self::First(pending) => (pending, false),
            Self::Joined(pending) => (pending, true),
        };
        let lost = || ServeError::Internal("the question to the origin was given up".into());
        let answer = pending.wait_for(Option::is_some).await;
        let answer = answer.map_err(|_| lost())?.clone();
        answer.ok_or_else(lost)?.map(|it| it.waited_for(collapsed))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use tokio::{runtime::Handle, sync::Notify};

    use super::*;

    fn questions() -> Questions {
        Questions::new(Workers::of(Handle::current()))
    }

    fn unsettled() -> Option<Found> {
        None
    }

    /// Which of the questions it was that brought the answer.
    async fn number(asked: Asked) -> u16 {
        match asked.answer().await.unwrap() {
            Found::Negative(number) => number,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn who_asks_the_same_waits_for_the_same_answer() {
        let (questions, go_on) = (questions(), Arc::new(Notify::new()));
        let count = Arc::new(AtomicU16::new(0));
        let ask = |id: &str| {
            let (go_on, count) = (Arc::clone(&go_on), Arc::clone(&count));
            let question = || async move {
                let number = count.fetch_add(1, Ordering::SeqCst);
                go_on.notified().await;
                Ok(Found::Negative(number))
            };
            questions.ask(id.into(), unsettled, question).unwrap()
        };
        let (first, second, other) = (ask("a"), ask("a"), ask("b"));
        assert!(matches!(first, Asked::First(_)) && matches!(second, Asked::Joined(_)));
        tokio::task::yield_now().await;
        go_on.notify_waiters();
        assert_eq!((number(first).await, number(second).await), (0, 0));
        assert_eq!(number(other).await, 1);
        assert!(matches!(ask("a"), Asked::First(_)), "it is over");
    }

    /// Between the look of who asks and the question another one may have ended: what it found is
    /// looked for where none can.
    #[tokio::test]
    async fn what_is_settled_by_now_is_not_asked_again() {
        let questions = questions();
        let settled = || {
            assert!(questions.asking.try_lock().is_none(), "one may end here");
            Some(Found::Negative(7))
        };
        let question = || async { unreachable!("it was asked again") };
        let asked = questions.ask("a".into(), settled, question).unwrap();
        assert_eq!(number(asked).await, 7);
        assert!(questions.asking.lock().is_empty());
    }

    #[tokio::test]
    async fn there_is_a_limit_and_room_again_behind_it() {
        let (questions, (end, ended)) = (questions(), watch::channel(false));
        let ask = |id: usize| {
            let mut ended = ended.clone();
            let question = || async move {
                ended.wait_for(|ended| *ended).await.unwrap();
                Ok(Found::Negative(0))
            };
            questions.ask(id.to_string(), unsettled, question)
        };
        let asked: Vec<Asked> = (0..MAX_QUESTIONS).map(|id| ask(id).unwrap()).collect();
        assert!(matches!(ask(MAX_QUESTIONS), Err(ServeError::Overloaded(_))));
        assert!(ask(0).is_ok(), "to wait for one costs nothing");
        end.send_replace(true);
        for asked in asked {
            number(asked).await;
        }
        assert!(ask(MAX_QUESTIONS).is_ok());
    }

    #[test]
    fn one_that_was_cut_off_is_asked_anew() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build();
        let (lost, present) = (runtime().unwrap(), runtime().unwrap());
        let mut questions = Questions::new(Workers::of(lost.handle().clone()));
        let forever = || std::future::pending::<Answer>();
        let asked = questions.ask("a".into(), unsettled, forever).unwrap();
        drop(lost);
        let answer = present.block_on(asked.answer());
        assert!(matches!(answer, Err(ServeError::Internal(_))));
        questions.workers = Workers::of(present.handle().clone());
        let question = || async { Ok(Found::Negative(3)) };
        let asked = questions.ask("a".into(), unsettled, question).unwrap();
        assert_eq!(present.block_on(number(asked)), 3);
    }
}
