//! Limits the rate of one connection and reports its progress to its watchdog, whatever it carries:
//! file bytes, TLS, HTTP/2 streams.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::{connection::Activity, pace::Pacer};

/// This much of the rate is sent at once after a pause: a player fills its buffer when it starts or
/// seeks, and then receives data as it plays.
const BURST: Duration = Duration::from_secs(5);

/// I/O of a client's connection.
pub struct PacedIo<I> {
    io: I,
    activity: Arc<Activity>,
    pacer: Option<Pacer>,
}

impl<I> PacedIo<I> {
    /// `bytes_per_second`: `None` means no limit.
    pub fn new(io: I, bytes_per_second: Option<u64>, activity: Arc<Activity>) -> Self {
        Self {
            io,
            activity,
            pacer: bytes_per_second.map(|rate| Pacer::new(rate, BURST)),
        }
    }

    /// Ready with the number of bytes that may be written now; `None`: any number.
    fn poll_allowance(&mut self, context: &mut Context<'_>) -> Poll<Option<usize>> {
        match &mut self.pacer {
            Some(pacer) if !self.activity.is_of_a_peer() => {
                ready!(pacer.poll_ready(context));
                Poll::Ready(usize::try_from(pacer.part_bytes()).ok())
            }
            _ => Poll::Ready(None),
        }
    }

    fn written(&mut self, outcome: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = outcome {
            self.activity.written(*bytes);
            if let Some(pacer) = &mut self.pacer {
                pacer.sent(*bytes);
            }
        }
    }
}

/// The first `most` bytes of the slices.
fn truncate<'a>(slices: &'a [IoSlice<'_>], most: usize) -> Vec<IoSlice<'a>> {
    let mut left = most;
    let mut kept = Vec::with_capacity(slices.len());
    for slice in slices {
        if left == 0 {
            break;
        }
        let length = slice.len().min(left);
        kept.push(IoSlice::new(&slice[..length]));
        left -= length;
    }
    kept
}

impl<I: Read + Unpin> Read for PacedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: Write + Unpin> Write for PacedIo<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let allowed = ready!(self.poll_allowance(context));
        let most = allowed.map_or(buffer.len(), |most| most.min(buffer.len()));
        let outcome = Pin::new(&mut self.io).poll_write(context, &buffer[..most]);
        self.written(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let allowed = ready!(self.poll_allowance(context));
        let io = Pin::new(&mut self.io);
        let outcome = match allowed {
            Some(most) => io.poll_write_vectored(context, &truncate(slices, most)),
            None => io.poll_write_vectored(context, slices),
        };
        self.written(&outcome);
        outcome
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_of_several_slices() {
        let slices = [
            IoSlice::new(b"abc"),
            IoSlice::new(b""),
            IoSlice::new(b"defg"),
        ];
        let first = |most| -> Vec<u8> {
            let kept = truncate(&slices, most);
            kept.iter().flat_map(|slice| slice.to_vec()).collect()
        };
        assert_eq!(first(0), b"");
        assert_eq!(first(2), b"ab");
        assert_eq!(first(5), b"abcde");
        assert_eq!(first(usize::MAX), b"abcdefg");
    }
}
