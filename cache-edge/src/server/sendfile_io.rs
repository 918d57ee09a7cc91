//! A plain socket under hyper that sends parts of files with `sendfile(2)`.
//!
//! hyper requests a vectored write of the response's head and of slices that represent parts of
//! files ([`super::file_slices`]). Memory is sent with `sendmsg`, with `MSG_MORE` if file bytes
//! follow, so that head and body share packets. The kernel copies parts of files from the page
//! cache to the socket.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::{io::Interest, net::TcpStream};

use super::{
    file_slices::{FilePart, FileSlices},
    metrics::Metrics,
};

/// Plain slices given to one `sendmsg`; hyper queues 16 buffers of up to three slices.
const MAX_PLAIN_SLICES: usize = 64;

/// File bytes sent at a time before other connections are served: as many as the socket of a short
/// connection can hold.
const TURN_BYTES: u64 = 512 << 10;

/// The I/O of one plain connection.
pub struct SendfileIo {
    io: TokioIo<TcpStream>,
    slices: Arc<FileSlices>,
    metrics: Arc<Metrics>,
    /// The last write ended so that other connections are served.
    turn_over: bool,
}

impl SendfileIo {
    #[must_use]
    pub fn new(stream: TcpStream, slices: Arc<FileSlices>, metrics: Arc<Metrics>) -> Self {
        Self {
            io: TokioIo::new(stream),
            slices,
            metrics,
            turn_over: false,
        }
    }

    /// Writes until all is written or the socket accepts no more for now. `sent` counts the written
    /// bytes, even on an error, because an error must not make hyper send the same bytes again.
    fn write_some(&self, slices: &[IoSlice<'_>], sent: &mut usize) -> io::Result<()> {
        let socket = self.io.inner();
        let mut index = 0;
        while index < slices.len() {
            if slices[index].is_empty() {
                index += 1;
                continue;
            }
            if let Some(part) = self.slices.find(&slices[index]) {
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
            if FileSlices::holds(&slices[index]) {
                return Err(io::Error::other("a slice of a file outlived its buffer"));
            }
            let rest = &slices[index..];
            let plain = rest
                .iter()
                .take(MAX_PLAIN_SLICES)
                .take_while(|slice| slice.is_empty() || !FileSlices::holds(slice))
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
                // The buffer is full; hyper calls again with the rest.
                return Err(io::ErrorKind::WouldBlock.into());
            }
            index += plain;
        }
        Ok(())
    }
}

/// Sends `[offset, end)` of the file until it is done, the socket accepts no more for now
/// (`WouldBlock`), or the share of this turn is used up (`Interrupted`); advances `offset`.
///
/// A partial write may mean that the socket is full, or that a signal interrupted it. Only a
/// refused write tells which, and makes the kernel report when there is space again.
fn send_file_part(
    socket: &TcpStream,
    part: &FilePart,
    offset: &mut u64,
    end: u64,
) -> io::Result<()> {
    let turn_end = end.min(offset.saturating_add(TURN_BYTES));
    while *offset < turn_end {
        let wanted = usize::try_from(turn_end - *offset).unwrap_or(usize::MAX);
        match rustix::fs::sendfile(socket, &part.file, Some(offset), wanted) {
            // The file is shorter than its entry says, and missing bytes must not be invented.
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
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
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
                // An error, if there was one, is returned again by the next call.
                self.turn_over =
                    outcome.is_err_and(|error| error.kind() == io::ErrorKind::Interrupted);
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
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
