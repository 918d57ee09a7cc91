//! Failures between this edge and an origin or peer: whose fault, and whether to ask again.

use std::time::Duration;

use http_rules::origin_answer::AnswerError;

/// Why an answer can not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// Name not found, connection refused.
    #[error("can not be reached: {0}")]
    Unreachable(String),
    /// No head of an answer in time.
    #[error("can not be reached: no answer within {0:?}")]
    TimedOut(Duration),
    /// The request came back to an edge it had passed.
    #[error("leads back to this edge")]
    Loop,
    /// Reached, but without a usable answer: an untrusted certificate, no TLS, no HTTP, or the
    /// connection's end. That may be one of several servers behind a name, or one being repaired:
    /// it is asked again.
    #[error("gave no answer that can be used: {0}")]
    NoAnswer(String),
    /// 5xx, 408, 425: may succeed in a moment.
    #[error("answered {status}")]
    Unavailable {
        status: u16,
        retry_after: Option<Duration>,
    },
    /// 429: obeyed.
    #[error("answered 429")]
    Busy { retry_after: Duration },
    /// Too many requests wait already for its limit on connections.
    #[error("has too many requests waiting for a connection")]
    TooManyWaiting,
    /// Any other status without an object: 404, 410, 403, ...
    #[error("answered {status}")]
    Refused { status: u16 },
    /// The origin wants a client's signature, and none that it accepted is good now. It is not
    /// asked.
    #[error("has no valid signature of a client")]
    Unsigned,
    /// Another validator or another size than the entry's.
    #[error("has another version of the object now")]
    Changed,
    /// Broke off before the announced end.
    #[error("broke off after {received} of {expected} bytes: {detail}")]
    Short {
        received: u64,
        expected: u64,
        detail: String,
    },
    /// No byte for too long.
    #[error("sent no byte for {0:?}")]
    Stalled(Duration),
    /// The key was invalidated after the question was sent: the answer is from before.
    #[error("answered before the key was invalidated")]
    Overtaken,
    /// A peer's block does not have the hash it was sent with.
    #[error("sent bytes that are not what it has the hash of")]
    WrongBytes,
    /// Its origin ignores ranges, and one body already brings the whole entry here. Not an error of
    /// the origin.
    #[error("is brought as a whole by another fetch")]
    WholeStreamRuns,
    /// Something HTTP does not allow, or that this edge does not accept.
    #[error("{0}")]
    Protocol(String),
}

impl From<AnswerError> for OriginError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Unavailable { status: 508, .. } => Self::Loop,
            AnswerError::Unavailable {
                status,
                retry_after,
            } => Self::Unavailable {
                status,
                retry_after,
            },
            AnswerError::Busy { retry_after } => Self::Busy { retry_after },
            AnswerError::Refused { status } => Self::Refused { status },
            AnswerError::Changed => Self::Changed,
            AnswerError::Protocol(message) => Self::Protocol(message),
        }
    }
}

impl OriginError {
    /// Whether asking again may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::TimedOut(_)
            | Self::NoAnswer(_)
            | Self::Unavailable { .. }
            | Self::Busy { .. }
            | Self::Short { .. }
            | Self::Stalled(_)
            | Self::WholeStreamRuns => true,
            Self::Refused { .. }
            | Self::Unsigned
            | Self::Changed
            | Self::Loop
            | Self::Protocol(_)
            | Self::WrongBytes
            | Self::Overtaken
            | Self::TooManyWaiting => false,
        }
    }

    /// Whether it is the origin's: not one of a request that was not sent, or whose answer came too
    /// late to count.
    #[must_use]
    pub fn is_of_origin(&self) -> bool {
        !matches!(
            self,
            Self::Overtaken | Self::TooManyWaiting | Self::Unsigned
        )
    }

    /// The pause that the origin asked for, if it did.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            Self::Busy { retry_after } => Some(*retry_after),
            Self::TooManyWaiting => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The status of the answer, if one came.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Unavailable { status, .. } | Self::Refused { status } => Some(*status),
            Self::Unsigned => Some(403),
            Self::Busy { .. } => Some(429),
            Self::Loop => Some(508),
            _ => None,
        }
    }
}
