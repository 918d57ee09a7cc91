//! The plan's commands, and the actions that it requests from its actor.

use std::{collections::HashSet, ops::Range, sync::Arc};

use chunkcache_proto::{ChunkIndex, EntryId, Level, v1};
use v1::session_response::Message;

use super::directory::EdgeRecord;
use scheduler::api::{EdgeId, WantId};

/// The space on an edge's disk. Both 0: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeSpace {
    pub bytes_used: u64,
    pub bytes_allowed: u64,
}

/// A command to the plan.
#[derive(Debug)]
pub enum Command {
    /// A session began.
    EdgeJoined {
        edge: EdgeId,
        /// The session's epoch; messages from older ones no longer count.
        epoch: u64,
        record: EdgeRecord,
        max_downloads: u32,
        background_fill: bool,
        draining: bool,
        /// The space as known so far.
        space: EdgeSpace,
        kept: Vec<v1::KeptFetch>,
    },
    /// From a session: the used space of a disk.
    EdgeSpace {
        edge: EdgeId,
        epoch: u64,
        space: EdgeSpace,
    },
    /// From a session: its report about sources.
    SourceSpaces {
        edge: EdgeId,
        epoch: u64,
        sources: Vec<v1::SourceStatus>,
    },
    /// A session ended.
    EdgeLeft {
        edge: EdgeId,
        /// The epoch of the session that ended.
        epoch: u64,
    },
    /// The operator drains the edge, or ends the draining.
    EdgeDraining { edge: EdgeId, draining: bool },
    /// An entry is being played from a draining edge, perhaps without any missing byte.
    HandOver { edge: EdgeId, entry: EntryId },
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
    /// An edge observed it, so its row is about to be written, and nothing is read before.
    EntryExpected(EntryId),
    /// Its row was created just now: no edge holds anything of it, and nothing needs to be read.
    EntryCreated(Box<v1::Entry>),
    /// Its row exists now: load it if it was named before.
    EntryRegistered(EntryId),
    /// Its pinned flag changed.
    EntryChanged(Box<v1::Entry>),
    /// The entry was superseded or invalidated.
    EntryClosed(EntryId),
    /// The same for many entries.
    EntriesClosed(Arc<HashSet<EntryId>>),
    /// The answer to [`Action::Load`].
    EntryLoaded {
        id: EntryId,
        /// `None`: not in the table.
        loaded: Option<Box<LoadedEntry>>,
    },
    /// Rows were committed.
    Held {
        edge: EdgeId,
        entry: EntryId,
        chunks: Vec<ChunkIndex>,
    },
    /// Rows were removed.
    Dropped {
        edge: EdgeId,
        entry: EntryId,
        /// Chunk indexes; `None`: all chunks.
        chunks: Option<Vec<ChunkIndex>>,
    },
    /// From a session.
    Demand {
        edge: EdgeId,
        epoch: u64,
        batch: v1::DemandBatch,
    },
    /// From a session.
    FetchReport {
        edge: EdgeId,
        epoch: u64,
        report: v1::FetchReport,
    },
    /// From a session.
    LocalFetch {
        edge: EdgeId,
        epoch: u64,
        fetch: v1::LocalFetch,
    },
    /// From a session.
    QuotaReported {
        edge: EdgeId,
        epoch: u64,
        report: v1::QuotaReport,
    },
    /// A request or a job wants chunks.
    Want {
        /// Assigned by the caller; unique.
        want: WantId,
        /// The edge that fetches them.
        edge: EdgeId,
        entry: EntryId,
        chunks: Vec<Range<ChunkIndex>>,
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
