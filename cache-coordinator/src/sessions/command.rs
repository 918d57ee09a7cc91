//! The plan's commands, and the actions that it asks its actor for.

use std::{collections::HashSet, ops::Range, sync::Arc};

use chunkcache_proto::{ChunkIndex, EntryId, Level, v1};
use v1::session_response::Message;

use super::directory::EdgeRecord;
use scheduler::api::{EdgeId, WantId};

/// The space on an edge's disk. Both 0: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeSpace {
    /// Used by chunks.
    pub bytes_used: u64,
    /// Allowed for chunks.
    pub bytes_allowed: u64,
}

/// A command to the plan.
#[derive(Debug)]
pub enum Command {
    /// A session began.
    EdgeJoined {
        /// Its row's id.
        edge: EdgeId,
        /// The session's epoch; messages of older ones no longer count.
        epoch: u64,
        /// Name and address.
        record: EdgeRecord,
        /// Fetches at a time.
        max_downloads: u32,
        /// The edge's own option.
        background_fill: bool,
        /// The operator's setting.
        draining: bool,
        /// As far as known by now.
        space: EdgeSpace,
        /// In-flight fetches.
        kept: Vec<v1::KeptFetch>,
    },
    /// From a session: the used space of a disk.
    EdgeSpace {
        /// The edge.
        edge: EdgeId,
        /// The session's epoch.
        epoch: u64,
        /// The report.
        space: EdgeSpace,
    },
    /// From a session: what it says of sources.
    SourceSpaces {
        /// The edge.
        edge: EdgeId,
        /// The session's epoch.
        epoch: u64,
        /// The report.
        sources: Vec<v1::SourceStatus>,
    },
    /// A session ended.
    EdgeLeft {
        /// Its row's id.
        edge: EdgeId,
        /// The epoch of the session that ended.
        epoch: u64,
    },
    /// The operator drains it, or takes that back.
    EdgeDraining {
        /// Its row's id.
        edge: EdgeId,
        /// From now on.
        draining: bool,
    },
    /// An entry is being played from a draining edge, perhaps without ever missing a byte.
    HandOver {
        /// The draining edge.
        edge: EdgeId,
        /// The entry being played.
        entry: EntryId,
    },
    /// The edge was removed from the cluster with all its rows.
    EdgeForgotten(EdgeId),
    /// The source was registered or changed.
    SourceSet(Box<v1::Source>),
    /// A term began: these edges had sessions in the last one.
    EdgesExpected(Vec<EdgeId>),
    /// The source is no longer registered.
    SourceRemoved(String),
    /// Load the entry now: a request, a job or an edge will name it.
    EntryWanted(EntryId),
    /// An edge observed it: its row is about to be written, and nothing is read before.
    EntryExpected(EntryId),
    /// Its row was made just now: nobody holds anything of it, and nothing need be read.
    EntryCreated(Box<v1::Entry>),
    /// Its row is there: load it if somebody spoke of it before.
    EntryRegistered(EntryId),
    /// Its pinned flag changed.
    EntryChanged(Box<v1::Entry>),
    /// The entry was superseded or invalidated.
    EntryClosed(EntryId),
    /// The same of many.
    EntriesClosed(Arc<HashSet<EntryId>>),
    /// The answer to [`Action::Load`].
    EntryLoaded {
        /// The requested id.
        id: EntryId,
        /// `None`: not in the table.
        loaded: Option<Box<LoadedEntry>>,
    },
    /// Rows were committed.
    Held {
        /// The edge.
        edge: EdgeId,
        /// The entry.
        entry: EntryId,
        /// Chunk indexes.
        chunks: Vec<ChunkIndex>,
    },
    /// Rows were removed.
    Dropped {
        /// The edge.
        edge: EdgeId,
        /// The entry.
        entry: EntryId,
        /// Chunk indexes; `None`: all.
        chunks: Option<Vec<ChunkIndex>>,
    },
    /// From a session.
    Demand {
        /// The edge.
        edge: EdgeId,
        /// The session's epoch.
        epoch: u64,
        /// The demand.
        batch: v1::DemandBatch,
    },
    /// From a session.
    FetchReport {
        /// The edge.
        edge: EdgeId,
        /// The session's epoch.
        epoch: u64,
        /// The report.
        report: v1::FetchReport,
    },
    /// From a session.
    LocalFetch {
        /// The edge.
        edge: EdgeId,
        /// The session's epoch.
        epoch: u64,
        /// The fetch.
        fetch: v1::LocalFetch,
    },
    /// From a session.
    QuotaReported {
        /// The edge.
        edge: EdgeId,
        /// The session's epoch.
        epoch: u64,
        /// The report.
        report: v1::QuotaReport,
    },
    /// A request or a job wants chunks.
    Want {
        /// Assigned by the caller; unique.
        want: WantId,
        /// The edge to fetch them to.
        edge: EdgeId,
        /// The entry.
        entry: EntryId,
        /// The chunks.
        chunks: Vec<Range<ChunkIndex>>,
        /// The level.
        level: Level,
    },
    /// The want was cancelled.
    WantClosed(WantId),
    /// Time passed.
    Tick,
}

/// An entry and its holders, as in the table.
#[derive(Clone, Debug)]
pub struct LoadedEntry {
    /// As sent to edges.
    pub entry: v1::Entry,
    /// Chunks per edge.
    pub holders: Vec<(EdgeId, Vec<Range<ChunkIndex>>)>,
}

/// An instruction to the actor.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Put the message into the edge's outbox.
    Send(EdgeId, Box<Message>),
    /// Read the entry and its holders from the table, then send [`Command::EntryLoaded`].
    Load(EntryId),
    /// All chunks of the want are held.
    WantDone(WantId),
}
