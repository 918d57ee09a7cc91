//! The content of one line, and its formats.

use std::{
    fmt::Write as _,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use serde_json::json;
use service_kit::telemetry::{self, AnyValue, SpanContext};

use super::{AccessLog, Format};
use crate::server::response::CACHE_STATUS;
use http_rules::credential;

/// Written before the first line of a file.
pub(super) const W3C_HEADER: &str = "#Version: 1.0\n\
    #Fields: date time c-ip cs-method cs-uri-stem cs-uri-query cs-version sc-status sc-bytes \
    time-taken x-first-byte x-cache-status cs(Range) cs(User-Agent) cs(Referer)\n";

/// The status of a request whose client left before its answer began; nginx writes it, too.
const LEFT_UNANSWERED: u16 = 499;

const CMCD: [&str; 4] = ["cmcd-request", "cmcd-object", "cmcd-status", "cmcd-session"];
/// Replaces a secret.
const REDACTED: &str = "-";
/// Parts of the names of secret query parameters: ours, those of presigned URLs, and tokens.
const SECRET_NAMES: [&str; 8] = [
    "cc-",
    "sign",
    "token",
    "secret",
    "credential",
    "key",
    "policy",
    "auth",
];

/// A request and its response.
pub struct Record {
    at: SystemTime,
    client: IpAddr,
    is_tls: bool,
    method: Method,
    uri: Uri,
    version: Version,
    range: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    /// The client's, if this edge has no span of its own.
    traceparent: Option<HeaderValue>,
    span: Option<SpanContext>,
    cmcd: Vec<HeaderValue>,
    status: StatusCode,
    cache_status: Option<HeaderValue>,
    etag: Option<HeaderValue>,
    bytes: u64,
    first_byte: Option<Duration>,
    total: Duration,
    is_complete: bool,
    /// Bytes of the request's head, which stays in memory as long as any of its values.
    head_bytes: usize,
}

/// The log line of a running response body; it is written when this is dropped.
pub struct Pending {
    log: Arc<AccessLog>,
    began: Instant,
    record: Option<Box<Record>>,
}

impl Pending {
    #[must_use]
    pub fn new(log: &Arc<AccessLog>, request: &http::request::Parts, client: IpAddr) -> Self {
        let get = |name: HeaderName| request.headers.get(name).cloned();
        let values = request.headers.values().map(HeaderValue::len);
        let target = request.uri.path_and_query();
        let cmcd = CMCD.iter().filter_map(|name| request.headers.get(*name));
        let record = Record {
            at: SystemTime::now(),
            client,
            is_tls: false,
            method: request.method.clone(),
            uri: request.uri.clone(),
            version: request.version,
            range: get(header::RANGE),
            user_agent: get(header::USER_AGENT),
            referer: get(header::REFERER),
            traceparent: request.headers.get("traceparent").cloned(),
            span: None,
            cmcd: cmcd.cloned().collect(),
            status: StatusCode::from_u16(LEFT_UNANSWERED).unwrap_or_default(),
            cache_status: None,
            etag: None,
            bytes: 0,
            first_byte: None,
            total: Duration::ZERO,
            is_complete: false,
            head_bytes: values.sum::<usize>() + target.map_or(0, |it| it.as_str().len()),
        };
        Self {
            log: Arc::clone(log),
            began: Instant::now(),
            record: Some(Box::new(record)),
        }
    }

    pub fn answered<B>(&mut self, response: &http::Response<B>, is_tls: bool) {
        if let Some(record) = &mut self.record {
            record.status = response.status();
            record.is_tls = is_tls;
            record.cache_status = response.headers().get(CACHE_STATUS).cloned();
            record.etag = response.headers().get(header::ETAG).cloned();
            record.span = response.extensions().get().cloned();
        }
    }

    /// Counts bytes of the body that were passed to the connection.
    pub fn sent(&mut self, bytes: u64) {
        let began = self.began;
        if let Some(record) = &mut self.record {
            record.bytes += bytes;
            record.first_byte.get_or_insert_with(|| began.elapsed());
        }
    }

    /// Records that the whole body was passed on.
    pub fn finished(&mut self) {
        if let Some(record) = &mut self.record {
            record.is_complete = true;
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.total = self.began.elapsed();
            self.log.write(record);
        }
    }
}

impl Record {
    /// Bytes that the record keeps in memory, roughly.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.head_bytes
    }

    pub(super) fn at(&self) -> SystemTime {
        self.at
    }

    /// The edge's span of the request, or else the client's.
    pub(super) fn trace(&self) -> Option<SpanContext> {
        let client = || telemetry::parse_traceparent(self.traceparent.as_ref()?.to_str().ok()?);
        self.span.clone().or_else(client)
    }

    /// Fields that a collector can search by; names of OpenTelemetry's semantic conventions where
    /// they have one.
    pub(super) fn attributes(&self) -> Vec<(&'static str, AnyValue)> {
        let target = self.target();
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target.as_str(), None),
        };
        let bytes = i64::try_from(self.bytes).unwrap_or(i64::MAX);
        let version = match self.version {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            Version::HTTP_3 => "3",
            _ => "1.1",
        };
        let mut attributes = vec![
            ("source", self.source().to_owned().into()),
            ("client.address", self.client.to_string().into()),
            ("http.request.method", self.method.to_string().into()),
            ("url.path", path.to_owned().into()),
            (
                "url.scheme",
                if self.is_tls { "https" } else { "http" }.into(),
            ),
            ("network.protocol.version", version.into()),
            ("http.response.status_code", self.status.as_u16().into()),
            ("http.response.body.size", bytes.into()),
            ("duration_ms", milliseconds(self.total).into()),
        ];
        let agent = self.user_agent.as_ref().map(text);
        let status = self.cache_status.as_ref().map(text);
        let optional = [
            ("url.query", query.map(ToOwned::to_owned)),
            ("user_agent.original", agent),
            ("cache_status", status),
        ];
        for (name, value) in optional {
            attributes.extend(value.map(|value| (name, value.into())));
        }
        attributes
    }

    pub(super) fn format(&self, format: Format, line: &mut String) {
        // Writing to a string cannot fail.
        let _ = match format {
            Format::Json => write!(line, "{}", self.json()),
            Format::Combined => self.combined(line),
            Format::W3c => self.w3c(line),
        };
    }

    fn json(&self) -> serde_json::Value {
        let cmcd: Vec<_> = self.cmcd.iter().map(text).collect();
        json!({
            "time": humantime::format_rfc3339_millis(self.at).to_string(),
            "client": self.client.to_string(),
            "method": self.method.as_str(),
            "source": self.source(),
            "key": self.target(),
            "protocol": protocol(self.version),
            "tls": self.is_tls,
            "status": self.status.as_u16(),
            "bytes": self.bytes,
            "complete": self.is_complete,
            "first_byte_ms": self.first_byte.map(milliseconds),
            "duration_ms": milliseconds(self.total),
            "cache_status": self.cache_status.as_ref().map(text),
            "etag": self.etag.as_ref().map(text),
            "range": self.range.as_ref().map(text),
            "user_agent": self.user_agent.as_ref().map(text),
            "referer": self.referer.as_ref().map(|value| redact(&text(value))),
            "cmcd": (!cmcd.is_empty()).then(|| cmcd.join(",")),
            "trace_id": self.trace().map(|it| it.trace_id().to_string()),
        })
    }

    fn combined(&self, line: &mut String) -> std::fmt::Result {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let date = httpdate::fmt_http_date(self.at);
        let part = |from: usize, to: usize| date.get(from..to).unwrap_or_default();
        write!(
            line,
            "{} - - [{}/{}/{}:{} +0000] \"{} {} {}\" {} {} \"{}\" \"{}\"",
            self.client,
            part(5, 7),
            part(8, 11),
            part(12, 16),
            part(17, 25),
            self.method,
            quoted(&self.target()),
            protocol(self.version),
            self.status.as_u16(),
            self.bytes,
            or_dash(self.referer.as_ref(), |text| quoted(&redact(text))),
            or_dash(self.user_agent.as_ref(), quoted),
        )
    }

    fn w3c(&self, line: &mut String) -> std::fmt::Result {
        let time = humantime::format_rfc3339_seconds(self.at).to_string();
        let (date, time) = time.split_once('T').unwrap_or_default();
        let target = self.target();
        let (stem, query) = target.split_once('?').unwrap_or((&target, REDACTED));
        let seconds = |time: Duration| format!("{:.3}", time.as_secs_f64());
        write!(
            line,
            "{date} {} {} {} {} {} {} {} {} {} {} {} {} {} {}",
            time.trim_end_matches('Z'),
            self.client,
            self.method,
            word(stem),
            word(query),
            protocol(self.version),
            self.status.as_u16(),
            self.bytes,
            seconds(self.total),
            self.first_byte.map_or_else(|| "-".to_owned(), seconds),
            or_dash(self.cache_status.as_ref(), word),
            or_dash(self.range.as_ref(), word),
            or_dash(self.user_agent.as_ref(), word),
            or_dash(self.referer.as_ref(), |text| word(&redact(text))),
        )
    }

    fn source(&self) -> &str {
        let (path, _) = credential::split_path(self.uri.path());
        path.trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default()
    }

    /// Path and query without secrets.
    fn target(&self) -> String {
        redact(
            self.uri
                .path_and_query()
                .map_or("/", |target| target.as_str()),
        )
    }

    #[cfg(test)]
    pub(super) fn sample() -> Self {
        let value = |text| Some(HeaderValue::from_static(text));
        Self {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_123),
            client: IpAddr::from([192, 0, 2, 1]),
            is_tls: true,
            method: Method::GET,
            uri: Uri::from_static("/films/a.mp4?x=1&cc-signature=hunter2&Sign%61ture=hunter2"),
            version: Version::HTTP_2,
            range: value("bytes=0-9"),
            user_agent: value("a \"b\\"),
            referer: value("https://a.example/?token=hunter2"),
            traceparent: value("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            span: None,
            cmcd: vec![HeaderValue::from_static("bl=100")],
            status: StatusCode::PARTIAL_CONTENT,
            cache_status: value("e; hit"),
            etag: value("\"v1\""),
            bytes: 10,
            first_byte: Some(Duration::from_micros(1500)),
            total: Duration::from_millis(2),
            is_complete: true,
            head_bytes: 300,
        }
    }
}

#[cfg(test)]
impl Record {
    /// Makes the line longer.
    pub(super) fn lengthen(&mut self, bytes: usize) {
        self.user_agent = HeaderValue::from_str(&"a".repeat(bytes)).ok();
        self.head_bytes += bytes;
    }
}

/// Replaces the values of secret query parameters.
fn redact(target: &str) -> String {
    // A referring page's address may have secrets too; it begins with its origin.
    let origin = match target.find("://") {
        Some(at) if !target.starts_with('/') => target[at + 3..]
            .find('/')
            .map_or(target.len(), |end| at + 3 + end),
        _ => 0,
    };
    let (origin, target) = target.split_at(origin);
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let mut redacted = format!("{origin}{}", credential::redact_path(path));
    let Some(query) = query else { return redacted };
    redacted.push('?');
    for (index, pair) in query.split('&').enumerate() {
        if index > 0 {
            redacted.push('&');
        }
        match pair.split_once('=') {
            Some((name, _)) if is_secret(name) => {
                redacted.extend([name, "=", REDACTED]);
            }
            _ => redacted.push_str(pair),
        }
    }
    redacted
}

/// Compares the decoded name: a client may encode any letter.
fn is_secret(name: &str) -> bool {
    let decoded = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
    let decoded = decoded.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|part| decoded.contains(part))
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn or_dash(value: Option<&HeaderValue>, shown: impl Fn(&str) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), |value| shown(&text(value)))
}

/// Quotes the text, so that nothing a client sends can end the field or the line.
fn quoted(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | 0..0x20 | 0x7f.. => {
                let _ = write!(escaped, "\\x{byte:02X}");
            }
            _ => escaped.push(char::from(byte)),
        }
    }
    escaped
}

/// Formats one of several fields that are separated by spaces.
fn word(text: &str) -> String {
    match quoted(text).replace(' ', "+") {
        text if text.is_empty() => "-".to_owned(),
        text => text,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn line(format: Format) -> String {
        let mut line = String::new();
        Record::sample().format(format, &mut line);
        assert!(!line.contains("hunter2"), "{line}");
        line
    }

    #[test]
    fn combined() {
        assert_eq!(
            line(Format::Combined),
            "192.0.2.1 - - [06/Nov/1994:08:49:37 +0000] \
             \"GET /films/a.mp4?x=1&cc-signature=-&Sign%61ture=- HTTP/2.0\" 206 10 \
             \"https://a.example/?token=-\" \"a \\x22b\\x5C\""
        );
    }

    #[test]
    fn w3c_has_as_many_words_as_fields() {
        let fields = W3C_HEADER.lines().nth(1).unwrap();
        let count = fields.split(' ').skip(1).count();
        let line = line(Format::W3c);
        assert_eq!(line.split(' ').count(), count, "{line}");
        assert!(line.starts_with("1994-11-06 08:49:37 192.0.2.1 GET /films/a.mp4 x=1&"));
    }

    #[test]
    fn json() {
        let json: serde_json::Value = serde_json::from_str(&line(Format::Json)).unwrap();
        for (field, value) in [
            ("time", json!("1994-11-06T08:49:37.123Z")),
            ("source", json!("films")),
            ("bytes", json!(10)),
            ("first_byte_ms", json!(1.5)),
            ("cache_status", json!("e; hit")),
            ("trace_id", json!("4bf92f3577b34da6a3ce929d0e0e4736")),
            ("cmcd", json!("bl=100")),
            ("tls", json!(true)),
            ("complete", json!(true)),
        ] {
            assert_eq!(json[field], value, "{field}");
        }
    }

    #[test]
    fn no_client_makes_a_line_of_its_own() {
        let mut record = Record::sample();
        record.user_agent = HeaderValue::from_bytes(b"x\xff\xfe \"\t").ok();
        for format in [Format::Json, Format::Combined, Format::W3c] {
            let mut line = String::new();
            record.format(format, &mut line);
            assert!(!line.contains(['\n', '\t']), "{line}");
        }
    }
}
