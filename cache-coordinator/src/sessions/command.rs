//! What the plan is told, and what it asks its actor to do.

use std::ops::Range;

use chunkcache_proto::{ChunkIndex, EntryId, Level, v1};
use v1::session_response::Message;

use super::directory::EdgeRecord;
use scheduler::api::{EdgeId, WantId};

/// Of an edge's disk. Both 0: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeSpace {
    /// Taken by chunks.
    pub bytes_used: u64,
    /// What they may take.
    pub bytes_allowed: u64,
}

/// What the plan is told.
#[derive(Debug)]
pub enum Command {
    /// A session began.
    EdgeJoined {
        /// Its row's id.
        edge: EdgeId,
        /// Of the session; older ones say nothing any more.
        epoch: u64,
        /// Name and address.
        record: EdgeRecord,
        /// Fetches at a time.
        max_downloads: u32,
        /// The edge's own option.
        background_fill: bool,
        /// As the operator wants it.
        draining: bool,
        /// As far as is known by now.
        space: EdgeSpace,
        /// Fetches that go on from before.
        kept: Vec<v1::KeptFetch>,
    },
    /// From a session: what is used of a disk.
    EdgeSpace {
        /// Who speaks.
        edge: EdgeId,
        /// In which session.
        epoch: u64,
        /// What it said.
        space: EdgeSpace,
    },
    /// A session ended.
    EdgeLeft {
        /// Its row's id.
        edge: EdgeId,
        /// Of the session that ended.
        epoch: u64,
    },
    /// The operator drains it, or takes that back.
    EdgeDraining {
        /// Its row's id.
        edge: EdgeId,
        /// From now on.
        draining: bool,
    },
    /// Somebody plays this from an edge that is drained, perhaps without ever missing a byte.
    HandOver {
        /// Which is drained.
        edge: EdgeId,
        /// What is played.
        entry: EntryId,
    },
    /// Removed from the cluster with all its rows.
    EdgeForgotten(EdgeId),
    /// Registered or changed.
    SourceSet(Box<v1::Source>),
    /// A term began: these had sessions in the last one.
    EdgesExpected(Vec<EdgeId>),
    /// No longer registered.
    SourceRemoved(String),
    /// Load it now: a request, a job or an edge will speak of it.
    EntryWanted(EntryId),
    /// Its row was made just now: nobody holds anything of it, and nothing need be read.
    EntryCreated(Box<v1::Entry>),
    /// Its row is there: load it if somebody spoke of it before.
    EntryRegistered(EntryId),
    /// Its pinned flag changed.
    EntryChanged(Box<v1::Entry>),
    /// Superseded or invalidated.
    EntryClosed(EntryId),
    /// The answer to [`Action::Load`].
    EntryLoaded {
        /// What was asked for.
        id: EntryId,
        /// `None`: not in the table.
        loaded: Option<Box<LoadedEntry>>,
    },
    /// Rows were committed.
    Held {
        /// Where.
        edge: EdgeId,
        /// Of what.
        entry: EntryId,
        /// Chunk indexes.
        chunks: Vec<ChunkIndex>,
    },
    /// Rows went.
    Dropped {
        /// Where.
        edge: EdgeId,
        /// Of what.
        entry: EntryId,
        /// Chunk indexes; `None`: all.
        chunks: Option<Vec<ChunkIndex>>,
    },
    /// From a session.
    Demand {
        /// Who speaks.
        edge: EdgeId,
        /// In which session.
        epoch: u64,
        /// What it said.
        batch: v1::DemandBatch,
    },
    /// From a session.
    FetchReport {
        /// Who speaks.
        edge: EdgeId,
        /// In which session.
        epoch: u64,
        /// What it said.
        report: v1::FetchReport,
    },
    /// From a session.
    LocalFetch {
        /// Who speaks.
        edge: EdgeId,
        /// In which session.
        epoch: u64,
        /// What it said.
        fetch: v1::LocalFetch,
    },
    /// From a session.
    QuotaReported {
        /// Who speaks.
        edge: EdgeId,
        /// In which session.
        epoch: u64,
        /// What it said.
        report: v1::QuotaReport,
    },
    /// A request or a job asks for chunks.
    Want {
        /// Given by the caller; unique.
        want: WantId,
        /// Where they should be.
        edge: EdgeId,
        /// Of what.
        entry: EntryId,
        /// Which.
        chunks: Vec<Range<ChunkIndex>>,
        /// How urgent.
        level: Level,
    },
    /// Cancelled.
    WantClosed(WantId),
    /// Time passed.
    Tick,
}

/// An entry and who holds what of it, as the table says.
#[derive(Clone, Debug)]
pub struct LoadedEntry {
    /// As told to edges.
    pub entry: v1::Entry,
    /// Chunks per edge.
    pub holders: Vec<(EdgeId, Vec<Range<ChunkIndex>>)>,
}

/// What the actor has to do.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Put into the edge's outbox.
    Send(EdgeId, Box<Message>),
    /// Read the entry and its holders from the table, then say [`Command::EntryLoaded`].
    Load(EntryId),
    /// All chunks of the want are held.
    WantDone(WantId),
}
