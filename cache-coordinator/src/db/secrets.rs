//! Keys of the cluster: made once, by whoever asks first.

use super::{Database, DatabaseError, statements};

impl Database {
    /// The secret of that name; `fresh` becomes it if there is none yet.
    pub async fn secret(&self, name: &str, fresh: &[u8]) -> Result<Vec<u8>, DatabaseError> {
        self.execute(statements::SECRET_INSERT, &[&name, &fresh])
            .await?;
        Ok(self
            .query_one(statements::SECRET_GET, &[&name])
            .await?
            .get(0))
    }
}
