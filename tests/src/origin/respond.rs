//! The answer to one request: by the book (RFC 9110) unless a fault says otherwise.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::Shared;
use super::connection::Request;
use super::object::{Fault, Object};

const PIECE_BYTES: u64 = 64 << 10;
/// A paced body is sent in this many pieces a second.
const PACED_PIECES_PER_SECOND: u64 = 50;
const LINK_PIECE_BYTES: u64 = 8 << 10;
/// For connections that share a link.
const SEND_BUFFER_BYTES: usize = 16 << 10;
/// How often a stalled or paced answer checks whether the origin stops.
const STALL_POLL: Duration = Duration::from_millis(50);

pub(crate) enum After {
    KeepOpen,
    Close,
}

/// The body to send: `[start, end)` of the object.
struct Plan {
    status: u16,
    headers: Vec<(String, String)>,
    start: u64,
    end: u64,
}

pub(crate) fn respond(
    stream: &TcpStream,
    shared: &Shared,
    hit: usize,
    request: &Request,
    object: Option<Object>,
) -> io::Result<After> {
    let Some(mut object) = object else {
        return text(stream, shared, hit, request, 404, &[]);
    };
    if let Some(name) = object.vary_on.clone() {
        object.select(request.header(&name).unwrap_or_default());
    }
    pause(shared, object.latency + shared.take_delay());
    let query = request
        .target
        .split_once('?')
        .map_or("", |(_, query)| query);
    let accepted = object.accepted.as_ref();
    if accepted.is_some_and(|accepted| accepted.iter().all(|it| it != query)) {
        return text(stream, shared, hit, request, 403, &[]);
    }
    let mut shift = (0, 0);
    let mut ranges_are_known = true;
    for (fault, _) in &object.faults {
        match fault {
            Fault::Status(status, headers) => {
                return text(stream, shared, hit, request, *status, headers);
            }
            Fault::Redirect(to) => {
                let location = [("Location".to_owned(), to.clone())];
                return text(stream, shared, hit, request, 302, &location);
            }
            Fault::Hangup => return Ok(After::Close),
            Fault::Garbage => {
                (&*stream).write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n")?;
                return Ok(After::Close);
            }
            Fault::IgnoreRange => ranges_are_known = false,
            Fault::ShiftContentRange(by) => shift.0 = *by,
            Fault::WrongTotal(by) => shift.1 = *by,
            _ => {}
        }
    }
    let mut plan = plan(request, &object, ranges_are_known, shift);
    if let Some(Fault::ShorterRange(by)) = find(&object, |f| matches!(f, Fault::ShorterRange(_)))
        && plan.status == 206
    {
        plan.end = plan.end.saturating_sub(*by).max(plan.start + 1);
        set_content_range(&mut plan, object.size, shift);
    }
    shared.lock().hits[hit].status = plan.status;
    let after = send(stream, shared, hit, request, &object, &plan)?;
    match find(&object, |f| matches!(f, Fault::CloseSilently)) {
        Some(_) => Ok(After::Close),
        None => Ok(after),
    }
}

/// Lists the requests so far, one per line: method, target, range, status, body bytes.
pub(crate) fn requests(mut stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut body = String::new();
    for hit in &shared.lock().hits {
        let range = hit.header("range").unwrap_or("-");
        body += &format!(
            "{} {} {range} {} {}\n",
            hit.method, hit.target, hit.status, hit.body_bytes
        );
    }
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn plan(request: &Request, object: &Object, ranges_are_known: bool, shift: (u64, u64)) -> Plan {
    let mut headers = vec![("Content-Type".to_owned(), object.content_type.clone())];
    let changing = find(object, |fault| matches!(fault, Fault::ChangingValidator)).is_some();
    let etag = if changing {
        Some(format!("\"change-{}\"", object.requests))
    } else {
        object.etag.clone()
    };
    if let Some(etag) = &etag {
        headers.push(("ETag".to_owned(), etag.clone()));
    }
    if let Some(date) = &object.last_modified {
        headers.push(("Last-Modified".to_owned(), date.clone()));
    }
    if ranges_are_known {
        headers.push(("Accept-Ranges".to_owned(), "bytes".to_owned()));
    }
    headers.extend(object.headers.iter().cloned());
    let mut plan = Plan {
        status: 200,
        headers,
        start: 0,
        end: object.size,
    };
    if object.ignore_conditions {
        // As without conditions.
    } else if request
        .header("if-match")
        .is_some_and(|it| !matches_any(it, etag.as_deref()))
    {
        plan.status = 412;
    } else if let Some(none_match) = request.header("if-none-match") {
        if matches_any(none_match, etag.as_deref()) {
            plan.status = 304;
        }
    } else if let Some(since) = request.header("if-modified-since")
        && object.last_modified.as_deref() == Some(since)
    {
        plan.status = 304;
    }
    if plan.status != 200 {
        plan.end = 0;
        return plan;
    }
    let unchanged = request.header("if-range").is_none_or(|validator| {
        Some(validator) == etag.as_deref() || Some(validator) == object.last_modified.as_deref()
    });
    let range = request
        .header("range")
        .filter(|_| ranges_are_known && unchanged);
    match range.and_then(|it| parse_range(it, object.size)) {
        None => {}
        Some(Some((start, end))) => {
            (plan.status, plan.start, plan.end) = (206, start, end);
            set_content_range(&mut plan, object.size, shift);
        }
        Some(None) => {
            (plan.status, plan.end) = (416, 0);
            let value = format!("bytes */{}", object.size);
            plan.headers.push(("Content-Range".to_owned(), value));
        }
    }
    plan
}

fn send(
    mut stream: &TcpStream,
    shared: &Shared,
    hit: usize,
    request: &Request,
    object: &Object,
    plan: &Plan,
) -> io::Result<After> {
    let length = plan.end - plan.start;
    let has = |wanted: fn(&Fault) -> bool| find(object, wanted).is_some();
    let chunked = has(|fault| matches!(fault, Fault::Chunked));
    let mut head = format!("HTTP/1.1 {} {}\r\n", plan.status, reason(plan.status));
    for (name, value) in &plan.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if has(|fault| matches!(fault, Fault::Gzip)) {
        head += "Content-Encoding: gzip\r\n";
    }
    if chunked {
        head += "Transfer-Encoding: chunked\r\n";
    } else if plan.status != 304 {
        head += &format!("Content-Length: {length}\r\n");
    }
    head += "\r\n";
    stream.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(After::KeepOpen);
    }

    let mut limit = length;
    let mut surplus = 0;
    let mut stall = false;
    let mut reset = false;
    for (fault, _) in &object.faults {
        match fault {
            Fault::DieAfter(count) if *count < length => (limit, reset) = (*count, true),
            Fault::StallAfter(count) if *count < length => (limit, stall) = (*count, true),
            Fault::EndEarly(count) => limit = length.saturating_sub(*count),
            Fault::SendMore(count) => surplus = *count,
            _ => {}
        }
    }
    let began = Instant::now();
    let piece = object.bytes_per_second.map_or(PIECE_BYTES, |rate| {
        (rate / PACED_PIECES_PER_SECOND).clamp(1, PIECE_BYTES)
    });
    let piece = match shared.has_link() {
        // Connections alternate on it in pieces of a few packets, as on a wire.
        true => piece.min(LINK_PIECE_BYTES),
        false => piece,
    };
    if shared.has_link() {
        // Bytes in the buffer have passed the link already.
        socket2::SockRef::from(stream).set_send_buffer_size(SEND_BUFFER_BYTES)?;
    }
    let mut buffer = vec![0; piece as usize];
    let mut sent = 0;
    // Pieces in the queue of the link, and when each has passed it.
    let mut queued: VecDeque<(u64, Instant)> = VecDeque::new();
    let mut taken = 0;
    while sent < limit + surplus && !shared.is_stopping() {
        let next = piece.min(limit + surplus - taken);
        if next > 0 {
            match shared.take_link(next, queued.is_empty()) {
                Ok(due) => {
                    taken += next;
                    queued.push_back((next, due));
                    continue;
                }
                Err(room_at) if queued.is_empty() => {
                    pause(shared, room_at.saturating_duration_since(Instant::now()));
                    continue;
                }
                Err(_) => {}
            }
        }
        let Some((count, due)) = queued.pop_front() else {
            break;
        };
        let bytes = &mut buffer[..count as usize];
        object.read(plan.start + sent, bytes)?;
        pause(shared, due.saturating_duration_since(Instant::now()));
        if chunked {
            write!(stream, "{count:x}\r\n")?;
        }
        stream.write_all(bytes)?;
        if chunked {
            stream.write_all(b"\r\n")?;
        }
        sent += count;
        shared.add_body_bytes(hit, count);
        if let Some(rate) = object.bytes_per_second {
            let due = Duration::from_secs_f64(sent as f64 / rate as f64);
            pause(shared, due.saturating_sub(began.elapsed()));
        }
    }
    if reset {
        // An RST if the system allows it: a zero linger drops unread or unsent bytes.
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        return Ok(After::Close);
    }
    if stall {
        while !shared.is_stopping() && is_open(stream) {
            std::thread::sleep(STALL_POLL);
        }
        return Ok(After::Close);
    }
    if chunked {
        stream.write_all(b"0\r\n\r\n")?;
    }
    if sent != length {
        let _ = stream.shutdown(Shutdown::Write);
        return Ok(After::Close);
    }
    Ok(After::KeepOpen)
}

fn text(
    mut stream: &TcpStream,
    shared: &Shared,
    hit: usize,
    request: &Request,
    status: u16,
    headers: &[(String, String)],
) -> io::Result<After> {
    shared.lock().hits[hit].status = status;
    let body = format!("{status} by the test origin\n");
    let mut answer = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n",
        reason(status),
        body.len()
    );
    for (name, value) in headers {
        answer += &format!("{name}: {value}\r\n");
    }
    answer += "\r\n";
    if request.method != "HEAD" {
        answer += &body;
    }
    stream.write_all(answer.as_bytes())?;
    Ok(After::KeepOpen)
}

/// `None`: ignored. `Some(None)`: not satisfiable. Only one range, because a cache requests no
/// more.
fn parse_range(value: &str, size: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        let count: u64 = last.parse().ok()?;
        let possible = count > 0 && size > 0;
        return Some(possible.then_some((size.saturating_sub(count), size)));
    }
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() {
        size
    } else {
        last.parse::<u64>().ok()?.saturating_add(1).min(size)
    };
    Some((first < size && first < end).then_some((first, end)))
}

fn set_content_range(plan: &mut Plan, size: u64, (shift, more): (u64, u64)) {
    plan.headers.retain(|(name, _)| name != "Content-Range");
    let value = format!(
        "bytes {}-{}/{}",
        plan.start + shift,
        plan.end - 1 + shift,
        size + more
    );
    plan.headers.push(("Content-Range".to_owned(), value));
}

fn matches_any(list: &str, etag: Option<&str>) -> bool {
    list.trim() == "*" || list.split(',').any(|one| Some(one.trim()) == etag)
}

fn find(object: &Object, wanted: impl Fn(&Fault) -> bool) -> Option<&Fault> {
    let faults = object.faults.iter().map(|(fault, _)| fault);
    faults.into_iter().find(|fault| wanted(fault))
}

/// Sleeps, but not past the origin's end.
fn pause(shared: &Shared, time: Duration) {
    let until = Instant::now() + time;
    while !shared.is_stopping() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(STALL_POLL));
    }
}

/// Whether the other side has not closed. The connection's read time-out keeps this short.
fn is_open(stream: &TcpStream) -> bool {
    let mut byte = [0];
    !matches!(stream.peek(&mut byte), Ok(0))
        && !stream
            .peek(&mut byte)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        304 => "Not Modified",
        404 => "Not Found",
        412 => "Precondition Failed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        503 => "Service Unavailable",
        _ => "Status",
    }
}
