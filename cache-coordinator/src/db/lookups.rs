//! Looks up the entries of keys. Keys that arrive while others are being read are read together.
//!
//! A viewer's first request for an object waits for this, and a statement for each key costs the
//! database more than the read itself. There is no delay: the first key is read at once.

use std::collections::{HashMap, VecDeque};

use chunkcache_proto::v1;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use uuid::Uuid;

use super::{
    Binding, Database, DatabaseError,
    entries::{binding_from_row, key_hash},
    statements,
};

/// Concurrent statements.
const STATEMENTS: usize = 2;
/// Limit of keys in a statement.
const MAX_KEYS: usize = 256;

type Found<B> = Result<Option<B>, DatabaseError>;
/// The keys that have one, of those that were read.
type Read<B> = Result<HashMap<Uuid, Result<B, DatabaseError>>, DatabaseError>;

/// The keys that wait to be read.
pub(super) struct KeyLookups<B> {
    queue: Mutex<Queue<B>>,
    statements: Semaphore,
}

struct Queue<B> {
    /// The number of the next question.
    next: u64,
    /// In the order of their numbers.
    waiting: VecDeque<Question<B>>,
    /// When there are so many, those whose calls were given up are looked for.
    most: usize,
}

struct Question<B> {
    number: u64,
    hash: Uuid,
    answer: oneshot::Sender<Found<B>>,
}

impl<B> Default for KeyLookups<B> {
    fn default() -> Self {
        Self {
            queue: Mutex::new(Queue {
                next: 0,
                waiting: VecDeque::new(),
                most: MAX_KEYS,
            }),
            statements: Semaphore::new(STATEMENTS),
        }
    }
}

impl<B: Clone> KeyLookups<B> {
    /// The row of the key, as `read` finds it: for all callers of the time.
    async fn find<F>(&self, hash: Uuid, read: impl Fn(Vec<Uuid>) -> F) -> Found<B>
    where
        F: Future<Output = Read<B>>,
    {
        loop {
            let (number, mut found) = self.ask(hash);
            let mut is_waiting = true;
            let answer = loop {
                tokio::select! {
                    biased;
                    answer = &mut found => break answer,
                    permit = self.statements.acquire(), if is_waiting => {
                        let _permit = permit.map_err(|_| closed())?;
                        // Another caller that took ours answers it. To ask for a permit again
                        // would be to ask without end: it is free, and there is nothing to read.
                        is_waiting = self.is_waiting(number);
                        if is_waiting {
                            answer(self.take(), &read).await;
                        }
                    }
                }
            };
            // An error: the call that read it was given up.
            if let Ok(answer) = answer {
                return answer;
            }
        }
    }

    fn ask(&self, hash: Uuid) -> (u64, oneshot::Receiver<Found<B>>) {
        let (answer, found) = oneshot::channel();
        let mut queue = self.queue.lock();
        if queue.waiting.len() >= queue.most {
            queue.waiting.retain(|it| !it.answer.is_closed());
            queue.most = MAX_KEYS.max(2 * queue.waiting.len());
        }
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back(Question {
            number,
            hash,
            answer,
        });
        (number, found)
    }

    /// Whether nobody took the question, whose caller is there.
    fn is_waiting(&self, number: u64) -> bool {
        let queue = self.queue.lock();
        queue.waiting.front().is_some_and(|it| it.number <= number)
    }

    /// Those whose callers are there.
    fn take(&self) -> Vec<Question<B>> {
        let mut queue = self.queue.lock();
        let mut taken = Vec::new();
        while taken.len() < MAX_KEYS
            && let Some(question) = queue.waiting.pop_front()
        {
            if !question.answer.is_closed() {
                taken.push(question);
            }
        }
        taken
    }
}

async fn answer<B: Clone, F>(asked: Vec<Question<B>>, read: &impl Fn(Vec<Uuid>) -> F)
where
    F: Future<Output = Read<B>>,
{
    if asked.is_empty() {
        return;
    }
    let found = read(asked.iter().map(|it| it.hash).collect()).await;
    for Question { hash, answer, .. } in asked {
        let found = match &found {
            Ok(found) => found.get(&hash).cloned().transpose(),
            Err(error) => Err(error.clone()),
        };
        // Its call was given up.
        let _ = answer.send(found);
    }
}

impl Database {
    /// The entry that the key points to.
    pub async fn binding(&self, key: &v1::Key) -> Found<Binding> {
        let read = |hashes| self.bindings(hashes);
        self.lookups().find(key_hash(key), read).await
    }

    async fn bindings(&self, hashes: Vec<Uuid>) -> Read<Binding> {
        let rows = self.query(statements::BINDING_GET, &[&hashes]).await?;
        let binding = |row| (tokio_postgres::Row::get(row, "hash"), binding_from_row(row));
        Ok(rows.iter().map(binding).collect())
    }
}

fn closed() -> DatabaseError {
    DatabaseError::Internal("lookups are closed".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        cell::RefCell,
        pin::Pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Poll, Wake, Waker},
    };

    use super::*;

    /// How often a call asked to be looked at again.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A table that has each key, and answers a statement for each permit.
    struct Table {
        statements: Semaphore,
        /// The keys of each.
        read: RefCell<Vec<Vec<Uuid>>>,
    }

    impl Table {
        fn new() -> Self {
            Self {
                statements: Semaphore::new(0),
                read: RefCell::default(),
            }
        }

        async fn read(&self, hashes: Vec<Uuid>) -> Read<Uuid> {
            self.read.borrow_mut().push(hashes.clone());
            self.statements.acquire().await.unwrap().forget();
            Ok(hashes.into_iter().map(|hash| (hash, Ok(hash))).collect())
        }
    }

    fn poll<F: Future>(future: &mut Pin<Box<F>>, wakes: &Arc<Wakes>) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(wakes));
        future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    #[tokio::test]
    async fn who_is_read_by_another_waits_and_does_nothing() {
        let (lookups, table) = (KeyLookups::default(), Table::new());
        let call = |key| Box::pin(lookups.find(Uuid::from_u128(key), |it| table.read(it)));
        let found = |key| Poll::Ready(Ok::<_, DatabaseError>(Some(Uuid::from_u128(key))));
        let wakes = Arc::default();
        let (mut a, mut b, mut c, mut d) = (call(1), call(2), call(3), call(4));
        for call in [&mut a, &mut b, &mut c, &mut d] {
            assert!(poll(call, &wakes).is_pending());
        }
        table.statements.add_permits(1);
        assert_eq!(poll(&mut a, &wakes), found(1));
        assert!(poll(&mut c, &wakes).is_pending(), "it reads for both");
        table.statements.add_permits(1);
        assert_eq!(poll(&mut b, &wakes), found(2));
        let idle = Arc::<Wakes>::default();
        assert!(poll(&mut d, &idle).is_pending(), "a statement is free");
        assert_eq!(idle.0.load(Ordering::Relaxed), 0);
        table.statements.add_permits(1);
        assert_eq!(poll(&mut c, &wakes), found(3));
        assert_eq!(poll(&mut d, &idle), found(4));
        assert_eq!(idle.0.load(Ordering::Relaxed), 1);
        assert_eq!(table.read.borrow().len(), 3);
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_takes_nothing_with_it() {
        let (lookups, table) = (KeyLookups::default(), Table::new());
        let call = |key| Box::pin(lookups.find(Uuid::from_u128(key), |it| table.read(it)));
        let wakes = Arc::default();
        let (mut a, mut b, mut c, mut d) = (call(1), call(2), call(3), call(4));
        for call in [&mut a, &mut b, &mut c, &mut d] {
            assert!(poll(call, &wakes).is_pending());
        }
        table.statements.add_permits(1);
        assert!(poll(&mut a, &wakes).is_ready());
        assert!(poll(&mut c, &wakes).is_pending(), "it reads for both");
        drop((b, c));
        assert!(poll(&mut d, &wakes).is_pending(), "it reads for itself");
        table.statements.add_permits(1);
        assert!(poll(&mut d, &wakes).is_ready());
    }

    #[tokio::test]
    async fn calls_that_are_given_up_are_not_kept_and_not_read() {
        let (lookups, table) = (KeyLookups::default(), Table::new());
        let call = |key| Box::pin(lookups.find(Uuid::from_u128(key), |it| table.read(it)));
        let wakes = Arc::default();
        let (mut a, mut b) = (call(1), call(2));
        assert!(poll(&mut a, &wakes).is_pending() && poll(&mut b, &wakes).is_pending());
        let mut most = 0;
        for key in 0..10_000 {
            assert!(poll(&mut call(key), &wakes).is_pending());
            most = most.max(lookups.queue.lock().waiting.len());
        }
        assert_eq!(most, MAX_KEYS);
        let mut last = call(7);
        assert!(poll(&mut last, &wakes).is_pending());
        table.statements.add_permits(2);
        assert!(poll(&mut a, &wakes).is_ready());
        assert!(poll(&mut last, &wakes).is_pending());
        assert_eq!(table.read.borrow().last().unwrap(), &[Uuid::from_u128(7)]);
    }
}
