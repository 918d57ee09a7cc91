//! System calls that no safe crate offers in the form needed here.
// getsockopt(TCP_INFO), setsockopt(SO_LINGER), and slices of addresses reserved with mmap.
#![allow(unsafe_code)]

use std::{
    mem::size_of,
    ops::Range,
    os::fd::{AsRawFd, RawFd},
    ptr::NonNull,
    sync::LazyLock,
    time::Duration,
};

use rustix::mm::{MapFlags, ProtFlags};

use tokio::net::TcpStream;

/// The kernel's figures of a TCP connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// Smoothed; known from the handshake on.
    pub round_trip_us: Option<u32>,
    /// Newest sample of the throughput. `None`: too little was sent to measure it.
    pub delivery_kbps: Option<u32>,
}

/// The structure up to `tcpi_delivery_rate`, which `libc` does not define.
type TcpInfo = [u8; 168];
/// Its first bit: the sender, not the connection, limited the throughput.
const APP_LIMITED: usize = 7;
const ROUND_TRIP: usize = 68;
const DELIVERY_RATE: usize = 160;

/// The kernel's smoothed round trip time, known from the handshake on.
pub fn round_trip(stream: &TcpStream) -> Option<Duration> {
    let round_trip = transport(stream.as_raw_fd())?.round_trip_us?;
    Some(Duration::from_micros(u64::from(round_trip)))
}

/// `None`: the socket is no open TCP socket.
pub fn transport(socket: RawFd) -> Option<Transport> {
    let mut info: TcpInfo = [0; size_of::<TcpInfo>()];
    let mut length = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the pointer and length describe `info`, which the kernel fills in part or whole.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0).then(|| read(&info))
}

/// Sets whether a close of the socket, by this process or with its end, resets the connection and
/// drops what was not sent. Best effort.
pub fn reset_on_close(socket: RawFd, on: bool) {
    let linger = libc::linger {
        l_onoff: libc::c_int::from(on),
        l_linger: 0,
    };
    // SAFETY: the pointer and length describe `linger`, which the kernel reads.
    unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        );
    }
}

/// Fields that an older kernel does not write are zero.
fn read(info: &TcpInfo) -> Transport {
    let mut round_trip = [0; 4];
    round_trip.copy_from_slice(&info[ROUND_TRIP..ROUND_TRIP + 4]);
    let mut rate = [0; 8];
    rate.copy_from_slice(&info[DELIVERY_RATE..DELIVERY_RATE + 8]);
    let some = |value: u32| (value > 0).then_some(value);
    let kbps = u64::from_ne_bytes(rate).saturating_mul(8).div_ceil(1_000);
    let is_known = info[APP_LIMITED] & 1 == 0;
    Transport {
        round_trip_us: some(u32::from_ne_bytes(round_trip)),
        delivery_kbps: some(u32::try_from(kbps).unwrap_or(u32::MAX)).filter(|_| is_known),
    }
}

/// Addresses that represent something other than memory. See [`ReservedAddresses`].
pub static NO_MEMORY: LazyLock<ReservedAddresses> = LazyLock::new(ReservedAddresses::reserve);

/// A range of addresses of this process without memory (`PROT_NONE`). Slices of it are tokens: they
/// are compared by address and never read. Reading one is a bug that ends the process with SIGSEGV,
/// under Miri and sanitizers as well.
pub struct ReservedAddresses(Option<NonNull<u8>>);

// SAFETY: it is an address with nothing behind it that could be shared.
unsafe impl Send for ReservedAddresses {}
// SAFETY: as above.
unsafe impl Sync for ReservedAddresses {}

impl ReservedAddresses {
    /// Uses address space, but no memory.
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

    /// The offset at which a token begins in the range; `None`: the slice is ordinary memory.
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
    fn what_a_connection_carries_is_not_known_while_it_has_nothing_to_carry() {
        let mut info: TcpInfo = [0; size_of::<TcpInfo>()];
        assert_eq!(read(&info), Transport::default());
        info[ROUND_TRIP..ROUND_TRIP + 4].copy_from_slice(&12_000_u32.to_ne_bytes());
        info[DELIVERY_RATE..].copy_from_slice(&3_000_001_u64.to_ne_bytes());
        let busy = Transport {
            round_trip_us: Some(12_000),
            delivery_kbps: Some(24_001),
        };
        assert_eq!(read(&info), busy);
        info[APP_LIMITED] = 1;
        assert_eq!(read(&info).delivery_kbps, None);
        assert_eq!(transport(-1), None);
    }

    #[test]
    fn tokens_are_told_from_memory_and_lie_where_they_were_asked_for() {
        let token = NO_MEMORY.token(5..9);
        assert_eq!(token.map(<[u8]>::len), Some(4));
        assert_eq!(token.and_then(|it| NO_MEMORY.offset_of(it)), Some(5));
        assert_eq!(NO_MEMORY.offset_of(&[1, 2, 3]), None);
        assert!(NO_MEMORY.token(0..ReservedAddresses::LEN + 1).is_none());
    }
}
