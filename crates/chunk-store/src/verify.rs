//! Checking chunks against their checksums: before one is first served after a start, and at
//! leisure.

use std::sync::Arc;

use chunkcache_proto::{ByteRange, ChunkIndex, checksum::ChunkHasher};

use super::{StoreError, disk::Open, entry_file::EntryFile, removal, residency};

/// Read at a time: fits the second-level cache with the hasher's state.
const READ_BYTES: usize = 256 << 10;
/// What the kernel answers for a sector it can not read.
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// What a good chunk gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// It may be served.
    Verified,
    /// The same; and its pages are let go, if they were not in memory before.
    VerifiedAndCold,
}

/// Reads the chunk; a bad one is withdrawn and reported. False: it is bad, or not present.
/// Blocking.
pub(super) fn check(
    entry: &Arc<EntryFile>,
    chunk: ChunkIndex,
    trust: Trust,
) -> Result<bool, StoreError> {
    let Some(_pin) = entry.hold(chunk) else {
        return Ok(false);
    };
    let range = entry.geometry().chunk_range(chunk);
    let was_resident = trust == Trust::VerifiedAndCold && entry.is_resident(range);
    match checksum(entry, range) {
        Ok(sum) if sum == entry.table().checksum(chunk) => {
            if trust == Trust::VerifiedAndCold
                && !was_resident
                && let Ok(file) = entry.open_file(Open::Reading)
            {
                residency::let_go(&*file.file, range);
            }
            return Ok(entry.table().mark_verified(chunk));
        }
        Ok(_) => {
            tracing::warn!(entry = %entry.id(), chunk, "a chunk's bytes do not match its checksum; it is withdrawn")
        }
        // What can not be read is as good as wrong. Other errors (no descriptors, no memory) say
        // nothing of the chunk.
        Err(StoreError::Io(error)) if is_loss(&error) => {
            tracing::warn!(%error, entry = %entry.id(), chunk, "a chunk can not be read; it is withdrawn");
        }
        Err(error) => return Err(error),
    }
    let removed = removal::drop_chunks(entry.shared(), entry, &[chunk]);
    entry.shared().report_lost(entry.id(), vec![chunk]);
    removed.map(|()| false)
}

fn is_loss(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    error.raw_os_error() == Some(EIO)
        || matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::NotFound)
}

fn checksum(entry: &EntryFile, range: ByteRange) -> Result<u64, StoreError> {
    let mut hasher = ChunkHasher::new(range.start);
    let mut buffer = vec![0; READ_BYTES.min(range.len() as usize)];
    let mut at = range.start;
    while at < range.end {
        let len = buffer.len().min((range.end - at) as usize);
        entry.read_at(at, &mut buffer[..len])?;
        hasher.update(&buffer[..len]);
        at += len as u64;
    }
    Ok(hasher.finish())
}
