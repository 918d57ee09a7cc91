//! Turns errors into gRPC statuses with `google.rpc` details; nothing else does.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    access::{Denied, Refusal},
    service::error::ServiceError,
};

/// `google.rpc.ErrorInfo.domain` of all errors.
const DOMAIN: &str = "chunkcache.v1";

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let message = error.to_string();
        let code = code_of(&error);
        if code == Code::Internal {
            tracing::error!(error = %message, "a request failed for a reason of our own");
        }
        Status::with_error_details(code, message, details_of(error))
    }
}

/// The code that tells the caller what to do next.
fn code_of(error: &ServiceError) -> Code {
    match error {
        ServiceError::Invalid(_) | ServiceError::Refused(_) => Code::InvalidArgument,
        ServiceError::NotFound { .. } => Code::NotFound,
        ServiceError::Denied(denied) => code_of_denied(denied),
        ServiceError::NotLeader { .. }
        | ServiceError::StaleEpoch { .. }
        | ServiceError::Precondition { .. } => Code::FailedPrecondition,
        ServiceError::Origin { .. }
        | ServiceError::NoEdge(_)
        | ServiceError::Database(_)
        | ServiceError::ShuttingDown => Code::Unavailable,
        ServiceError::Exhausted(_) => Code::ResourceExhausted,
        ServiceError::DeadlineExceeded(_) => Code::DeadlineExceeded,
        ServiceError::Internal(_) => Code::Internal,
    }
}

fn details_of(error: ServiceError) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    match error {
        ServiceError::Invalid(violations) => {
            for violation in violations {
                details.add_bad_request_violation(violation.field, violation.description);
            }
        }
        ServiceError::NotFound { resource, name } => {
            details.set_resource_info(resource.name(), name, "", "not known to this cluster");
        }
        ServiceError::NotLeader { leader } => {
            let metadata = leader.map(|leader| ("leader".to_owned(), leader));
            details.set_error_info("NOT_LEADER", DOMAIN, HashMap::from_iter(metadata));
        }
        ServiceError::StaleEpoch { edge, given } => {
            let metadata = [
                ("edge".to_owned(), edge),
                ("epoch".to_owned(), given.to_string()),
            ];
            details.set_error_info("STALE_EPOCH", DOMAIN, HashMap::from(metadata));
        }
        ServiceError::Precondition { reason, .. } => {
            details.set_error_info(reason, DOMAIN, HashMap::new());
        }
        ServiceError::NoEdge(_) => {
            details.set_error_info("NO_EDGE", DOMAIN, HashMap::new());
        }
        ServiceError::Origin { source_name, .. } => {
            let metadata = HashMap::from([("source".to_owned(), source_name)]);
            details.set_error_info("ORIGIN_FAILED", DOMAIN, metadata);
        }
        ServiceError::Denied(denied) => set_denied(&mut details, &denied),
        ServiceError::Database(_) => {
            details.set_error_info("DATABASE_UNAVAILABLE", DOMAIN, HashMap::new());
        }
        ServiceError::ShuttingDown => {
            details.set_error_info("SHUTTING_DOWN", DOMAIN, HashMap::new());
        }
        ServiceError::Refused(_) => {
            details.set_error_info("REFUSED_BY_DATABASE", DOMAIN, HashMap::new());
        }
        ServiceError::Internal(_) => {
            details.set_error_info("INTERNAL", DOMAIN, HashMap::new());
        }
        ServiceError::Exhausted(_) | ServiceError::DeadlineExceeded(_) => {}
    }
    details
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        let mut details = ErrorDetails::new();
        set_denied(&mut details, &denied);
        Status::with_error_details(code_of_denied(&denied), denied.message, details)
    }
}

fn code_of_denied(denied: &Denied) -> Code {
    match denied.refusal {
        Refusal::Unauthenticated => Code::Unauthenticated,
        Refusal::Forbidden => Code::PermissionDenied,
    }
}

fn set_denied(details: &mut ErrorDetails, denied: &Denied) {
    let needed = Some(denied.needed).filter(|roles| !roles.is_empty());
    let metadata = needed.map(|roles| ("needed_role".to_owned(), roles.to_owned()));
    details.set_error_info(denied.reason, DOMAIN, HashMap::from_iter(metadata));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::service::error::Resource;

    #[test]
    fn a_bad_field_is_named() {
        let status = Status::from(ServiceError::invalid("source.name", "expected a name"));
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "source.name");
    }

    #[test]
    fn a_standby_names_the_leader() {
        let status = Status::from(ServiceError::NotLeader {
            leader: Some("http://127.0.0.1:7400".into()),
        });
        assert_eq!(status.code(), Code::FailedPrecondition);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(info.reason, "NOT_LEADER");
        assert_eq!(info.metadata["leader"], "http://127.0.0.1:7400");
    }

    #[test]
    fn an_absent_thing_is_named() {
        let status = Status::from(ServiceError::not_found(Resource::Entry, "films/a"));
        assert_eq!(status.code(), Code::NotFound);
        let details = status.get_error_details();
        let info = details.resource_info().unwrap();
        assert_eq!(
            (info.resource_type.as_str(), info.resource_name.as_str()),
            ("entry", "films/a")
        );
    }
}
