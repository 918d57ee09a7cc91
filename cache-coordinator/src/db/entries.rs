//! Entries and the keys that point to them.

use std::time::Duration;

use chunkcache_proto::{EntryId, Geometry, v1};
use sha2::{Digest as _, Sha256};
use tokio_postgres::Row;
use uuid::Uuid;

use service_kit::clock::unix_ms;

use super::{Database, DatabaseError, edges::EdgeId, from_ms, may_exist, statements};

/// A row of `cache_entries`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRecord {
    pub id: EntryId,
    pub source: String,
    pub path: String,
    pub query: String,
    pub variant: String,
    pub validator: String,
    pub etag: String,
    pub last_modified: String,
    pub content_type: String,
    pub geometry: Geometry,
    pub pinned: bool,
    pub created_at_ms: i64,
}

impl EntryRecord {
    /// The key under which it was created.
    #[must_use]
    pub fn key(&self) -> v1::Key {
        v1::Key {
            source: self.source.clone(),
            path: self.path.clone(),
            query: self.query.clone(),
            variant: self.variant.clone(),
        }
    }

    #[must_use]
    pub fn to_proto(&self) -> v1::Entry {
        v1::Entry {
            id: self.id.to_string(),
            key: Some(self.key()),
            size: self.geometry.size(),
            chunk_size: self.geometry.chunk_size(),
            validator: self.validator.clone(),
            etag: self.etag.clone(),
            last_modified: self.last_modified.clone(),
            content_type: self.content_type.clone(),
            created_at_ms: self.created_at_ms,
            pinned: self.pinned,
        }
    }

    /// Converts from the wire format. The caller checks that the id is derived from the fields,
    /// because it knows the base URL.
    pub fn from_proto(entry: &v1::Entry) -> Result<Self, DatabaseError> {
        let id = entry
            .id
            .parse()
            .map_err(|_| DatabaseError::invalid("entry.id", "not a UUID"))?;
        let key = entry
            .key
            .as_ref()
            .ok_or_else(|| DatabaseError::invalid("entry.key", "is missing"))?;
        let geometry = Geometry::new(entry.size, entry.chunk_size)
            .map_err(|error| DatabaseError::invalid("entry.chunk_size", error.to_string()))?;
        Ok(Self {
            id,
            source: key.source.clone(),
            path: key.path.clone(),
            query: key.query.clone(),
            variant: key.variant.clone(),
            validator: entry.validator.clone(),
            etag: entry.etag.clone(),
            last_modified: entry.last_modified.clone(),
            content_type: entry.content_type.clone(),
            geometry,
            pinned: entry.pinned,
            created_at_ms: entry.created_at_ms,
        })
    }

    /// The position in a listing after this entry.
    #[must_use]
    pub fn cursor(&self) -> EntryCursor {
        EntryCursor {
            source: self.source.clone(),
            path: self.path.clone(),
            query: self.query.clone(),
            id: self.id,
        }
    }
}

/// A position in the listing of entries. Contains all sort fields, so that the listing continues
/// even if the entry is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryCursor {
    pub source: String,
    pub path: String,
    pub query: String,
    pub id: EntryId,
}

impl EntryCursor {
    /// An opaque page token.
    #[must_use]
    pub fn encode(&self) -> String {
        use base64::Engine as _;
        let fields = serde_json::json!([self.source, self.path, self.query, self.id]);
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(fields.to_string())
    }

    /// Parses a page token; an empty one means the beginning.
    pub fn decode(token: &str) -> Result<Self, DatabaseError> {
        use base64::Engine as _;
        if token.is_empty() {
            return Ok(Self::default());
        }
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(token)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .map(|(source, path, query, id)| Self {
                source,
                path,
                query,
                id,
            })
            .filter(|it| may_exist(&[&it.source, &it.path, &it.query]))
            .ok_or_else(|| DatabaseError::invalid("page_token", "not one this service gave"))
    }
}

/// An entry, and its freshness if its key points to it now.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    pub entry: EntryRecord,
    pub freshness: Option<v1::Freshness>,
    /// No edge holds any part of it, and it was not used for minutes, so it may be forgotten soon.
    pub is_idle: bool,
}

/// The index of a key: the first 128 bits of SHA-256 over its fields, separated by a zero byte
/// (which no text in the database can contain). Clients choose keys, so a faster hash would not
/// suffice.
#[must_use]
pub fn key_hash(key: &v1::Key) -> Uuid {
    let mut hasher = Sha256::new();
    for (number, field) in [&key.source, &key.path, &key.query, &key.variant]
        .into_iter()
        .enumerate()
    {
        if number > 0 {
            hasher.update([0]);
        }
        hasher.update(field.as_bytes());
    }
    let digest = hasher.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Uuid::from_bytes(bytes)
}

impl Binding {
    #[must_use]
    pub fn to_proto(&self) -> v1::KeyBinding {
        v1::KeyBinding {
            entry: Some(self.entry.to_proto()),
            freshness: self.freshness.clone(),
        }
    }
}

/// An entry of which an edge holds a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncompleteEntry {
    pub entry: EntryId,
    pub held_bytes: u64,
}

impl Database {
    pub async fn entry(&self, id: EntryId) -> Result<Option<EntryRecord>, DatabaseError> {
        self.query_opt(statements::ENTRY_GET, &[&id])
            .await?
            .as_ref()
            .map(from_row)
            .transpose()
    }

    /// At most `limit` entries after `after` in the order of source, path, query, id; an empty
    /// `source` selects all sources.
    pub async fn entries(
        &self,
        source: &str,
        after: &EntryCursor,
        limit: u32,
    ) -> Result<Vec<EntryRecord>, DatabaseError> {
        let limit = i64::from(limit);
        if !may_exist(&[source]) {
            return Ok(Vec::new());
        }
        let rows = if source.is_empty() {
            self.query(
                statements::ENTRY_PAGE,
                &[&after.source, &after.path, &after.query, &after.id, &limit],
            )
            .await?
        } else {
            self.query(
                statements::ENTRY_PAGE_OF_SOURCE,
                &[&source, &after.path, &after.query, &after.id, &limit],
            )
            .await?
        };
        rows.iter().map(from_row).collect()
    }

    /// Entries that may be forgotten: see [`super::writer::ForgetEntries`].
    pub async fn unused_entries(
        &self,
        unused_for: Duration,
        are_too_many: bool,
        limit: u32,
    ) -> Result<Vec<EntryId>, DatabaseError> {
        let seconds = i64::try_from(unused_for.as_secs()).unwrap_or(i64::MAX);
        let rows = self
            .query(
                statements::ENTRY_UNUSED,
                &[&seconds, &are_too_many, &i64::from(limit)],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// The number of entries without chunks on any edge.
    pub async fn chunkless_entries(&self) -> Result<u64, DatabaseError> {
        let row = self
            .query_one(statements::ENTRY_CHUNKLESS_COUNT, &[])
            .await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    /// The entries of a path's variants (at most 100), the most recently validated first.
    pub async fn bindings_of_path(
        &self,
        source: &str,
        path: &str,
        query: &str,
    ) -> Result<Vec<Binding>, DatabaseError> {
        self.query(statements::BINDING_OF_PATH, &[&source, &path, &query])
            .await?
            .iter()
            .map(binding_from_row)
            .collect()
    }

    /// The entry, with its freshness if its key still points to it.
    pub async fn binding_of_entry(&self, id: EntryId) -> Result<Option<Binding>, DatabaseError> {
        self.query_opt(statements::BINDING_OF_ENTRY, &[&id])
            .await?
            .as_ref()
            .map(binding_from_row)
            .transpose()
    }

    /// Entries that were invalidated and not seen at their origin since, the latest first.
    pub async fn invalidated_entries(&self, limit: u32) -> Result<Vec<EntryId>, DatabaseError> {
        let rows = self
            .query(statements::ENTRY_INVALIDATED, &[&i64::from(limit)])
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Entries of which the edge holds a part, in the order of ids after `after`.
    pub async fn incomplete_entries(
        &self,
        edge: EdgeId,
        after: EntryId,
        limit: u32,
    ) -> Result<Vec<IncompleteEntry>, DatabaseError> {
        let rows = self
            .query(
                statements::ENTRY_INCOMPLETE,
                &[&edge, &after, &i64::from(limit)],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| IncompleteEntry {
                entry: row.get(0),
                held_bytes: row.get::<_, i64>(1).unsigned_abs(),
            })
            .collect())
    }

    /// Entries of which the edge holds a part that are pinned, or changed lately.
    pub async fn hot_entries(
        &self,
        edge: EdgeId,
        limit: u32,
    ) -> Result<Vec<EntryId>, DatabaseError> {
        let rows = self
            .query(statements::ENTRY_HOT_ON_EDGE, &[&edge, &i64::from(limit)])
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

pub(super) fn from_row(row: &Row) -> Result<EntryRecord, DatabaseError> {
    let (size, chunk_size): (i64, i32) = (row.get("size"), row.get("chunk_size"));
    let geometry = Geometry::new(size.unsigned_abs(), chunk_size.unsigned_abs())
        .map_err(|error| DatabaseError::Internal(format!("geometry of an entry: {error}")))?;
    Ok(EntryRecord {
        id: row.get("id"),
        source: row.get("source"),
        path: row.get("path"),
        query: row.get("query"),
        variant: row.get("variant"),
        validator: row.get("validator"),
        etag: row.get("etag"),
        last_modified: row.get("last_modified"),
        content_type: row.get("content_type"),
        geometry,
        pinned: row.get("pinned"),
        created_at_ms: unix_ms(row.get("created_at")),
    })
}

pub(super) fn binding_from_row(row: &Row) -> Result<Binding, DatabaseError> {
    let validated_at: Option<std::time::SystemTime> = row.get("validated_at");
    let freshness = validated_at.map(|validated_at| v1::Freshness {
        validated_at_ms: unix_ms(validated_at),
        fresh_until_ms: unix_ms(row.get("fresh_until")),
        initial_age_seconds: row.get::<_, i32>("initial_age").unsigned_abs(),
        cache_control: row.get("cache_control"),
        vary: row.get("vary"),
        sent_at_ms: 0,
        fields: Vec::new(),
        must_confirm: false,
    });
    Ok(Binding {
        entry: from_row(row)?,
        freshness,
        is_idle: row.get("idle"),
    })
}

/// A freshness as the columns of `cache_keys`.
pub(super) struct FreshnessColumns {
    pub validated_at: std::time::SystemTime,
    pub fresh_until: std::time::SystemTime,
    pub initial_age: i32,
}

impl FreshnessColumns {
    pub(super) fn of(freshness: &v1::Freshness) -> Self {
        Self {
            validated_at: from_ms(freshness.validated_at_ms),
            fresh_until: from_ms(freshness.fresh_until_ms),
            initial_age: i32::try_from(freshness.initial_age_seconds).unwrap_or(i32::MAX),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_names_a_place() {
        let cursor = EntryCursor {
            source: "a".into(),
            path: "b/ü".into(),
            query: "c=1".into(),
            id: EntryId::from_u128(7),
        };
        assert_eq!(EntryCursor::decode(&cursor.encode()).unwrap(), cursor);
        assert_eq!(EntryCursor::decode("").unwrap(), EntryCursor::default());
        assert!(EntryCursor::decode("nonsense").is_err());
    }
}
