//! What can go wrong, in the domain's words; the one place that reads SQLSTATE.

use std::time::Duration;

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

/// Whose fault it was and whether to try again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// There is no such thing.
    #[error("{what} {name} is not known")]
    NotFound { what: &'static str, name: String },
    /// It contradicts what is stored.
    #[error("{0}")]
    Conflict(String),
    /// The report is of a session that is over. Changed nothing.
    #[error("the session is not the edge's present one")]
    Fenced,
    /// Another coordinator leads, or none at the moment.
    #[error("this coordinator does not lead")]
    NotLeader { leader: Option<String> },
    /// The database can not be asked now. Nothing is known to have changed.
    #[error("the database is not available: {reason}")]
    Unavailable {
        reason: String,
        retry_after: Duration,
    },
    /// The caller's value can not be stored.
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    /// A bug, or a database that is not ours.
    #[error("internal: {0}")]
    Internal(String),
}

impl DatabaseError {
    /// The same call may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable {
            reason: reason.into(),
            retry_after: Duration::from_millis(500),
        }
    }

    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            reason: reason.into(),
        }
    }

    pub(crate) fn not_found(what: &'static str, name: impl ToString) -> Self {
        Self::NotFound {
            what,
            name: name.to_string(),
        }
    }
}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(state) = error.code() else {
            // No SQLSTATE: the server did not say it. Either the connection broke, or a value of
            // ours did not fit the statement, and that is a bug.
            return if error.is_closed() || is_io(&error) {
                Self::unavailable(describe(&error))
            } else {
                Self::Internal(describe(&error))
            };
        };
        let reason = describe(&error);
        let retry_at_once = *state == SqlState::T_R_SERIALIZATION_FAILURE
            || *state == SqlState::T_R_DEADLOCK_DETECTED;
        match state.code() {
            _ if retry_at_once => Self::Unavailable {
                reason,
                retry_after: Duration::from_millis(10),
            },
            "57014" => Self::unavailable(format!("statement timeout: {reason}")),
            "55P03" | "25006" | "25P03" | "3D000" => Self::unavailable(reason),
            "23503" => Self::Conflict(reason),
            "23505" => Self::Conflict(reason),
            "23514" | "23502" => Self::invalid("value", reason),
            code => match &code[..2] {
                // Connection, authentication, resources, operator intervention, system error.
                "08" | "28" | "53" | "57" | "58" => Self::unavailable(reason),
                "22" => Self::invalid("value", reason),
                _ => Self::Internal(format!("{reason} (SQLSTATE {code})")),
            },
        }
    }
}

impl From<PoolError> for DatabaseError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Timeout(kind) => {
                Self::unavailable(format!("no connection in time ({kind:?})"))
            }
            PoolError::Backend(error) => {
                // While connecting everything is worth another try: the database may be starting.
                match Self::from(error) {
                    Self::Internal(reason) => Self::unavailable(reason),
                    other => other,
                }
            }
            other => Self::unavailable(other.to_string()),
        }
    }
}

/// The whole chain of causes in one line: tokio-postgres itself says only "db error".
fn describe(error: &tokio_postgres::Error) -> String {
    let mut text = match error.as_db_error() {
        Some(db) => return db.message().to_owned(),
        None => error.to_string(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<std::io::Error>() {
            return true;
        }
        source = cause.source();
    }
    false
}
