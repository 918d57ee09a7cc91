//! Answers requests for objects that are not stored in chunks.

use std::sync::Arc;

use chunkcache_proto::{ByteRange, Level, v1};

use super::{
    bindings::Bound,
    objects::EdgeObjects,
    pass_through,
    ports::{FirstBytes, ObjectName, ObjectRequest, PassThrough, Resolution, ServeError},
    whole_answer::{AS_A_WHOLE, without_variant},
};
use crate::{
    core::lookahead::MAX_RUN_CHUNKS,
    fetch::Assignment,
    readers::ReaderFactory,
    upstream::{Source, signatures::refuses_signature},
};
use chunk_store::EntryFile;

impl EdgeObjects {
    /// Answers with an object that is stored as a whole, or not stored at all.
    pub(super) async fn unstorable(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        why: &'static str,
    ) -> Result<Resolution<ReaderFactory>, ServeError> {
        let base = without_variant(key);
        if source.mode() == v1::SourceMode::Serve
            && request.ahead.is_none()
            && why == AS_A_WHOLE
            && let Some(whole) = self.ask_for_whole(source, &base, request, why).await?
        {
            return Ok(Resolution::PassThrough(whole));
        }
        self.pass(source, key, request, why).await
    }

    pub(super) async fn pass(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        why: &'static str,
    ) -> Result<Resolution<ReaderFactory>, ServeError> {
        self.pass_compared(source, key, request, why, None).await
    }

    pub(super) async fn pass_compared(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        why: &'static str,
        stored: Option<Arc<EntryFile>>,
    ) -> Result<Resolution<ReaderFactory>, ServeError> {
        if request.only_if_cached {
            return Err(ServeError::OnlyIfCached);
        }
        if request.ahead.is_some() {
            return Err(ServeError::NotAhead);
        }
        let passed = self.pass_own(source, key, request, why, stored).await?;
        Ok(Resolution::PassThrough(passed))
    }

    /// Sends a client's request to the origin, with the client's own signature if one is needed:
    /// the answer may be for this client alone.
    pub(super) async fn pass_own(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        why: &'static str,
        stored: Option<Arc<EntryFile>>,
    ) -> Result<PassThrough, ServeError> {
        let signature = match &request.name {
            ObjectName::Key { query, .. } if source.needs_signature() => source.signature(query),
            _ => None,
        };
        let url = source.signed_url(key, signature.as_deref().unwrap_or_default());
        let url = url.map_err(|error| pass_through::serve_error(&error))?;
        let parts = self.parts();
        let passed = pass_through::pass_through(parts, source, url, request, why, stored).await?;
        if let Some(signature) = signature
            && refuses_signature(passed.status)
        {
            parts.catalogue.take_back(source, key, &signature);
        }
        Ok(passed)
    }

    /// Rollout mode: the client gets the origin's answer, and the object is fetched into the store
    /// as well.
    pub(super) fn record(
        &self,
        bound: &Bound,
        request: &ObjectRequest,
    ) -> Result<Arc<EntryFile>, ServeError> {
        let file = self.entry_file(&bound.entry)?;
        if request.head_only {
            return Ok(file);
        }
        let geometry = file.geometry();
        let (start, end) = match request.first_bytes {
            FirstBytes::From { start, end } => (start, end.unwrap_or(u64::MAX)),
            FirstBytes::Last(count) => (geometry.size().saturating_sub(count), geometry.size()),
        };
        let chunks = geometry.chunks_covering(ByteRange::new(start, end));
        let last = chunks.end.min(chunks.start.saturating_add(64));
        let mut first = chunks.start;
        while let Some(missing) = file.first_missing(first, last) {
            let count = MAX_RUN_CHUNKS.min(last - missing);
            let order = Assignment {
                id: self.parts().downloads.local_id(),
                file: file.clone(),
                first_chunk: missing,
                chunk_count: count,
                level: Level::Medium,
                deadline_in_ms: 60_000,
                start_at: geometry.chunk_range(missing).start,
                peer: None,
                reader: 0,
            };
            if !self.parts().downloads.submit(order) {
                break;
            }
            first = missing + count;
        }
        Ok(file)
    }
}
