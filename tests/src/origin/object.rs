//! An object at an origin's path, and its misbehaviour.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use crate::content;

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Generated { seed: u64 },
    File(Arc<File>),
}

/// The number of requests that a fault affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    Always,
    Next(u32),
}

#[derive(Debug, Clone)]
pub enum Fault {
    /// An answer with this status, these headers and a short text.
    Status(u16, Vec<(String, String)>),
    /// The connection is reset after this many bytes of the announced body.
    DieAfter(u64),
    /// Fewer bytes than requested, consistently announced: a 206 of another range.
    ShorterRange(u64),
    /// Announces the requested bytes, then closes cleanly this many bytes early.
    EndEarly(u64),
    /// Announces the requested bytes, then sends this many bytes more.
    SendMore(u64),
    /// 200 and the whole object, whatever range was requested.
    IgnoreRange,
    /// A Content-Range shifted by this many bytes, over the right bytes.
    ShiftContentRange(u64),
    /// A total size in Content-Range that is this much too large.
    WrongTotal(u64),
    /// Another ETag in each answer.
    ChangingValidator,
    /// Chunked transfer coding without a length.
    Chunked,
    /// Claims `Content-Encoding: gzip`, whatever was accepted.
    Gzip,
    /// 302 to this place.
    Redirect(String),
    /// The head and this many body bytes, then nothing.
    StallAfter(u64),
    /// Closes without an answer.
    Hangup,
    /// Answers in full, as if the connection were kept, and closes it.
    CloseSilently,
    /// Something that is not HTTP.
    Garbage,
}

/// The seed of an [`Object::varying_on`] object's content for a header value.
pub fn variant_seed(seed: u64, value: &str) -> u64 {
    value
        .bytes()
        .fold(seed + 1, |sum, byte| sum * 31 + u64::from(byte))
}

#[derive(Debug, Clone)]
pub struct Object {
    pub(crate) content: Content,
    pub(crate) size: u64,
    pub(crate) etag: Option<String>,
    pub(crate) last_modified: Option<String>,
    pub(crate) content_type: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) latency: Duration,
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) faults: Vec<(Fault, Times)>,
    pub(crate) requests: u64,
    pub(crate) vary_on: Option<String>,
    pub(crate) ignore_conditions: bool,
    /// Queries that are answered; none: all.
    pub(crate) accepted: Option<Vec<String>>,
}

impl Object {
    pub fn generated(seed: u64, size: u64) -> Object {
        Object::new(Content::Generated { seed }, size)
            .etag(Some(&format!("\"generated-{seed}-{size}\"")))
    }

    pub fn file(file: File) -> std::io::Result<Object> {
        let size = file.metadata()?.len();
        Ok(Object::new(Content::File(Arc::new(file)), size))
    }

    /// A text with an `ETag` of its content, and without `Last-Modified`.
    pub fn text(text: &str) -> std::io::Result<Object> {
        let mut file = tempfile::tempfile()?;
        file.write_all(text.as_bytes())?;
        let etag = format!("\"{}\"", crate::content::sha256_of(text.as_bytes()));
        Ok(Object::file(file)?.last_modified(None).etag(Some(&etag)))
    }

    fn new(content: Content, size: u64) -> Object {
        Object {
            content,
            size,
            etag: None,
            last_modified: Some("Sun, 06 Nov 1994 08:49:37 GMT".to_owned()),
            content_type: "video/mp4".to_owned(),
            headers: Vec::new(),
            latency: Duration::ZERO,
            bytes_per_second: None,
            faults: Vec::new(),
            requests: 0,
            vary_on: None,
            ignore_conditions: false,
            accepted: None,
        }
    }

    pub fn etag(mut self, etag: Option<&str>) -> Object {
        self.etag = etag.map(str::to_owned);
        self
    }

    pub fn last_modified(mut self, date: Option<&str>) -> Object {
        self.last_modified = date.map(str::to_owned);
        self
    }

    pub fn content_type(mut self, content_type: &str) -> Object {
        content_type.clone_into(&mut self.content_type);
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Object {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A generated object whose content and ETag depend on the value of this request header; see
    /// [`variant_seed`].
    pub fn varying_on(mut self, name: &str) -> Object {
        self.vary_on = Some(name.to_owned());
        self.header("Vary", name)
    }

    /// Ignores conditions in requests.
    pub fn ignoring_conditions(mut self) -> Object {
        self.ignore_conditions = true;
        self
    }

    /// Answers these queries, and 403 to all others.
    pub fn accepting(mut self, queries: &[&str]) -> Object {
        self.accepted = Some(queries.iter().map(|&query| query.to_owned()).collect());
        self
    }

    /// Replaces it by the variant that this header value selects.
    pub(crate) fn select(&mut self, value: &str) {
        if let Content::Generated { seed } = &mut self.content {
            *seed = variant_seed(*seed, value);
        }
        self.etag = self
            .etag
            .take()
            .map(|etag| format!("{}-{value}\"", etag.trim_end_matches('"')));
    }

    /// Time before the head of each answer.
    pub fn latency(mut self, latency: Duration) -> Object {
        self.latency = latency;
        self
    }

    /// With the headers, the latency and the pace of another object.
    pub fn like(mut self, other: &Object) -> Object {
        self.headers.clone_from(&other.headers);
        self.latency = other.latency;
        self.bytes_per_second = other.bytes_per_second;
        self
    }

    /// The pace of each body.
    pub fn paced(mut self, bytes_per_second: u64) -> Object {
        self.bytes_per_second = Some(bytes_per_second);
        self
    }

    pub fn unpaced(mut self) -> Object {
        self.bytes_per_second = None;
        self
    }

    pub fn fault(mut self, fault: Fault, times: Times) -> Object {
        self.faults.push((fault, times));
        self
    }

    pub fn without_faults(mut self) -> Object {
        self.faults.clear();
        self
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// The object for one request: with the faults of this request only.
    pub(crate) fn for_one_request(&mut self) -> Object {
        self.requests += 1;
        let mut seen = self.clone();
        for (_, times) in &mut self.faults {
            if let Times::Next(count) = times {
                *count = count.saturating_sub(1);
            }
        }
        seen.faults.retain(|(_, times)| *times != Times::Next(0));
        self.faults.retain(|(_, times)| *times != Times::Next(0));
        seen
    }

    /// Fills the buffer from the offset; bytes past the end of a file that shrank are zero.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        match &self.content {
            Content::Generated { seed } => {
                content::fill(*seed, offset, buffer);
                Ok(())
            }
            Content::File(file) => file.read_exact_at(buffer, offset),
        }
    }
}
