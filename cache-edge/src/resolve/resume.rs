//! Resumes a passed-through body that breaks off, if the origin proves that the rest belongs to the
//! same version. Otherwise the body stays cut: a client can ask again, but it cannot return bytes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chunkcache_proto::ByteRange;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_rules::validator;
use tokio::{sync::mpsc, time::Instant};

use crate::clock::now_ms;
use crate::upstream::{
    Catalogue, Client, OriginError, RequestClass, Response, Source, answer,
    counters::Counters,
    give_way::{self, MAY_REST},
};
use service_kit::backoff::Backoff;

/// Attempts in a row that may bring almost nothing.
const ATTEMPTS: u32 = 5;
/// Bytes that a connection must bring for the next break to count as a new one.
const PROGRESS_BYTES: u64 = 1 << 20;
const FIRST_WAIT: Duration = Duration::from_millis(150);
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// Like [`MAY_REST`], if the rest can not be asked for.
const MAY_REST_UNPROVED: Duration = Duration::from_secs(10);

/// Conditions of the client that the first answer has met; the rest depends on `If-Range` alone.
const CONDITIONS: [HeaderName; 5] = [
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
];

/// The bytes of one version that an answer announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncedVersion {
    etag: HeaderValue,
    /// Content codings that the ranges apply to.
    encoding: Vec<HeaderValue>,
    start: u64,
    /// Where the body ends; `None`: at the end of the object, whose size is unknown.
    end: Option<u64>,
    size: Option<u64>,
}

impl AnnouncedVersion {
    /// `None`: nothing could prove that another answer continues this one.
    #[must_use]
    pub fn of(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        let etag = headers.get(header::ETAG)?;
        // With its quotes, because `If-Range` would take other text for a date.
        let text = answer::etag(headers)?;
        if !text.starts_with('"') || !validator::is_strong(text) {
            return None;
        }
        let length = answer::content_length(headers);
        let (start, end, size) = match status {
            StatusCode::OK if takes_ranges(headers) => (0, length, length),
            // A multipart 206 has no `Content-Range` here.
            StatusCode::PARTIAL_CONTENT => {
                let (range, size) = answer::satisfied(headers).ok()?;
                if length.is_some_and(|length| length != range.len()) {
                    return None;
                }
                (range.start, Some(range.end), size)
            }
            _ => return None,
        };
        Some(Self {
            etag: etag.clone(),
            encoding: encoding(headers),
            start,
            end,
            size,
        })
    }

    /// The number of bytes in the body, if known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.end.map(|end| end - self.start)
    }

    /// Sets headers that request the bytes after the first `received` ones, of this version only.
    fn ask_for_rest(&self, received: u64, headers: &mut HeaderMap) -> Result<(), OriginError> {
        for name in CONDITIONS {
            headers.remove(name);
        }
        let from = self.start + received;
        let text = match self.end {
            Some(end) if self.size != Some(end) => format!("bytes={from}-{}", end.max(1) - 1),
            _ => format!("bytes={from}-"),
        };
        let range = HeaderValue::from_str(&text)
            .map_err(|_| OriginError::Protocol("its range can not be asked for".into()))?;
        headers.insert(header::RANGE, range);
        headers.insert(header::IF_RANGE, self.etag.clone());
        Ok(())
    }

    /// Checks that an answer is exactly the rest after the first `received` bytes. Returns the
    /// description with the end of the body, which is known now.
    fn gone_on_with(
        &self,
        received: u64,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<Self, OriginError> {
        match status {
            StatusCode::PARTIAL_CONTENT => {}
            // `If-Range` did not hold, or the origin no longer supports ranges.
            StatusCode::OK
            | StatusCode::PRECONDITION_FAILED
            | StatusCode::RANGE_NOT_SATISFIABLE => return Err(OriginError::Changed),
            other => return Err(answer::status_error(other, headers, now_ms()).into()),
        }
        let is_same = answer::etag(headers).is_some_and(|etag| self.etag == etag);
        if !is_same || encoding(headers) != self.encoding {
            return Err(OriginError::Changed);
        }
        let (range, size) = answer::satisfied(headers)?;
        if let (Some(was), Some(is)) = (self.size, size)
            && was != is
        {
            return Err(OriginError::Changed);
        }
        let Some(end) = self.end.or(size) else {
            return Err(OriginError::Protocol(
                "it does not tell where the object ends".into(),
            ));
        };
        let length = answer::content_length(headers);
        if range != ByteRange::new(self.start + received, end)
            || length.is_some_and(|length| length != range.len())
        {
            return Err(OriginError::Protocol(
                "it sends another range than the rest that was asked for".into(),
            ));
        }
        Ok(Self {
            end: Some(end),
            size: size.or(self.size),
            ..self.clone()
        })
    }
}

fn takes_ranges(headers: &HeaderMap) -> bool {
    let mut units = headers
        .get_all(header::ACCEPT_RANGES)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    units.any(|unit| unit.trim().eq_ignore_ascii_case("bytes"))
}

fn encoding(headers: &HeaderMap) -> Vec<HeaderValue> {
    let values = headers.get_all(header::CONTENT_ENCODING);
    values.iter().cloned().collect()
}

/// How to request the rest.
pub struct Asking {
    pub client: Client,
    pub source: Arc<Source>,
    /// A source that is no longer registered is not asked again.
    pub catalogue: Arc<Catalogue>,
    pub url: url::Url,
    /// The headers of the first request.
    pub headers: HeaderMap,
    /// How long to retry without receiving a byte before the client gets an error.
    pub patience: Duration,
    pub counters: Arc<Counters>,
}

/// One body made of one or several answers.
pub struct Body {
    asking: Asking,
    /// `None` between two answers: one is closed before another is opened, because the origin may
    /// allow only one connection.
    response: Option<Response>,
    announced: Option<AnnouncedVersion>,
    received: u64,
    /// Where the current answer began.
    begun_at: u64,
    backoff: Backoff,
    /// The first break since the last byte, so that a slow reader's time does not count.
    broken_since: Option<Instant>,
}

impl Body {
    /// `announced`: from the answer's head; `None`: a break ends the body.
    #[must_use]
    pub fn new(asking: Asking, response: Response, announced: Option<AnnouncedVersion>) -> Self {
        Self {
            asking,
            response: Some(response),
            announced,
            received: 0,
            begun_at: 0,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            broken_since: None,
        }
    }

    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Waits until the client takes more; see [`give_way::reserve`]. A body that gave way asks for
    /// the rest with the [`next`](Self::next) bytes, and breaks off if nothing could prove the
    /// version.
    pub async fn reserve<'a, T>(
        &mut self,
        sender: &'a mpsc::Sender<T>,
    ) -> Option<mpsc::Permit<'a, T>> {
        let may_rest = match self.announced {
            Some(_) => MAY_REST,
            None => MAY_REST_UNPROVED,
        };
        give_way::reserve(sender, &mut self.response, may_rest).await
    }

    /// The next bytes; `None` at the end of the announced bytes. Not cancel safe: an arriving
    /// answer may be lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        loop {
            let error = match self.step().await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            let asking = &self.asking;
            if error.is_of_origin() {
                asking.counters.origin_failed(asking.source.name());
            }
            let wait = self.wait_after(error)?;
            tokio::time::sleep(wait).await;
        }
    }

    async fn step(&mut self) -> Result<Option<Bytes>, OriginError> {
        if self.length() == Some(self.received) {
            return Ok(None);
        }
        let mut response = match self.response.take() {
            Some(response) => response,
            None => {
                let (response, announced) = self.resume().await?;
                self.announced = Some(announced);
                self.begun_at = self.received;
                response
            }
        };
        let (received, length) = (self.received, self.length());
        let short = |detail| OriginError::Short {
            received,
            expected: length.unwrap_or_default(),
            detail,
        };
        let bytes = response.chunk().await.map_err(|error| match error {
            OriginError::Short { detail, .. } => short(detail),
            other => other,
        })?;
        let came = bytes.as_ref().map_or(0, Bytes::len) as u64;
        match length {
            Some(_) if bytes.is_none() => return Err(short("its body ended early".into())),
            Some(length) if came > length - received => {
                return Err(OriginError::Protocol(
                    "it sends more than it announced".into(),
                ));
            }
            _ => {}
        }
        self.response = Some(response);
        self.received += came;
        self.broken_since = None;
        if self.received - self.begun_at >= PROGRESS_BYTES {
            self.backoff.reset();
        }
        Ok(bytes)
    }

    async fn resume(&self) -> Result<(Response, AnnouncedVersion), OriginError> {
        let Asking { client, source, .. } = &self.asking;
        let registered = self.asking.catalogue.get(source.name());
        let source = registered
            .filter(|now| now.base_url() == source.base_url())
            .ok_or_else(|| OriginError::Protocol("its source is registered no more".into()))?;
        let held_off = source.held_off_for_ms(now_ms());
        if held_off > 0 {
            return Err(OriginError::Busy {
                retry_after: Duration::from_millis(held_off),
            });
        }
        // It gave way.
        let announced = self.announced.as_ref().ok_or(OriginError::TooManyWaiting)?;
        let mut headers = self.asking.headers.clone();
        announced.ask_for_rest(self.received, &mut headers)?;
        let url = self.asking.url.clone();
        let response = client
            .ask(
                Method::GET,
                &source,
                url,
                &headers,
                RequestClass::Foreground,
            )
            .await?;
        let announced =
            announced.gone_on_with(self.received, response.status, &response.headers)?;
        Ok((response, announced))
    }

    /// How long to wait before the next attempt, or the error if there is none.
    fn wait_after(&mut self, error: OriginError) -> Result<Duration, OriginError> {
        self.asking.source.heed(&error, now_ms());
        let tried = self.backoff.attempts();
        if self.announced.is_none() || !error.is_transient() || tried >= ATTEMPTS {
            return Err(error);
        }
        let asked_to_wait = error.retry_after().unwrap_or_default();
        let wait = self.backoff.wait(rand::random()).max(asked_to_wait);
        let since = *self.broken_since.get_or_insert_with(Instant::now);
        if since.elapsed() + wait > self.asking.patience {
            return Err(error);
        }
        tracing::debug!(
            %error,
            ?wait,
            received = self.received,
            "asking an origin for the rest of its answer"
        );
        Ok(wait)
    }

    fn length(&self) -> Option<u64> {
        self.announced.as_ref().and_then(AnnouncedVersion::length)
    }
}

#[cfg(test)]
#[path = "resume_tests.rs"]
mod tests;
