//! The four levels of urgency.

use crate::v1;

/// Most urgent first, so that the sort order is the order of execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// A reader is waiting for it.
    Critical = 0,
    /// A reader will want it soon.
    High = 1,
    /// A service or an operator requested it.
    Medium = 2,
    /// It would complete a partly cached entry.
    Low = 3,
}

impl Level {
    /// All levels, most urgent first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Medium, Self::Low];

    /// The name in metrics and on the command line.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
        }
    }

    /// The name in logs and `explain`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Critical => "CRITICAL",
            Self::High => "HIGH",
            Self::Medium => "MEDIUM",
            Self::Low => "LOW",
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Level> for v1::Priority {
    fn from(level: Level) -> Self {
        match level {
            Level::Critical => Self::Critical,
            Level::High => Self::High,
            Level::Medium => Self::Medium,
            Level::Low => Self::Low,
        }
    }
}

impl TryFrom<v1::Priority> for Level {
    type Error = UnspecifiedPriority;

    fn try_from(priority: v1::Priority) -> Result<Self, Self::Error> {
        match priority {
            v1::Priority::Unspecified => Err(UnspecifiedPriority),
            v1::Priority::Critical => Ok(Self::Critical),
            v1::Priority::High => Ok(Self::High),
            v1::Priority::Medium => Ok(Self::Medium),
            v1::Priority::Low => Ok(Self::Low),
        }
    }
}

/// A message without a priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "priority is unspecified; expected PRIORITY_CRITICAL, PRIORITY_HIGH, PRIORITY_MEDIUM or \
     PRIORITY_LOW"
)]
pub struct UnspecifiedPriority;
