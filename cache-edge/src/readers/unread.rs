//! Chunks that were fetched ahead of readers and not read yet. They become waste if their readers
//! leave.
//!
//! A chunk is waste if no one has read it within ten minutes and its entry has no reader left. The
//! number of tracked chunks is bounded: if there are too many, the oldest is judged early.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use chunkcache_proto::{ChunkIndex, EntryId};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use crate::by_source::CounterBySource;

/// A chunk that is not read within this time was fetched in vain.
const READ_WITHIN: Duration = Duration::from_secs(600);
/// 128 GiB of chunks of 2 MiB.
const MAX_CHUNKS: usize = 65_536;

type ChunkId = (EntryId, ChunkIndex);

/// See the module.
#[derive(Debug, Default)]
pub struct UnreadChunks {
    state: Mutex<State>,
    /// Number of chunks in `state`, so that a read takes no lock if there are none.
    count: AtomicUsize,
    wasted: CounterBySource,
}

#[derive(Debug, Default)]
struct State {
    chunks: HashMap<ChunkId, Chunk>,
    /// The oldest first; may contain chunks that have been read since.
    order: VecDeque<(Instant, ChunkId)>,
}

#[derive(Debug)]
struct Chunk {
    since: Instant,
    source: Arc<str>,
    bytes: u64,
}

impl UnreadChunks {
    /// Registers the counter, labelled by source.
    pub fn register(&self, registry: &mut Registry) {
        self.wasted.register(
            registry,
            "wasted_lookahead_bytes",
            "Bytes fetched ahead of readers that left, which nobody read within ten minutes",
        );
    }

    /// Records that a chunk was fetched from its origin ahead of a reader.
    pub fn add(&self, chunk: ChunkId, source: &Arc<str>, bytes: u64, now: Instant) {
        let mut state = self.state.lock();
        let entry = Chunk {
            since: now,
            source: source.clone(),
            bytes,
        };
        state.chunks.insert(chunk, entry);
        state.order.push_back((now, chunk));
        while state.order.len() > MAX_CHUNKS {
            if let Some((since, oldest)) = state.order.pop_front() {
                self.judge(&mut state, oldest, since);
            }
        }
        self.count.store(state.chunks.len(), Ordering::Relaxed);
    }

    /// Records that bytes of the chunk are given to a reader.
    pub fn read(&self, entry: EntryId, chunk: ChunkIndex) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut state = self.state.lock();
        if state.chunks.remove(&(entry, chunk)).is_some() {
            self.count.store(state.chunks.len(), Ordering::Relaxed);
        }
    }

    /// Periodic. `has_reader`: whether the entry has a reader, which may reach the chunk.
    pub fn sweep(&self, now: Instant, has_reader: impl Fn(EntryId) -> bool) {
        let mut state = self.state.lock();
        while let Some(&(since, chunk)) = state.order.front()
            && now.saturating_duration_since(since) >= READ_WITHIN
        {
            state.order.pop_front();
            if !has_reader(chunk.0) {
                self.judge(&mut state, chunk, since);
            } else if let Some(unread) = state.chunks.get_mut(&chunk)
                && unread.since == since
            {
                unread.since = now;
                state.order.push_back((now, chunk));
            }
        }
        self.count.store(state.chunks.len(), Ordering::Relaxed);
    }

    /// Counts a chunk as waste, unless it was read or fetched again since.
    fn judge(&self, state: &mut State, chunk: ChunkId, since: Instant) {
        if state.chunks.get(&chunk).is_none_or(|it| it.since != since) {
            return;
        }
        if let Some(unread) = state.chunks.remove(&chunk) {
            self.wasted.add(&unread.source, unread.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wasted(chunks: &UnreadChunks) -> u64 {
        chunks.wasted.of("films")
    }

    fn a_chunk(number: ChunkIndex) -> ChunkId {
        (EntryId::from_u128(1), number)
    }

    #[test]
    fn waste_is_what_nobody_read_within_ten_minutes_after_its_reader_left() {
        let (chunks, films) = (UnreadChunks::default(), Arc::from("films"));
        let begun = Instant::now();
        for chunk in 0..4 {
            chunks.add(a_chunk(chunk), &films, 100, begun);
        }
        chunks.read(EntryId::from_u128(1), 0);
        chunks.read(EntryId::from_u128(2), 1);
        chunks.sweep(begun + READ_WITHIN / 2, |_| false);
        assert_eq!(wasted(&chunks), 0, "too early to say");
        chunks.sweep(begun + READ_WITHIN, |_| true);
        assert_eq!(wasted(&chunks), 0, "its reader is there");
        chunks.read(EntryId::from_u128(1), 1);
        chunks.sweep(begun + 2 * READ_WITHIN, |_| false);
        assert_eq!(wasted(&chunks), 200);
        chunks.sweep(begun + 4 * READ_WITHIN, |_| false);
        assert_eq!(wasted(&chunks), 200, "once");
    }

    #[test]
    fn it_has_a_bound_and_judges_the_oldest_early() {
        let (chunks, films) = (UnreadChunks::default(), Arc::from("films"));
        let begun = Instant::now();
        for chunk in 0..70_000 {
            chunks.add(a_chunk(chunk), &films, 1, begun);
        }
        assert_eq!(chunks.state.lock().order.len(), MAX_CHUNKS);
        assert_eq!(wasted(&chunks), 70_000 - MAX_CHUNKS as u64);
    }
}
