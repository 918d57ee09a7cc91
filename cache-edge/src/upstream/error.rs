//! Failures between this edge and an origin or peer: which side caused them, and whether to ask
//! again.

use std::time::Duration;

use http_rules::origin_answer::AnswerError;

/// Why an answer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// Name not found, connection refused.
    #[error("can not be reached: {0}")]
    Unreachable(String),
    /// The head of an answer did not arrive in time.
    #[error("can not be reached: no answer within {0:?}")]
    TimedOut(Duration),
    /// The request came back to an edge that it had passed already.
    #[error("leads back to this edge")]
    Loop,
    /// Reached, but without a usable answer: an untrusted certificate, no TLS, no HTTP, or the
    /// connection ended. This may be one of several servers behind a name, or one being repaired,
    /// so it is asked again.
    #[error("gave no answer that can be used: {0}")]
    NoAnswer(String),
    /// 5xx, 408, 425: may succeed in a moment.
    #[error("answered {status}")]
    Unavailable {
        status: u16,
        retry_after: Option<Duration>,
    },
    /// 429: no further request before its time.
    #[error("answered 429")]
    Busy { retry_after: Duration },
    /// Too many requests already wait for its limit on connections.
    #[error("has too many requests waiting for a connection")]
    TooManyWaiting,
    /// Any other status without an object: 404, 410, 403, ...
    #[error("answered {status}")]
    Refused { status: u16 },
    /// The origin requires a client's signature, and no accepted one is valid now, so it is not
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
    /// No byte arrived for too long.
    #[error("sent no byte for {0:?}")]
    Stalled(Duration),
    /// The key was invalidated after the question was sent, so the answer is outdated.
    #[error("answered before the key was invalidated")]
    Overtaken,
    /// A peer's block does not match the hash that it was sent with.
    #[error("sent bytes that are not what it has the hash of")]
    WrongBytes,
    /// The origin ignores ranges, and one body is already bringing the whole entry here. Not an
    /// error of the origin.
    #[error("is brought as a whole by another fetch")]
    WholeStreamRuns,
    /// Something that HTTP does not allow, or that this edge does not accept.
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

    /// Whether the origin caused the error. It did not if the request was never sent, or if its
    /// answer was overtaken.
    #[must_use]
    pub fn is_of_origin(&self) -> bool {
        !matches!(
            self,
            Self::Overtaken | Self::TooManyWaiting | Self::Unsigned
        )
    }

    /// The pause that the origin requested, if it did.
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
