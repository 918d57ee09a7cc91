//! Why a command failed, in words that help, and its exit status.

use std::process::ExitCode;

use service_kit::causes::with_causes;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const CHECK: &str = "check that `cache-coordinator serve` runs there, that --endpoint names its \
                     --listen address, and that http or https and --ca fit";

#[derive(Debug)]
pub(super) enum CliError {
    /// The arguments are invalid: exit status 2.
    Usage(String),
    /// The coordinator refused, or none answered: exit status 1.
    Refused(String),
    /// Standard output was closed by its reader.
    OutputClosed,
}

impl CliError {
    pub(super) fn exit_status(&self) -> u8 {
        match self {
            CliError::Usage(_) => service_kit::config::EXIT_USAGE,
            CliError::Refused(_) => 1,
            CliError::OutputClosed => 0,
        }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            CliError::Usage(message) | CliError::Refused(message) => message,
            CliError::OutputClosed => "standard output was closed",
        }
    }

    /// Prints it on standard error.
    pub(super) fn report(&self) -> ExitCode {
        match self {
            CliError::Usage(message) | CliError::Refused(message) => eprintln!("error: {message}"),
            CliError::OutputClosed => {}
        }
        ExitCode::from(self.exit_status())
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => CliError::OutputClosed,
            _ => CliError::Refused(format!("output can not be written: {error}")),
        }
    }
}

/// The coordinator's answer in words: the message, then the additions from the `google.rpc`
/// details.
pub(super) fn refused(status: &Status, endpoint: &str) -> CliError {
    let details = status.get_error_details();
    let mut lines = vec![headline(status, endpoint)];
    let said = |text: &str| status.message().contains(text);
    if let Some(bad) = details.bad_request() {
        for violation in &bad.field_violations {
            let text = format!("{}: {}", violation.field, violation.description);
            if !said(&text) {
                lines.push(format!("  {text}"));
            }
        }
    }
    if let Some(resource) = details.resource_info()
        && !said(&format!("{:?} is not known", resource.resource_name))
    {
        let text = format!("  {} {}", resource.resource_type, resource.resource_name);
        lines.push(match resource.description.as_str() {
            "" => text,
            description => format!("{text}: {description}"),
        });
    }
    if let Some(failure) = details.precondition_failure() {
        for violation in &failure.violations {
            lines.push(format!(
                "  {}: {}",
                violation.subject, violation.description
            ));
        }
    }
    if let Some(help) = details.help() {
        lines.extend(
            help.links
                .iter()
                .map(|link| format!("  {}: {}", link.description, link.url)),
        );
    }
    CliError::Refused(lines.join("\n"))
}

fn headline(status: &Status, endpoint: &str) -> String {
    let message = match status.message() {
        "" => "no reason given",
        message => &with_causes(message, status),
    };
    match status.code() {
        Code::DeadlineExceeded | Code::Cancelled => {
            format!("no answer from {endpoint} in time ({message}); a longer --timeout may help")
        }
        Code::Unavailable => format!("{endpoint} can not answer now: {message}"),
        Code::Unauthenticated | Code::PermissionDenied => {
            format!("{message} (check --token-file or --cert and --key)")
        }
        Code::Unimplemented => {
            format!("{endpoint} does not know this command: is it a coordinator of this version?")
        }
        // A coordinator says why; this is something else, or the connection broke.
        Code::Unknown | Code::Internal if status.details().is_empty() => {
            format!("{endpoint} does not answer as a coordinator does: {message}\n{CHECK}")
        }
        _ => message.to_owned(),
    }
}

/// No coordinator listens, or not with the expected TLS. Lists every address that was tried.
pub(super) fn unreachable(attempts: &[(String, String)]) -> CliError {
    let mut lines = vec!["no coordinator can be reached".to_owned()];
    lines.extend(
        attempts
            .iter()
            .map(|(endpoint, reason)| format!("  {endpoint}: {reason}")),
    );
    lines.push(CHECK.to_owned());
    CliError::Refused(lines.join("\n"))
}

/// The whole chain of an error, because tonic's own text is only "transport error".
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    with_causes(&error.to_string(), error)
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[track_caller]
    fn check(status: &Status, expected: &str) {
        assert_eq!(refused(status, "http://c:7400").text(), expected);
    }

    #[test]
    fn what_the_message_says_is_not_said_twice() {
        let bad = ErrorDetails::with_bad_request_violation("id", "expected a UUID");
        let status = |message, details: &ErrorDetails| {
            Status::with_error_details(Code::InvalidArgument, message, details.clone())
        };
        check(&status("id: expected a UUID", &bad), "id: expected a UUID");
        check(&status("no", &bad), "no\n  id: expected a UUID");
        let absent = ErrorDetails::with_resource_info("source", "a", "", "not known");
        let message = "source \"a\" is not known";
        check(&status(message, &absent), message);
        check(&status("no", &absent), "no\n  source a: not known");
    }

    /// The HTTP port of a coordinator, an edge, a proxy.
    #[test]
    fn what_is_no_coordinator_is_told_from_one_that_failed() {
        let strange = refused(&Status::internal("protocol error"), "http://c:7401");
        let text = strange.text();
        assert!(text.starts_with("http://c:7401 does not answer as a coordinator"));
        assert!(
            text.contains("protocol error") && text.ends_with(CHECK),
            "{text}"
        );
        let reason: [(String, String); 0] = [];
        let ours = ErrorDetails::with_error_info("INTERNAL", "chunkcache.v1", reason);
        let failed = Status::with_error_details(Code::Internal, "internal: x", ours);
        check(&failed, "internal: x");
    }
}
