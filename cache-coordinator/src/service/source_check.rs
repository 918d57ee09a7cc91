//! Checks the buckets of a source before it is stored. An edge asks them.

use std::time::Duration;

use chunkcache_proto::v1;
use v1::session_response::Message;

use super::{Cluster, error::ServiceError, probe::Questions};

/// Longer than an edge takes: 15 s.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Limit of running checks.
const MAX_CHECKS: usize = 16;

/// Running checks. An answer is what is wrong; empty: nothing.
pub type SourceChecks = Questions<String>;

impl Default for SourceChecks {
    fn default() -> Self {
        Self::new(MAX_CHECKS)
    }
}

/// Whether the source has buckets, and they have to be asked again after the change.
#[must_use]
pub fn is_due(source: &v1::Source, before: Option<&v1::Source>) -> bool {
    let is_asked_so = |before: &v1::Source| {
        before.base_url == source.base_url
            && before.further_base_urls == source.further_base_urls
            && before.s3 == source.s3
            && before.connection == source.connection
            && before.headers == source.headers
    };
    source.base_url.starts_with("s3://") && !before.is_some_and(is_asked_so)
}

/// Has an edge ask the source's buckets. Returns why it could not be asked; empty: nothing is
/// wrong. A bucket's refusal is an error.
pub async fn check(cluster: &Cluster, source: &v1::Source) -> Result<String, ServiceError> {
    let key = v1::Key {
        source: source.name.clone(),
        ..v1::Key::default()
    };
    let question = |sequence| {
        Message::SourceCheck(v1::SourceCheckRequest {
            sequence,
            source: Some(source.clone()),
        })
    };
    let asked = cluster.source_checks.ask(cluster, &key, TIMEOUT, question);
    match asked.await {
        Ok(failed) if failed.is_empty() => Ok(String::new()),
        Ok(failed) => Err(ServiceError::Precondition {
            reason: "SOURCE_CHECK_FAILED",
            message: format!("{failed}; nothing was stored (see --no-check)"),
        }),
        // No edge, one that left, or one of a version that does not know the question.
        Err(error @ (ServiceError::NoEdge(_) | ServiceError::Origin { .. })) => {
            Ok(error.to_string())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_decides_about_a_buckets_requests_is_checked_again() {
        let bucket = v1::Source {
            base_url: "s3://films".to_owned(),
            ..v1::Source::default()
        };
        assert!(is_due(&bucket, None));
        let limited = v1::Source {
            max_connections: 3,
            ..bucket.clone()
        };
        assert!(!is_due(&limited, Some(&bucket)));
        let elsewhere = v1::Source {
            s3: Some(v1::S3Settings {
                region: "eu-west-1".to_owned(),
                ..v1::S3Settings::default()
            }),
            ..bucket.clone()
        };
        assert!(is_due(&elsewhere, Some(&bucket)));
        let server = v1::Source {
            base_url: "http://films".to_owned(),
            ..bucket
        };
        assert!(!is_due(&server, None));
    }
}
