//! Whether pages are in memory, and asking for them: so that sendfile does not block a serving thread.

use std::io::IoSliceMut;

use chunkcache_proto::ByteRange;
use rustix::{
    fs::Advice,
    io::{Errno, ReadWriteFlags},
};

use super::disk::DiskFile;

/// Pages probed in a range. The kernel reads ahead and evicts in larger units than a page, so a few tell.
const PROBES: u64 = 4;

/// Reads a byte here and there without waiting.
pub(super) fn is_resident(file: &dyn DiskFile, range: ByteRange) -> bool {
    let Some(fd) = file.fd() else { return true };
    if range.is_empty() {
        return true;
    }
    let last = range.end - 1;
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

/// Begins to read the range into memory. May block while requests are queued.
pub(super) fn read_ahead(file: &dyn DiskFile, range: ByteRange) {
    advise(file, range, Advice::WillNeed);
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
