//! Holds one connection to a rate, whatever is under it: file bytes, TLS, streams of HTTP/2.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use chunkcache_proto::Level;
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::Sleep;

use super::connection::Activity;
use crate::core::byte_rate::ByteRateLimiter;

/// So much of the rate is sent at once after a rest: a player fills its buffer when it starts or
/// seeks, and is then sent what it plays.
const BURST: Duration = Duration::from_secs(5);
/// Of a second, given to the socket at a time.
const WRITES_PER_SECOND: u64 = 8;
/// Smaller writes cost more than they smooth.
const LEAST_WRITE_BYTES: u64 = 16 << 10;

/// I/O of a connection that may be paced.
pub struct PacedIo<I> {
    io: I,
    pace: Option<Pace>,
}

struct Pace {
    bytes_per_second: u64,
    limiter: ByteRateLimiter,
    wait: Option<Pin<Box<Sleep>>>,
    activity: Arc<Activity>,
}

impl<I> PacedIo<I> {
    /// No rate: not paced.
    pub fn new(io: I, bytes_per_second: Option<u64>, activity: &Arc<Activity>) -> Self {
        let pace = bytes_per_second.map(|bytes_per_second| Pace {
            bytes_per_second,
            limiter: ByteRateLimiter::with_burst(BURST),
            wait: None,
            activity: Arc::clone(activity),
        });
        Self { io, pace }
    }
}

impl Pace {
    /// Ready with the bytes that may be written now.
    fn poll_allowance(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        if self.activity.is_of_a_peer() {
            return Poll::Ready(usize::MAX);
        }
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(context));
                self.wait = None;
            }
            let rate = self.bytes_per_second;
            match self.limiter.wait(Level::Critical, rate, Instant::now()) {
                Some(wait) => self.wait = Some(Box::pin(tokio::time::sleep(wait))),
                None => {
                    let most = (rate / WRITES_PER_SECOND).max(LEAST_WRITE_BYTES);
                    return Poll::Ready(usize::try_from(most).unwrap_or(usize::MAX));
                }
            }
        }
    }

    fn written(&mut self, outcome: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = outcome {
            let (level, rate) = (Level::Critical, self.bytes_per_second);
            self.limiter.take(*bytes, level, rate, Instant::now());
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
        let this = &mut *self;
        let Some(pace) = &mut this.pace else {
            return Pin::new(&mut this.io).poll_write(context, buffer);
        };
        let most = ready!(pace.poll_allowance(context)).min(buffer.len());
        let outcome = Pin::new(&mut this.io).poll_write(context, &buffer[..most]);
        pace.written(&outcome);
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
        let this = &mut *self;
        let Some(pace) = &mut this.pace else {
            return Pin::new(&mut this.io).poll_write_vectored(context, slices);
        };
        let most = ready!(pace.poll_allowance(context));
        let slices = truncate(slices, most);
        let outcome = Pin::new(&mut this.io).poll_write_vectored(context, &slices);
        pace.written(&outcome);
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
