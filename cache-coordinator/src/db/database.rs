//! The connections: pools, limits, time-outs, readiness.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts};
use parking_lot::RwLock;
use rand::RngExt as _;
use tokio_postgres::{
    NoTls, Row,
    config::{SslMode, TargetSessionAttrs},
    types::ToSql,
};
use tokio_util::sync::CancellationToken;

use super::{
    DatabaseError, MigrateMode, SchemaError, StatementObserver,
    executor::{Executor, Loan},
    migrations,
    statements::Statement,
    tls,
};

/// First wait between attempts to reach the database, and the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// What the client waits beyond the server's own statement timeout before it calls the server dead.
const GRACE: Duration = Duration::from_secs(2);
/// A coordinator that stops in the middle of a transaction (SIGSTOP, a cut network) holds the lease
/// row's lock; the server ends its transaction after this, well within the five seconds a takeover
/// may last.
const IDLE_IN_TRANSACTION: Duration = Duration::from_millis(1_500);

/// Where the database is and how much of it is used.
#[derive(Clone)]
pub struct DatabaseConfig {
    /// `postgres://…` or `key=value …`. `sslmode` `require`, `verify-ca` and `verify-full` mean
    /// verified TLS.
    pub url: String,
    /// Connections for reads; the writer and the lease have one each beside.
    pub max_connections: usize,
    /// Set on each connection.
    pub statement_timeout: Duration,
    /// Waiting for a free connection.
    pub acquire_timeout: Duration,
    /// Making a connection.
    pub connect_timeout: Duration,
    /// As `pg_stat_activity` shows it.
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
    /// Without the URL: it may hold a password.
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
    /// Why not, for people.
    NotReady(String),
}

/// A handle on the database; cheap to clone.
#[derive(Clone)]
pub struct Database {
    shared: Arc<Shared>,
}

struct Shared {
    readers: Pool,
    /// One connection, so that writes never queue behind reads.
    writer: Pool,
    /// One connection, so that a renewal never queues behind anything.
    lease: Pool,
    observer: Arc<dyn StatementObserver>,
    give_up_after: Duration,
    health: RwLock<Health>,
}

impl Database {
    /// Reads the configuration; makes no connection yet.
    pub fn new(
        config: &DatabaseConfig,
        observer: Arc<dyn StatementObserver>,
    ) -> Result<Self, DatabaseError> {
        let (url, root_certificate, verified_tls) = split_tls_options(&config.url);
        let mut postgres: tokio_postgres::Config =
            url.parse().map_err(|error: tokio_postgres::Error| {
                DatabaseError::invalid("database-url", error.to_string())
            })?;
        let tls = verified_tls || postgres.get_ssl_mode() == SslMode::Require;
        // Notices ("already exists, skipping") would be logged as information of ours.
        let options = format!(
            "{} -c client_min_messages=warning -c statement_timeout={} -c idle_in_transaction_session_timeout={}",
            postgres.get_options().unwrap_or_default(),
            config.statement_timeout.as_millis(),
            IDLE_IN_TRANSACTION.as_millis(),
        );
        postgres
            .options(options.trim())
            .application_name(&config.application_name)
            .connect_timeout(config.connect_timeout)
            .keepalives_idle(Duration::from_secs(10))
            .tcp_user_timeout(config.statement_timeout + GRACE);
        if postgres.get_hosts().len() > 1 {
            // Of a managed pair, the one that takes writes.
            postgres.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let pool = |max_size| {
            let manager_config = ManagerConfig {
                recycling_method: RecyclingMethod::Fast,
            };
            let manager = if tls {
                let mut postgres = postgres.clone();
                postgres.ssl_mode(SslMode::Require);
                Manager::from_config(
                    postgres,
                    tls::connector(root_certificate.as_deref())?,
                    manager_config,
                )
            } else {
                Manager::from_config(postgres.clone(), NoTls, manager_config)
            };
            Pool::builder(manager)
                .max_size(max_size)
                .runtime(Runtime::Tokio1)
                .timeouts(Timeouts {
                    wait: Some(config.acquire_timeout),
                    create: Some(config.connect_timeout),
                    recycle: Some(config.connect_timeout),
                })
                .build()
                .map_err(|error| DatabaseError::Internal(error.to_string()))
        };
        Ok(Self {
            shared: Arc::new(Shared {
                readers: pool(config.max_connections.max(1))?,
                writer: pool(1)?,
                lease: pool(1)?,
                observer,
                give_up_after: config.statement_timeout + GRACE,
                health: RwLock::new(Health::NotReady("not connected yet".into())),
            }),
        })
    }

    /// Returns once the database answers with our schema; logs one line an attempt. A schema that
    /// can never fit ends it with an error, a database that is not there does not. `None`:
    /// cancelled.
    pub async fn wait_ready(
        &self,
        mode: MigrateMode,
        cancel: &CancellationToken,
    ) -> Result<Option<()>, SchemaError> {
        let mut back_off = BACK_OFF.0;
        loop {
            let attempt = tokio::select! {
                () = cancel.cancelled() => return Ok(None),
                attempt = migrations::prepare(self, mode) => attempt,
            };
            let reason = match attempt {
                Ok(applied) => {
                    *self.shared.health.write() = Health::Ready;
                    tracing::info!(migrations_applied = applied, "database is ready");
                    return Ok(Some(()));
                }
                Err(SchemaError::Database(DatabaseError::Unavailable { reason, .. })) => reason,
                // With --no-migrate an older schema is somebody else's job, under way or still to
                // come.
                Err(error @ SchemaError::Pending { .. }) => error.to_string(),
                Err(error) => {
                    *self.shared.health.write() = Health::NotReady(error.to_string());
                    return Err(error);
                }
            };
            let wait = jittered(back_off);
            tracing::warn!(
                retry_in_ms = wait.as_millis() as u64,
                "database is not ready: {reason}"
            );
            *self.shared.health.write() = Health::NotReady(reason);
            tokio::select! {
                () = cancel.cancelled() => return Ok(None),
                () = tokio::time::sleep(wait) => {}
            }
            back_off = (back_off * 2).min(BACK_OFF.1);
        }
    }

    /// Asks now. Before `wait_ready` has succeeded, what it last said.
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

    /// A read on any free connection.
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

    pub(super) fn observer(&self) -> &dyn StatementObserver {
        &*self.shared.observer
    }

    pub(super) fn give_up_after(&self) -> Duration {
        self.shared.give_up_after
    }
}

/// Half to all of a wait, so that many coordinators do not come back in step.
pub(super) fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// Takes out of a URL the libpq options the driver does not know: `sslrootcert`, and the `sslmode`s
/// that verify.
fn split_tls_options(url: &str) -> (String, Option<PathBuf>, bool) {
    let Ok(mut parsed) = url::Url::parse(url) else {
        return (url.to_owned(), None, false);
    };
    let (mut root_certificate, mut verified) = (None, false);
    let mut rest = Vec::new();
    for (name, value) in parsed.query_pairs().into_owned() {
        match (name.as_str(), value.as_str()) {
            ("sslrootcert", path) => root_certificate = Some(PathBuf::from(path)),
            ("sslmode", "verify-ca" | "verify-full") => verified = true,
            _ => rest.push((name, value)),
        }
    }
    if root_certificate.is_none() && !verified {
        return (url.to_owned(), None, false);
    }
    parsed.set_query(None);
    if !rest.is_empty() {
        parsed.query_pairs_mut().extend_pairs(rest);
    }
    (parsed.into(), root_certificate, verified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verifying_modes_are_taken_out_of_the_url() {
        let (url, root, verified) = split_tls_options(
            "postgres://u@h/db?sslmode=verify-full&sslrootcert=/ca.pem&connect_timeout=1",
        );
        assert_eq!(url, "postgres://u@h/db?connect_timeout=1");
        assert_eq!(root, Some(PathBuf::from("/ca.pem")));
        assert!(verified);
        let plain = "host=/run/postgresql user=x";
        assert_eq!(split_tls_options(plain), (plain.to_owned(), None, false));
    }
}
