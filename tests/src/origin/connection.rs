//! One connection: requests read one after the other, each answered before the next.

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::respond::{self, After};
use super::{Hit, Shared};

const MAX_HEAD_BYTES: usize = 64 << 10;
/// How often an idle connection checks whether the origin stops.
const IDLE_POLL: Duration = Duration::from_millis(200);

/// Lists the requests so far; not itself recorded.
const REQUESTS: &str = "/.requests";

pub(crate) struct Request {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

pub(crate) fn serve(stream: &TcpStream, shared: &Shared) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(IDLE_POLL));
    let mut unread = Vec::new();
    while let Some(request) = read_request(stream, &mut unread, shared) {
        if request.target == REQUESTS {
            match respond::requests(stream, shared) {
                Ok(()) => continue,
                Err(_) => return,
            }
        }
        let hit = shared.record(Hit {
            at: Instant::now(),
            method: request.method.clone(),
            target: request.target.clone(),
            headers: request.headers.clone(),
            status: 0,
            body_bytes: 0,
        });
        let object = shared.object(&request.target);
        match respond::respond(stream, shared, hit, &request, object) {
            Ok(After::KeepOpen) => {}
            Ok(After::Close) | Err(_) => return,
        }
    }
}

fn read_request(mut stream: &TcpStream, unread: &mut Vec<u8>, shared: &Shared) -> Option<Request> {
    let mut buffer = [0; 8 << 10];
    loop {
        if let Some(end) = find_head_end(unread) {
            let head: Vec<u8> = unread.drain(..end).collect();
            return parse(&head);
        }
        if unread.len() > MAX_HEAD_BYTES || shared.is_stopping() {
            return None;
        }
        match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(count) => unread.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return None,
        }
    }
}

fn find_head_end(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

fn parse(head: &[u8]) -> Option<Request> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?, first.next()?);
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Some(Request {
        method: method.to_owned(),
        target: target.to_owned(),
        headers,
    })
}
