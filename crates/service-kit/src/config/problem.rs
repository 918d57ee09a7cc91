//! What is wrong with a configuration, all of it.

use std::fmt;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    CommandLine,
    /// The variable's name.
    Environment(String),
    /// The file's path.
    File(String),
    Default,
    /// Given nowhere, or about several options.
    Nowhere,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::CommandLine => write!(f, "command line"),
            Origin::Environment(name) => write!(f, "environment variable {name}"),
            Origin::File(path) => write!(f, "file {path}"),
            Origin::Default => write!(f, "default"),
            Origin::Nowhere => Ok(()),
        }
    }
}

/// One mistake: which option, from where, what is wrong and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// As people write it: `--max-size`, or the unknown key itself.
    pub option: String,
    pub origin: Origin,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Nowhere => write!(f, "{}: {}", self.option, self.message),
            origin => write!(f, "{} ({origin}): {}", self.option, self.message),
        }
    }
}

/// Everything that is wrong, in the order it was found. Never empty when it is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds what a check across options found: `name` without dashes.
    pub fn push(&mut self, name: &str, message: impl Into<String>) {
        self.push_from(format!("--{name}"), Origin::Nowhere, message);
    }

    pub(super) fn push_from(
        &mut self,
        option: impl Into<String>,
        origin: Origin,
        message: impl Into<String>,
    ) {
        self.0.push(Problem {
            option: option.into(),
            origin,
            message: message.into(),
        });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    pub(super) fn into_result<T>(self, value: T) -> Result<T, Problems> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self)
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

impl std::error::Error for Problems {}
