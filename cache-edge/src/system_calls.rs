//! System calls that no safe crate offers in the form needed here.
#![allow(unsafe_code)] // getsockopt(TCP_INFO); slices of addresses that are reserved with mmap

use std::{
    mem::{MaybeUninit, size_of},
    ops::Range,
    os::fd::AsRawFd,
    ptr::NonNull,
    sync::LazyLock,
    time::Duration,
};

use rustix::mm::{MapFlags, ProtFlags};

use tokio::net::TcpStream;

/// The kernel's smoothed round trip time, from the handshake on.
pub fn round_trip(stream: &TcpStream) -> Option<Duration> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointer and length describe `info`, which the kernel fills in part or whole.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: `tcp_info` is plain integers, for which zeros are valid where the kernel wrote
    // nothing.
    let info = unsafe { info.assume_init() };
    Some(Duration::from_micros(u64::from(info.tcpi_rtt)))
}

/// Addresses that represent something other than memory. See [`ReservedAddresses`].
pub static NO_MEMORY: LazyLock<ReservedAddresses> = LazyLock::new(ReservedAddresses::reserve);

/// A range of addresses of this process without memory (`PROT_NONE`). Slices of it are tokens: they
/// are compared by their address and never read. Reading one is a bug that ends the process with
/// SIGSEGV, under Miri and sanitizers as well.
pub struct ReservedAddresses(Option<NonNull<u8>>);

// SAFETY: it is an address without anything behind it that could be shared.
unsafe impl Send for ReservedAddresses {}
// SAFETY: as above.
unsafe impl Sync for ReservedAddresses {}

impl ReservedAddresses {
    /// Costs address space, and no memory.
    pub const LEN: usize = 64 << 20;

    fn reserve() -> Self {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of this
        // program.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), Self::LEN, ProtFlags::empty(), flags)
        };
        Self(base.ok().and_then(|base| NonNull::new(base.cast())))
    }

    /// A token of this length; `None`: nothing could be reserved, or the range is beyond the end.
    pub fn token(&self, range: Range<usize>) -> Option<&'static [u8]> {
        let base = self.0.filter(|_| range.end <= Self::LEN)?;
        let len = range.end.checked_sub(range.start)?;
        let start = base.as_ptr().wrapping_add(range.start);
        // SAFETY: the range lies in the reservation, which is never freed and never written, and
        // nobody reads through the slice: hyper passes it on to a vectored write, and
        // `server::sendfile_io` uses its address alone.
        Some(unsafe { std::slice::from_raw_parts(start, len) })
    }

    /// Where a token begins in the range; `None`: the slice is memory.
    pub fn offset_of(&self, slice: &[u8]) -> Option<usize> {
        let base = self.0?.as_ptr() as usize;
        let offset = (slice.as_ptr() as usize).checked_sub(base)?;
        (offset < Self::LEN).then_some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_told_from_memory_and_lie_where_they_were_asked_for() {
        let token = NO_MEMORY.token(5..9);
        assert_eq!(token.map(<[u8]>::len), Some(4));
        assert_eq!(token.and_then(|it| NO_MEMORY.offset_of(it)), Some(5));
        assert_eq!(NO_MEMORY.offset_of(&[1, 2, 3]), None);
        assert!(NO_MEMORY.token(0..ReservedAddresses::LEN + 1).is_none());
    }
}
