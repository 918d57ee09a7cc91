//! Configuration errors, for the operator.

use std::fmt;
use std::process::ExitCode;

use super::EXIT_USAGE;

/// All errors, one sentence each that names its option.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<String>);

impl Problems {
    /// Adds an error that a check across options found. `name` is without dashes.
    pub fn push(&mut self, name: &str, message: impl fmt::Display) {
        self.add(format!("--{name}: {message}"));
    }

    pub(super) fn add(&mut self, sentence: String) {
        self.0.push(sentence);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_result<T>(self, value: T) -> Result<T, ConfigError> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(ConfigError::Problems(self))
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "the configuration has {count} {noun}:")?;
        for problem in &self.0 {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

/// Why nothing can run.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An unknown flag or verb; also a request for help or the version.
    #[error("{0}")]
    Usage(#[from] clap::Error),
    #[error("{0}")]
    Problems(Problems),
}

impl ConfigError {
    /// Prints it, and returns the exit code.
    pub fn report(self) -> ExitCode {
        match self {
            ConfigError::Usage(error) => {
                // A closed standard output does not change the status.
                let _ = error.print();
                ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE))
            }
            ConfigError::Problems(problems) => {
                eprintln!("{problems}");
                ExitCode::from(EXIT_USAGE)
            }
        }
    }
}
