//! Errors in one line. Libraries often say what happened only deep in the chain of causes.

use std::error::Error;

/// The text, and those causes of the error that it does not contain yet.
#[must_use]
pub fn with_causes(text: &str, error: &dyn Error) -> String {
    let mut words = text.to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Failure(&'static str, #[source] Option<Box<Failure>>);

    #[test]
    fn a_cause_is_told_once() {
        let alert = Failure("received fatal alert: CertificateExpired", None);
        let broken = Failure("transport error", Some(Box::new(alert)));
        let error = Failure("transport error", Some(Box::new(broken)));
        let expected = "Unknown: transport error: received fatal alert: CertificateExpired";
        assert_eq!(with_causes("Unknown: transport error", &error), expected);
        assert_eq!(with_causes("x", &Failure("y", None)), "x");
    }
}
