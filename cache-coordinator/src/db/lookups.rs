//! Looks up the entries of keys. Keys that arrive while others are being read are read together.
//!
//! A viewer's first request for an object waits for this, and a statement for each key costs the
//! database more than the read itself. There is no delay: the first key is read at once.

use std::collections::HashMap;

use chunkcache_proto::v1;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use uuid::Uuid;

use super::{
    Binding, Database, DatabaseError,
    entries::{binding_from_row, key_hash},
    statements,
};

/// Concurrent statements.
const STATEMENTS: usize = 2;
/// Limit of keys in a statement.
const MAX_KEYS: usize = 256;

type Found = Result<Option<Binding>, DatabaseError>;

/// The keys that wait to be read, each with its caller.
pub(super) struct KeyLookups {
    waiting: Mutex<Vec<(Uuid, oneshot::Sender<Found>)>>,
    statements: Semaphore,
}

impl Default for KeyLookups {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            statements: Semaphore::new(STATEMENTS),
        }
    }
}

impl KeyLookups {
    fn take(&self) -> Vec<(Uuid, oneshot::Sender<Found>)> {
        let mut waiting = self.waiting.lock();
        // Callers may leave while the database does not answer.
        waiting.retain(|(_, caller)| !caller.is_closed());
        let count = waiting.len().min(MAX_KEYS);
        waiting.drain(..count).collect()
    }
}

impl Database {
    /// The entry that the key points to.
    pub async fn binding(&self, key: &v1::Key) -> Found {
        let hash = key_hash(key);
        let lookups = self.lookups();
        loop {
            let (sender, mut found) = oneshot::channel();
            lookups.waiting.lock().push((hash, sender));
            loop {
                let answer = tokio::select! {
                    biased;
                    answer = &mut found => answer,
                    permit = lookups.statements.acquire() => {
                        let _permit = permit.map_err(|_| closed())?;
                        // Another caller may have read this key, or other keys may precede it.
                        self.read(lookups.take()).await;
                        continue;
                    }
                };
                match answer {
                    Ok(answer) => return answer,
                    // The call that read this key was cancelled.
                    Err(_) => break,
                }
            }
        }
    }

    async fn read(&self, asked: Vec<(Uuid, oneshot::Sender<Found>)>) {
        if asked.is_empty() {
            return;
        }
        let hashes: Vec<Uuid> = asked.iter().map(|(hash, _)| *hash).collect();
        let rows = self.query(statements::BINDING_GET, &[&hashes]).await;
        let found = rows.map(|rows| {
            let binding = |row| (tokio_postgres::Row::get(row, "hash"), binding_from_row(row));
            rows.iter().map(binding).collect::<HashMap<Uuid, _>>()
        });
        for (hash, sender) in asked {
            let answer = match &found {
                Ok(found) => found.get(&hash).cloned().transpose(),
                Err(error) => Err(error.clone()),
            };
            // Its caller may have left.
            let _ = sender.send(answer);
        }
    }
}

fn closed() -> DatabaseError {
    DatabaseError::Internal("lookups are closed".into())
}
