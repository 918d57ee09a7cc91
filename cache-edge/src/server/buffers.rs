//! Large reused buffers for connections whose bytes pass through user space (TLS, HTTP/2).

use std::{net::IpAddr, sync::Arc};

use bytes::Buf;
use parking_lot::Mutex;

use super::limits::{Share, Shares};

/// Large enough that system calls and TLS records cost little compared with the copy, small enough
/// for the L2 cache.
pub const LARGE_BYTES: usize = 256 << 10;

/// Used when all large ones are taken: every connection continues, only more slowly. If connections
/// waited instead, slow clients, which hold buffers for long, would stop fast ones.
const SMALL_BYTES: usize = 16 << 10;

/// A bounded set of large buffers.
pub struct BufferPool {
    free: Mutex<Vec<Box<[u8]>>>,
    large: Arc<Shares>,
}

impl BufferPool {
    /// At most `max_large` buffers of [`LARGE_BYTES`] exist at a time, `of_client` for one client.
    #[must_use]
    pub fn new(max_large: u32, of_client: u32) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::new(Vec::new()),
            large: Shares::new(max_large, of_client, 0),
        })
    }

    /// A buffer for up to `wanted` bytes; shorter if `wanted` or the pool requires it, never empty.
    pub fn take(self: &Arc<Self>, wanted: u64, client: IpAddr) -> PooledBuf {
        let wanted = usize::try_from(wanted).unwrap_or(LARGE_BYTES).max(1);
        if wanted > SMALL_BYTES
            && let Some(share) = self.large.take(client)
        {
            let free = self.free.lock().pop();
            return PooledBuf {
                buffer: free.unwrap_or_else(|| vec![0; LARGE_BYTES].into_boxed_slice()),
                position: 0,
                len: wanted.min(LARGE_BYTES),
                of_pool: Some((Arc::clone(self), share)),
            };
        }
        let len = wanted.min(SMALL_BYTES);
        PooledBuf {
            buffer: vec![0; len].into_boxed_slice(),
            position: 0,
            len,
            of_pool: None,
        }
    }
}

/// Bytes read from a file; the buffer goes back to its pool when dropped.
pub struct PooledBuf {
    buffer: Box<[u8]>,
    position: usize,
    len: usize,
    of_pool: Option<(Arc<BufferPool>, Share)>,
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
        // Before the share is released, so that the bound on existing buffers holds.
        if let Some((pool, _)) = &self.of_pool {
            pool.free.lock().push(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_bounded_and_reused() {
        let pool = BufferPool::new(4, 2);
        let client = IpAddr::from([192, 0, 2, 1]);
        let first = pool.take(u64::MAX, client);
        let second = pool.take(LARGE_BYTES as u64, client);
        assert_eq!((first.len(), second.len()), (LARGE_BYTES, LARGE_BYTES));
        assert_eq!(
            pool.take(u64::MAX, client).len(),
            SMALL_BYTES,
            "the client has its share, the connection goes on"
        );
        let other = IpAddr::from([192, 0, 2, 2]);
        assert_eq!(pool.take(u64::MAX, other).len(), LARGE_BYTES);
        let address = first.buffer.as_ptr();
        drop(first);
        assert_eq!(pool.take(1 << 20, client).buffer.as_ptr(), address);
        assert_eq!(pool.take(10, client).len(), 10);
        assert_eq!(pool.take(0, client).len(), 1);
    }
}
