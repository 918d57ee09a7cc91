//! Questions to the cluster and to origins. Each is asked once at a time, and all callers that ask
//! the same question share the answer.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{Instrument as _, Span};

use super::{ports::ServeError, probe::Finding};
use crate::worker_pool::Workers;

/// Limit of running questions. More are refused, because each holds a connection.
const MAX_QUESTIONS: usize = 1_024;
/// Every source may have this many, and every client of each source.
const MIN_SHARE: usize = 16;
/// How long a question continues after its askers have left: a player that seeks asks again at
/// once.
const LEFT_FOR: Duration = Duration::from_secs(1);

/// The answer to a question.
pub(super) trait Collapsible: Clone + Send + Sync + 'static {
    /// Marks it for a request that waited for another one's question, or did not.
    fn waited_for(self, collapsed: bool) -> Self;
}

impl Collapsible for Finding {
    fn waited_for(self, collapsed: bool) -> Self {
        Self::waited_for(self, collapsed)
    }
}

type Answer<F> = Result<F, ServeError>;
type Sender<F> = watch::Sender<Option<Answer<F>>>;
type Pending<F> = watch::Receiver<Option<Answer<F>>>;

/// How many of `limit` one may have: up to half of what the others leave, so that it never takes
/// the last one.
fn share(limit: usize, own: usize, all: usize) -> usize {
    MIN_SHARE.max(limit.saturating_sub(all - own) / 2)
}

struct UnderWay<F> {
    by_id: HashMap<u128, Arc<Sender<F>>>,
    of_source: HashMap<String, OfSource>,
}

/// The running questions to one source.
#[derive(Default)]
struct OfSource {
    count: usize,
    by_asker: HashMap<u128, usize>,
}

impl<F> UnderWay<F> {
    /// Neither a source that hangs nor a client that asks for much takes the others' places.
    fn may_ask(&self, source: &str, asker: Option<u128>) -> bool {
        let of_source = self.of_source.get(source);
        let count = of_source.map_or(0, |it| it.count);
        let limit = share(MAX_QUESTIONS, count, self.by_id.len());
        let own = asker.and_then(|asker| of_source?.by_asker.get(&asker).copied());
        let own = own.unwrap_or(0);
        count < limit && (asker.is_none() || own < share(limit, own, count))
    }

    fn begin(&mut self, source: &str, asker: Option<u128>) {
        let of_source = self.of_source.entry(source.to_owned()).or_default();
        of_source.count += 1;
        if let Some(asker) = asker {
            *of_source.by_asker.entry(asker).or_default() += 1;
        }
    }

    fn end(&mut self, source: &str, asker: Option<u128>) {
        let Some(of_source) = self.of_source.get_mut(source) else {
            return;
        };
        of_source.count -= 1;
        if let Some(asker) = asker
            && let Some(count) = of_source.by_asker.get_mut(&asker)
        {
            *count -= 1;
            if *count == 0 {
                of_source.by_asker.remove(&asker);
            }
        }
        if of_source.count == 0 {
            self.of_source.remove(source);
        }
    }
}

impl<F> Default for UnderWay<F> {
    fn default() -> Self {
        Self {
            by_id: HashMap::new(),
            of_source: HashMap::new(),
        }
    }
}

type Shared<F> = Arc<Mutex<UnderWay<F>>>;

/// A running question. It is over when this is dropped, including with its runtime.
struct Question<F> {
    under_way: Shared<F>,
    id: u128,
    source: String,
    asker: Option<u128>,
    sender: Arc<Sender<F>>,
}

impl<F> Question<F> {
    /// Whether nobody waits for the answer; if so, nobody can join from now on.
    fn gives_up(&self) -> bool {
        let mut under_way = self.under_way.lock();
        let is_left = self.sender.is_closed();
        if is_left {
            under_way.by_id.remove(&self.id);
        }
        is_left
    }
}

impl<F> Drop for Question<F> {
    fn drop(&mut self) {
        let mut under_way = self.under_way.lock();
        let present = under_way.by_id.get(&self.id);
        if present.is_some_and(|present| Arc::ptr_eq(present, &self.sender)) {
            under_way.by_id.remove(&self.id);
        }
        under_way.end(&self.source, self.asker);
    }
}

/// The running questions, by key.
pub(super) struct Singleflight<F = Finding> {
    workers: Workers,
    under_way: Shared<F>,
}

impl<F: Collapsible> Singleflight<F> {
    /// Questions run on `workers`.
    pub fn new(workers: Workers) -> Self {
        Self {
            workers,
            under_way: Arc::default(),
        }
    }

    /// Joins the running question, or asks it. The question is cancelled a moment after its last
    /// asker left.
    ///
    /// `settled`: the answer, if there is one by now. It is checked once no question is running,
    /// because a question may have ended since the caller's own check. `asker`: the client whose
    /// share of the source's questions a new one uses; to join one costs nothing.
    pub fn ask<Q>(
        &self,
        (source, asker): (&str, Option<u128>),
        id: u128,
        settled: impl FnOnce() -> Option<F>,
        question: impl FnOnce() -> Q,
    ) -> Result<Outcome<F>, ServeError>
    where
        Q: Future<Output = Answer<F>> + Send + 'static,
    {
        let mut under_way = self.under_way.lock();
        if let Some(sender) = under_way.by_id.get(&id) {
            return Ok(Outcome::Joined(sender.subscribe()));
        }
        if let Some(found) = settled() {
            return Ok(Outcome::Settled(found));
        }
        if !under_way.may_ask(source, asker) {
            return Err(ServeError::Overloaded("questions to origins are under way"));
        }
        let (sender, receiver) = watch::channel(None);
        let sender = Arc::new(sender);
        under_way.by_id.insert(id, sender.clone());
        under_way.begin(source, asker);
        drop(under_way);
        let asking = Question {
            under_way: Arc::clone(&self.under_way),
            id,
            source: source.to_owned(),
            asker,
            sender: sender.clone(),
        };
        let answer = question();
        let asked = async move {
            let mut answer = std::pin::pin!(answer);
            let found = loop {
                tokio::select! {
                    found = answer.as_mut() => break found,
                    () = left(&sender) => if asking.gives_up() {
                        return;
                    },
                }
            };
            drop(asking);
            let _ = sender.send(Some(found));
        };
        let asked = asked.instrument(Span::current());
        self.workers.spawn(asked);
        Ok(Outcome::First(receiver))
    }
}

/// Returns when nobody has waited for a while.
async fn left<F>(sender: &Sender<F>) {
    loop {
        sender.closed().await;
        tokio::time::sleep(LEFT_FOR).await;
        if sender.is_closed() {
            return;
        }
    }
}

/// How a question was handled.
pub(super) enum Outcome<F = Finding> {
    Settled(F),
    First(Pending<F>),
    Joined(Pending<F>),
}

impl<F: Collapsible> Outcome<F> {
    /// The answer for this asker.
    pub async fn answer(self) -> Answer<F> {
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

    const FILMS: (&str, Option<u128>) = ("films", None);

    fn questions() -> Singleflight {
        Singleflight::new(Workers::of(Handle::current()))
    }

    fn unsettled() -> Option<Finding> {
        None
    }

    /// The number of the question that returned the answer.
    async fn number(asked: Outcome) -> u16 {
        match asked.answer().await.unwrap() {
            Finding::Negative(number) => number,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn who_asks_the_same_waits_for_the_same_answer() {
        let (questions, go_on) = (questions(), Arc::new(Notify::new()));
        let count = Arc::new(AtomicU16::new(0));
        let ask = |id: u128| {
            let (go_on, count) = (Arc::clone(&go_on), Arc::clone(&count));
            let question = || async move {
                let number = count.fetch_add(1, Ordering::SeqCst);
                go_on.notified().await;
                Ok(Finding::Negative(number))
            };
            questions.ask(FILMS, id, unsettled, question).unwrap()
        };
        let (first, second, other) = (ask(1), ask(1), ask(2));
        assert!(matches!(first, Outcome::First(_)) && matches!(second, Outcome::Joined(_)));
        tokio::task::yield_now().await;
        go_on.notify_waiters();
        assert_eq!((number(first).await, number(second).await), (0, 0));
        assert_eq!(number(other).await, 1);
        assert!(matches!(ask(1), Outcome::First(_)), "it is over");
    }

    /// A question may end between the caller's check and its own question, so the answer is checked
    /// again at a time when no question can end.
    #[tokio::test]
    async fn what_is_settled_by_now_is_not_asked_again() {
        let questions = questions();
        let settled = || {
            assert!(questions.under_way.try_lock().is_none(), "one may end here");
            Some(Finding::Negative(7))
        };
        let question = || async { unreachable!("it was asked again") };
        let asked = questions.ask(FILMS, 1, settled, question).unwrap();
        assert_eq!(number(asked).await, 7);
        assert!(questions.under_way.lock().by_id.is_empty());
    }

    #[tokio::test]
    async fn a_source_that_hangs_leaves_places_to_the_others() {
        let (questions, (end, ended)) = (questions(), watch::channel(false));
        let ask = |source: &str, asker: Option<u128>, id: u128| {
            let mut ended = ended.clone();
            let question = || async move {
                ended.wait_for(|ended| *ended).await.unwrap();
                Ok(Finding::Negative(0))
            };
            questions.ask((source, asker), id, unsettled, question)
        };
        let mut asked = Vec::new();
        let mut id = 0;
        for source in ["hung", "hung-too", "third"] {
            while let Ok(question) = ask(source, None, id) {
                asked.push(question);
                id += 1;
            }
            assert!(asked.len() < MAX_QUESTIONS);
        }
        assert!(asked.len() > 300);
        assert!(
            ask("hung", None, 0).is_ok(),
            "to wait for one costs nothing"
        );
        let other = ask("other", None, id).unwrap();
        end.send_replace(true);
        for asked in asked {
            number(asked).await;
        }
        number(other).await;
        assert!(questions.under_way.lock().of_source.is_empty());
        assert!(ask("hung", None, 0).is_ok());
    }

    #[tokio::test]
    async fn a_client_leaves_places_to_the_others_of_its_source() {
        let (questions, (_end, ended)) = (questions(), watch::channel(false));
        let ask = |asker: u128, id: u128| {
            let mut ended = ended.clone();
            let question = || async move {
                let _ = ended.wait_for(|ended| *ended).await;
                Ok(Finding::Negative(0))
            };
            questions.ask(("films", Some(asker)), id, unsettled, question)
        };
        let mut asked = Vec::new();
        for asker in 0..5 {
            let before = asked.len();
            while let Ok(question) = ask(asker, asked.len() as u128) {
                asked.push(question);
            }
            assert!(asked.len() - before >= MIN_SHARE, "client {asker}");
        }
        assert!(ask(0, 0).is_ok(), "to wait for another's costs nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn what_its_askers_left_is_given_up() {
        let questions = questions();
        let forever = || std::future::pending::<Answer<Finding>>();
        let first = questions.ask(FILMS, 1, unsettled, forever).unwrap();
        drop(first);
        tokio::time::sleep(LEFT_FOR / 2).await;
        let second = questions.ask(FILMS, 1, unsettled, forever).unwrap();
        assert!(matches!(second, Outcome::Joined(_)), "not at once");
        tokio::time::sleep(LEFT_FOR * 2).await;
        assert_eq!(questions.under_way.lock().by_id.len(), 1);
        drop(second);
        tokio::time::sleep(LEFT_FOR * 2).await;
        assert!(questions.under_way.lock().by_id.is_empty());
    }

    #[test]
    fn one_that_was_cut_off_is_asked_anew() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build();
        let (lost, present) = (runtime().unwrap(), runtime().unwrap());
        let mut questions = Singleflight::new(Workers::of(lost.handle().clone()));
        let forever = || std::future::pending::<Answer<Finding>>();
        let asked = questions.ask(FILMS, 1, unsettled, forever).unwrap();
        drop(lost);
        let answer = present.block_on(asked.answer());
        assert!(matches!(answer, Err(ServeError::Internal(_))));
        questions.workers = Workers::of(present.handle().clone());
        let question = || async { Ok(Finding::Negative(3)) };
        let asked = questions.ask(FILMS, 1, unsettled, question).unwrap();
        assert_eq!(present.block_on(number(asked)), 3);
    }
}
