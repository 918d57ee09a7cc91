//! The answers that are stored as a whole, and the questions that bring them.
//!
//! They are kept in memory, bounded for each source and in total. Answers are never combined: a new
//! one replaces the old one.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use chunkcache_proto::v1;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    ports::PassBody,
    whole::{PumpFuture, Whole, WholeDescription},
};

/// Larger answers are passed through and not stored.
pub(super) const MAX_OBJECT_BYTES: usize = 8 << 20;
/// Limit for all sources, and for one.
const MAX_BYTES: usize = 64 << 20;
const MAX_SOURCE_BYTES: usize = 16 << 20;
/// Size of an object without its body.
const OBJECT_BYTES: usize = 2 << 10;

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

/// The answer that is kept, or the right to ask for it.
pub(super) enum Claimed {
    Kept(Arc<Whole>),
    Ask(Asking),
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

    /// The same, after the end of another request's question; again if that was cancelled.
    /// `None`: it brought no answer that is kept, or `may_wait` forbids to wait for it.
    pub async fn claim_or_wait(
        &self,
        id: u128,
        at_keeper: bool,
        now_ms: fn() -> i64,
        may_wait: fn(&Question) -> bool,
    ) -> Option<Claimed> {
        loop {
            let mut question = match self.claim(id, at_keeper, now_ms()) {
                Claim::Present(whole) => return Some(Claimed::Kept(whole)),
                Claim::Ask(asking) => return Some(Claimed::Ask(asking)),
                Claim::Wait(question) => question,
            };
            if !may_wait(&question) {
                return None;
            }
            let _ = question.ended.changed().await;
            if let Some(whole) = self.get(|| id, now_ms()) {
                return Some(Claimed::Kept(whole));
            }
            if *question.ended.borrow() {
                return None;
            }
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
#[path = "whole_store_tests.rs"]
mod tests;
