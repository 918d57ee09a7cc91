//! Decides whether a client may have an object: the origin is asked once about each signature.
//!
//! The question is a request for the object with the signature. It transfers no byte if the
//! object's version is known here, and one byte otherwise. An accepted signature is remembered
//! until it expires.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::v1;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::{
    objects::{EdgeObjects, negative},
    pass_through, patience,
    ports::{ObjectRequest, Resolution, ServeError},
    singleflight::Collapsible,
};
use crate::{
    clock::now_ms,
    core::permissions::MAX_SIGNATURE_BYTES,
    readers::ReaderFactory,
    upstream::{
        OriginError, RequestClass, Source, answer, client::Question, counters::SignatureCheck,
        hedging::RequestKind, loops::CDN_LOOP, source::OriginSet,
    },
};

/// An origin's verdict on a signature.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// Accepted until this time, in milliseconds since the epoch.
    Until(i64),
    Refused(StatusCode),
}

impl Collapsible for Access {
    fn waited_for(self, _: bool) -> Self {
        self
    }
}

impl EdgeObjects {
    /// Asks the origin about the signature on behalf of a client, unless the origin has accepted it
    /// already or the source does not require that. `key`: the key of `named`.
    pub(super) async fn permit(
        &self,
        source: &Arc<Source>,
        named: &v1::Key,
        key: &v1::Key,
        request: &ObjectRequest,
    ) -> Result<Access, ServeError> {
        let Some(signature) = source.signature(&named.query) else {
            return Ok(Access::Until(i64::MAX));
        };
        let catalogue = &self.parts().catalogue;
        let known = || {
            let until = catalogue.permitted_until(source, key, &signature);
            until.map(Access::Until)
        };
        if let Some(known) = known() {
            return Ok(known);
        }
        if signature.len() > MAX_SIGNATURE_BYTES {
            return Ok(Access::Refused(StatusCode::URI_TOO_LONG));
        }
        if request.only_if_cached {
            return Err(ServeError::OnlyIfCached);
        }
        if request.ahead.is_some() {
            return Err(ServeError::NotAhead);
        }
        let id = format!("{}\0{}\0{}\0{signature}", key.source, key.path, key.query);
        let id = self.parts().bindings.hash(&id);
        let (this, source_of, key_of) = (self.clone(), source.clone(), key.clone());
        let (signature_of, loops) = (signature.clone(), passed_through(&request.headers));
        let asked = self.signatures().ask(
            (&key.source, request.asker),
            id,
            known,
            move || async move {
                let counters = &this.parts().downloads.fetcher().counters;
                let attempt = || this.check(&source_of, &key_of, &signature_of, &loops);
                let answer = patience::ask(&source_of, counters, attempt).await;
                counters.signature_checked(match answer {
                    Ok(Access::Until(_)) => SignatureCheck::Accepted,
                    Ok(Access::Refused(_)) => SignatureCheck::Refused,
                    Err(_) => SignatureCheck::Failed,
                });
                answer.map_err(|error| pass_through::serve_error(&error))
            },
        );
        asked?.answer().await
    }

    /// Answers the client with the origin's refusal.
    pub(super) async fn refuse(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        request: &ObjectRequest,
        status: StatusCode,
    ) -> Result<Resolution<ReaderFactory>, ServeError> {
        // Pass the 401 on with its challenge, which the edge cannot construct. Not if the source
        // has a right of its own, because the client's request must not use that.
        if status == StatusCode::UNAUTHORIZED && !source.has_own_right() {
            let passed = self
                .pass_own(source, key, request, "signature", None)
                .await?;
            return Ok(Resolution::PassThrough(passed));
        }
        // A redirect that is not followed usually leads to a log-in page, so it becomes a 403.
        let is_told = status.is_client_error();
        let status = if is_told {
            status
        } else {
            StatusCode::FORBIDDEN
        };
        negative(status.as_u16(), false)
    }

    async fn check(
        &self,
        source: &Arc<Source>,
        key: &v1::Key,
        signature: &str,
        loops: &HeaderMap,
    ) -> Result<Access, OriginError> {
        let held_off = source.held_off_for_ms(now_ms());
        if held_off > 0 {
            let retry_after = Duration::from_millis(held_off);
            return Err(OriginError::Busy { retry_after });
        }
        let parts = self.parts();
        let mut headers = loops.clone();
        let bound = parts.bindings.get(key);
        if let Some(bound) = &bound {
            let (name, value) = answer::unchanged_condition(&bound.entry);
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        if bound.is_none_or(|bound| bound.entry.size > 0) {
            headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
        }
        let question = Question {
            method: Method::GET,
            url: source.signed_url(key, signature)?,
            headers: &headers,
            class: RequestClass::Foreground,
            kind: RequestKind::Object,
            is_presigned: true,
            skip: OriginSet::default(),
        };
        let response = parts.client.ask_origins(source, &question).await?;
        match response.status {
            status
                if status.is_success()
                    || status == StatusCode::NOT_MODIFIED
                    || status == StatusCode::RANGE_NOT_SATISFIABLE =>
            {
                let until = parts.catalogue.permit(source, key, signature);
                Ok(Access::Until(until))
            }
            // An origin that was passed over may accept it.
            status if pass_through::is_refusal(status) || status.is_redirection() => {
                match response.passed_over() {
                    Some(error) => Err(error.clone()),
                    None => Ok(Access::Refused(status)),
                }
            }
            status => Err(answer::status_error(status, &response.headers, now_ms()).into()),
        }
    }
}

/// The headers that record a request's path through other caches, by which a loop is detected.
fn passed_through(headers: &HeaderMap) -> HeaderMap {
    let path = headers.get_all(CDN_LOOP).iter();
    path.map(|value| (CDN_LOOP, value.clone())).collect()
}
