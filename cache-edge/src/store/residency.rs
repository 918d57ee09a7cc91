//! Whether pages are in memory, and asking for them: so that sendfile does not block a serving thread.

use std::io::IoSliceMut;

use chunkcache_proto::ByteRange;
use rustix::{
    fs::Advice,
    io::{Errno, ReadWriteFlags},
};

use super::{cachestat::cached_pages, disk::DiskFile};

/// Read at a time to bring a range into memory.
const BRING_IN_BYTES: u64 = 256 << 10;

/// Where the kernel does not count: pages probed in a range. The kernel reads ahead and evicts in larger units than a page, so a few tell.
const PROBES: u64 = 4;

/// Asks the kernel, or reads a byte here and there without waiting.
pub(super) fn is_resident(file: &dyn DiskFile, range: ByteRange) -> bool {
    let Some(fd) = file.fd() else { return true };
    if range.is_empty() {
        return true;
    }
    let last = range.end - 1;
    if let Some(cached) = cached_pages(fd, range) {
        let page = rustix::param::page_size() as u64;
        return cached > last / page - range.start / page;
    }
    let step = (range.len() / PROBES).max(1);
    let offsets = (0..PROBES)
        .map(|i| (range.start + i * step).min(last))
        .chain([last]);
    for offset in offsets {
        let mut byte = [0];
        match rustix::io::preadv2(
            fd,
            &mut [IoSliceMut::new(&mut byte)],
            offset,
            ReadWriteFlags::NOWAIT,
        ) {
            Ok(_) => {}
            // The file system can not tell (some in memory): nothing to wait for, or nothing to be done.
            Err(Errno::OPNOTSUPP) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// Reads the range into memory. Blocking, until it is there or can not be read; whoever sends it then learns why.
pub(super) fn bring_in(file: &dyn DiskFile, range: ByteRange) {
    // All of it at once, then what has arrived.
    advise(file, range, Advice::WillNeed);
    let mut scratch = vec![0; range.len().min(BRING_IN_BYTES) as usize];
    let mut at = range.start;
    while at < range.end {
        let wanted = (range.end - at).min(BRING_IN_BYTES) as usize;
        match file.read_at(&mut scratch[..wanted], at) {
            Ok(0) | Err(_) => return,
            Ok(read) => at += read as u64,
        }
    }
}

/// The pages will not be wanted soon.
pub(super) fn let_go(file: &dyn DiskFile, range: ByteRange) {
    advise(file, range, Advice::DontNeed);
}

fn advise(file: &dyn DiskFile, range: ByteRange, advice: Advice) {
    if let Some(fd) = file.fd() {
        // Advice may be ignored; so may its failure.
        let _ = rustix::fs::fadvise(
            fd,
            range.start,
            std::num::NonZeroU64::new(range.len()),
            advice,
        );
    }
}
