//! Errors of use cases: their cause, and so whether to retry.
//!
//! Only `grpc/status.rs` maps these to gRPC.

use crate::{access::Denied, db::DatabaseError};

/// A field of a request that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field in the request message, in proto names: `source.base_url`.
    pub field: String,
    /// The valid form.
    pub description: String,
}

impl FieldViolation {
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            description: description.into(),
        }
    }
}

/// Kinds of resources that can be absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A registered origin.
    Source,
    /// A cached object.
    Entry,
    /// An object at its origin.
    Object,
    /// A member of the cluster.
    Edge,
    /// A precache job.
    Job,
}

impl Resource {
    /// The name in messages and in `google.rpc.ResourceInfo`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Entry => "entry",
            Self::Object => "object",
            Self::Edge => "edge",
            Self::Job => "job",
        }
    }
}

/// Why a use case failed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The caller's fault; the same request can never succeed.
    #[error("{}", describe_violations(.0))]
    Invalid(Vec<FieldViolation>),
    /// The named resource does not exist.
    #[error("{} {name:?} is not known", resource.name())]
    NotFound {
        resource: Resource,
        /// As the caller named it.
        name: String,
    },
    /// The caller is not allowed.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Ask the leader instead.
    #[error(
        "this coordinator does not lead{}",
        leader.as_ref().map(|l| format!("; {l} does")).unwrap_or_default()
    )]
    NotLeader {
        /// Its address, if known.
        leader: Option<String>,
    },
    /// The session was replaced by a newer one.
    #[error("epoch {given} of edge {edge:?} is not its present one")]
    StaleEpoch { edge: String, given: u64 },
    /// The state of the system forbids it now.
    #[error("{message}")]
    Precondition {
        /// Stable, for programs: `UPPER_SNAKE`.
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// No edge is available for it; may pass.
    #[error("{0}")]
    NoEdge(String),
    /// The origin's fault; may pass.
    #[error("origin of source {source_name:?}: {message}")]
    Origin {
        /// The name of the source.
        source_name: String,
        message: String,
    },
    /// A bound was reached; may pass.
    #[error("{0}")]
    Exhausted(String),
    /// The database's fault; may pass.
    #[error("database: {0}")]
    Database(String),
    /// The database refuses the value, and always will.
    #[error("{0}")]
    Refused(String),
    /// The caller's deadline passed first.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// The process is stopping.
    #[error("this coordinator is shutting down")]
    ShuttingDown,
    /// Our fault.
    #[error("internal: {0}")]
    Internal(String),
}

impl ServiceError {
    /// A request with one invalid field.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldViolation::new(field, description)])
    }

    /// A named resource that does not exist.
    pub fn not_found(resource: Resource, name: impl Into<String>) -> Self {
        Self::NotFound {
            resource,
            name: name.into(),
        }
    }
}

fn describe_violations(violations: &[FieldViolation]) -> String {
    let parts: Vec<String> = violations
        .iter()
        .map(|v| format!("{}: {}", v.field, v.description))
        .collect();
    parts.join("; ")
}

impl From<DatabaseError> for ServiceError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::NotFound { what, name } => {
                let resource = match what {
                    "source" => Resource::Source,
                    "edge" => Resource::Edge,
                    "job" => Resource::Job,
                    _ => Resource::Entry,
                };
                Self::NotFound { resource, name }
            }
            DatabaseError::Conflict(message) => Self::Precondition {
                reason: "CONFLICT",
                message,
            },
            DatabaseError::Fenced => Self::Precondition {
                reason: "STALE_EPOCH",
                message: error.to_string(),
            },
            DatabaseError::NotLeader { leader } => Self::NotLeader { leader },
            DatabaseError::Unavailable { reason, .. } | DatabaseError::Unusable(reason) => {
                Self::Database(reason)
            }
            DatabaseError::Refused { .. } => Self::Refused(error.to_string()),
            DatabaseError::Invalid { field, reason } => Self::invalid(field, reason),
            DatabaseError::Internal(message) => Self::Internal(message),
        }
    }
}
