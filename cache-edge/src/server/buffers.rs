//! Large reused buffers for connections whose bytes pass through user space (TLS, HTTP/2).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Buf;
use parking_lot::Mutex;

/// Large enough that system calls and TLS records cost little compared with the copy, small enough
/// for the L2 cache.
pub const LARGE_BYTES: usize = 256 << 10;

/// Used when all large ones are taken: every connection continues, only more slowly. Waiting
/// instead would let slow clients, which hold buffers, stop fast ones.
const SMALL_BYTES: usize = 16 << 10;

/// A bounded set of large buffers.
pub struct BufferPool {
    free: Mutex<Vec<Box<[u8]>>>,
    large_out: AtomicUsize,
    max_large: usize,
}

impl BufferPool {
    /// At most `max_large` buffers of [`LARGE_BYTES`] exist at a time.
    #[must_use]
    pub fn new(max_large: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::new(Vec::new()),
            large_out: AtomicUsize::new(0),
            max_large,
        })
    }

    /// A buffer for up to `wanted` bytes; shorter if `wanted` or the pool requires it, never empty.
    pub fn take(self: &Arc<Self>, wanted: u64) -> PooledBuf {
        let wanted = usize::try_from(wanted).unwrap_or(LARGE_BYTES).max(1);
        if wanted > SMALL_BYTES && self.reserve_large() {
            let buffer = self
                .free
                .lock()
                .pop()
                .unwrap_or_else(|| vec![0; LARGE_BYTES].into_boxed_slice());
            let len = wanted.min(LARGE_BYTES);
            return PooledBuf {
                buffer,
                position: 0,
                len,
                pool: Some(Arc::clone(self)),
            };
        }
        let len = wanted.min(SMALL_BYTES);
        PooledBuf {
            buffer: vec![0; len].into_boxed_slice(),
            position: 0,
            len,
            pool: None,
        }
    }

    fn reserve_large(&self) -> bool {
        let reserve = |out| (out < self.max_large).then_some(out + 1);
        self.large_out
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve)
            .is_ok()
    }
}

/// Bytes read from a file; the buffer goes back to its pool when dropped.
pub struct PooledBuf {
    buffer: Box<[u8]>,
    position: usize,
    len: usize,
    pool: Option<Arc<BufferPool>>,
}

impl PooledBuf {
    /// The whole buffer, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }

    /// The buffer's length.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Buf for PooledBuf {
    fn remaining(&self) -> usize {
        self.len - self.position
    }

    fn chunk(&self) -> &[u8] {
        &self.buffer[self.position..self.len]
    }

    fn advance(&mut self, count: usize) {
        assert!(
            count <= self.remaining(),
            "advanced past the end of a buffer"
        );
        self.position += count;
    }
}

impl Drop for PooledBuf {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.free.lock().push(std::mem::take(&mut self.buffer));
            pool.large_out.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_bounded_and_reused() {
        let pool = BufferPool::new(2);
        let first = pool.take(u64::MAX);
        let second = pool.take(LARGE_BYTES as u64);
        assert_eq!((first.len(), second.len()), (LARGE_BYTES, LARGE_BYTES));
        assert_eq!(
            pool.take(u64::MAX).len(),
            SMALL_BYTES,
            "the pool is out, the connection goes on"
        );
        let address = first.buffer.as_ptr();
        drop(first);
        assert_eq!(pool.take(1 << 20).buffer.as_ptr(), address);
        assert_eq!(pool.take(10).len(), 10);
        assert_eq!(pool.take(0).len(), 1);
    }
}
