//! An HTTP/1.1 client that hides nothing: the head as sent, the body as far as it arrived, and
//! whether it ended properly.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A read without a byte for this long fails the test rather than hanging it.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_HEAD_BYTES: usize = 256 << 10;
const READ_BYTES: usize = 256 << 10;

#[derive(Debug, Clone)]
pub struct Call {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    host: bool,
    body: String,
    timeout: Duration,
}

impl Call {
    pub fn new(method: &str, target: &str) -> Call {
        Call {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            host: true,
            body: String::new(),
            timeout: READ_TIMEOUT,
        }
    }

    pub fn get(target: &str) -> Call {
        Call::new("GET", target)
    }

    pub fn head(target: &str) -> Call {
        Call::new("HEAD", target)
    }

    pub fn header(mut self, name: &str, value: &str) -> Call {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Bytes `[start, end)`.
    pub fn range(self, start: u64, end: u64) -> Call {
        self.header("Range", &format!("bytes={start}-{}", end - 1))
    }

    /// Sets a body, sent with its length.
    pub fn body(mut self, body: &str) -> Call {
        self.body = body.to_owned();
        self.header("Content-Length", &body.len().to_string())
    }

    pub fn without_host(mut self) -> Call {
        self.host = false;
        self
    }

    pub fn timeout(mut self, timeout: Duration) -> Call {
        self.timeout = timeout;
        self
    }

    /// Sends the request on a new connection and reads to the end of the head.
    pub fn open(&self, address: SocketAddr) -> std::io::Result<Reply> {
        let began = Instant::now();
        let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        let head = self.text_for(address, "Connection: close\r\n");
        stream.set_read_timeout(Some(self.timeout))?;
        stream.write_all(head.as_bytes())?;
        Reply::read_head(stream, self.method == "HEAD", began)
    }

    /// The request, body and all.
    fn text_for(&self, address: SocketAddr, last: &str) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if self.host {
            head += &format!("Host: {address}\r\n");
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head + last + "\r\n" + &self.body
    }

    /// Returns the whole answer; panics if there is none.
    pub fn send(&self, address: SocketAddr) -> Response {
        let reply = self
            .open(address)
            .unwrap_or_else(|error| panic!("{} {}: {error}", self.method, self.target));
        reply.finish()
    }
}

/// A connection that is reused as long as the server keeps it.
#[derive(Debug)]
pub struct Connection {
    address: SocketAddr,
    kept: Option<TcpStream>,
}

impl Connection {
    pub fn to(address: SocketAddr) -> Connection {
        Connection {
            address,
            kept: None,
        }
    }

    /// Returns the whole answer; panics if there is none.
    pub fn send(&mut self, call: &Call) -> Response {
        let began = Instant::now();
        let attempt = |stream: TcpStream| {
            stream.set_read_timeout(Some(call.timeout))?;
            (&stream).write_all(call.text_for(self.address, "").as_bytes())?;
            Reply::read_head(stream, call.method == "HEAD", began)
        };
        // The server may have closed a kept one meanwhile; a new one has no such excuse.
        let kept = self.kept.take().and_then(|stream| attempt(stream).ok());
        let reply = kept.map_or_else(
            || {
                let stream = TcpStream::connect_timeout(&self.address, CONNECT_TIMEOUT)?;
                stream.set_nodelay(true)?;
                attempt(stream)
            },
            Ok,
        );
        let mut reply =
            reply.unwrap_or_else(|error| panic!("{} {}: {error}", call.method, call.target));
        let (body, complete) = reply.read_body();
        let is_framed = reply.chunked || reply.left.is_some();
        let closes = reply
            .header("connection")
            .is_some_and(|it| it.eq_ignore_ascii_case("close"));
        if complete && is_framed && !closes {
            assert!(reply.unread.is_empty(), "bytes behind the body");
            self.kept = Some(reply.stream);
        }
        Response {
            status: reply.status,
            headers: reply.headers,
            body,
            complete,
        }
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// Time from before connecting to the end of the head.
    pub head_after: Duration,
    stream: TcpStream,
    unread: Vec<u8>,
    /// Length of the body, if it is announced.
    left: Option<u64>,
    chunked: bool,
}

/// A complete answer.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body came as announced; false if the connection ended before that.
    pub complete: bool,
}

impl Reply {
    fn read_head(mut stream: TcpStream, bodiless: bool, began: Instant) -> std::io::Result<Reply> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 << 10];
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            let count = stream.read(&mut buffer)?;
            if count == 0 || bytes.len() > MAX_HEAD_BYTES {
                let what = format!("no head but {:?}", String::from_utf8_lossy(&bytes));
                return Err(std::io::Error::other(what));
            }
            bytes.extend_from_slice(&buffer[..count]);
        };
        let head_after = began.elapsed();
        let unread = bytes.split_off(end);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut lines = text.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| std::io::Error::other(format!("no status in {status_line:?}")))?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let chunked = find(&headers, "transfer-encoding").is_some_and(|it| it.contains("chunked"));
        let announced = find(&headers, "content-length").and_then(|it| it.parse().ok());
        let left = if bodiless || matches!(status, 204 | 304) {
            Some(0)
        } else {
            announced
        };
        Ok(Reply {
            status,
            headers,
            head_after,
            stream,
            unread,
            left,
            chunked,
        })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The next body bytes, at most as many as fit into the buffer; 0 at the end. An early end is
    /// an error.
    pub fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        assert!(!self.chunked, "a chunked body can only be read whole");
        let limit = self
            .left
            .map_or(buffer.len() as u64, |left| left.min(buffer.len() as u64));
        if limit == 0 {
            return Ok(0);
        }
        let limit = limit as usize;
        let count = if self.unread.is_empty() {
            self.stream.read(&mut buffer[..limit])?
        } else {
            let count = limit.min(self.unread.len());
            buffer[..count].copy_from_slice(&self.unread[..count]);
            self.unread.drain(..count);
            count
        };
        match &mut self.left {
            Some(left) if count == 0 => Err(std::io::Error::other(format!(
                "the body ended {left} bytes early"
            ))),
            Some(left) => {
                *left -= count as u64;
                Ok(count)
            }
            None => Ok(count),
        }
    }

    /// Exactly this many body bytes.
    pub fn take(&mut self, count: usize) -> std::io::Result<Vec<u8>> {
        let mut body = vec![0; count];
        let mut filled = 0;
        while filled < count {
            match self.read(&mut body[filled..])? {
                0 => return Err(std::io::Error::other("the body is shorter")),
                more => filled += more,
            }
        }
        Ok(body)
    }

    /// Reads the rest; `complete` shows whether it ended early.
    pub fn finish(mut self) -> Response {
        let (body, complete) = self.read_body();
        Response {
            status: self.status,
            headers: self.headers,
            body,
            complete,
        }
    }

    fn read_body(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        let complete = if self.chunked {
            self.read_chunked(&mut body).is_ok()
        } else {
            let mut buffer = vec![0; READ_BYTES];
            loop {
                match self.read(&mut buffer) {
                    Ok(0) => break true,
                    Ok(count) => body.extend_from_slice(&buffer[..count]),
                    Err(_) => break false,
                }
            }
        };
        (body, complete)
    }

    fn read_chunked(&mut self, body: &mut Vec<u8>) -> std::io::Result<()> {
        loop {
            let line = self.read_line()?;
            let size = line.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
            if size == 0 {
                return Ok(());
            }
            self.fill_unread(size + 2)?;
            body.extend(self.unread.drain(..size));
            self.unread.drain(..2);
        }
    }

    fn read_line(&mut self) -> std::io::Result<String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.unread.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.fill_unread(self.unread.len() + 1)?;
        }
    }

    fn fill_unread(&mut self, at_least: usize) -> std::io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        while self.unread.len() < at_least {
            let count = self.stream.read(&mut buffer)?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            self.unread.extend_from_slice(&buffer[..count]);
        }
        Ok(())
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    /// Panics unless the answer has this status and a complete body.
    #[track_caller]
    pub fn expect(self, status: u16) -> Response {
        let text = || self.text().chars().take(500).collect::<String>();
        assert_eq!(self.status, status, "{:?} {}", self.headers, text());
        assert!(self.complete, "the body ended early: {:?}", self.headers);
        self
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}
