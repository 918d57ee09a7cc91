//! The scheduler's input and output: plain values.
//!
//! `Scheduler::apply(event, now, &mut effects)` is the whole interface for change. The caller
//! assigns ids as small integers (interned), so that the indexes stay narrow. Times are
//! milliseconds of the caller's monotonic clock. Chunk ranges are half-open.

use std::ops::Range;

pub use chunkcache_proto::FetchId;
use chunkcache_proto::{ChunkIndex, Geometry, Level};

/// An edge of the cluster: its row's id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeId(pub u32);

/// A source, numbered by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub u32);

/// An entry, numbered by the caller for as long as it is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryNo(pub u32);

/// A reader of one edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReaderId {
    /// The edge that serves the reader.
    pub edge: EdgeId,
    /// Assigned by the edge.
    pub number: u64,
}

/// A request by a service or a job, numbered by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WantId(pub u64);

/// Milliseconds of a monotonic clock.
pub type Millis = u64;

/// Something that happened in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A session began. Earlier assignments to the edge are void.
    EdgeJoined {
        edge: EdgeId,
        max_downloads: u32,
        background_fill: bool,
    },
    /// The operator drains the edge, or ends the draining.
    EdgeDraining { edge: EdgeId, draining: bool },
    /// Fetches from origins that continue from an earlier session. Sent before the edge joins, or,
    /// for entries opened since, after.
    FetchesKept {
        edge: EdgeId,
        fetches: Vec<InFlightFetch>,
    },
    /// How much of its disk the edge's chunks use and may use. Both 0: unknown.
    EdgeSpace {
        edge: EdgeId,
        bytes_used: u64,
        bytes_allowed: u64,
    },
    /// All sources that have a quota on the edge's disk, with the space they use.
    SourceSpaces {
        edge: EdgeId,
        spaces: Vec<SourceSpace>,
    },
    /// The edge's session ended: its readers, assignments and local fetches are gone, and its
    /// chunks are unavailable.
    EdgeLost { edge: EdgeId },
    /// A leader term began, after the sources were set: these edges had sessions in the last term,
    /// and continue their fetches on their own until they are back.
    EdgesExpected { edges: Vec<EdgeId> },

    /// A source is registered, or its limits changed. 0: no limit. If `background_fill` is unset,
    /// the edge's own setting applies.
    SourceSet {
        source: SourceId,
        max_connections: u32,
        max_rate_bytes_per_second: u64,
        background_fill: Option<bool>,
    },
    /// Nothing more is fetched from the source.
    SourceRemoved { source: SourceId },
    /// The origin sent 429 or `Retry-After`: fetch nothing from the source before `until`.
    SourceBackOff { source: SourceId, until: Millis },

    /// An entry was opened; other events may name it from now on.
    EntryOpened {
        entry: EntryNo,
        source: SourceId,
        geometry: Geometry,
    },
    /// Invalidated or superseded: no chunk of the entry is fetched any more, and its assignments
    /// are cancelled.
    EntryClosed { entry: EntryNo },
    /// Rows appeared: the edge holds these chunks (loaded from the table, or just committed).
    ChunksHeld {
        edge: EdgeId,
        entry: EntryNo,
        chunks: Vec<Range<ChunkIndex>>,
    },
    /// Rows were removed.
    ChunksDropped {
        edge: EdgeId,
        entry: EntryNo,
        chunks: Vec<Range<ChunkIndex>>,
    },

    /// A reader's present demand, which replaces its previous one.
    DemandSet(Demand),
    /// A reader left.
    DemandClosed { reader: ReaderId },

    /// A service or a job wants chunks on an edge. Lives until it is closed or the edge holds them
    /// all.
    WantSet {
        want: WantId,
        edge: EdgeId,
        entry: EntryNo,
        chunks: Vec<Range<ChunkIndex>>,
        level: Level,
    },
    /// Chunks that a draining edge hands over to another one. Works like a want at MEDIUM, but
    /// fetches only from edges that hold the chunks, never from the origin. A chunk that no edge
    /// holds any longer is dropped.
    HandOver {
        want: WantId,
        edge: EdgeId,
        entry: EntryNo,
        chunks: Vec<Range<ChunkIndex>>,
    },
    /// The want was cancelled.
    WantClosed { want: WantId },

    /// The edge received the first bytes, or more bytes, of an assignment.
    FetchProgressed {
        edge: EdgeId,
        assignment: FetchId,
        bytes_done: u64,
    },
    /// All chunks of the fetch are durable. `ChunksHeld` follows when they are committed; for
    /// planning they count as held at once.
    FetchFinished { edge: EdgeId, assignment: FetchId },
    /// The fetch failed. Chunks that it finished are reported separately.
    FetchFailed {
        edge: EdgeId,
        assignment: FetchId,
        fault: Fault,
        retry_after: Option<Millis>,
    },
    /// The edge cancelled the fetch, by instruction or on its own.
    FetchCancelled { edge: EdgeId, assignment: FetchId },
    /// The edge began an origin fetch on its own: a probe of a cold key, or because the coordinator
    /// was late.
    LocalFetchStarted {
        edge: EdgeId,
        assignment: FetchId,
        entry: EntryNo,
        chunks: Range<ChunkIndex>,
        level: Level,
    },

    /// An edge's use of sources that have limits: sent with each heartbeat and on every
    /// change. Renews its leases.
    QuotaReported {
        edge: EdgeId,
        /// Rises with each report in a session.
        number: u64,
        /// Sources that are not listed are unchanged.
        uses: Vec<QuotaUse>,
    },

    /// Time passed: deadlines, back-offs and budgets are checked again. Sent at least every 100 ms.
    Tick,
}

/// A fetch that an edge did not give up when its session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlightFetch {
    pub id: FetchId,
    pub entry: EntryNo,
    pub chunks: Range<ChunkIndex>,
    pub level: Level,
}

/// An edge's use of a source for its own requests, beside its assignments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaUse {
    pub source: SourceId,
    /// The last [`Lease`] that the edge received in this session.
    pub sequence: u64,
    /// Connections that are open, or that it may open without asking again.
    pub held: u32,
    /// Connections that are open or waited for.
    pub wanted: u32,
    /// The part of `wanted` that viewers are blocked on.
    pub urgent: u32,
}

/// A part of an origin's limits. 0 bytes per second: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub connections: u32,
    pub bytes_per_second: u64,
}

/// An edge's limits for a source. Valid for as long as its last report renewed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub source: SourceId,
    /// Rises with each change of the other fields.
    pub sequence: u64,
    /// Connections for its own requests, and bytes a second for all it reads.
    pub granted: Share,
    /// The limits for all it has open once the lease has expired.
    pub floor: Share,
}

/// A reader's position and needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    pub reader: ReaderId,
    pub entry: EntryNo,
    /// The byte the reader is at.
    pub position: u64,
    /// One past the last byte the reader asked for.
    pub end: u64,
    /// The reader is blocked on `position`.
    pub waiting: bool,
    /// Observed rate; 0: unknown.
    pub rate_bytes_per_second: u64,
    /// Contiguous bytes present ahead of `position`.
    pub buffered_bytes: u64,
    /// How far to fetch ahead of `position`; 0: the scheduler decides.
    pub lookahead_bytes: u64,
    /// Upper bound of the lookahead, earned by what the reader has consumed; 0: only the
    /// scheduler's bound applies.
    pub earned_bytes: u64,
    /// How much its player has buffered before it needs `position`; unset: it did not report, and
    /// its buffer counts as empty.
    pub player_buffer_ms: Option<u32>,
    /// Identifies the readers of one player's session on its edge; 0: the reader is a viewer
    /// itself.
    pub viewer: u64,
    /// The viewer has not requested the object yet: it will when its player's buffer is used up.
    pub is_expected: bool,
    /// The reader keeps its position but wants no fetch.
    pub paused: bool,
    /// Chunks wanted at HIGH beside the lookahead.
    pub hints: Vec<Range<ChunkIndex>>,
}

/// Who caused a fetch to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The origin refused, broke off, or sent wrong bytes: back off, then retry.
    Origin,
    /// The origin asks its clients to wait (429): ask nothing of the source meanwhile.
    Busy,
    /// The peer failed: try another one, or the origin, at once.
    Peer,
    /// The edge has no space or a bad disk: assign nothing to it for a while.
    Edge,
    /// The object was replaced: never retry for this entry.
    Changed,
    /// The source's quota on this edge is used up: assign nothing of this source to it for a
    /// moment.
    Quota,
    /// The edge has no signature for the entry, so it did not ask the origin: try the other edges,
    /// and this one again later.
    Unsigned,
}

/// The use of one source's quota on an edge's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceSpace {
    pub source: SourceId,
    pub bytes_used: u64,
    pub quota_bytes: u64,
}

/// An instruction to the caller.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send to the edge.
    Assign(Assignment),
    /// The fetch became more or less urgent.
    Reprioritise {
        edge: EdgeId,
        assignment: FetchId,
        level: Level,
        deadline_ms: u32,
    },
    /// Nobody wants the fetch any longer, or something more urgent needs its slot.
    Cancel { edge: EdgeId, assignment: FetchId },
    /// Renews the edge's leases, and carries those that changed.
    Quota {
        edge: EdgeId,
        /// The number of the report that this answers.
        answers: u64,
        leases: Vec<Lease>,
    },
    /// All chunks of the want are held.
    WantDone { want: WantId },
}

/// A fetch for one edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    pub id: FetchId,
    pub edge: EdgeId,
    pub entry: EntryNo,
    pub first_chunk: ChunkIndex,
    /// Adjacent chunks, one request.
    pub chunk_count: u32,
    pub level: Level,
    /// Milliseconds from now; within a level the earliest goes first.
    pub deadline_ms: u32,
    /// The byte of the object at which to begin, inside the first chunk.
    pub start_at: u64,
    pub from: FetchSource,
    pub reason: Reason,
}

/// Where a chunk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FetchSource {
    Origin,
    Peer(EdgeId),
}

/// Why a fetch was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// This reader is blocked on the chunk.
    ReaderWaits(ReaderId),
    /// The chunk is in this reader's lookahead.
    Lookahead(ReaderId),
    /// The chunk belongs to this reader's container index.
    Hint(ReaderId),
    /// A service or a job wants the chunk.
    Want(WantId),
    /// The chunk completes the entry on this edge.
    BackgroundFill,
    /// The edge began the fetch on its own, to answer a request.
    Own,
    /// A second fetch beside a late one.
    Hedge(FetchId),
    /// Assigned before its edge's session, or this coordinator's term, began.
    InFlight,
}
