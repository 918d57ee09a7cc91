//! Answers stored as a whole, from one request: those without a validator or a length, and those
//! with other statuses, for their explicit lifetime (RFC 9111, 4.2).
//!
//! They are kept in memory, bounded for each source and in total. Requests during an arrival get
//! what has arrived and the rest as it comes. Answers are never combined: a new one replaces the
//! old one.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use chunkcache_proto::v1;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::timeout,
};

use super::{
    pass_through::ChannelBody,
    ports::{PassBody, ReadError},
};

/// Larger answers are passed through and not stored.
pub(super) const MAX_OBJECT_BYTES: usize = 8 << 20;
/// Limit for all sources, and for one.
const MAX_BYTES: usize = 64 << 20;
const MAX_SOURCE_BYTES: usize = 16 << 20;
/// Size of an object without its body.
const OBJECT_BYTES: usize = 2 << 10;
/// Bytes that may be buffered for the readers of an answer that is not stored.
const WINDOW_BYTES: usize = 256 << 10;
/// How long a reader of an answer that is not stored may block the others.
const SLOWEST_FOR: Duration = Duration::from_secs(10);
/// Pieces on their way to one reader.
const FRAMES: usize = 4;

/// The head of an answer.
pub struct WholeDescription {
    pub key: v1::Key,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub freshness: v1::Freshness,
}

/// One answer, arrived or arriving.
pub struct Whole {
    pub described: WholeDescription,
    progress: Mutex<Progress>,
    changed: Notify,
}

#[derive(Default)]
struct Progress {
    /// In order of arrival. Pieces that every reader has passed are dropped if nobody can need them
    /// again.
    pieces: VecDeque<Bytes>,
    dropped: usize,
    bytes: usize,
    end: Option<Result<(), String>>,
    /// The complete body, in one piece.
    body: Option<Bytes>,
    /// It is too large: nobody may join any longer, and passed pieces are dropped.
    is_left: bool,
    /// The next piece of each reader.
    readers: HashMap<u64, usize>,
    next_reader: u64,
}

impl Progress {
    /// Drops the pieces if the body is complete in one piece and has no reader of pieces left.
    fn let_pieces_go(&mut self) {
        if self.body.is_some() && self.readers.is_empty() {
            self.pieces = VecDeque::new();
        }
    }

    fn trim(&mut self) {
        let least = self.readers.values().min().copied();
        let least = least.unwrap_or(self.dropped + self.pieces.len());
        while self.dropped < least
            && let Some(piece) = self.pieces.pop_front()
        {
            self.dropped += 1;
            self.bytes -= piece.len();
        }
    }
}

/// A reader's position. Dropping it releases the pieces that it has not read.
struct Reader {
    whole: Arc<Whole>,
    number: u64,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut progress = self.whole.progress.lock();
        progress.readers.remove(&self.number);
        if progress.is_left {
            progress.trim();
        }
        progress.let_pieces_go();
        drop(progress);
        self.whole.changed.notify_waiters();
    }
}

impl Reader {
    /// The next piece; `None` at the end.
    async fn next(&self) -> Result<Option<Bytes>, String> {
        loop {
            let mut changed = std::pin::pin!(self.whole.changed.notified());
            changed.as_mut().enable();
            {
                let mut guard = self.whole.progress.lock();
                let progress = &mut *guard;
                let Some(at) = progress.readers.get_mut(&self.number) else {
                    return Err("it was read too slowly".into());
                };
                if let Some(piece) = progress.pieces.get(*at - progress.dropped).cloned() {
                    *at += 1;
                    if progress.is_left {
                        progress.trim();
                        drop(guard);
                        self.whole.changed.notify_waiters();
                    }
                    return Ok(Some(piece));
                }
                if let Some(end) = &progress.end {
                    return end.clone().map(|()| None);
                }
            }
            changed.await;
        }
    }
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Whole")
            .field("key", &self.described.key)
            .finish()
    }
}

impl Whole {
    fn new(described: WholeDescription) -> Self {
        Self {
            described,
            progress: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// The body, if it is complete.
    pub fn body(&self) -> Option<Bytes> {
        self.progress.lock().body.clone()
    }

    /// Waits until it is complete; `None`: it never will be.
    pub async fn arrived(&self) -> Option<Bytes> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let progress = self.progress.lock();
                if progress.body.is_some() || progress.end.is_some() || progress.is_left {
                    return progress.body.clone();
                }
            }
            changed.await;
        }
    }

    /// The pieces that have arrived, and the rest as it comes; `None`: nobody can join any longer.
    pub fn stream(self: &Arc<Self>, spawn: impl FnOnce(PumpFuture)) -> Option<PassBody> {
        let mut progress = self.progress.lock();
        if progress.is_left || matches!(progress.end, Some(Err(_))) {
            return None;
        }
        if let Some(body) = &progress.body {
            return Some(full(body.clone()));
        }
        let number = progress.next_reader;
        progress.next_reader += 1;
        let first = progress.dropped;
        progress.readers.insert(number, first);
        drop(progress);
        let reader = Reader {
            whole: Arc::clone(self),
            number,
        };
        let (sender, receiver) = mpsc::channel(FRAMES);
        spawn(Box::pin(async move {
            loop {
                let next = tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    next = reader.next() => next,
                };
                // The end is sent explicitly, because an abort must not look like one.
                let item = next
                    .map(Option::unwrap_or_default)
                    .map_err(ReadError::Origin);
                let is_last = item.as_ref().map_or(true, Bytes::is_empty);
                if sender.send(item).await.is_err() || is_last {
                    return;
                }
            }
        }));
        Some(Box::pin(ChannelBody::new(receiver)))
    }

    fn push(&self, piece: Bytes) -> usize {
        let mut progress = self.progress.lock();
        progress.bytes += piece.len();
        progress.pieces.push_back(piece);
        let bytes = progress.bytes;
        drop(progress);
        self.changed.notify_waiters();
        bytes
    }

    fn leave(&self) {
        let mut progress = self.progress.lock();
        progress.is_left = true;
        progress.trim();
        drop(progress);
        self.changed.notify_waiters();
    }

    fn end(&self, end: Result<(), String>) {
        let mut progress = self.progress.lock();
        if end.is_ok() && !progress.is_left {
            let mut all = BytesMut::with_capacity(progress.bytes);
            progress.pieces.iter().for_each(|piece| all.extend(piece));
            progress.body = Some(all.freeze());
        }
        progress.let_pieces_go();
        progress.end = Some(end);
        drop(progress);
        self.changed.notify_waiters();
    }

    /// Waits until buffered pieces are read. False: there are no readers.
    async fn drained(&self) -> bool {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let progress = self.progress.lock();
                if progress.readers.is_empty() {
                    return false;
                }
                if progress.bytes < WINDOW_BYTES {
                    return true;
                }
            }
            if timeout(SLOWEST_FOR, changed).await.is_err() {
                let mut progress = self.progress.lock();
                let slowest = progress.readers.iter().min_by_key(|(_, at)| **at);
                let slowest = slowest.map(|(number, _)| *number);
                slowest.and_then(|number| progress.readers.remove(&number));
                progress.trim();
                drop(progress);
                self.changed.notify_waiters();
            }
        }
    }
}

/// A body that is in memory.
pub(super) fn full(bytes: Bytes) -> PassBody {
    Box::pin(Full::new(bytes).map_err(|never| match never {}))
}

pub(super) type PumpFuture = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

enum Slot {
    /// A request asks the origin, or the keeper.
    Asking(Question),
    /// With its counted size.
    Present(Arc<Whole>, usize),
}

/// A question that another request asks.
#[derive(Clone)]
pub(super) struct Question {
    ended: watch::Receiver<bool>,
    /// It is asked at another edge, not at the origin.
    pub at_keeper: bool,
}

/// How a question ended.
pub(super) enum QuestionEnd {
    Kept(Arc<Whole>),
    /// It brought no answer that is kept.
    Failed,
    /// Its request was dropped.
    Cancelled,
}

#[derive(Default)]
struct State {
    slots: HashMap<u128, Slot>,
    bytes: usize,
    of_source: HashMap<String, usize>,
}

impl State {
    fn remove(&mut self, id: u128) {
        if let Some(Slot::Present(whole, weight)) = self.slots.remove(&id) {
            self.bytes -= weight;
            let source = &whole.described.key.source;
            if let Some(of_source) = self.of_source.get_mut(source) {
                *of_source -= weight;
                if *of_source == 0 {
                    self.of_source.remove(source);
                }
            }
        }
    }

    fn insert(&mut self, id: u128, whole: Arc<Whole>, weight: usize) {
        self.remove(id);
        self.bytes += weight;
        let source = whole.described.key.source.clone();
        *self.of_source.entry(source).or_default() += weight;
        self.slots.insert(id, Slot::Present(whole, weight));
    }

    fn is_present(&self, id: u128, whole: &Arc<Whole>) -> bool {
        let slot = self.slots.get(&id);
        slot.is_some_and(|slot| matches!(slot, Slot::Present(it, _) if Arc::ptr_eq(it, whole)))
    }

    fn is_over(&self, source: &str) -> bool {
        self.bytes > MAX_BYTES
            || self
                .of_source
                .get(source)
                .is_some_and(|bytes| *bytes > MAX_SOURCE_BYTES)
    }

    /// The one that expires first; of the same source if that source has too many bytes.
    fn victim(&self, source: &str) -> Option<u128> {
        let of_source = self.of_source.get(source).copied().unwrap_or(0);
        let only_source = of_source > MAX_SOURCE_BYTES;
        let present = self.slots.iter().filter_map(|(id, slot)| match slot {
            Slot::Present(whole, _) if whole.body().is_some() => Some((id, &whole.described)),
            _ => None,
        });
        let mine = present.filter(|(_, it)| !only_source || it.key.source == source);
        mine.min_by_key(|(_, it)| it.freshness.fresh_until_ms)
            .map(|(id, _)| *id)
    }
}

/// All answers stored as a whole. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct WholeAnswers {
    state: Arc<Mutex<State>>,
    count: Arc<AtomicUsize>,
    /// Bytes of answers that are still arriving.
    arriving: Arc<AtomicUsize>,
}

/// How to handle a key.
pub(super) enum Claim {
    Present(Arc<Whole>),
    /// Another request is asking for it.
    Wait(Question),
    Ask(Asking),
}

/// The right to ask. When it is dropped, waiting requests check again.
pub(super) struct Asking {
    answers: WholeAnswers,
    id: u128,
    /// Set to true if there is no answer to keep.
    failed: watch::Sender<bool>,
    is_kept: bool,
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.is_kept {
            self.answers.remove(self.id);
        }
    }
}

impl WholeAnswers {
    /// A fresh answer. Cheap if no answers are stored.
    pub fn get(&self, id: impl FnOnce() -> u128, now_ms: i64) -> Option<Arc<Whole>> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let id = id();
        let mut state = self.state.lock();
        let Some(Slot::Present(whole, _)) = state.slots.get(&id) else {
            return None;
        };
        if now_ms < whole.described.freshness.fresh_until_ms {
            return Some(whole.clone());
        }
        state.remove(id);
        self.count.store(state.slots.len(), Ordering::Relaxed);
        None
    }

    /// `at_keeper`: the caller would ask another edge.
    pub fn claim(&self, id: u128, at_keeper: bool, now_ms: i64) -> Claim {
        let mut state = self.state.lock();
        match state.slots.get(&id) {
            Some(Slot::Asking(question)) => return Claim::Wait(question.clone()),
            Some(Slot::Present(whole, _)) if now_ms < whole.described.freshness.fresh_until_ms => {
                return Claim::Present(whole.clone());
            }
            _ => {}
        }
        state.remove(id);
        let (failed, ended) = watch::channel(false);
        let question = Question { ended, at_keeper };
        state.slots.insert(id, Slot::Asking(question));
        self.count.store(state.slots.len(), Ordering::Relaxed);
        Claim::Ask(Asking {
            answers: self.clone(),
            id,
            failed,
            is_kept: false,
        })
    }

    /// Waits for the end of another request's question.
    pub async fn end_of(
        &self,
        mut question: Question,
        id: u128,
        now_ms: fn() -> i64,
    ) -> QuestionEnd {
        let _ = question.ended.changed().await;
        match self.get(|| id, now_ms()) {
            Some(whole) => QuestionEnd::Kept(whole),
            None if *question.ended.borrow() => QuestionEnd::Failed,
            None => QuestionEnd::Cancelled,
        }
    }

    fn remove(&self, id: u128) {
        let mut state = self.state.lock();
        state.remove(id);
        self.count.store(state.slots.len(), Ordering::Relaxed);
    }

    /// Forgets the answers for which `is_unwanted` holds, and returns their number. Bodies that are
    /// being sent to clients continue.
    pub fn forget(&self, is_unwanted: impl Fn(&v1::Key, &HeaderMap) -> bool) -> u64 {
        let mut state = self.state.lock();
        let unwanted: Vec<u128> = state
            .slots
            .iter()
            .filter_map(|(id, slot)| match slot {
                Slot::Present(whole, _) => {
                    let described = &whole.described;
                    is_unwanted(&described.key, &described.headers).then_some(*id)
                }
                Slot::Asking(_) => None,
            })
            .collect();
        for id in &unwanted {
            state.remove(*id);
        }
        self.count.store(state.slots.len(), Ordering::Relaxed);
        unwanted.len() as u64
    }

    /// Counts a complete answer, and makes space for it.
    fn settle(&self, id: u128, whole: &Arc<Whole>) {
        let mut state = self.state.lock();
        if !state.is_present(id, whole) {
            return;
        }
        let body = whole.body().map_or(0, |body| body.len());
        state.insert(id, whole.clone(), OBJECT_BYTES + body);
        let source = &whole.described.key.source;
        while state.is_over(source)
            && let Some(victim) = state.victim(source)
        {
            state.remove(victim);
        }
        self.count.store(state.slots.len(), Ordering::Relaxed);
    }

    /// Forgets the answer if it is still this one.
    fn give_up(&self, id: u128, whole: &Arc<Whole>) {
        let mut state = self.state.lock();
        if state.is_present(id, whole) {
            state.remove(id);
            self.count.store(state.slots.len(), Ordering::Relaxed);
        }
    }
}

impl Asking {
    /// Ends the question without an answer.
    pub fn fail(self) {
        self.failed.send_replace(true);
    }

    /// Stores the answer: all waiting requests get it, while `pump` reads it to its end.
    pub fn keep(
        mut self,
        described: WholeDescription,
        body: PassBody,
        spawn: impl FnOnce(PumpFuture),
    ) -> Arc<Whole> {
        let whole = Arc::new(Whole::new(described));
        let mut state = self.answers.state.lock();
        state.insert(self.id, whole.clone(), OBJECT_BYTES);
        drop(state);
        self.is_kept = true;
        let (answers, id) = (self.answers.clone(), self.id);
        spawn(Box::pin(pump(answers, id, whole.clone(), body)));
        whole
    }
}

/// Counts the bytes of one arriving answer.
struct Arriving(Arc<AtomicUsize>, usize);

impl Arriving {
    /// Adds bytes and returns the total of all arriving answers.
    fn add(&mut self, bytes: usize) -> usize {
        self.1 += bytes;
        self.0.fetch_add(bytes, Ordering::Relaxed) + bytes
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

async fn pump(answers: WholeAnswers, id: u128, whole: Arc<Whole>, mut body: PassBody) {
    let mut arriving = Some(Arriving(answers.arriving.clone(), 0));
    let end = loop {
        let frame = match body.frame().await {
            None => break Ok(()),
            Some(Err(error)) => break Err(error.to_string()),
            Some(Ok(frame)) => frame,
        };
        let Ok(piece) = frame.into_data() else {
            continue;
        };
        if piece.is_empty() {
            continue;
        }
        let all = arriving.as_mut().map_or(0, |it| it.add(piece.len()));
        let of_this = whole.push(piece);
        if arriving.is_some() && (of_this > MAX_OBJECT_BYTES || all > MAX_BYTES) {
            arriving = None;
            answers.give_up(id, &whole);
            whole.leave();
        }
        if arriving.is_none() && !whole.drained().await {
            return;
        }
    };
    let is_whole = end.is_ok() && arriving.is_some();
    whole.end(end);
    if is_whole {
        answers.settle(id, &whole);
    } else {
        answers.give_up(id, &whole);
    }
}

#[cfg(test)]
#[path = "whole_tests.rs"]
mod tests;
