//! The rows of the change log, in the order of revisions.

use std::time::Duration;

use chunkcache_proto::{ByteRange, EntryId};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Database, DatabaseError, chunks::signed, statements};

/// One row of `cache_changes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: u64,
    pub kind: ChangeKind,
}

/// The kind of a change. Names say which rows to read again; a name that no longer exists was
/// removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// Coalesced, ascending.
    Stored {
        entry: EntryId,
        edge: String,
        ranges: Vec<ByteRange>,
    },
    Removed {
        entry: EntryId,
        edge: String,
        ranges: Vec<ByteRange>,
    },
    /// Created, pinned or unpinned.
    Entry {
        entry: EntryId,
    },
    /// A key now points to `entry` (`None`: it was invalidated) and pointed to `previous` before.
    Key {
        previous: Option<EntryId>,
        entry: Option<EntryId>,
    },
    Edge {
        name: String,
    },
    Source {
        name: String,
    },
    Job {
        id: Uuid,
    },
}

impl ChangeKind {
    /// Chunks that an edge stored or, otherwise, removed.
    pub(super) fn of_chunks(
        is_stored: bool,
        entry: EntryId,
        edge: String,
        ranges: Vec<ByteRange>,
    ) -> Self {
        match is_stored {
            true => Self::Stored {
                entry,
                edge,
                ranges,
            },
            false => Self::Removed {
                entry,
                edge,
                ranges,
            },
        }
    }

    /// The entry whose watchers receive the change.
    #[must_use]
    pub fn concerns(&self) -> Option<EntryId> {
        match self {
            Self::Stored { entry, .. } | Self::Removed { entry, .. } | Self::Entry { entry } => {
                Some(*entry)
            }
            Self::Key { previous, entry } => previous.or(*entry),
            Self::Edge { .. } | Self::Source { .. } | Self::Job { .. } => None,
        }
    }

    pub(super) fn columns(&self) -> Columns {
        let plain = |kind, subject: String| Columns {
            entry: self.concerns(),
            edge: None,
            kind,
            starts: "{}".into(),
            ends: "{}".into(),
            subject,
        };
        match self {
            Self::Stored { edge, ranges, .. } => {
                Columns::ranges(self.concerns(), "stored", edge, ranges)
            }
            Self::Removed { edge, ranges, .. } => {
                Columns::ranges(self.concerns(), "removed", edge, ranges)
            }
            Self::Entry { .. } => plain("entry", String::new()),
            Self::Key { entry, .. } => {
                plain("key", entry.map(|id| id.to_string()).unwrap_or_default())
            }
            Self::Edge { name } => plain("edge", name.clone()),
            Self::Source { name } => plain("source", name.clone()),
            Self::Job { id } => plain("job", id.to_string()),
        }
    }
}

/// The arguments of `change_insert.sql`.
pub(super) struct Columns {
    pub entry: Option<EntryId>,
    pub edge: Option<String>,
    pub kind: &'static str,
    pub starts: String,
    pub ends: String,
    pub subject: String,
}

impl Columns {
    fn ranges(
        entry: Option<EntryId>,
        kind: &'static str,
        edge: &str,
        ranges: &[ByteRange],
    ) -> Self {
        let literal = |end_of: fn(&ByteRange) -> u64| {
            let numbers: Vec<String> = ranges
                .iter()
                .map(|range| end_of(range).to_string())
                .collect();
            format!("{{{}}}", numbers.join(","))
        };
        Self {
            entry,
            edge: Some(edge.to_owned()),
            kind,
            starts: literal(|range| range.start),
            ends: literal(|range| range.end),
            subject: String::new(),
        }
    }
}

/// A page of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPage {
    /// All that matched up to `through`; more may follow.
    Changes { changes: Vec<Change>, through: u64 },
    /// The log no longer reaches back to that revision, or never did.
    SnapshotNeeded,
}

impl Database {
    /// The newest revision; 0 before the first change.
    pub async fn latest_revision(&self) -> Result<u64, DatabaseError> {
        let latest: i64 = self
            .query_one(statements::CHANGE_REVISION, &[])
            .await?
            .get("latest");
        Ok(latest.unsigned_abs())
    }

    /// The newest change of an entry; `None` if the log no longer contains one.
    pub async fn latest_revision_of(&self, entry: EntryId) -> Result<Option<u64>, DatabaseError> {
        let latest: Option<i64> = self
            .query_one(statements::CHANGE_REVISION_OF_ENTRY, &[&entry])
            .await?
            .get("latest");
        Ok(latest.map(i64::unsigned_abs))
    }

    /// Changes after `from`, of one entry or of all, at most `limit`.
    pub async fn changes_after(
        &self,
        from: u64,
        entry: Option<EntryId>,
        limit: u32,
    ) -> Result<LogPage, DatabaseError> {
        let latest = self.latest_revision().await?;
        if from > latest {
            return Ok(LogPage::SnapshotNeeded);
        }
        let (after, through, page) = (signed(from), signed(latest), i64::from(limit));
        let rows = match entry {
            Some(entry) => {
                self.query(
                    statements::CHANGE_PAGE_OF_ENTRY,
                    &[&after, &through, &page, &entry],
                )
                .await?
            }
            None => {
                self.query(statements::CHANGE_PAGE, &[&after, &through, &page])
                    .await?
            }
        };
        // Checked last, so that rows that were pruned before or during the read are noticed.
        // Revisions have no gaps.
        let oldest: Option<i64> = self
            .query_one(statements::CHANGE_OLDEST, &[])
            .await?
            .get("oldest");
        if from < latest && oldest.is_none_or(|oldest| oldest.unsigned_abs() > from + 1) {
            return Ok(LogPage::SnapshotNeeded);
        }
        let changes = rows.iter().map(from_row).collect::<Result<Vec<_>, _>>()?;
        let through = match changes.last() {
            Some(last) if changes.len() >= limit as usize => last.revision,
            _ => latest,
        };
        Ok(LogPage::Changes { changes, through })
    }

    /// Deletes rows that are older than `keep_for` or beyond the newest `keep_count`, among the
    /// oldest `limit` rows. Returns their number; `None` if `term` is over.
    pub async fn prune_changes(
        &self,
        term: u64,
        keep_for: Duration,
        keep_count: u64,
        limit: u32,
    ) -> Result<u64, DatabaseError> {
        let seconds = i64::try_from(keep_for.as_secs()).unwrap_or(i64::MAX);
        self.execute(
            statements::CHANGE_PRUNE,
            &[
                &seconds,
                &signed(keep_count),
                &i64::from(limit),
                &signed(term),
            ],
        )
        .await
    }
}

fn from_row(row: &Row) -> Result<Change, DatabaseError> {
    let bad = |what: &str| DatabaseError::Internal(format!("change log: {what}"));
    let entry: Option<EntryId> = row.get("entry_id");
    let of_entry = || entry.ok_or_else(|| bad("a change of an entry without its id"));
    let edge = || row.get::<_, Option<String>>("edge").unwrap_or_default();
    let subject: String = row.get("subject");
    let ranges = || -> Vec<ByteRange> {
        let (starts, ends): (Vec<i64>, Vec<i64>) = (row.get("starts"), row.get("ends"));
        starts
            .iter()
            .zip(&ends)
            .map(|(start, end)| ByteRange::new(start.unsigned_abs(), end.unsigned_abs()))
            .collect()
    };
    let kind = match row.get("kind") {
        "stored" => ChangeKind::Stored {
            entry: of_entry()?,
            edge: edge(),
            ranges: ranges(),
        },
        "removed" => ChangeKind::Removed {
            entry: of_entry()?,
            edge: edge(),
            ranges: ranges(),
        },
        "entry" => ChangeKind::Entry { entry: of_entry()? },
        "key" => {
            let now: Option<EntryId> = subject.parse().ok();
            // The first binding of a key is filed under the entry that it points to.
            ChangeKind::Key {
                previous: entry.filter(|id| Some(*id) != now),
                entry: now,
            }
        }
        "edge" => ChangeKind::Edge { name: subject },
        "source" => ChangeKind::Source { name: subject },
        "job" => ChangeKind::Job {
            id: subject.parse().map_err(|_| bad("a job without its id"))?,
        },
        other => return Err(bad(other)),
    };
    Ok(Change {
        revision: row.get::<_, i64>("revision").unsigned_abs(),
        kind,
    })
}
