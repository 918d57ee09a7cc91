//! All kinds of changes, and the answer to each.

use std::time::{Duration, SystemTime};

use chunkcache_proto::{ByteRange, ChunkIndex, EntryId, Level, v1};
use uuid::Uuid;

use super::super::{
    ChunkSum, DatabaseError, EdgeRecord, EdgeStatus, EntryRecord, JobStatus, JobTiming,
    PendingPurge, edges::EdgeId,
};

/// A change and the type of its answer.
pub trait Write: Into<Operation> + Send + 'static {
    type Output: Send;
    /// Extracts this change's answer from an outcome.
    fn output(outcome: Outcome) -> Option<Self::Output>;
}

macro_rules! operations {
    ($($(#[$meta:meta])* $name:ident {
        $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)?
    } -> $output:ty;)*) => {
        $($(#[$meta])*
        #[derive(Clone, Debug)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type),* })*

        /// Any change.
        // A change is queued for milliseconds: boxing its largest kind would save nothing.
        #[allow(clippy::large_enum_variant)]
        #[derive(Clone, Debug)]
        pub enum Operation { $(#[doc = stringify!($name)] $name($name)),* }

        impl Operation {
            /// Its name, for logs and metrics.
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name)),* }
            }
        }

        /// The answer to any change.
        #[allow(clippy::large_enum_variant)]
        #[derive(Clone, Debug)]
        pub enum Outcome { $(#[doc = stringify!($name)] $name($output)),* }

        $(impl From<$name> for Operation {
            fn from(change: $name) -> Self { Self::$name(change) }
        }
        impl Write for $name {
            type Output = $output;
            fn output(outcome: Outcome) -> Option<$output> {
                match outcome { Outcome::$name(value) => Some(value), _ => None }
            }
        })*
    };
}

operations! {
    /// Chunks that became durable on the edge. `Fenced` if the epoch is not the edge's present one,
    /// `NotFound` if the entry is not registered. True: another edge holds different bytes of one
    /// of them.
    StoreChunks { edge: EdgeId, epoch: u64, entry: EntryId, chunks: Vec<ChunkSum> } -> bool;
    /// Chunks that the edge wants to drop; it may drop them once this is committed.
    RemoveChunks { edge: EdgeId, epoch: u64, entry: EntryId, indexes: Vec<ChunkIndex> } -> ();
    /// Use [`super::Writer::reconcile`]. Makes the rows of these entries on the edge equal to the
    /// page. Answers each item, in order.
    ReconcileEntries { edge: EdgeId, epoch: u64, entries: Vec<InventoryItem> } -> Vec<Reconciled>;
    /// The origin answered for the entry's key: registers the entry and points the key to it.
    /// Idempotent.
    ObserveEntry {
        entry: EntryRecord, freshness: v1::Freshness, observation: Observation
    } -> ObservationEffect;
    /// The entry was given to a client, so it must not be forgotten soon.
    TouchEntry { entry: EntryId } -> ();
    /// Forgets those of the entries that were not requested for `unused_for`, have no chunks on any
    /// edge, are not pinned and have no job. Answers with their number. If `are_too_many`, also
    /// forgets invalidated ones, although disconnected edges still need to learn about them.
    ForgetEntries { entries: Vec<EntryId>, unused_for: Duration, are_too_many: bool } -> u64;
    SetPinned { entry: EntryId, pinned: bool } -> ();
    /// Unbinds all keys of the entry; with `purge` removes its chunk rows too.
    InvalidateEntry { entry: EntryId, purge: bool } -> InvalidationEffect;
    /// From now on, selected keys that were validated earlier are hidden.
    RecordPurge { selector: v1::PurgeSelector, soft: bool } -> PendingPurge;
    /// Use [`super::Writer::purge`]. No key that was validated earlier points to the entries any
    /// longer.
    UnbindEntries { entries: Vec<EntryId>, validated_before: SystemTime } -> ();
    /// Use [`super::Writer::purge`]. Removes rows that were stored earlier.
    RemoveRowsOfEntries { entries: Vec<EntryId>, stored_before: SystemTime, limit: u32 } -> u64;
    /// Ends a purge whose selected rows are deleted.
    FinishPurge { number: u64 } -> ();
    /// Removes the rows of these entries on the edge, which has dropped their bytes.
    DropEntries { edge: EdgeId, epoch: u64, entries: Vec<EntryId> } -> ();
    /// Adds or replaces a source. The answer is the source with its new revision.
    PutSource { source: v1::Source } -> v1::Source;
    /// Use [`super::Writer::remove_source`].
    RemoveRowsOfSource { name: String, limit: u32 } -> u64;
    /// Use [`super::Writer::remove_source`].
    RemoveEntriesOfSource { name: String, limit: u32 } -> u64;
    /// Use [`super::Writer::remove_source`].
    RemoveSource { name: String } -> u64;
    /// Use [`super::Writer::join_edge`].
    JoinEdge { name: String, url: String, store_id: Uuid, bytes_allowed: u64 } -> JoinStep;
    /// An edge's report about itself, which also shows that it is alive. Not in the change log.
    TouchEdge { edge: EdgeId, epoch: u64, status: EdgeStatus } -> ();
    /// The edge's observed state. Epoch 0: any session. True: the state changed.
    SetEdgeState { edge: EdgeId, epoch: u64, state: v1::EdgeState } -> bool;
    /// The operator's setting for the edge.
    DrainEdge { name: String, draining: bool } -> EdgeRecord;
    /// Use [`super::Writer::forget_edge`]. Ends the present session's epoch.
    RetireEdge { name: String } -> EdgeId;
    /// Use [`super::Writer::forget_edge`].
    RemoveRowsOfEdge { edge: EdgeId, limit: u32 } -> u64;
    /// Use [`super::Writer::forget_edge`].
    ForgetEdge { name: String } -> u64;
    /// Idempotent by id. Ranges are coalesced; the caller cuts them to the object.
    AddJob {
        id: Uuid, entry: EntryId, ranges: Vec<ByteRange>, edges: Vec<String>, level: Level,
        timing: JobTiming
    } -> ();
    /// False: it had ended before.
    EndJob { id: Uuid, status: JobStatus, error: String } -> bool;
}

/// How an observation of a key competes with what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Made just now: it always wins.
    Live,
    /// Made while no coordinator answered: it wins only over an older validation.
    Replayed,
}

/// The effect of an observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservationEffect {
    /// The entry was not known before.
    pub created: bool,
    /// The key points to the entry now and did not before.
    pub key_changed: bool,
    /// The entry that the key pointed to before, if it is another one.
    pub previous: Option<EntryId>,
}

/// One entry of an edge's inventory: all its chunks on the edge.
#[derive(Clone, Debug)]
pub struct InventoryItem {
    pub id: EntryId,
    /// To be registered if the database does not know the entry.
    pub adopt: Option<ObserveEntry>,
    pub chunks: Vec<ChunkSum>,
}

/// The result of reconciling one entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Rows without bytes, deleted.
    pub rows_deleted: u64,
    /// Bytes without rows, or with different rows; recorded.
    pub rows_written: u64,
    /// Impossible chunks: past the object's end, or of an entry that is refused.
    pub dropped: Vec<ChunkIndex>,
    /// Set if the entry was unknown: the effect of its observation.
    pub observed: Option<ObservationEffect>,
    /// Why the entry cannot be recorded.
    pub refused: Option<DatabaseError>,
    /// Another edge holds different bytes of one of its chunks.
    pub is_conflicting: bool,
}

/// The effect of an invalidation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InvalidationEffect {
    pub keys: Vec<v1::Key>,
    pub chunks_removed: u64,
}

/// A session's edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedEdge {
    /// With the new epoch.
    pub edge: EdgeRecord,
}

/// The progress of a join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinStep {
    Joined(JoinedEdge),
    /// The edge has another disk, and its row still has chunks of the old one.
    OldRows(EdgeId),
}
