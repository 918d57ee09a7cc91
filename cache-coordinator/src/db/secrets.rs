//! Secret keys of the cluster, each created on the first request for it.

use super::{Database, DatabaseError, statements};

impl Database {
    /// The secret with that name; stores `fresh` if there is none yet.
    pub async fn secret(&self, name: &str, fresh: &[u8]) -> Result<Vec<u8>, DatabaseError> {
        self.execute(statements::SECRET_INSERT, &[&name, &fresh])
            .await?;
        Ok(self
            .query_one(statements::SECRET_GET, &[&name])
            .await?
            .get(0))
    }
}
