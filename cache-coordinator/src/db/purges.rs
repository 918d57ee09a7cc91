//! Purges: the entries that a purge selects, and the latest purges, for edges that were
//! disconnected.

use std::time::SystemTime;

use chunkcache_proto::{
    EntryId,
    v1::{self, purge_selector::Objects},
};
use tokio_postgres::Row;

use super::{Database, DatabaseError, statements};

/// Number of purges that are kept for disconnected edges. An edge that missed more asks its origins
/// about all its entries.
pub const MAX_PURGES: u32 = 1_000;
/// Sorts after every path, because paths are ASCII.
const LAST: &str = "\u{10ffff}";

/// A row of `cache_purges`.
#[derive(Clone, Debug, PartialEq)]
pub struct PurgeRecord {
    pub number: u64,
    pub selector: v1::PurgeSelector,
    pub soft: bool,
}

/// A purge whose rows are not deleted yet; until then it hides the keys that it selects.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingPurge {
    pub record: PurgeRecord,
    /// By the database's clock, which also dates rows.
    pub purged_at: SystemTime,
    /// By the coordinator's clock, which also dates the validation of keys.
    pub keys_before: SystemTime,
}

impl PurgeRecord {
    /// As a message. `entry_ids`: the entries that the table selected by a tag.
    #[must_use]
    pub fn to_proto(&self, sequence: u64, entry_ids: Vec<u8>) -> v1::Purge {
        v1::Purge {
            sequence,
            number: self.number,
            selector: Some(self.selector.clone()),
            soft: self.soft,
            entry_ids,
            epoch: 0,
        }
    }
}

/// The kind of a selector and its value, as stored in the table.
pub(super) fn columns(selector: &v1::PurgeSelector) -> Result<(&'static str, &str), DatabaseError> {
    Ok(match &selector.objects {
        Some(Objects::Key(key)) => ("key", key),
        Some(Objects::Prefix(prefix)) => ("prefix", prefix),
        Some(Objects::Glob(glob)) => ("glob", glob),
        Some(Objects::Tag(tag)) => ("tag", tag),
        Some(Objects::All(true)) => ("all", ""),
        Some(Objects::All(false)) | None => {
            return Err(DatabaseError::invalid("selector", "selects nothing"));
        }
    })
}

fn from_row(row: &Row) -> Result<PurgeRecord, DatabaseError> {
    let (kind, value): (&str, String) = (row.get("kind"), row.get("value"));
    let objects = match kind {
        "key" => Objects::Key(value),
        "prefix" => Objects::Prefix(value),
        "glob" => Objects::Glob(value),
        "tag" => Objects::Tag(value),
        "all" => Objects::All(true),
        other => return Err(DatabaseError::Internal(format!("a purge by {other}"))),
    };
    Ok(PurgeRecord {
        number: row.get::<_, i64>("number").unsigned_abs(),
        selector: v1::PurgeSelector {
            source: row.get("source"),
            objects: Some(objects),
        },
        soft: row.get("soft"),
    })
}

/// The first and the last path, and the pattern for path and query; `None`: any.
pub(super) fn places(objects: &Objects) -> (String, String, Option<String>) {
    let prefixed = |prefix: &str| (prefix.to_owned(), format!("{prefix}{LAST}"));
    match objects {
        Objects::Key(name) => {
            let path = name.split('?').next().unwrap_or_default().to_owned();
            (path.clone(), path, Some(escape(name)))
        }
        Objects::Prefix(prefix) => match prefix.split_once('?') {
            None => {
                let (first, last) = prefixed(prefix);
                (first, last, None)
            }
            Some((path, _)) => {
                let pattern = format!("{}%", escape(prefix));
                (path.to_owned(), path.to_owned(), Some(pattern))
            }
        },
        Objects::Glob(glob) => {
            let plain = glob.split(['*', '?']).next().unwrap_or_default();
            let (first, last) = prefixed(plain);
            (first, last, Some(escape(glob).replace('*', "%")))
        }
        Objects::Tag(_) | Objects::All(_) => {
            let (first, last) = prefixed("");
            (first, last, None)
        }
    }
}

/// Escapes a text for LIKE.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\\' | '%' | '_') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

impl Database {
    /// Selected entries that are not purged completely, at most `limit`, without those that were
    /// marked since `purged_at`.
    pub async fn selected_entries(
        &self,
        selector: &v1::PurgeSelector,
        purged_at: SystemTime,
        limit: u32,
    ) -> Result<Vec<EntryId>, DatabaseError> {
        let (source, limit) = (&selector.source, i64::from(limit));
        let row = match &selector.objects {
            None => return Ok(Vec::new()),
            Some(Objects::Tag(tag)) => {
                self.query_one(statements::PURGE_BY_TAG, &[source, tag, &purged_at, &limit])
                    .await?
            }
            Some(objects) => {
                let (first, last, like) = places(objects);
                self.query_one(
                    statements::PURGE_BY_PATH,
                    &[source, &first, &last, &like, &purged_at, &limit],
                )
                .await?
            }
        };
        Ok(row.get(0))
    }

    /// The latest purges, in order.
    pub async fn purges(&self) -> Result<Vec<PurgeRecord>, DatabaseError> {
        let rows = self.query(statements::PURGE_LIST, &[]).await?;
        rows.iter().map(from_row).collect()
    }

    /// Purges that an earlier leader did not finish.
    pub async fn pending_purges(&self) -> Result<Vec<PendingPurge>, DatabaseError> {
        let rows = self.query(statements::PURGE_PENDING, &[]).await?;
        let pending = rows.iter().map(|row| {
            Ok(PendingPurge {
                record: from_row(row)?,
                purged_at: row.get("purged_at"),
                keys_before: row.get("keys_before"),
            })
        });
        pending.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_a_range_of_paths_and_a_pattern() {
        let of = |objects: Objects| {
            let (first, last, like) = places(&objects);
            (first, last.replace(LAST, "~"), like.unwrap_or_default())
        };
        let expected = |first: &str, last: &str, like: &str| {
            (first.to_owned(), last.to_owned(), like.to_owned())
        };
        assert_eq!(
            of(Objects::Key("a_b?c=1".into())),
            expected("a_b", "a_b", "a\\_b?c=1")
        );
        assert_eq!(of(Objects::Prefix("a/".into())), expected("a/", "a/~", ""));
        assert_eq!(
            of(Objects::Prefix("a?v".into())),
            expected("a", "a", "a?v%")
        );
        assert_eq!(
            of(Objects::Glob("a/*%20.ts".into())),
            expected("a/", "a/~", "a/%\\%20.ts")
        );
        assert_eq!(of(Objects::All(true)), expected("", "~", ""));
    }
}
