//! Asks the buckets of a source whether they let this edge read, before the source is registered.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::v1;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_rules::bucket_error::BucketError;

use super::{
    Client, RequestClass, Source, client::Question, hedging::RequestKind, source::OriginSet,
};

/// Time for all buckets of a source.
const CHECK_WITHIN: Duration = Duration::from_secs(15);
/// Limit of an answer's text, which is below 1 KiB.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// The object that is requested. It is likely absent: a bucket that says so can be read.
const OBJECT: &str = "cache-edge-check";

impl Client {
    /// Requests one object from each bucket. The error is what is wrong, in the words of the first
    /// bucket that refuses.
    pub async fn check_buckets(&self, source: v1::Source) -> Result<(), String> {
        let source = Source::new(source).map_err(|error| error.to_string())?;
        let source = Arc::new(source);
        let all = async {
            for (index, origin) in source.origins().iter().enumerate() {
                let checked = self.check_bucket(&source, index).await;
                checked.map_err(|wrong| format!("{}: {wrong}", origin.base_url()))?;
            }
            Ok(())
        };
        let late = |_| Err(format!("no answer within {CHECK_WITHIN:?}"));
        let checked = tokio::time::timeout(CHECK_WITHIN, all).await;
        checked.unwrap_or_else(late)
    }

    async fn check_bucket(&self, source: &Arc<Source>, index: usize) -> Result<(), String> {
        let url = source.url(OBJECT, "");
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
        let question = Question {
            // The answer to HEAD would have no words.
            method: Method::GET,
            url: url.ok_or("its path can not be sent")?,
            headers: &headers,
            class: RequestClass::Foreground,
            kind: RequestKind::Object,
            is_presigned: false,
            skip: OriginSet::default(),
        };
        let answer = self.ask_origin(source, index, &question).await;
        let mut answer = answer.map_err(|error| error.to_string())?;
        let status = answer.status;
        // An object of no byte has no first one.
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(());
        }
        let mut body = Vec::new();
        while body.len() < MAX_ANSWER_BYTES
            && let Ok(Some(bytes)) = answer.chunk().await
        {
            body.extend_from_slice(&bytes);
        }
        body.truncate(MAX_ANSWER_BYTES);
        let error = BucketError::read(&answer.headers, &String::from_utf8_lossy(&body));
        if status == StatusCode::NOT_FOUND && !error.is_of_bucket() {
            return Ok(());
        }
        Err(error.describe(status))
    }
}
