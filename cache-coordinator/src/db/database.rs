//! Database connections: pools, limits, time-outs, readiness.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Pool, QueueMode, RecyclingMethod, Runtime, Timeouts,
};
use parking_lot::RwLock;
use service_kit::backoff::Backoff;
use tokio_postgres::{Row, types::ToSql};
use tokio_util::sync::CancellationToken;

use super::{
    Binding, DatabaseError, MigrateMode, SchemaError, StatementObserver,
    connect::{Connector, Process, find_pooler, prepare_session},
    executor::{Executor, Loan},
    lookups::KeyLookups,
    migrations,
    statements::{self, Statement},
};

/// First wait between attempts to reach the database, and the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How much longer than the server's own statement timeout the client waits before it considers the
/// server dead.
const GRACE: Duration = Duration::from_secs(2);
/// Maximum age of a connection: meanwhile its server may have been demoted, or the name may point
/// elsewhere.
const MAX_AGE: Duration = Duration::from_secs(600);
/// Encodings that store every character.
const ENCODINGS: [&str; 2] = ["UTF8", "SQL_ASCII"];
/// A coordinator that stops in the middle of a transaction (SIGSTOP, a cut network) holds the lease
/// row's lock. The server ends its transaction after this time, well within the five seconds of a
/// takeover.
const IDLE_IN_TRANSACTION: Duration = Duration::from_millis(1_500);

/// The location of the database, and the limits of its use.
#[derive(Clone)]
pub struct DatabaseConfig {
    /// `postgres://…` or `key=value …`, as libpq reads it.
    pub url: String,
    /// Connections for reads. The writer and the lease have one more each.
    pub max_connections: usize,
    /// Set on each connection.
    pub statement_timeout: Duration,
    /// Time limit for obtaining a free connection.
    pub acquire_timeout: Duration,
    /// Time limit for making a connection.
    pub connect_timeout: Duration,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
}

impl DatabaseConfig {
    /// The defaults for a URL.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_connections: 16,
            statement_timeout: Duration::from_secs(10),
            acquire_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(3),
            application_name: "cache-coordinator".into(),
        }
    }
}

impl fmt::Debug for DatabaseConfig {
    /// Without the URL, which may contain a password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DatabaseConfig")
            .field("max_connections", &self.max_connections)
            .field("statement_timeout", &self.statement_timeout)
            .finish_non_exhaustive()
    }
}

/// Whether the database answers and has our schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// The reason, for people.
    NotReady(String),
}

/// A handle on the database; cheap to clone.
#[derive(Clone)]
pub struct Database {
    shared: Arc<Shared>,
}

struct Shared {
    readers: Pool,
    lookups: KeyLookups<Binding>,
    /// One connection, so that writes never queue behind reads.
    writer: Pool,
    /// One connection, so that a renewal never queues behind anything.
    lease: Pool,
    observer: Arc<dyn StatementObserver>,
    give_up_after: Duration,
    /// Connections made before this time are not reused.
    renewed: Arc<RwLock<Instant>>,
    health: RwLock<Health>,
}

impl Database {
    /// Reads the configuration; makes no connection yet.
    pub fn new(
        config: &DatabaseConfig,
        observer: Arc<dyn StatementObserver>,
    ) -> Result<Self, DatabaseError> {
        let mut connector = Connector::new(&config.url, &Process)?;
        let postgres = &mut connector.config;
        if postgres.get_application_name().is_none() {
            postgres.application_name(&config.application_name);
        }
        if postgres.get_connect_timeout().is_none() {
            postgres.connect_timeout(config.connect_timeout);
        }
        if postgres.get_tcp_user_timeout().is_none() {
            postgres.tcp_user_timeout(config.statement_timeout + GRACE);
        }
        let renewed = Arc::new(RwLock::new(Instant::now()));
        let statement_timeout = config.statement_timeout;
        let pool = |max_size| {
            let manager_config = ManagerConfig {
                recycling_method: RecyclingMethod::Fast,
            };
            let manager =
                Manager::from_connect(connector.config.clone(), connector.clone(), manager_config);
            let renewed = Arc::clone(&renewed);
            Pool::builder(manager)
                .max_size(max_size)
                .runtime(Runtime::Tokio1)
                // The one that was used last: its statements are prepared, its caches warm.
                .queue_mode(QueueMode::Lifo)
                .timeouts(Timeouts {
                    wait: Some(config.acquire_timeout),
                    create: Some(config.connect_timeout),
                    recycle: Some(config.connect_timeout),
                })
                .post_create(Hook::async_fn(move |client, _| {
                    Box::pin(async move {
                        prepare_session(client, statement_timeout, IDLE_IN_TRANSACTION)
                            .await
                            .map_err(|error| HookError::message(error.to_string()))
                    })
                }))
                // The server of an old connection may have been demoted since.
                .pre_recycle(Hook::sync_fn(move |_, metrics| {
                    if metrics.created < *renewed.read() || metrics.age() > MAX_AGE {
                        return Err(HookError::message("the connection is too old"));
                    }
                    Ok(())
                }))
                .build()
                .map_err(|error| DatabaseError::Internal(error.to_string()))
        };
        Ok(Self {
            shared: Arc::new(Shared {
                readers: pool(config.max_connections.max(1))?,
                lookups: KeyLookups::default(),
                writer: pool(1)?,
                lease: pool(1)?,
                observer,
                give_up_after: config.statement_timeout + GRACE,
                renewed: Arc::clone(&renewed),
                health: RwLock::new(Health::NotReady("not connected yet".into())),
            }),
        })
    }

    /// Returns once the database answers with our schema; logs one line per attempt. A schema that
    /// can never fit is an error; a missing database is not. `None`: cancelled.
    pub async fn wait_ready(
        &self,
        mode: MigrateMode,
        cancel: &CancellationToken,
    ) -> Result<Option<()>, SchemaError> {
        let mut backoff = Backoff::new(BACK_OFF.0, BACK_OFF.1);
        loop {
            let attempt = tokio::select! {
                () = cancel.cancelled() => return Ok(None),
                attempt = self.prepare(mode) => attempt,
            };
            let reason = match attempt {
                Ok(applied) => {
                    *self.shared.health.write() = Health::Ready;
                    tracing::info!(migrations_applied = applied, "database is ready");
                    return Ok(Some(()));
                }
                Err(SchemaError::Database(DatabaseError::Unavailable { reason, .. })) => reason,
                // With --no-migrate, another process applies the migrations, now or later.
                Err(error @ SchemaError::Pending { .. }) => error.to_string(),
                Err(error) => {
                    *self.shared.health.write() = Health::NotReady(error.to_string());
                    return Err(error);
                }
            };
            let wait = backoff.wait(rand::random());
            tracing::warn!(
                retry_in_ms = wait.as_millis() as u64,
                "database is not ready: {reason}"
            );
            *self.shared.health.write() = Health::NotReady(reason);
            tokio::select! {
                () = cancel.cancelled() => return Ok(None),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn prepare(&self, mode: MigrateMode) -> Result<usize, SchemaError> {
        self.refuse_pooler().await?;
        self.refuse_encoding().await?;
        migrations::prepare(self, mode).await
    }

    async fn refuse_pooler(&self) -> Result<(), DatabaseError> {
        let mut one = self.writer_connection().await?;
        let mut other = self.lease_connection().await?;
        let found = find_pooler(one.client()?, other.client()?).await;
        let found = other.end(found);
        match one.end(found)? {
            None => Ok(()),
            Some(reason) => Err(DatabaseError::Unusable(reason)),
        }
    }

    /// Refuses a database that cannot store every character: a change or a question with one would
    /// fail later, by itself.
    async fn refuse_encoding(&self) -> Result<(), DatabaseError> {
        let encoding = self.setting("server_encoding").await?;
        if ENCODINGS.contains(&encoding.as_str()) {
            return Ok(());
        }
        Err(DatabaseError::Unusable(format!(
            "its encoding is {encoding}, not UTF8: make it with createdb --template=template0 \
             --encoding=UTF8"
        )))
    }

    /// Whether connections are encrypted.
    pub async fn is_encrypted(&self) -> Result<bool, DatabaseError> {
        let row = self.query_one(statements::SESSION_ENCRYPTED, &[]).await?;
        Ok(row.get(0))
    }

    /// A setting of a session.
    pub async fn setting(&self, name: &str) -> Result<String, DatabaseError> {
        let row = self
            .query_one(statements::SESSION_SETTING, &[&name])
            .await?;
        Ok(row.get(0))
    }

    /// Discards older connections after an error in a write, because the server may have been
    /// demoted.
    pub(super) fn renew_connections(&self) {
        *self.shared.renewed.write() = Instant::now();
    }

    /// Checks now. Until `wait_ready` has succeeded, returns its last result.
    pub async fn health(&self) -> Health {
        let last = self.shared.health.read().clone();
        if last != Health::Ready {
            return last;
        }
        match self.latest_revision().await {
            Ok(_) => Health::Ready,
            Err(error) => Health::NotReady(error.to_string()),
        }
    }

    /// Runs a read on any free connection.
    pub(super) async fn query(
        &self,
        statement: Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, DatabaseError> {
        let mut loan = self.reader().await?;
        let result = Executor::new(&*loan.client()?, self)
            .query(statement, params)
            .await;
        loan.end(result)
    }

    pub(super) async fn query_opt(
        &self,
        statement: Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, DatabaseError> {
        Ok(self.query(statement, params).await?.into_iter().next())
    }

    pub(super) async fn query_one(
        &self,
        statement: Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, DatabaseError> {
        self.query_opt(statement, params)
            .await?
            .ok_or_else(|| DatabaseError::Internal(format!("{} answered no row", statement.name)))
    }

    pub(super) async fn execute(
        &self,
        statement: Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, DatabaseError> {
        let mut loan = self.reader().await?;
        let result = Executor::new(&*loan.client()?, self)
            .execute(statement, params)
            .await;
        loan.end(result)
    }

    pub(super) async fn reader(&self) -> Result<Loan, DatabaseError> {
        Ok(Loan::new(self.shared.readers.get().await?))
    }

    pub(super) async fn writer_connection(&self) -> Result<Loan, DatabaseError> {
        Ok(Loan::new(self.shared.writer.get().await?))
    }

    pub(super) async fn lease_connection(&self) -> Result<Loan, DatabaseError> {
        Ok(Loan::new(self.shared.lease.get().await?))
    }

    pub(super) fn lookups(&self) -> &KeyLookups<Binding> {
        &self.shared.lookups
    }

    pub(super) fn observer(&self) -> &dyn StatementObserver {
        &*self.shared.observer
    }

    pub(super) fn give_up_after(&self) -> Duration {
        self.shared.give_up_after
    }
}
