//! Hits that need no parser: a request that is the connection's last one but for its range, of
//! bytes that are here.
//!
//! A player that takes a title range by range asks so each time, and of a small range, parsing the
//! request and putting the same response together again is half of the cost. hyper does not see
//! these requests: [`super::sendfile_io`] takes them from the socket before it, between two of its
//! own, and gives it all that is not one of them. What hyper's handler decided of such a head holds
//! as long as what it was decided by does; that is looked up each time, and where it does not hold,
//! the request is hyper's.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use chunkcache_proto::ByteRange;
use http::{HeaderMap, Method, Response, StatusCode, Version, header, request::Parts};
use service_kit::telemetry;

use super::{
    body::Delivery,
    connection::Client,
    mapped::FilePart,
    memory::{Known, Memory},
    metrics::{ByteSource, RequestGuard},
    server::Server,
};
use crate::serve::ports::{Objects, OpenReader as _};
use chunk_store::ChunkPin;
use http_rules::range;

const STATUS_LINE: &str = "HTTP/1.1 206 Partial Content\r\n";

/// What is made anew for each response.
const VARYING: [http::HeaderName; 4] = [
    header::AGE,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::DATE,
];

/// The last response's head without what depends on the range and the time.
pub(super) struct Repeatable<R> {
    pub known: Arc<Known<R>>,
    head: String,
}

impl<R> Repeatable<R> {
    /// `None`: the next response to the same head may be of another kind than this one.
    pub fn of<B>(
        known: Arc<Known<R>>,
        request: &Parts,
        client: &Client,
        response: &Response<B>,
    ) -> Option<Self> {
        let repeats = request.method == Method::GET
            && request.version == Version::HTTP_11
            && matches!(client.delivery, Delivery::Sendfile(_))
            && response.status() == StatusCode::PARTIAL_CONTENT
            && response.headers().contains_key(header::CONTENT_RANGE)
            && !response.headers().contains_key(header::CONNECTION);
        let head = repeats.then(|| lasting_lines(response.headers()))??;
        Some(Self { known, head })
    }

    fn write_head(&self, head: &mut String, range: ByteRange, age_seconds: u64, now: Instant) {
        head.clear();
        head.push_str(STATUS_LINE);
        head.push_str(&self.head);
        head.push_str("age: ");
        range::push_number(head, age_seconds);
        head.push_str("\r\ncontent-range: ");
        range::push_content_range(head, range, self.known.entry.geometry().size());
        head.push_str("\r\ncontent-length: ");
        range::push_number(head, range.len());
        head.push_str("\r\ndate: ");
        DATE.with_borrow_mut(|date| head.push_str(date.at(now)));
        head.push_str("\r\n\r\n");
    }
}

fn lasting_lines(headers: &HeaderMap) -> Option<String> {
    let mut lines = String::new();
    for (name, value) in headers {
        if !VARYING.contains(name) {
            lines.push_str(name.as_str());
            lines.push_str(": ");
            lines.push_str(value.to_str().ok()?);
            lines.push_str("\r\n");
        }
    }
    lines.shrink_to_fit();
    Some(lines)
}

/// What follows a head that was written down, and what holds it meanwhile.
pub struct Hit {
    /// When it was asked for.
    pub asked: Instant,
    pub part: FilePart,
    /// Tells the metrics how it ended.
    pub guard: RequestGuard,
    _pins: [Option<ChunkPin>; 2],
}

/// Answers heads that were answered before, with other ranges.
pub trait AnswerRepeated: Send {
    /// Replaces `head` by the response's. `None`: it takes more than a look; nothing was counted.
    fn answer(&self, target: &[u8], range: ByteRange, head: &mut String) -> Option<Hit>;
}

/// Of one connection.
pub(super) struct Repeats<O: Objects> {
    pub server: Arc<Server<O>>,
    pub memory: Arc<Memory<O::Open>>,
    pub address: IpAddr,
}

impl<O: Objects> AnswerRepeated for Repeats<O> {
    fn answer(&self, target: &[u8], range: ByteRange, head: &mut String) -> Option<Hit> {
        if telemetry::exports() {
            // Each request is a trace of its own there.
            return None;
        }
        let began = Instant::now();
        let (last, age_seconds) = self.memory.recall_repeatable(target)?;
        let size = last.known.entry.geometry().size();
        let range = range.intersect(ByteRange::new(0, size));
        if range.is_empty() {
            return None;
        }
        let file = &last.known.entry;
        let pins = last.known.readers.hold(range)?;
        if !file.is_resident_at(range, began) {
            return None;
        }
        let part = file.map(range).ok()?;
        if let Some(limiter) = &self.server.rate_limiter {
            // Refused by hyper's handler, which asks again.
            limiter.take(self.address, began).ok()?;
        }
        last.write_head(head, range, age_seconds, began);
        let metrics = &self.server.metrics;
        metrics.count_repeated();
        metrics.count_bytes(ByteSource::Hit, range.len());
        metrics.observe_first_byte(began, range.start > 0);
        let status = StatusCode::PARTIAL_CONTENT;
        tracing::debug!(status = status.as_u16(), "answered");
        Some(Hit {
            asked: began,
            part: FilePart::whole(part),
            guard: metrics.request_answered(&Method::GET, status),
            _pins: pins,
        })
    }
}

thread_local! {
    static DATE: std::cell::RefCell<Date> = const { std::cell::RefCell::new(Date { until: None, text: String::new() }) };
}

/// The time of day as a field value, written down once a second.
struct Date {
    /// The end of its second.
    until: Option<Instant>,
    text: String,
}

impl Date {
    fn at(&mut self, now: Instant) -> &str {
        if self.until.is_none_or(|until| now >= until) {
            let time = SystemTime::now();
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            let left = Duration::from_secs(1) - Duration::from_nanos(since.subsec_nanos().into());
            self.until = Some(now + left);
            self.text = httpdate::fmt_http_date(time);
        }
        &self.text
    }
}
