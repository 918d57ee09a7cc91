//! Runs one catalogued statement: prepares it once per connection, bounds and measures its time,
//! and translates its errors.

use std::time::{Duration, Instant};

use deadpool_postgres::{GenericClient, Object, Transaction};
use tokio_postgres::{IsolationLevel, Row, types::ToSql};
use tracing::{Instrument as _, Span};

use super::{Database, DatabaseError, StatementObserver, statements::Statement};

/// A client or a transaction, with its observer.
pub(super) struct Executor<'a, C> {
    client: &'a C,
    observer: &'a dyn StatementObserver,
    /// Longer than the server's own statement timeout, for a server that does not answer at all.
    give_up_after: Duration,
}

impl<'a, C: GenericClient> Executor<'a, C> {
    pub fn new(client: &'a C, database: &'a Database) -> Self {
        Self {
            client,
            observer: database.observer(),
            give_up_after: database.give_up_after(),
        }
    }

    pub async fn query(
        &self,
        statement: Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, DatabaseError> {
        self.timed(statement.name, async {
            let prepared = self.client.prepare_cached(statement.sql).await?;
            self.client.query(&prepared, params).await
        })
        .await
    }

    pub async fn query_opt(
        &self,
        statement: Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, DatabaseError> {
        Ok(self.query(statement, params).await?.into_iter().next())
    }

    pub async fn query_one(
        &self,
        statement: Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, DatabaseError> {
        self.query_opt(statement, params)
            .await?
            .ok_or_else(|| DatabaseError::Internal(format!("{} answered no row", statement.name)))
    }

    pub async fn execute(
        &self,
        statement: Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, DatabaseError> {
        self.timed(statement.name, async {
            let prepared = self.client.prepare_cached(statement.sql).await?;
            self.client.execute(&prepared, params).await
        })
        .await
    }

    async fn timed<T>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, DatabaseError> {
        timed(self.observer, self.give_up_after, name, work).await
    }
}

/// Waits for `work`, at most for `give_up_after`, and reports to the observer.
pub(super) async fn timed<T>(
    observer: &dyn StatementObserver,
    give_up_after: Duration,
    name: &'static str,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, DatabaseError> {
    let began = Instant::now();
    // Only on behalf of a call, in its trace. The lease and the writer would create separate
    // traces.
    let span = if Span::current().is_none() {
        Span::none()
    } else {
        tracing::info_span!(
            "database",
            otel.kind = "client",
            db.system.name = "postgresql",
            statement = name
        )
    };
    let result = match tokio::time::timeout(give_up_after, work.instrument(span)).await {
        Ok(result) => result.map_err(DatabaseError::from),
        Err(_) => Err(DatabaseError::unavailable(format!(
            "{name}: no answer from the database in {give_up_after:?}"
        ))),
    };
    observer.observe(name, began.elapsed(), result.is_ok());
    result
}

/// A borrowed connection. It returns to the pool only if its work is known to have ended well: a
/// dropped call (a client's deadline) leaves a statement running on it, and the next user would
/// have to wait for that.
pub(super) struct Loan {
    object: Option<Object>,
    returnable: bool,
}

impl Loan {
    pub fn new(object: Object) -> Self {
        Self {
            object: Some(object),
            returnable: false,
        }
    }

    pub fn client(&mut self) -> Result<&mut Object, DatabaseError> {
        self.object
            .as_mut()
            .ok_or_else(|| DatabaseError::Internal("connection already given back".into()))
    }

    /// Returns the connection to the pool if the result shows that it is sound.
    pub fn end<T>(mut self, result: Result<T, DatabaseError>) -> Result<T, DatabaseError> {
        self.returnable = !matches!(&result, Err(error) if error.is_unavailable());
        result
    }

    /// Begins a transaction that reads one state of the database.
    pub async fn snapshot(
        &mut self,
        database: &Database,
    ) -> Result<Transaction<'_>, DatabaseError> {
        let begin = self
            .client()?
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start();
        timed(
            database.observer(),
            database.give_up_after(),
            "begin",
            begin,
        )
        .await
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let (false, Some(object)) = (self.returnable, self.object.take()) {
            drop(Object::take(object));
        }
    }
}
