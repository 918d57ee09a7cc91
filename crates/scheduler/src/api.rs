//! What goes into the scheduler and what comes out: plain values.
//!
//! `Scheduler::apply(event, now, &mut effects)` is the whole interface for change. Ids are small
//! integers given by the caller (interned), so that the indexes stay narrow. Times are
//! milliseconds of a monotonic clock of the caller's. Chunks are half-open ranges of indexes.

use std::ops::Range;

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
    /// Where it reads.
    pub edge: EdgeId,
    /// Given by the edge.
    pub number: u64,
}

/// A request by a service or a job, numbered by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WantId(pub u64);

/// One fetch handed to one edge. Unique for the life of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssignmentId(pub u64);

/// Milliseconds of a monotonic clock.
pub type Millis = u64;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A session began. What the edge was assigned before is void.
    EdgeJoined {
        edge: EdgeId,
        max_downloads: u32,
        background_fill: bool,
    },
    /// The operator drains it, or takes that back.
    EdgeDraining { edge: EdgeId, draining: bool },
    /// Before it joins, or, of entries opened since, after: fetches from origins that go on from an
    /// earlier session.
    FetchesKept {
        edge: EdgeId,
        fetches: Vec<InFlightFetch>,
    },
    /// What its chunks take of its disk, and may take. Both 0: not known.
    EdgeSpace {
        edge: EdgeId,
        bytes_used: u64,
        bytes_allowed: u64,
    },
    /// Its session ended: its readers, assignments and local fetches are gone; what it holds can
    /// not be had.
    EdgeLost { edge: EdgeId },
    /// A term began, after the sources were set: these had sessions in the last one, and fetch on
    /// by themselves until they are back.
    EdgesExpected { edges: Vec<EdgeId> },

    /// A source is registered, or its limits changed. 0: no limit. `background_fill` unset: as the
    /// edge says.
    SourceSet {
        source: SourceId,
        max_connections: u32,
        max_rate_bytes_per_second: u64,
        background_fill: Option<bool>,
    },
    /// Nothing of it is fetched any more.
    SourceRemoved { source: SourceId },
    /// The origin said 429 or `Retry-After`: nothing of the source before `until`.
    SourceBackOff { source: SourceId, until: Millis },

    /// An entry may be spoken of from now on.
    EntryOpened {
        entry: EntryNo,
        source: SourceId,
        geometry: Geometry,
    },
    /// Invalidated or superseded: no chunk of it is fetched any more, assignments are cancelled.
    EntryClosed { entry: EntryNo },
    /// Rows: the edge holds these (loaded from the table, or just committed).
    ChunksHeld {
        edge: EdgeId,
        entry: EntryNo,
        chunks: Vec<Range<ChunkIndex>>,
    },
    /// Rows went.
    ChunksDropped {
        edge: EdgeId,
        entry: EntryNo,
        chunks: Vec<Range<ChunkIndex>>,
    },

    /// The present demand of a reader, replacing what it was.
    DemandSet(Demand),
    /// The reader left.
    DemandClosed { reader: ReaderId },

    /// A service or a job asks for chunks on an edge. Lives until closed or all are held there.
    WantSet {
        want: WantId,
        edge: EdgeId,
        entry: EntryNo,
        chunks: Vec<Range<ChunkIndex>>,
        level: Level,
    },
    /// What a draining edge hands to another one: as a want at MEDIUM, but taken from edges that
    /// hold it, never from the origin. A chunk that no edge holds any more is let go.
    HandOver {
        want: WantId,
        edge: EdgeId,
        entry: EntryNo,
        chunks: Vec<Range<ChunkIndex>>,
    },
    /// Cancelled.
    WantClosed { want: WantId },

    /// The edge has first bytes, or more bytes, of an assignment.
    FetchProgressed {
        edge: EdgeId,
        assignment: AssignmentId,
        bytes_done: u64,
    },
    /// All its chunks are durable (`ChunksHeld` follows when they are committed; they count as held
    /// at once for planning).
    FetchFinished {
        edge: EdgeId,
        assignment: AssignmentId,
    },
    /// It failed. What it finished is reported apart.
    FetchFailed {
        edge: EdgeId,
        assignment: AssignmentId,
        fault: Fault,
        retry_after: Option<Millis>,
    },
    /// The edge obeyed a cancel, or gave it up.
    FetchCancelled {
        edge: EdgeId,
        assignment: AssignmentId,
    },
    /// The edge fetches from the origin by itself (a cold key's probe, or the coordinator was
    /// late).
    LocalFetchStarted {
        edge: EdgeId,
        assignment: AssignmentId,
        entry: EntryNo,
        chunks: Range<ChunkIndex>,
        level: Level,
    },

    /// What an edge uses of the sources that have limits: with each heartbeat, and when it changes.
    /// Renews its leases.
    QuotaReported {
        edge: EdgeId,
        /// Rises with each report of a session.
        number: u64,
        /// Of sources not named, nothing changed.
        uses: Vec<QuotaUse>,
    },

    /// Time passed: deadlines, back-offs and budgets are looked at again. At least every 100 ms.
    Tick,
}

/// A fetch that an edge did not give up when its session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlightFetch {
    pub id: AssignmentId,
    pub entry: EntryNo,
    pub chunks: Range<ChunkIndex>,
    pub level: Level,
    /// The edge's own.
    pub local: bool,
}

/// What an edge uses of a source by itself, beside what it was assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaUse {
    pub source: SourceId,
    /// Of the last [`Lease`] it knew of in this session.
    pub sequence: u64,
    /// Connections open, or to be opened without asking again.
    pub held: u32,
    /// Connections open, or waited for.
    pub wanted: u32,
    /// Of these, waited for by viewers.
    pub urgent: u32,
}

/// A part of what an origin bears. 0 bytes per second: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub connections: u32,
    pub bytes_per_second: u64,
}

/// What an edge may use of a source. Good for as long as its last report renewed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub source: SourceId,
    /// Rises with each change of the others.
    pub sequence: u64,
    /// Connections for its own requests, and bytes a second for all it reads.
    pub granted: Share,
    /// For all it has open, once the lease has expired.
    pub floor: Share,
}

/// What a reader wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    pub reader: ReaderId,
    pub entry: EntryNo,
    /// The byte it stands at.
    pub position: u64,
    /// One past the last byte it asked for.
    pub end: u64,
    /// It is blocked on `position`.
    pub waiting: bool,
    /// Observed; 0: not known.
    pub rate_bytes_per_second: u64,
    /// Contiguous bytes present ahead of `position`.
    pub buffered_bytes: u64,
    /// Ahead of `position`; 0: the scheduler decides.
    pub lookahead_bytes: u64,
    /// No more than this ahead, by what it has consumed; 0: no bound but the scheduler's.
    pub earned_bytes: u64,
    /// Keeps its place, wants no fetch.
    pub paused: bool,
    /// Chunks wanted at HIGH beside the lookahead.
    pub hints: Vec<Range<ChunkIndex>>,
}

/// Whose fault a failed fetch was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The origin refused, broke or lied: back off, try again.
    Origin,
    /// The peer: take another one, or the origin, at once.
    Peer,
    /// The edge has no space or a bad disk: not there for a while.
    Edge,
    /// The object is another one now: never again for this entry.
    Changed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send to the edge.
    Assign(Assignment),
    /// The fetch matters more, or less, than before.
    Reprioritise {
        edge: EdgeId,
        assignment: AssignmentId,
        level: Level,
        deadline_ms: u32,
    },
    /// Nobody wants it any more, or something more urgent needs its place.
    Cancel {
        edge: EdgeId,
        assignment: AssignmentId,
    },
    /// Renews the edge's leases, and tells it those that changed.
    Quota {
        edge: EdgeId,
        /// The number of its last report.
        answers: u64,
        leases: Vec<Lease>,
    },
    /// All chunks of the want are held.
    WantDone { want: WantId },
}

/// A fetch for one edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    pub id: AssignmentId,
    pub edge: EdgeId,
    pub entry: EntryNo,
    pub first_chunk: ChunkIndex,
    /// Adjacent chunks, one request.
    pub chunk_count: u32,
    pub level: Level,
    /// Milliseconds from now; within a level the earliest goes first.
    pub deadline_ms: u32,
    /// Byte of the object to begin at, inside the first chunk.
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

/// Why it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// This reader is blocked on it.
    ReaderWaits(ReaderId),
    /// It lies in this reader's lookahead.
    Lookahead(ReaderId),
    /// This reader's container index.
    Hint(ReaderId),
    /// A service or job asked.
    Want(WantId),
    /// It completes the entry on this edge.
    BackgroundFill,
    /// The edge began it by itself: it had a request to answer.
    Own,
    /// A second fetch beside a late one.
    Hedge(AssignmentId),
    /// Assigned before its edge's session, or this coordinator's term, began.
    InFlight,
}
