//! Edges: their identity, their present session, their state.

use chunkcache_proto::v1;
use tokio_postgres::Row;
use uuid::Uuid;

use service_kit::clock::unix_ms;

use super::{Database, DatabaseError, may_exist, statements};

/// `edges.id`.
pub type EdgeId = i32;

/// A row of `edges`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeRecord {
    pub id: EdgeId,
    pub name: String,
    pub state: v1::EdgeState,
    pub url: String,
    pub store_id: Uuid,
    /// The epoch of the present session.
    pub epoch: u64,
    /// Set by the operator.
    pub draining: bool,
    pub bytes_used: u64,
    pub bytes_allowed: u64,
    pub last_seen_ms: i64,
}

/// An edge's periodic report about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeStatus {
    pub bytes_used: u64,
    pub bytes_allowed: u64,
}

impl EdgeRecord {
    /// Converts to the wire format; the row does not contain readers and chunks.
    #[must_use]
    pub fn to_proto(&self) -> v1::Edge {
        v1::Edge {
            name: self.name.clone(),
            state: self.state.into(),
            url: self.url.clone(),
            bytes_used: self.bytes_used,
            bytes_allowed: self.bytes_allowed,
            readers: 0,
            epoch: self.epoch,
            last_seen_ms: self.last_seen_ms,
            store_id: self.store_id.to_string(),
            chunks: 0,
            requests_active: 0,
            chunks_to_hand_over: 0,
        }
    }
}

impl Database {
    /// All edges, by name.
    pub async fn edges(&self) -> Result<Vec<EdgeRecord>, DatabaseError> {
        Ok(self
            .query(statements::EDGE_LIST, &[])
            .await?
            .iter()
            .map(from_row)
            .collect())
    }

    pub async fn edge(&self, name: &str) -> Result<Option<EdgeRecord>, DatabaseError> {
        if !may_exist(&[name]) {
            return Ok(None);
        }
        Ok(self
            .query_opt(statements::EDGE_GET, &[&name])
            .await?
            .as_ref()
            .map(from_row))
    }

    /// The number of an edge's chunk rows, counted up to `limit`.
    pub async fn edge_chunk_count(&self, edge: EdgeId, limit: u32) -> Result<u64, DatabaseError> {
        let row = self
            .query_one(statements::EDGE_CHUNK_COUNT, &[&edge, &i64::from(limit)])
            .await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }
}

pub(super) fn from_row(row: &Row) -> EdgeRecord {
    EdgeRecord {
        id: row.get("id"),
        name: row.get("name"),
        state: parse_state(row.get("state")),
        url: row.get("url"),
        store_id: row.get("store_id"),
        epoch: row.get::<_, i64>("epoch").unsigned_abs(),
        draining: row.get("draining"),
        bytes_used: row.get::<_, i64>("bytes_used").unsigned_abs(),
        bytes_allowed: row.get::<_, i64>("bytes_allowed").unsigned_abs(),
        last_seen_ms: unix_ms(row.get("last_seen")),
    }
}

pub(super) fn parse_state(text: &str) -> v1::EdgeState {
    match text {
        "active" => v1::EdgeState::Active,
        "draining" => v1::EdgeState::Draining,
        "suspect" => v1::EdgeState::Suspect,
        "lost" => v1::EdgeState::Lost,
        _ => v1::EdgeState::Unspecified,
    }
}

pub(super) fn state_text(state: v1::EdgeState) -> Result<&'static str, DatabaseError> {
    match state {
        v1::EdgeState::Active => Ok("active"),
        v1::EdgeState::Draining => Ok("draining"),
        v1::EdgeState::Suspect => Ok("suspect"),
        v1::EdgeState::Lost => Ok("lost"),
        v1::EdgeState::Unspecified => Err(DatabaseError::invalid("state", "is not set")),
    }
}
