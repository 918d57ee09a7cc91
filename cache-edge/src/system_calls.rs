//! System calls that no safe crate offers as they are needed here.
#![allow(unsafe_code)] // getsockopt(TCP_INFO)

use std::{
    mem::{MaybeUninit, size_of},
    os::fd::AsRawFd,
    time::Duration,
};

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
    // SAFETY: `tcp_info` is plain integers, for which the zeros of what the kernel left out are
    // valid.
    let info = unsafe { info.assume_init() };
    Some(Duration::from_micros(u64::from(info.tcpi_rtt)))
}
