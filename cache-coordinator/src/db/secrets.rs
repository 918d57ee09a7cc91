//! Keys of the cluster: created once, on the first request.

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
