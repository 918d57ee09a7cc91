//! A plain socket under hyper that sends mapped pieces with `sendfile(2)`.
//!
//! hyper asks for a vectored write of the response's head and of slices that point into mappings.
//! Plain memory goes out with `sendmsg`, with `MSG_MORE` where file bytes follow, so that head and
//! body share packets; for a slice the registry knows, the kernel copies from the page cache to the
//! socket. Should hyper ever copy such a slice instead, the bytes are still right.
//!
//! Between two of hyper's requests it looks at what arrives: a repetition of the last one
//! ([`super::repeats`]) is answered here, and hyper goes on waiting.

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::{
    io::{AsyncRead as _, Interest, ReadBuf},
    net::TcpStream,
};

use super::{
    connection::{ActiveRequest, Activity},
    mapped::{FilePart, Registry},
    metrics::Metrics,
    repeats::{AnswerRepeated, Hit},
};
use crate::core::repeated_head::{Arrived, RepeatedHead};

/// Plain slices given to one `sendmsg`; hyper queues 16 buffers of up to three slices.
const MAX_PLAIN_SLICES: usize = 64;

/// Of a file at a time, before other connections have their turn: what a socket on a short path
/// holds.
const TURN_BYTES: u64 = 512 << 10;

/// The I/O of one plain connection.
pub struct SendfileIo {
    io: TokioIo<TcpStream>,
    registry: Arc<Registry>,
    activity: Arc<Activity>,
    metrics: Arc<Metrics>,
    /// The last write ended because others have their turn.
    turn_over: bool,
    /// hyper has written what it has not flushed.
    unflushed: bool,
    repeats: Box<dyn AnswerRepeated>,
    turns: Turns,
    /// Of what was read from the socket, what hyper had no room for yet.
    left_over: Vec<u8>,
    /// A repetition's response under way. Most go out at once.
    answering: Option<Box<Answering>>,
}

/// Whose turn it is to read. Heads are counted where hyper is given them and where it has taken
/// them apart: as long as both see the same, what arrives after the last response is the beginning
/// of a request.
struct Turns {
    /// None: hyper was given something else than one whole head, and gets all that follows.
    heads: Option<u64>,
    last: Option<RepeatedHead>,
}

impl Turns {
    fn is_between_requests(&self, activity: &Activity) -> bool {
        self.heads.is_some() && self.heads == activity.requests_answered()
    }

    /// Hyper is given this.
    fn note(&mut self, arrived: &[u8]) {
        let again = |last: &RepeatedHead| last.range_in(arrived).is_some();
        if !self.last.as_ref().is_some_and(again) {
            match Arrived::of(arrived) {
                Arrived::OneHead(head) => self.last = head,
                Arrived::Other => {
                    *self = Self {
                        heads: None,
                        last: None,
                    }
                }
            }
        }
        self.count();
    }

    fn count(&mut self) {
        self.heads = self.heads.map(|heads| heads + 1);
    }
}

/// The response to a repetition.
struct Answering {
    head: String,
    head_sent: usize,
    /// The next byte of the file.
    offset: u64,
    hit: Hit,
    /// Once it has to wait for the client.
    active: Option<ActiveRequest>,
}

impl Answering {
    /// Sends until all is sent or the socket takes no more for now, as [`send_file_part`] does.
    fn send(&mut self, socket: &TcpStream) -> io::Result<()> {
        while self.head_sent < self.head.len() {
            let rest = &self.head.as_bytes()[self.head_sent..];
            let flags = SendFlags::NOSIGNAL | SendFlags::MORE;
            self.head_sent += rustix::net::send(socket, rest, flags)?;
        }
        send_file_part(
            socket,
            &self.hit.part,
            &mut self.offset,
            self.hit.part.end(),
        )
    }
}

/// Most heads are shorter by far; what hyper has no room for is kept.
const ARRIVED_BYTES: usize = 16 << 10;

thread_local! {
    /// For what arrives between two requests.
    static ARRIVED: RefCell<Box<[u8]>> = RefCell::new(vec![0; ARRIVED_BYTES].into());
    /// For the head of a response.
    static HEAD: Cell<String> = const { Cell::new(String::new()) };
}

impl SendfileIo {
    #[must_use]
    pub fn new(
        stream: TcpStream,
        registry: Arc<Registry>,
        activity: Arc<Activity>,
        metrics: Arc<Metrics>,
        repeats: Box<dyn AnswerRepeated>,
    ) -> Self {
        Self {
            io: TokioIo::new(stream),
            registry,
            activity,
            metrics,
            turn_over: false,
            unflushed: false,
            repeats,
            turns: Turns {
                heads: Some(0),
                last: None,
            },
            left_over: Vec::new(),
            answering: None,
        }
    }

    /// False: it is no repetition, or one that hyper's handler has to see.
    fn answer_repetition(&mut self, arrived: &[u8]) -> io::Result<bool> {
        let last = self.turns.last.as_ref();
        let Some((last, range)) = last.and_then(|last| Some((last, last.range_in(arrived)?)))
        else {
            return Ok(false);
        };
        let mut head = HEAD.take();
        let Some(hit) = self.repeats.answer(last.target(), range, &mut head) else {
            HEAD.set(head);
            return Ok(false);
        };
        let mut answering = Answering {
            head,
            head_sent: 0,
            offset: hit.part.offset,
            hit,
            active: None,
        };
        if self.send_more(&mut answering)? {
            self.activity.progressed_at(answering.hit.asked);
        } else {
            answering.active = Some(self.activity.request_begun());
            self.turns.count();
            self.answering = Some(Box::new(answering));
        }
        Ok(true)
    }

    /// True: all of it is sent.
    fn send_more(&mut self, answering: &mut Answering) -> io::Result<bool> {
        let socket = self.io.inner();
        let before = answering.offset;
        let outcome = socket.try_io(Interest::WRITABLE, || answering.send(socket));
        self.metrics.count_sendfile(answering.offset - before);
        match outcome {
            Ok(()) => {
                answering.hit.guard.finished();
                HEAD.set(std::mem::take(&mut answering.head));
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.turn_over = true;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Ready: no response of this side is under way.
    fn poll_answering(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(mut answering) = self.answering.take() {
            if std::mem::take(&mut self.turn_over) {
                self.answering = Some(answering);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.io.inner().poll_write_ready(context) {
                Poll::Ready(outcome) => outcome?,
                Poll::Pending => {
                    self.answering = Some(answering);
                    return Poll::Pending;
                }
            }
            if !self.send_more(&mut answering)? {
                self.answering = Some(answering);
            }
            self.activity.progressed();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what hyper will see, and answers what it need not.
    fn poll_arrived(
        &mut self,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        ARRIVED.with_borrow_mut(|room| {
            loop {
                ready!(self.poll_answering(context))?;
                let mut read = ReadBuf::new(room);
                ready!(Pin::new(self.io.inner_mut()).poll_read(context, &mut read))?;
                let arrived = read.filled();
                if arrived.is_empty() || !self.answer_repetition(arrived)? {
                    self.turns.note(arrived);
                    let (now, later) = arrived.split_at(arrived.len().min(buffer.remaining()));
                    buffer.put_slice(now);
                    self.left_over.extend_from_slice(later);
                    return Poll::Ready(Ok(()));
                }
            }
        })
    }

    /// Writes until all is written or the socket takes no more for now. What was written is in
    /// `sent`, also where this fails: an error must not make hyper send the same bytes again.
    fn write_some(&self, slices: &[IoSlice<'_>], sent: &mut usize) -> io::Result<()> {
        let socket = self.io.inner();
        let mut index = 0;
        while index < slices.len() {
            if slices[index].is_empty() {
                index += 1;
                continue;
            }
            if let Some(part) = self.registry.find(&slices[index]) {
                let length = slices[index].len();
                let mut offset = part.offset;
                let end = part.offset + length as u64;
                let outcome = send_file_part(socket, &part, &mut offset, end);
                let moved = offset - part.offset;
                self.metrics.count_sendfile(moved);
                *sent += moved as usize;
                outcome?;
                index += 1;
                continue;
            }
            let rest = &slices[index..];
            let plain = rest
                .iter()
                .take(MAX_PLAIN_SLICES)
                .take_while(|slice| slice.is_empty() || !self.registry.holds(slice))
                .count();
            let mut flags = SendFlags::NOSIGNAL;
            if plain < rest.len() {
                flags |= SendFlags::MORE;
            }
            let total: usize = rest[..plain].iter().map(|slice| slice.len()).sum();
            let written = rustix::net::sendmsg(
                socket,
                &rest[..plain],
                &mut SendAncillaryBuffer::default(),
                flags,
            )?;
            *sent += written;
            if written < total {
                // The buffer is full; hyper comes back with what is left.
                return Err(io::ErrorKind::WouldBlock.into());
            }
            index += plain;
        }
        Ok(())
    }
}

/// Sends `[offset, end)` of the file until done, the socket takes no more for now (`WouldBlock`),
/// or the turn is over (`Interrupted`); `offset` says how far it came.
///
/// A part that was taken may mean that the socket is full, or that a signal came between: only a
/// refused write tells, and makes the kernel say when there is room again.
fn send_file_part(
    socket: &TcpStream,
    part: &FilePart,
    offset: &mut u64,
    end: u64,
) -> io::Result<()> {
    let turn_end = end.min(offset.saturating_add(TURN_BYTES));
    while *offset < turn_end {
        let wanted = usize::try_from(turn_end - *offset).unwrap_or(usize::MAX);
        match rustix::fs::sendfile(socket, part.file(), Some(offset), wanted) {
            // The file is shorter than its entry says. Nothing may be made up.
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the sparse file is too short",
                ));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if *offset < end {
        return Err(io::ErrorKind::Interrupted.into());
    }
    Ok(())
}

impl Read for SendfileIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.left_over.is_empty() {
            let mut rest = std::mem::take(&mut self.left_over);
            let now = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..now]);
            if now < rest.len() {
                rest.drain(..now);
                self.left_over = rest;
            }
            return Poll::Ready(Ok(()));
        }
        if !self.unflushed && self.turns.is_between_requests(&self.activity)
            || self.answering.is_some()
        {
            return self.poll_arrived(context, buffer);
        }
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for SendfileIo {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(buffer)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_answering(context))?;
        self.unflushed = true;
        if std::mem::take(&mut self.turn_over) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            ready!(self.io.inner().poll_write_ready(context))?;
            let mut sent = 0;
            let outcome = self
                .io
                .inner()
                .try_io(Interest::WRITABLE, || self.write_some(slices, &mut sent));
            if sent > 0 {
                // An error, if there was one, comes again with the next call.
                self.turn_over =
                    outcome.is_err_and(|error| error.kind() == io::ErrorKind::Interrupted);
                self.activity.progressed();
                return Poll::Ready(Ok(sent));
            }
            match outcome {
                Ok(()) => return Poll::Ready(Ok(0)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(context))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_answering(context))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
