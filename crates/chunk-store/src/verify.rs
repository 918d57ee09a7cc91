//! Checks chunks against their checksums: before a chunk is first served after a start, block by
//! block as it is read from the disk or sent to a peer, and in the background.

use std::sync::Arc;

use chunkcache_proto::{
    ByteRange, ChunkIndex,
    checksum::{BLOCK_BYTES, ChunkDigest, DigestHasher, block_range, chunk_checksum},
};

use super::{StoreError, disk::Open, entry_file::EntryFile, removal, residency};

/// A block of a chunk, compared with the hash it had when it was stored.
pub struct Block {
    pub range: ByteRange,
    pub hash: u64,
    pub bytes: Vec<u8>,
}

/// The kernel's error for a sector that it cannot read.
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// How far an intact chunk is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// It may be served.
    Verified,
    /// It may be served, and its pages are released if they were not in memory before.
    VerifiedAndCold,
}

/// Reads and checks the chunk; withdraws and reports a corrupt one. False: it is corrupt or not
/// present. Blocking.
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
    match digest(entry, range) {
        Ok(digest) if digest.checksum == entry.table().checksum(chunk) => {
            if trust == Trust::VerifiedAndCold
                && !was_resident
                && let Ok(file) = entry.open_file(Open::Reading)
            {
                residency::let_go(&*file.file, range);
            }
            entry.set_blocks(chunk, digest.blocks);
            Ok(entry.table().mark_verified(chunk))
        }
        read => withdraw(entry, chunk, read.err()).map(|()| false),
    }
}

/// The outcome of reading one block.
enum Read {
    Right(Block),
    /// It is corrupt; its chunk is withdrawn.
    Wrong,
    /// Its hash is unknown: the chunk is arriving.
    Unknown,
}

/// See [`EntryFile::read_block`]. Blocking.
pub(super) fn read_block(entry: &Arc<EntryFile>, offset: u64) -> Result<Option<Block>, StoreError> {
    let Some(_pin) = entry.hold(entry.geometry().chunk_of(offset)) else {
        return Ok(None);
    };
    Ok(match read(entry, offset)? {
        Read::Right(block) => Some(block),
        Read::Wrong | Read::Unknown => None,
    })
}

/// Reads part of a pinned chunk into memory; false: it is corrupt. Blocking.
pub(super) fn read_through(entry: &Arc<EntryFile>, part: ByteRange) -> Result<bool, StoreError> {
    let mut at = part.start;
    while at < part.end {
        match read(entry, at)? {
            Read::Right(block) => at = block.range.end,
            Read::Wrong => return Ok(false),
            Read::Unknown => {
                let file = entry.open_file(Open::Reading)?;
                residency::read_all(&*file.file, ByteRange::new(at, part.end));
                return Ok(true);
            }
        }
    }
    Ok(true)
}

/// Reads a block of a pinned chunk. Compares a withdrawn one as well: corruption may be the reason.
fn read(entry: &Arc<EntryFile>, offset: u64) -> Result<Read, StoreError> {
    let chunk = entry.geometry().chunk_of(offset);
    let state = entry.table().state(chunk);
    if !state.is_present() && !state.is_doomed() {
        return Ok(Read::Unknown);
    }
    if state.is_present() && entry.blocks(chunk).is_none() && !check(entry, chunk, Trust::Verified)?
    {
        return Ok(Read::Wrong);
    }
    let chunk_range = entry.geometry().chunk_range(chunk);
    let range = block_range(chunk_range, offset);
    let nth = (range.start - chunk_range.start) / BLOCK_BYTES;
    let blocks = entry.blocks(chunk);
    let Some(&hash) = blocks.as_deref().and_then(|all| all.get(nth as usize)) else {
        return Ok(Read::Unknown);
    };
    let mut bytes = vec![0; range.len() as usize];
    match entry.read_at(range.start, &mut bytes) {
        Ok(()) if chunk_checksum(range.start, &bytes) == hash => {
            Ok(Read::Right(Block { range, hash, bytes }))
        }
        read => withdraw(entry, chunk, read.err()).map(|()| Read::Wrong),
    }
}

/// Withdraws a chunk whose bytes are wrong or cannot be read. Other errors (no descriptors, no
/// memory) say nothing about the chunk.
fn withdraw(
    entry: &Arc<EntryFile>,
    chunk: ChunkIndex,
    error: Option<StoreError>,
) -> Result<(), StoreError> {
    match error {
        None => {
            tracing::warn!(
                entry = %entry.id(),
                chunk,
                "a chunk's bytes do not match its checksum; it is withdrawn"
            )
        }
        Some(StoreError::Io(error)) if is_loss(&error) => {
            tracing::warn!(
                %error,
                entry = %entry.id(),
                chunk,
                "a chunk can not be read; it is withdrawn"
            );
        }
        Some(error) => return Err(error),
    }
    if !entry.is_present(chunk) {
        return Ok(());
    }
    removal::drop_chunks(entry.shared(), entry, &[chunk]);
    entry.shared().report_lost(entry.id(), vec![chunk]);
    Ok(())
}

fn is_loss(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    error.raw_os_error() == Some(EIO)
        || matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::NotFound)
}

fn digest(entry: &EntryFile, range: ByteRange) -> Result<ChunkDigest, StoreError> {
    let mut hasher = DigestHasher::new(range);
    let mut buffer = vec![0; BLOCK_BYTES.min(range.len()) as usize];
    while hasher.position() < range.end {
        let at = hasher.position();
        let len = buffer.len().min((range.end - at) as usize);
        entry.read_at(at, &mut buffer[..len])?;
        hasher.update(&buffer[..len]);
    }
    Ok(hasher.finish())
}
