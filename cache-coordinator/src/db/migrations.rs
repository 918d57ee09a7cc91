//! The schema: forward-only files in `migrations/`, each applied once, in one transaction, by one
//! coordinator at a time.

use sha2::{Digest as _, Sha256};

use super::{
    Database, DatabaseError,
    executor::{Executor, timed},
    statements,
};

/// One migration file.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// 1, 2, 3 …
    pub version: i32,
    pub name: &'static str,
    pub sql: &'static str,
}

/// All known migrations, ascending.
#[must_use]
pub fn migrations() -> &'static [Migration] {
    &[
        Migration {
            version: 1,
            name: "initial",
            sql: include_str!("../../../migrations/0001_initial.sql"),
        },
        Migration {
            version: 2,
            name: "invalidated",
            sql: include_str!("../../../migrations/0002_invalidated.sql"),
        },
        Migration {
            version: 3,
            name: "bounded",
            sql: include_str!("../../../migrations/0003_bounded.sql"),
        },
        Migration {
            version: 4,
            name: "purges",
            sql: include_str!("../../../migrations/0004_purges.sql"),
        },
        Migration {
            version: 5,
            name: "pending_purges",
            sql: include_str!("../../../migrations/0005_pending_purges.sql"),
        },
        Migration {
            version: 6,
            name: "job_windows",
            sql: include_str!("../../../migrations/0006_job_windows.sql"),
        },
    ]
}

/// How to handle a schema older than ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrateMode {
    Apply,
    /// `--no-migrate`
    CheckOnly,
}

/// Why a schema does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// A later release has been here; continuing would damage its data.
    #[error(
        "the database has schema version {found}, newer than version {known}, the newest this \
         coordinator knows"
    )]
    Newer { found: i32, known: i32 },
    /// A migration was edited after it was applied.
    #[error(
        "migration {version} ({name}) was applied with another content than this coordinator has"
    )]
    Changed { version: i32, name: String },
    /// `--no-migrate`, and there are migrations to apply.
    #[error(
        "the database has schema version {found}; version {known} is needed and migrations are off"
    )]
    Pending { found: i32, known: i32 },
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// Brings the schema up to date, or checks it. Returns the number of migrations applied.
pub(super) async fn prepare(database: &Database, mode: MigrateMode) -> Result<usize, SchemaError> {
    prepare_with(database, mode, migrations()).await
}

async fn prepare_with(
    database: &Database,
    mode: MigrateMode,
    known: &[Migration],
) -> Result<usize, SchemaError> {
    if mode == MigrateMode::CheckOnly {
        let present: bool = database
            .query_one(statements::SCHEMA_EXISTS, &[])
            .await?
            .get(0);
        let newest = known.last().map_or(0, |migration| migration.version);
        let applied = if present {
            applied(database.query(statements::SCHEMA_APPLIED, &[]).await?)
        } else {
            Vec::new()
        };
        let found = check(&applied, known)?;
        return if found == newest {
            Ok(0)
        } else {
            Err(SchemaError::Pending {
                found,
                known: newest,
            })
        };
    }
    let mut count = 0;
    while apply_next(database, known).await? {
        count += 1;
    }
    Ok(count)
}

/// Applies the first missing migration, under the lock. False: none is missing.
async fn apply_next(database: &Database, known: &[Migration]) -> Result<bool, SchemaError> {
    let mut loan = database.reader().await?;
    let result = async {
        let (observer, patience) = (database.observer(), database.give_up_after());
        let transaction = timed(observer, patience, "begin", loan.client()?.transaction()).await?;
        // Another coordinator may hold the lock, and building an index on a large table may take
        // long.
        transaction
            .batch_execute(
                "SET LOCAL statement_timeout = 0; SET LOCAL \
         idle_in_transaction_session_timeout = 0",
            )
            .await
            .map_err(DatabaseError::from)?;
        transaction
            .batch_execute(statements::SCHEMA_LOCK.sql)
            .await
            .map_err(DatabaseError::from)?;
        transaction
            .batch_execute(statements::SCHEMA_TABLE.sql)
            .await
            .map_err(DatabaseError::from)?;
        let executor = Executor::new(&transaction, database);
        let found = check(
            &applied(executor.query(statements::SCHEMA_APPLIED, &[]).await?),
            known,
        )?;
        let Some(next) = known.iter().find(|migration| migration.version > found) else {
            return Ok(false);
        };
        transaction
            .batch_execute(next.sql)
            .await
            .map_err(|error| DatabaseError::from(error).in_migration(next))?;
        executor
            .execute(
                statements::SCHEMA_RECORD,
                &[&next.version, &next.name, &checksum(next.sql)],
            )
            .await?;
        timed(observer, patience, "commit", transaction.commit()).await?;
        tracing::info!(
            version = next.version,
            name = next.name,
            "applied migration"
        );
        Ok(true)
    }
    .await;
    // The connection is not reused, because its caches refer to the old schema.
    drop(loan);
    result
}

impl DatabaseError {
    fn in_migration(self, migration: &Migration) -> Self {
        match self {
            known @ (Self::Unavailable { .. } | Self::Unusable(_)) => known,
            other => Self::Internal(format!(
                "migration {} ({}): {other}",
                migration.version, migration.name
            )),
        }
    }
}

struct Applied {
    version: i32,
    name: String,
    checksum: Vec<u8>,
}

fn applied(rows: Vec<tokio_postgres::Row>) -> Vec<Applied> {
    rows.iter()
        .map(|row| Applied {
            version: row.get(0),
            name: row.get(1),
            checksum: row.get(2),
        })
        .collect()
}

/// The version found, if it is one of ours with our content.
fn check(applied: &[Applied], known: &[Migration]) -> Result<i32, SchemaError> {
    let newest = known.last().map_or(0, |migration| migration.version);
    let found = applied.last().map_or(0, |row| row.version);
    if found > newest {
        return Err(SchemaError::Newer {
            found,
            known: newest,
        });
    }
    for row in applied {
        let same = known.iter().any(|migration| {
            migration.version == row.version && checksum(migration.sql) == row.checksum
        });
        if !same {
            return Err(SchemaError::Changed {
                version: row.version,
                name: row.name.clone(),
            });
        }
    }
    Ok(found)
}

fn checksum(sql: &str) -> Vec<u8> {
    Sha256::digest(sql.as_bytes()).to_vec()
}
