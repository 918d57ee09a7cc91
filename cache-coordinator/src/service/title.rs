//! Lists the objects of a title. An edge reads its manifests.

use std::time::Duration;

use chunkcache_proto::v1;
use v1::session_response::Message;

use super::{
    Cluster, entries,
    entry_ref::EntryRef,
    error::{Resource, ServiceError},
    probe::{Questions, failed},
};

/// Longer than an edge may read: a minute.
const TIMEOUT: Duration = Duration::from_secs(65);
/// Limit of titles that are being read. Each may have some MiB of names.
const MAX_TITLES: usize = 16;
const MAX_RENDITION_BYTES: usize = 1_024;

/// Titles that are being read.
pub type Titles = Questions<v1::TitleReport>;

impl Default for Titles {
    fn default() -> Self {
        Self::new(MAX_TITLES)
    }
}

/// The objects that a manifest names.
pub async fn list(
    cluster: &Cluster,
    request: v1::ListTitleRequest,
) -> Result<v1::ListTitleResponse, ServiceError> {
    cluster.require_leader()?;
    if request.rendition.len() > MAX_RENDITION_BYTES {
        let expected = format!("expected at most {MAX_RENDITION_BYTES} bytes");
        return Err(ServiceError::invalid("rendition", expected));
    }
    let EntryRef::Key(key) = entries::read_name(cluster, request.manifest.as_ref())? else {
        let expected = "expected a source and path, or a url";
        return Err(ServiceError::invalid("manifest", expected));
    };
    if cluster.source(&key.source).is_none() {
        return Err(ServiceError::not_found(Resource::Source, &key.source));
    }
    let question = |sequence| {
        Message::Title(v1::TitleRequest {
            sequence,
            manifest: Some(key.clone()),
            rendition: request.rendition,
            first_ms: request.first_ms,
        })
    };
    let report = cluster.titles.ask(cluster, &key, TIMEOUT, question).await?;
    if !report.failed.is_empty() {
        return Err(failed(&key, report.failed));
    }
    Ok(v1::ListTitleResponse {
        source: key.source,
        objects: report.objects,
    })
}
