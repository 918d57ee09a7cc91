//! Database errors, in the terms of the domain; the only place that interprets SQLSTATE.

use std::time::Duration;

use deadpool_postgres::{HookError, PoolError};

/// The cause of an error, and so whether to retry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// It does not exist.
    #[error("{what} {name} is not known")]
    NotFound { what: &'static str, name: String },
    /// It contradicts what is stored.
    #[error("{0}")]
    Conflict(String),
    /// The report belongs to a session that is over. Nothing was changed.
    #[error("the session is not the edge's present one")]
    Fenced,
    /// Another coordinator leads, or none does at the moment.
    #[error("this coordinator does not lead")]
    NotLeader { leader: Option<String> },
    /// The database cannot be reached now. As far as is known, nothing was changed.
    #[error("the database is not available: {reason}")]
    Unavailable {
        reason: String,
        retry_after: Duration,
        /// The server ended the statement because it took too long.
        is_timeout: bool,
    },
    /// The server answers but refuses us, because of our identity, our rights, or its kind. At the
    /// start this ends the process; later it counts as an outage.
    #[error("the database can not be used: {0}")]
    Unusable(String),
    /// The caller's value cannot be stored.
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    /// The database refuses the content of a statement, and would refuse the same change again.
    #[error("the database refuses it: {reason} (SQLSTATE {sqlstate})")]
    Refused { sqlstate: String, reason: String },
    /// A bug, or a database that is not ours.
    #[error("internal: {0}")]
    Internal(String),
}

impl DatabaseError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Unusable(_))
    }

    /// Whether the statement took too long: a smaller one may succeed.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::Unavailable {
                is_timeout: true,
                ..
            }
        )
    }

    /// Whether the error occurred before any statement failed, so that the transaction can
    /// continue.
    #[must_use]
    pub(super) fn leaves_transaction(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. } | Self::Fenced | Self::Invalid { .. }
        )
    }

    /// Whether one change caused the error, never the others in its batch.
    #[must_use]
    pub fn is_of_one_change(&self) -> bool {
        self.leaves_transaction() || matches!(self, Self::Refused { .. } | Self::Conflict(_))
    }

    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable {
            reason: reason.into(),
            retry_after: Duration::from_millis(500),
            is_timeout: false,
        }
    }

    fn soon(reason: String) -> Self {
        Self::Unavailable {
            reason,
            retry_after: Duration::from_millis(10),
            is_timeout: false,
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
            // Without a SQLSTATE the error is not from the server. Either the connection broke, or
            // a value of ours did not fit the statement, which is a bug.
            return if error.is_closed() || is_io(&error) {
                Self::unavailable(describe(&error))
            } else {
                Self::Internal(describe(&error))
            };
        };
        let reason = describe(&error);
        let constraint = error.as_db_error().and_then(|db| db.constraint());
        if constraint == Some(CHANGE_LOG_KEY) {
            // The writer's position in the change log is outdated; it reads the position again.
            return Self::soon(reason);
        }
        match classify(state.code()) {
            Class::Soon => Self::soon(reason),
            Class::Later => Self::Unavailable {
                reason,
                retry_after: Duration::from_millis(500),
                is_timeout: state.code() == "57014",
            },
            Class::Conflict => Self::Conflict(reason),
            Class::Change => Self::Refused {
                sqlstate: state.code().to_owned(),
                reason,
            },
            Class::Rights => Self::Unusable(reason),
            Class::Ours => Self::Internal(format!("{reason} (SQLSTATE {})", state.code())),
        }
    }
}

/// The primary key of the change log; a conflict means that the revision exists already.
const CHANGE_LOG_KEY: &str = "cache_changes_pkey";

/// The consequence of a SQLSTATE for the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The same statement may succeed at once: it conflicted with another transaction.
    Soon,
    /// It may succeed later: the connection, the server or its resources failed.
    Later,
    /// It contradicts stored data.
    Conflict,
    /// This change is refused, whoever sends it and whenever.
    Change,
    /// The role lacks a right, or has no schema to use: an operator must change that.
    Rights,
    /// The statement itself or the schema is wrong.
    Ours,
}

/// Classifies every SQLSTATE: by its five characters, otherwise by the first two (PostgreSQL
/// manual, appendix A).
pub(super) fn classify(sqlstate: &str) -> Class {
    match sqlstate {
        // serialization_failure, deadlock_detected, statement_completion_unknown.
        "40001" | "40P01" | "40003" => return Class::Soon,
        // lock_not_available, read_only_sql_transaction (a demoted primary),
        // idle_in_transaction_session_timeout, transaction_timeout, object_in_use.
        "55P03" | "25006" | "25P03" | "25P04" | "55006" | "3D000" => return Class::Later,
        "23503" | "23505" | "23P01" => return Class::Conflict,
        // A missing prepared statement: the connection was replaced without our knowledge.
        "26000" => return Class::Later,
        // insufficient_privilege, invalid_schema_name (of the search_path).
        "42501" | "3F000" => return Class::Rights,
        _ => {}
    }
    match sqlstate.get(..2).unwrap_or_default() {
        // Connection, authentication, rollback, resources, operator, system, configuration file.
        "08" | "28" | "40" | "53" | "57" | "58" | "F0" => Class::Later,
        // Data, integrity, program limits (a row or an index row too large), a WITH CHECK OPTION.
        "21" | "22" | "23" | "44" | "54" => Class::Change,
        _ => Class::Ours,
    }
}

/// Whether waiting at the start would not help, because identity, rights or database name are
/// wrong: an operator must change the connection string.
pub(super) fn is_permanent_at_start(sqlstate: &str) -> bool {
    match sqlstate {
        // A server that starts or stops, or too many connections.
        _ if sqlstate.starts_with("57P") || sqlstate.starts_with("53") => false,
        // The database may be created later, as a server may be started later.
        "3D000" => false,
        _ => {
            matches!(classify(sqlstate), Class::Ours | Class::Rights) || sqlstate.starts_with("28")
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
                let permanent = error
                    .code()
                    .is_some_and(|state| is_permanent_at_start(state.code()));
                let reason = describe(&error);
                if reason.contains("unsupported startup parameter") {
                    return Self::Unusable(format!(
                        "{reason}: leave it out of the connection string, or name it in \
                         PgBouncer's ignore_startup_parameters"
                    ));
                }
                if permanent {
                    return Self::Unusable(reason);
                }
                // While connecting, all other errors are worth a retry, because the database may be
                // starting.
                match Self::from(error) {
                    unavailable @ Self::Unavailable { .. } => unavailable,
                    _ => Self::unavailable(reason),
                }
            }
            PoolError::PostCreateHook(HookError::Message(reason)) => Self::unavailable(reason),
            other => Self::unavailable(other.to_string()),
        }
    }
}

/// The whole chain of causes on one line, because tokio-postgres's own text is only "db error".
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_has_its_class() {
        for (sqlstate, class) in [
            ("40001", Class::Soon),
            ("40P01", Class::Soon),
            ("57P01", Class::Later),
            ("57014", Class::Later),
            ("53100", Class::Later),
            ("25006", Class::Later),
            ("08006", Class::Later),
            ("58030", Class::Later),
            ("23505", Class::Conflict),
            // index row size exceeds maximum
            ("54000", Class::Change),
            // invalid byte sequence, numeric value out of range, check constraint
            ("22021", Class::Change),
            ("22003", Class::Change),
            ("23514", Class::Change),
            ("42P01", Class::Ours),
            ("42501", Class::Rights),
            ("3F000", Class::Rights),
            ("XX001", Class::Ours),
            ("", Class::Ours),
        ] {
            assert_eq!(classify(sqlstate), class, "{sqlstate}");
        }
    }

    #[test]
    fn a_start_ends_for_what_waiting_does_not_mend() {
        for sqlstate in ["28P01", "28000", "42501", "0A000"] {
            assert!(is_permanent_at_start(sqlstate), "{sqlstate}");
        }
        for sqlstate in ["57P03", "53300", "3D000", "08006", "25006"] {
            assert!(!is_permanent_at_start(sqlstate), "{sqlstate}");
        }
    }
}
