//! Counts the pages of a range that are in memory, by one system call: cachestat(2), Linux 6.5.
//!
//! Why: the count is needed before each piece that is sent; for a small range, counting by other
//! means is a large part of the cost of sending.
#![allow(unsafe_code)] // a system call no safe crate offers

use std::{
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use chunkcache_proto::ByteRange;

/// The same on all architectures; the libc crate has no name for it yet.
const SYS_CACHESTAT: libc::c_long = 451;

/// Set when an older kernel or a sandbox refused the call: it is not tried again.
static REFUSED: AtomicBool = AtomicBool::new(false);

#[repr(C)]
struct CachestatRange {
    offset: u64,
    length: u64,
}

#[repr(C)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Pages of the range in memory; `None`: this kernel cannot count them.
pub(super) fn cached_pages(file: BorrowedFd<'_>, range: ByteRange) -> Option<u64> {
    if REFUSED.load(Ordering::Relaxed) {
        return None;
    }
    let asked = CachestatRange {
        offset: range.start,
        length: range.len(),
    };
    let mut answer = MaybeUninit::<Cachestat>::zeroed();
    // SAFETY: the kernel reads `asked` and writes at most the five integers that `answer` has room
    // for.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const asked,
            answer.as_mut_ptr(),
            0_u32,
        )
    };
    if result != 0 {
        let error = std::io::Error::last_os_error().raw_os_error();
        if matches!(error, Some(libc::ENOSYS | libc::EPERM | libc::EACCES)) {
            REFUSED.store(true, Ordering::Relaxed);
        }
        return None;
    }
    // SAFETY: plain integers, for which zeros are valid.
    Some(unsafe { answer.assume_init() }.cached)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{io::Write, os::fd::AsFd};

    use super::*;

    #[test]
    fn what_was_just_written_is_in_memory_and_a_hole_is_not() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 3 * 4096]).unwrap();
        file.set_len(1 << 20).unwrap();
        let Some(cached) = cached_pages(file.as_fd(), ByteRange::new(100, 4097)) else {
            // An older kernel: the caller probes.
            return;
        };
        assert_eq!(cached, 2);
        assert_eq!(
            cached_pages(file.as_fd(), ByteRange::new(512 << 10, 516 << 10)),
            Some(0)
        );
    }
}
