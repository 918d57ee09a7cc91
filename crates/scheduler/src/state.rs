//! The scheduler's state: edges with their fetches, sources, entries with a replica per edge.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use chunkcache_proto::{ChunkIndex, Geometry, Level};

use super::api::{EdgeId, EntryNo, FetchId, FetchSource, InFlightFetch, Millis, Reason, SourceId};
use super::claim::Owner;
use super::edge_set::EdgeSet;
use super::queue::LevelQueue;
use super::quota::{AbsentQuota, EdgeQuota};
use super::space::Space;
use chunkcache_proto::RangeSet;

/// Names a fetch. The edge is part of it, because local ids of two edges may be equal.
pub type FetchKey = (EdgeId, FetchId);

/// A fetch that an edge was assigned, or began on its own.
#[derive(Clone, Debug)]
pub struct RunningFetch {
    pub id: FetchId,
    pub entry: EntryNo,
    pub source: SourceId,
    pub chunks: Range<ChunkIndex>,
    pub level: Level,
    pub deadline: Millis,
    pub from: FetchSource,
    pub reason: Reason,
    /// The owner of the claim that was granted.
    pub owner: Option<Owner>,
    /// It occupies one of the edge's slots; otherwise it is queued.
    pub slot: bool,
    /// It gave its slot to a more urgent fetch; the edge resumes it.
    pub paused: bool,
    /// A cancellation was sent; the fetch remains until the edge confirms it.
    pub cancelling: bool,
    /// A starvation grant: only CRITICAL may take its slot.
    pub shared: bool,
    pub assigned_at: Millis,
    pub progress_at: Millis,
    pub bytes_done: u64,
    /// Chunks known to be written.
    pub chunks_done: u32,
    /// The other fetch of a hedged pair.
    pub pair: Option<FetchId>,
    /// The peer's origin fetch that this one follows.
    pub upstream: Option<FetchKey>,
    /// Fetches of other edges that follow this one.
    pub followers: Vec<FetchKey>,
}

impl RunningFetch {
    /// An origin fetch, for no reader, that began at the given time. Callers set the fields that
    /// differ.
    pub fn new(
        id: FetchId,
        entry: EntryNo,
        source: SourceId,
        chunks: Range<ChunkIndex>,
        level: Level,
        now: Millis,
    ) -> Self {
        Self {
            id,
            entry,
            source,
            chunks,
            level,
            deadline: now,
            from: FetchSource::Origin,
            reason: Reason::BackgroundFill,
            owner: None,
            slot: false,
            paused: false,
            cancelling: false,
            shared: false,
            assigned_at: now,
            progress_at: now,
            bytes_done: 0,
            chunks_done: 0,
            pair: None,
            upstream: None,
            followers: Vec::new(),
        }
    }

    /// Puts the fetch into one of its edge's slots. Its wait for the slot says nothing about its
    /// source.
    pub fn begin(&mut self, now: Millis) {
        self.slot = true;
        self.paused = false;
        self.progress_at = now;
    }

    /// Takes its slot away, as its edge does.
    pub fn pause(&mut self) {
        self.slot = false;
        self.paused = true;
    }

    /// The chunk it is receiving.
    pub fn current(&self) -> ChunkIndex {
        (self.chunks.start + self.chunks_done).min(self.chunks.end.saturating_sub(1))
    }

    /// The chunks that it brings, or may bring. A cancelled fetch ends with its current chunk, and
    /// its progress report may be one chunk late. Finished chunks count until it ends: they are
    /// written, and their rows are on the way.
    pub fn brings(&self) -> Range<ChunkIndex> {
        if self.cancelling {
            self.chunks.start..(self.current() + 2).min(self.chunks.end)
        } else {
            self.chunks.clone()
        }
    }

    /// Whether the edge began it on its own.
    pub fn is_local(&self) -> bool {
        self.id.is_local()
    }

    pub fn is_from_origin(&self) -> bool {
        self.from == FetchSource::Origin
    }

    pub fn overlaps(&self, chunks: &Range<ChunkIndex>) -> bool {
        self.chunks.start < chunks.end && chunks.start < self.chunks.end
    }
}

/// An edge's experience with one peer.
#[derive(Clone, Debug, Default)]
pub struct PeerView {
    pub chunk_fetch_ms: Option<Millis>,
    pub bad_until: Millis,
    pub failures: u32,
}

/// An edge of the cluster, including one that is known only by its rows.
#[derive(Clone, Debug, Default)]
pub struct Edge {
    pub alive: bool,
    pub draining: bool,
    pub max_downloads: u32,
    pub background_fill: bool,
    pub space: Space,
    /// The sources that have a quota on its disk.
    pub source_spaces: BTreeMap<SourceId, Space>,
    /// Sources whose quota is used up, each with the time before which nothing of it is assigned.
    pub refused_until: BTreeMap<SourceId, Millis>,
    /// In-fetch fetches that were reported before it joined.
    pub in_flight: Vec<InFlightFetch>,
    /// The number of its last quota report, and when the leases it renewed expire.
    pub quota_reported: u64,
    pub quota_expires: Millis,
    /// Disk full or bad: nothing is assigned before this time.
    pub faulted_until: Millis,
    pub faults: u32,
    /// Few: at most two per slot, and those being cancelled.
    pub fetches: Vec<RunningFetch>,
    /// Chunks it is sending to peers, one per fetch.
    pub uploads: u32,
    /// Number of grants below CRITICAL, to compute starvation grants.
    pub grants: u64,
    pub queues: [LevelQueue; 4],
    pub peers: BTreeMap<EdgeId, PeerView>,
}

impl Edge {
    pub fn fetch(&self, id: FetchId) -> Option<&RunningFetch> {
        self.fetches.iter().find(|fetch| fetch.id == id)
    }

    pub fn fetch_mut(&mut self, id: FetchId) -> Option<&mut RunningFetch> {
        self.fetches.iter_mut().find(|fetch| fetch.id == id)
    }

    pub fn slots_used(&self) -> u32 {
        self.fetches
            .iter()
            .filter(|fetch| fetch.slot && !fetch.cancelling)
            .count() as u32
    }

    /// Assignments that never had a slot. What the edge queued by itself does not count.
    pub fn queued_ahead(&self) -> u32 {
        let is_ahead = |fetch: &&RunningFetch| {
            !fetch.slot && !fetch.paused && !fetch.cancelling && !fetch.is_local()
        };
        self.fetches.iter().filter(is_ahead).count() as u32
    }

    /// Whether a fetch of this level gets a slot at once, as its edge decides.
    pub fn may_start(&self, level: Level) -> bool {
        self.slots_used() < self.max_downloads + u32::from(level == Level::Critical)
    }

    /// Whether something could be assigned to it, or a waiting claim may preempt.
    pub fn has_room(&self) -> bool {
        let room =
            self.slots_used() < self.max_downloads || self.queued_ahead() < self.max_downloads;
        let preempting = &self.queues[..=Level::High as usize];
        self.alive && (room || preempting.iter().any(|queue| !queue.is_empty()))
    }

    pub fn critical(&self) -> u32 {
        let critical = |fetch: &&RunningFetch| fetch.level == Level::Critical && !fetch.cancelling;
        self.fetches.iter().filter(critical).count() as u32
    }
}

/// An origin.
#[derive(Clone, Debug, Default)]
pub struct Source {
    pub registered: bool,
    pub max_connections: u32,
    pub max_rate_bytes_per_second: u64,
    pub background_fill: Option<bool>,
    pub back_off_until: Millis,
    /// Objects whose answers asked for a pause, and its end; few, see `paused_by`.
    pub pauses: Vec<(EntryNo, Millis)>,
    pub failures: u32,
    /// Running fetches from it by level, including those that are being cancelled.
    pub running: [u32; 4],
    /// The same fetches, by key.
    pub fetches: BTreeSet<(Level, EdgeId, FetchId)>,
    /// Claims in queues, by level.
    pub queued: [u32; 4],
    /// The part of `running` that edges began on their own, on connections of their grants.
    pub own: u32,
    /// The quotas of edges in session.
    pub quotas: BTreeMap<EdgeId, EdgeQuota>,
    /// Connections that are granted to edges for their own requests, or about to be.
    pub granted_connections: u32,
    /// The most that edges without a session may still be using.
    pub absent: BTreeMap<EdgeId, AbsentQuota>,
    /// Number of grants below CRITICAL.
    pub grants: u64,
    pub chunk_fetch_ms: Option<Millis>,
    /// Edges with claims in a queue, and how many.
    pub waiting_edges: BTreeMap<EdgeId, u32>,
    /// The edge at which waking continues.
    pub wake_from: EdgeId,
    /// Number of edges not examined yet since the source was last woken.
    pub wake_left: usize,
    /// The time of the timer that is set.
    pub timer_at: Millis,
}

/// An entry on one edge.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    /// Chunks that are durable there.
    pub held: RangeSet<ChunkIndex>,
    /// Chunks that are held or on their way there.
    pub covered: RangeSet<ChunkIndex>,
    /// Chunks that readers wait for.
    pub waiting: BTreeSet<(ChunkIndex, Owner)>,
    /// Lookaheads by their first chunk; none is longer than the longest of the entry.
    pub windows: BTreeSet<(ChunkIndex, Owner)>,
    /// Hints, wants and the fill, by their first chunk.
    pub wide: BTreeSet<(ChunkIndex, Owner)>,
    /// Claims in a queue.
    pub queued: u32,
    /// How often in a row the edge had no signature for it, and when last.
    pub unsigned: u32,
    pub unsigned_at: Millis,
}

/// An object.
#[derive(Clone, Debug)]
pub struct Entry {
    pub source: SourceId,
    pub geometry: Geometry,
    /// The object was replaced.
    pub changed: bool,
    pub back_off_until: Millis,
    pub failures: u32,
    pub replicas: BTreeMap<EdgeId, Replica>,
    /// Edges with claims of it in a queue.
    pub waiting: EdgeSet,
}

/// An open want.
#[derive(Clone, Debug)]
pub struct Want {
    pub chunks: RangeSet<ChunkIndex>,
    /// Chunks not held there yet.
    pub missing: u64,
    /// Set for a hand-over: the origin is never asked.
    pub from_edges_only: bool,
}

/// A check that is due later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    Edge(EdgeId),
    Source(SourceId),
    Entry(EntryNo),
    RunningFetch(EdgeId, FetchId),
}
