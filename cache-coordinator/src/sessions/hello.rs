//! The first message of a session: waits for it, and checks it field by field.

use std::time::Duration;

use chunkcache_proto::v1;
use futures_util::{Stream, StreamExt};
use tokio::time::timeout;
use tonic::Status;
use uuid::Uuid;
use v1::session_request::Message as Request;

use super::protocol::Protocol;
use crate::service::error::{FieldViolation, ServiceError};

/// The first message must arrive within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Sanity cap.
const MAX_DOWNLOADS: u32 = 256;

pub(super) async fn read_hello(
    inbound: &mut (impl Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin),
    protocol: &mut Protocol,
) -> Result<v1::Hello, ServiceError> {
    let expected = || ServiceError::invalid("message", "expected Hello first");
    let first = timeout(HELLO_TIMEOUT, inbound.next())
        .await
        .map_err(|_| ServiceError::DeadlineExceeded("no Hello came in time".into()))?;
    let message = match first {
        Some(Ok(v1::SessionRequest { message: Some(m) })) => m,
        _ => return Err(expected()),
    };
    protocol.accept(&message).map_err(|_| expected())?;
    match message {
        Request::Hello(hello) => Ok(hello),
        _ => Err(expected()),
    }
}

pub(super) fn check_hello(hello: &v1::Hello) -> Result<Uuid, Vec<FieldViolation>> {
    let mut violations = Vec::new();
    if let Err(error) = chunkcache_proto::source_name::check_name(&hello.name) {
        violations.push(FieldViolation::new("hello.name", error.to_string()));
    }
    let url = url::Url::parse(&hello.url);
    if !url.is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.has_host()) {
        violations.push(FieldViolation::new(
            "hello.url",
            "expected an absolute http or https URL",
        ));
    }
    if !(1..=MAX_DOWNLOADS).contains(&hello.max_downloads) {
        violations.push(FieldViolation::new(
            "hello.max_downloads",
            format!("expected 1 to {MAX_DOWNLOADS}"),
        ));
    }
    match hello.store_id.parse::<Uuid>() {
        Ok(store_id) if violations.is_empty() => Ok(store_id),
        Ok(_) => Err(violations),
        Err(_) => {
            violations.push(FieldViolation::new("hello.store_id", "expected a UUID"));
            Err(violations)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_checked_field_by_field() {
        let bad = v1::Hello {
            name: "Edge 1".into(),
            url: "127.0.0.1:80".into(),
            ..Default::default()
        };
        let fields: Vec<String> = check_hello(&bad)
            .unwrap_err()
            .into_iter()
            .map(|v| v.field)
            .collect();
        assert_eq!(
            fields,
            [
                "hello.name",
                "hello.url",
                "hello.max_downloads",
                "hello.store_id"
            ]
        );
        let good = v1::Hello {
            name: "edge-1".into(),
            url: "http://127.0.0.1:7500".into(),
            max_downloads: 3,
            store_id: "1".into(),
            ..Default::default()
        };
        assert!(check_hello(&good).is_err());
        let good = v1::Hello {
            store_id: Uuid::nil().to_string(),
            ..good
        };
        assert_eq!(check_hello(&good), Ok(Uuid::nil()));
    }
}
